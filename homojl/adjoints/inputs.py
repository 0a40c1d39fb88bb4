"""What a user's function depends on, and derivatives of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from homojl.backends.base import AbstractBackend
from homojl.errors import ConfigError

Tensor = torch.Tensor


class Inputs:
    """A problem's function with its arguments and parameters.

    Attributes:
        inputs: the tensors other than the state that receive gradients: those of `args`, then `params`.
    """

    def __init__(self, f: Callable[..., Tensor], args: tuple[Any, ...], params: Sequence[Tensor] | None) -> None:
        self._f = f
        self._args = list(args)
        self._slots = [i for i, a in enumerate(self._args) if isinstance(a, Tensor) and a.requires_grad]
        self._params = tuple(p for p in params or () if p.requires_grad)
        self.inputs: tuple[Tensor, ...] = (*(self._args[i] for i in self._slots), *self._params)

    def on(self, backend: AbstractBackend, evaluate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What the backend is to call: `evaluate`, or the function itself where it is that backend's own."""
        return native_to(backend, self._f, self._args) or evaluate

    def leaves(self) -> tuple[list[Any], list[Tensor]]:
        """The arguments with detached copies where they receive gradients, and those copies with the params."""
        args = list(self._args)
        for i in self._slots:
            args[i] = args[i].detach().requires_grad_()
        return args, [*(args[i] for i in self._slots), *self._params]


def native_to(backend: AbstractBackend, function: Callable[..., Tensor], args: Sequence[Any]) -> Any:
    """The function bound to its arguments where it is the backend's own, as a `JuliaField` is Julia's; else None."""
    own: Any = function  # what has `native_to` has `bind` too
    return own.bind(tuple(args)) if getattr(own, "native_to", None) == backend.name else None


def rows_of(args: Sequence[Any], rows: Tensor | None, count: int) -> list[Any]:
    """The arguments at some rows of a batch of `count` samples: those of tensors that have as many, the others whole.

    Args:
        args: of the function.
        rows: positions in the batch, (b,); None: all of it.
        count: samples in the batch.
    """
    if rows is None:
        return list(args)
    per_sample = (isinstance(a, Tensor) and a.ndim > 0 and a.shape[0] == count for a in args)
    return [a.index_select(0, rows) if chosen else a for a, chosen in zip(args, per_sample, strict=True)]


def check_dependencies(function: str, value: Tensor, known: Sequence[Tensor], *, instead: str) -> None:
    """Raise a ConfigError if `value` was computed from tensors that require gradients other than those `known`.

    Args:
        function: name of what returned the value, for the message.
        value: what it returned, with its graph.
        known: tensors that receive their gradients; what they were computed from does not matter.
        instead: the adjoint that reaches every tensor, for the message.
    """
    boundary: set[object] = {t.grad_fn for t in known if t.grad_fn is not None}
    identities = {id(t) for t in known}
    missed = [v for v in _graph_leaves(value, boundary) if id(v) not in identities]
    if missed:
        shapes = ", ".join(str(tuple(v.shape)) for v in missed[:4])
        raise ConfigError(
            f"{function} depends on {len(missed)} tensor(s) that require gradients (shape {shapes}) but are neither in "
            "args nor in params, so this adjoint would miss them: pass params=tuple(module.parameters()) or "
            f"args=(x,), or use {instead}"
        )


def check_form(function: str, value: object, name: str, like: Tensor) -> None:
    """Raise a ConfigError unless what a function returned has the form of the tensor `like`, called `name`."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{function} must return a torch.Tensor, got {type(value).__name__}")
    if value.shape != like.shape or value.dtype != like.dtype or value.device != like.device:
        raise ConfigError(
            f"{function} must return what {name} is: shape {tuple(like.shape)}, {like.dtype}, {like.device}; "
            f"got shape {tuple(value.shape)}, {value.dtype}, {value.device}"
        )


def jacobian_vector_product(function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """(d function / dz) v, detached; z's shape and dtype.

    Forward-mode differentiation, or where an operation lacks it reverse mode twice.
    """
    try:
        with torch.no_grad():
            return torch.func.jvp(function, (z.detach(),), (v,))[1]
    except (NotImplementedError, RuntimeError):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            cotangent = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(function(z), z, cotangent, create_graph=True, allow_unused=True)
            if pulled is None or not pulled.requires_grad:
                return torch.zeros_like(z)
            return torch.autograd.grad(pulled, cotangent, v)[0]


def gradients(outputs: list[Tensor], wrt: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """sum_i cotangents[i]^T d outputs[i] / d wrt[j] for every j, zeros where there is no dependence."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(w) for w in wrt]
    grads = torch.autograd.grad([o for o, _ in pairs], wrt, [c for _, c in pairs], allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wrt, strict=True)]


def _graph_leaves(tensor: Tensor, boundary: set[object]) -> Iterator[Tensor]:
    """The leaves that the tensor was computed from, not looking behind the nodes of `boundary`."""
    if tensor.grad_fn is None:
        if tensor.requires_grad:
            yield tensor
        return
    seen = set(boundary)
    stack: list[torch.autograd.graph.Node | None] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)
