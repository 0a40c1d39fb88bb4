"""What the user gives beside a function, as solvers work on it: the state as one tensor, the arguments as leaves."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.errors import ConfigError
from homojl.marks import AbstractMark

Tensor = torch.Tensor
FLOATS = (torch.float32, torch.float64)


class Form:
    """How a state is joined to one tensor and split again.

    A single tensor is taken as it is. Tuples, lists and dicts of tensors are laid side by side: rows of (B, n) where
    all of them have the same first dimension, else one vector (n,).

    Args:
        state: the user's.
        name: of it, for messages.
        real: whether complex numbers become pairs of real ones, in rows of (B, 2 n).
        batched: whether the first dimension of every tensor counts samples.

    Attributes:
        plain: whether joining and splitting change nothing.
        shapes: of the tensors.

    Raises:
        ConfigError: for anything but floating-point tensors of one dtype and device.
    """

    shapes: list[torch.Size]

    def __init__(self, state: Any, name: str, *, real: bool = False, batched: bool = False) -> None:
        one = isinstance(state, Tensor)
        usual = one and state.dtype in FLOATS and state.layout == torch.strided
        if usual and not (batched and state.ndim == 0):
            self.plain, self.shapes = True, [state.shape]
            return
        leaves = [state] if one else pytree.tree_leaves(state)
        _check_leaves(leaves, name, state, batched=batched)
        self._complex = real and leaves[0].is_complex()
        self.plain = one and not self._complex
        self.shapes = [leaf.shape for leaf in leaves]
        if self.plain:
            return
        self._spec = pytree.tree_structure(state)
        first = {shape[:1] for shape in self.shapes}
        self._rows = batched or (len(first) == 1 and first != {torch.Size()})
        counts = [leaf.numel() // max(len(leaf), 1) if self._rows else leaf.numel() for leaf in leaves]
        if self._rows and any(len(leaf) == 0 for leaf in leaves):
            counts = [shape[1:].numel() for shape in self.shapes]
        ends = list(itertools.accumulate((n * (2 if self._complex else 1) for n in counts), initial=0))
        self._parts = list(itertools.pairwise(ends))

    def join(self, state: Any, name: str = "f") -> Tensor:
        """The state as one tensor.

        Raises:
            ConfigError: if it is not of the structure and the shapes of the first one.
        """
        if self.plain:
            if not isinstance(state, Tensor):
                raise ConfigError(f"{name} must return a torch.Tensor, got {type(state).__name__}")
            return state
        leaves, spec = pytree.tree_flatten(state)
        shapes: list[Any] = [getattr(leaf, "shape", None) for leaf in leaves]
        rows_agree = (
            self._rows and len(leaves) == len(self.shapes) and len({s[:1] for s in shapes if s is not None}) == 1
        )
        wanted = self.shapes if not rows_agree else [torch.Size((*shapes[0][:1], *s[1:])) for s in self.shapes]
        if spec != self._spec or shapes != wanted:
            raise ConfigError(
                f"{name} must return what the state is: {_described(self._spec, wanted)}; "
                f"got {_described(spec, shapes)}"
            )
        parts = []
        for leaf in leaves:
            if self._complex:
                leaf = leaf.to(leaf.dtype.to_complex())
                leaf = torch.stack([leaf.real, leaf.imag], dim=-1)
            parts.append(leaf.reshape(len(leaf), -1) if self._rows else leaf.reshape(-1))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1 if self._rows else 0)

    def split(self, joined: Tensor) -> Any:
        """The state of a joined tensor, which may hold fewer rows and have further dimensions in front."""
        if self.plain:
            return joined
        lead = joined.shape[: joined.ndim - (2 if self._rows else 1)]
        parts = []
        for shape, (start, stop) in zip(self.shapes, self._parts, strict=True):
            part = joined[..., start:stop]
            whole = (*lead, *((joined.shape[-2], *shape[1:]) if self._rows else shape))
            if self._complex:  # no view, which torch.func's transforms do not always allow
                pairs = part.reshape(*whole, 2)
                part = torch.complex(pairs[..., 0], pairs[..., 1])
            parts.append(part.reshape(whole))
        return pytree.tree_unflatten(parts, self._spec)


def _check_leaves(leaves: Sequence[Any], name: str, state: Any, *, batched: bool) -> None:
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        wrong = next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)), type(state).__name__)
        raise ConfigError(f"{name} must be a torch.Tensor, or a tuple, list or dict of them, got {wrong}")
    if any(leaf.layout != torch.strided for leaf in leaves):
        raise ConfigError(f"{name} must be dense, got a sparse tensor; convert it with {name}.to_dense()")
    if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
        kinds = ", ".join(sorted({f"{leaf.dtype} on {leaf.device}" for leaf in leaves}))
        raise ConfigError(f"the tensors of {name} must have one dtype and device, got {kinds}; convert them with .to()")
    dtype = leaves[0].dtype
    if dtype.to_real() not in FLOATS if dtype.is_floating_point or dtype.is_complex else True:
        remedy = f"{name}.to(torch.complex64)" if dtype.is_complex else f"{name}.float()"
        raise ConfigError(
            f"{name} must be float32 or float64, or complex of these, got {dtype}; convert it with {remedy}"
        )
    if batched and any(leaf.ndim == 0 for leaf in leaves):
        raise ConfigError(f"{name} needs a first dimension that counts samples; write {name}[None] for one sample")
    if batched and len({len(leaf) for leaf in leaves}) > 1:
        raise ConfigError(f"the tensors of {name} must have the same first dimension, which counts samples")


def _described(spec: Any, shapes: Sequence[Any]) -> str:
    if spec.is_leaf():
        return "a tensor of shape " + str(tuple(shapes[0])) if shapes and shapes[0] is not None else "no tensor"
    return f"{spec.type.__name__} of shapes {[None if s is None else tuple(s) for s in shapes]}"


class Arguments:
    """`args` of a problem, nested as they may be, as a list of leaves.

    Args:
        args: the problem's.

    Attributes:
        leaves: tensors and others, without their marks.
        marks: of each leaf: True: a row for each sample, False: shared, None: not said.
        filled: as the function receives them.
        tensors: those among the leaves.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        leaves, self._spec = list(args), None
        if not all(isinstance(a, Tensor | AbstractMark) for a in args):
            leaves, self._spec = pytree.tree_flatten(args, is_leaf=lambda x: isinstance(x, AbstractMark))
        self.marks: list[bool | None] = []
        self._places: list[int] = []
        for i, a in enumerate(leaves):
            mark, a = (a.per_sample, a.value) if isinstance(a, AbstractMark) else (None, a)
            if isinstance(a, Tensor):
                self._places.append(i)
                if a.is_inference():
                    with torch.inference_mode(False):  # it can be in no graph, which products need
                        a = a.clone()
            self.marks.append(mark)
            leaves[i] = a
        self._hold(leaves)

    def _hold(self, leaves: list[Any]) -> None:
        self.leaves, self.filled = leaves, self.fill(leaves)
        self.tensors = [leaves[i] for i in self._places]

    def fill(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Those leaves as the function receives them."""
        return tuple(leaves) if self._spec is None else tuple(pytree.tree_unflatten(leaves, self._spec))

    def at(self, rows: Tensor, marks: Sequence[bool | None]) -> tuple[Any, ...]:
        """The arguments at some rows of the batch, (b,), where those that are marked have a row for each sample."""
        return self.fill([a.index_select(0, rows) if mark else a for a, mark in zip(self.leaves, marks, strict=True)])

    def replaced(self, tensors: Sequence[Tensor | None]) -> Arguments:
        """The same with others, the first of `tensors`, in the places of its own."""
        if not self._places:
            return self
        other, leaves = copy.copy(self), self.leaves.copy()
        for i, x in zip(self._places, tensors, strict=False):
            leaves[i] = x
        other._hold(leaves)
        return other

    def of_length(self, count: int) -> list[bool]:
        """Which leaves are tensors whose first dimension has that length."""
        return [i in self._places and a.ndim > 0 and len(a) == count for i, a in enumerate(self.leaves)]
