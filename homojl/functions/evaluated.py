"""Calling a user's function: the contract of one evaluation, whatever the function does with what it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from homojl.errors import ConfigError
from homojl.functions.captured import Captured
from homojl.functions.states import Arguments, Form
from homojl.solution import Stats

Tensor = torch.Tensor


_NEEDS_GRAD = "does not require grad"  # what autograd says where a function differentiates by a state that has no graph


class WrittenOver(ConfigError):
    """A function has written into what it returned before; `solve` then starts again with copies."""


class Evaluated:
    """A problem's function with everything that it depends on.

    Args:
        f, args, params: of the problem; no params: those of f where it is a module.
        like: the state as solvers see it, whose form every result has.
        stats: what counts the work of gradients.
        form: of the user's state where that is another.
        precision: evaluate under an autocast to that dtype; None: as it is.
        copies: whether f gets, and gives, copies.
        closed: whether no other tensors than those of args and params receive gradients.
        name, state: of the function and of the state, for messages.

    Attributes:
        calls: evaluations so far.
        counting: whether the products of gradients through its values are counted.
        inputs: the tensors, other than the state, that receive gradients; known after `probe`.
    """

    calls = 0
    counting = False
    inputs: tuple[Tensor, ...] = ()
    _plain = _simple = False  # whether an evaluation takes the short way now; whether it may
    _differentiates = _checked = False
    _rows: Tensor | None = None
    _captured: Captured | None = None
    _last: Tensor | None = None
    _last_version = 0
    _given: Tensor | None = None  # the state that f was given as a copy
    _known: tuple[tuple[Tensor, ...], Tensor] | None = None
    _ends: set[int] | None = None  # of the graph of the next value, where that is to be looked at

    def __init__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        params: Sequence[Tensor] | None,
        *,
        like: Tensor,
        stats: Stats,
        form: Form | None = None,
        precision: torch.dtype | None = None,
        copies: bool = False,
        closed: bool = False,
        name: str = "f",
        state: str = "y0",
    ) -> None:
        self.f = f if precision is None else Autocast(f, precision, like.device.type)
        self.stats, self._like, self._form, self._precision = stats, like, form, precision
        self._names, self._closed, self._copies = (name, state), closed, copies
        self._params = f if params is None else params
        self.arguments = Arguments(args)
        self.args = self._row_args = self.arguments.filled
        self._marks = self.arguments.marks
        # Graphs hold this, and must hold neither f nor what it holds.
        self._count_product = functools.partial(_count_product, stats)

    @property
    def params(self) -> list[Tensor]:
        """Those that require gradients."""
        given: Any = self._params
        if callable(given):
            given = given.parameters() if isinstance(given, torch.nn.Module) else ()
        return [p for p in given if p.requires_grad]

    # Evaluation

    def __call__(self, *inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The function where the state is the last of the inputs, of that state's form.

        Args:
            inputs: time and state, or the state.
            rows: of the batch that they belong to, each with a time of its own, (b, 1, ..., 1); None: all of it.
        """
        self.calls += 1
        y, args = inputs[-1], self.args if rows is None else self.args_at(rows)
        if self._plain:
            version = y._version
            try:
                value: Tensor = self.f(*inputs, *args)
            except RuntimeError as error:
                if y.requires_grad or _NEEDS_GRAD not in str(error):
                    raise
                self._differentiates, self._plain, self._simple = True, False, False
                value = self._carefully(inputs, args)
            if type(value) is not Tensor or value.shape != y.shape or value.dtype != y.dtype:
                self._check_form(value, y)
            last = self._last
            if y._version != version or (last is not None and last._version != self._last_version):
                raise WrittenOver(f"{self._names[0]} wrote into its state, or into the tensor that it returned before")
            self._last, self._last_version = value, value._version
        elif self._known is not None:
            value = self._of_probe(inputs, args)
        elif self._checked:
            value = self._carefully(inputs, args)
        else:
            value = self._first(inputs, args)
        if self.counting and value.requires_grad:
            if self._ends is not None and torch.is_grad_enabled():
                self.look_behind(value, y)
            value.register_hook(self._count_product)
        return value

    def args_at(self, rows: Tensor | None) -> tuple[Any, ...]:
        """The arguments at some rows of the batch, (b,); None: of all of it."""
        if rows is None:
            return self.args
        if rows is not self._rows:
            self._rows, self._row_args = rows, self.arguments.at(rows, self._marks)
        return self._row_args

    def look_behind(self, value: Tensor, y: Tensor) -> None:
        """See `Dependent`."""

    def _of_probe(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The first evaluation after `probe`, whose value there is used where the state is the same."""
        assert self._known is not None
        at, value = self._known
        self._known, self._plain = None, self._simple
        if _same_state(at, inputs):
            self._note(value)
            return value
        self.calls += 1  # the other one was for nothing
        return self._carefully(inputs, args)

    def forget(self) -> None:
        """Let the next evaluation be a new one."""
        if self._known is not None:
            self._known, self._plain = None, self._simple
            self.calls += 1

    def _remember(self, inputs: tuple[Tensor, ...], value: Tensor) -> None:
        """Have the next evaluation, where it is at these inputs, return this value; it is counted there."""
        self._known = (inputs, value.detach())
        self.calls -= 1
        self._plain, self._last = False, None

    @property
    def opens(self) -> bool:
        """Whether `f(t, y, *args)` is all there is to an evaluation, so that it may be compiled."""
        return self._form is None and not self._copies and not self._differentiates

    def _first(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The first evaluation, on a copy of the state: finds out what the function does with what it is given."""
        *time, y = inputs
        untracked = torch.is_inference_mode_enabled() or y.is_inference()
        given = y.clone()
        before = given.clone() if untracked else given
        watched = [a for a in (*time, *self.arguments.tensors) if not a.is_inference()]
        versions = [a._version for a in watched]
        version, required = 0 if untracked else given._version, given.requires_grad
        parts: list[Tensor] = []
        # What `parametrize.cached` computes now and keeps must have a graph, though this evaluation needs none.
        recorded = torch.is_grad_enabled() or bool(parametrize._cache_enabled)
        try:
            with torch.set_grad_enabled(recorded):
                value = self._called((*time, given), args, parts)
        except RuntimeError as error:
            if required or _NEEDS_GRAD not in str(error):
                raise
            self._differentiates = True
            given = before = y.detach().clone()
            version = given._version
            value = self._carefully((*time, given), args)
        self._given = given
        if given.requires_grad and not required:
            self._differentiates = True
        if (untracked and not torch.equal(given, before)) or (not untracked and given._version != version):
            self._copies = True
        if self._form is not None:  # whose parts a function may write into, or require gradients of, one by one
            asked = not required and any(x.requires_grad for x in parts)
            if asked or (self._copies and torch.is_grad_enabled()):
                self._differentiates = self._differentiates or (asked and not self._copies)
                value = self._carefully(inputs, args)
        if any(a._version != v for a, v in zip(watched, versions, strict=True)):
            raise ConfigError(f"{self._names[0]} writes into its time or its arguments; give it copies to write into")
        if type(value) is not Tensor or value.shape != y.shape or value.dtype != y.dtype or value.device != y.device:
            self._check_form(value, y)
        if not torch.is_grad_enabled() and value.requires_grad:
            value = value.detach()
        self._checked = True
        special = self._copies or self._differentiates or self._form is not None
        self._plain = self._simple = not (special or untracked or value.is_inference())
        self._note(value)
        return value.clone() if self._copies else value

    def _note(self, value: Tensor) -> None:
        """Remember the last value, to see whether it is written to."""
        self._last = None if self._copies else value
        self._last_version = 0 if value.is_inference() else value._version

    def _carefully(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        y, value = inputs[-1], self._apply(inputs, args)
        if not torch.is_grad_enabled() and value.requires_grad:
            value = value.detach()
        if value.shape != y.shape or value.dtype != y.dtype:
            self._check_form(value, y)
        last = self._last
        if last is not None:
            # Tensors of inference mode count no changes.
            changed = _same_memory(value, last) if last.is_inference() else last._version != self._last_version
            if changed and value is not last:
                raise WrittenOver(f"{self._names[0]} wrote into the tensor that it returned before")
        self._note(value)
        return value.clone() if self._copies else value

    def _apply(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The value alone, from a state that requires a gradient where the function differentiates by it."""
        *time, y = inputs
        if not self._differentiates:
            try:
                return self._called((*time, y.clone() if self._copies else y), args)
            except RuntimeError as error:
                if y.requires_grad or _NEEDS_GRAD not in str(error):
                    raise
                self._differentiates = True
        if not y.requires_grad:
            y = self._given = y.detach().requires_grad_()
        with torch.enable_grad():
            return self._called((*time, y.clone() if self._copies else y), args)

    def _called(self, inputs: tuple[Tensor, ...], args: Sequence[Any], parts: list[Tensor] | None = None) -> Tensor:
        """One call of the user's function; `parts` receives the tensors that it was given as the state."""
        if self._form is not None:
            *time, y = inputs
            state = self._form.split(y)
            if self._copies:  # each its own, so that writing into one leaves what was recorded of another valid
                state = pytree.tree_map(torch.clone, state)
            if parts is not None:
                parts += pytree.tree_leaves(state)
            inputs = (*time, state)
        value = self.f(*inputs, *args)
        return value if self._form is None else self._form.join(value, self._names[0])

    @torch.no_grad()
    def _tried(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The value alone, of an evaluation that no solve sees."""
        *time, y = inputs
        return self._apply((*time, y.detach().clone()), args).detach()

    def _check_form(self, value: object, like: Tensor) -> None:
        rows = None if like.shape == self._like.shape else len(self._like)
        check_form(self._names[0], value, self._names[1], like, rows=rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the state."""
        return self._like.dtype

    def check(self, state: object, name: str) -> None:
        """Raise a ConfigError unless what a function of that name returned has the state's form."""
        check_form(name, state, self._names[1], self._like)

    def finish(self) -> None:
        """Let go of the last value."""
        self._last = self._known = self._given = None

    def _copy(self) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def _for_products(self) -> Any:
        """The same function where PyTorch can record it: tensors made in inference mode, which can be in no graph, are
        copied."""
        if not torch.is_inference_mode_enabled():
            return self
        captured = Captured(self.f)
        if not any(x.is_inference() for x in captured.tensors):
            return self
        other = self._copy()
        with torch.inference_mode(False):
            other.f = captured.rebuilt([x.clone() if x.is_inference() else x for x in captured.tensors])
        return other

    def versions(self) -> tuple[int, ...]:
        """How often each of the tensors that the function depends on has been written to."""
        tensors = (*self.arguments.tensors, *Captured(self.f).tensors, *self.params)
        return tuple(x._version for x in tensors if not x.is_inference())


class Autocast:
    """A function under `torch.autocast`, what it returns in the lower precision cast back to float32.

    Args:
        function: of tensors, to a tensor or several.
        dtype: bfloat16 or float16.
        device_type: "cpu", "cuda" ...
    """

    def __init__(self, function: Callable[..., Any], dtype: torch.dtype, device_type: str) -> None:
        # Called as in a bound method, so that what was compiled for a function is found again under it.
        self.__func__ = function
        self._dtype, self._device_type = dtype, device_type

    def __call__(self, *inputs: Any) -> Any:
        # Autocast's cache would give weights that were cast without a graph to an evaluation that needs one.
        with torch.autocast(self._device_type, self._dtype, cache_enabled=False):
            value = self.__func__(*inputs)
        if isinstance(value, Tensor):
            return value.float() if value.dtype == self._dtype else value
        return pytree.tree_map_only(Tensor, lambda x: x.float() if x.dtype == self._dtype else x, value)


def _same_state(at: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool:
    """Whether a solver begins where f was evaluated: with that very state, or with a copy in memory of its own."""
    if _same_memory(at[-1], inputs[-1]):
        return at[-1].shape == inputs[-1].shape
    if inputs[-1].device.type != "cpu":  # which to compare would wait for
        return False
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(at, inputs, strict=True))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return a.data_ptr() == b.data_ptr()
    except RuntimeError:  # tensors that torch.func wraps have none
        return False


def _count_product(stats: Stats, _: Tensor) -> None:
    stats.n_vjp += 1


def check_form(function: str, value: object, name: str, like: Tensor, *, rows: int | None = None) -> None:
    """Raise a ConfigError unless what a function returned has the form of the tensor `like`, called `name`."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{function} must return a torch.Tensor, got {type(value).__name__}")
    if value.shape != like.shape or value.dtype != like.dtype or value.device != like.device:
        some = "" if rows is None else f" for {len(like)} of {rows} samples"
        raise ConfigError(
            f"{function} must return what {name} is: shape {tuple(like.shape)}{some}, {like.dtype}, {like.device}; "
            f"got shape {tuple(value.shape)}, {value.dtype}, {value.device}"
        )
