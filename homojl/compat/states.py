"""States and functions of them as torchdiffeq's users give them, and as `solve` takes them: with one tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from homojl.algorithms import ErrorNorm, StepObserver
from homojl.errors import ConfigError

Tensor = torch.Tensor
State = Tensor | tuple[Tensor, ...]

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")
HALF = {torch.bfloat16, torch.float16}


class JoinedState:
    """The form of a user's state: a tuple is joined to one flat vector, a tensor is taken as it is.

    A state in half precision is carried in float32, and the user sees states and times in half precision.
    """

    def __init__(self, y0: State) -> None:
        self.shapes: list[torch.Size] | None = None
        parts = (y0,) if isinstance(y0, torch.Tensor) else y0
        if not isinstance(parts, tuple) or not all(isinstance(y, torch.Tensor) for y in parts):
            raise ConfigError(f"y0 must be either a torch.Tensor or a tuple of them, got {type(y0).__name__}")
        if parts is y0:
            self.shapes = [y.shape for y in parts]
        dtypes = {y.dtype for y in parts}
        self._half = dtypes.pop() if len(dtypes) == 1 and dtypes <= HALF else None

    def join(self, state: State) -> Tensor:
        joined = state if isinstance(state, torch.Tensor) else torch.cat([y.reshape(-1) for y in state])
        return joined if self._half is None else joined.float()

    def split(self, joined: Tensor) -> State:
        """The user's state; the joined one may have further dimensions in front, and so have its parts then."""
        joined = self.seen(joined)
        if self.shapes is None:
            return joined
        parts, start = [], 0
        for shape in self.shapes:  # not by split(), whose parts may not be written to
            part = joined.narrow(-1, start, shape.numel())
            parts.append(part.reshape((*joined.shape[:-1], *shape)))
            start += shape.numel()
        return tuple(parts)

    def seen(self, x: Tensor) -> Tensor:
        """A time or a state, converted to the precision of the user's state."""
        return x if self._half is None else x.to(self._half)

    def tolerance(self, name: str, value: Any, like: Tensor) -> float | Tensor:
        """A tolerance for the joined state, from a number, a tensor of y0's shape, or one value for each of a tuple."""
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise ConfigError(f"{name} cannot require gradient")
        if self.shapes is not None and (isinstance(value, tuple | list) or getattr(value, "ndim", 0) > 0):
            if len(value) != len(self.shapes):
                raise ConfigError(
                    f"If using tupled {name} it must have the same length as the tuple y0: got {len(value)} "
                    f"for {len(self.shapes)}"
                )
            values = [torch.as_tensor(v).expand(s.numel()) for v, s in zip(value, self.shapes, strict=True)]
            value = torch.cat([v.to(like.device, like.dtype.to_real()) for v in values])
        if isinstance(value, torch.Tensor) and value.numel() > 1:
            return value.to(like.device, like.dtype.to_real())
        return float(value)

    def norm(self, own: Callable[[State], Tensor] | None) -> ErrorNorm:
        """A user's norm of a state, or torchdiffeq's own: the largest root mean square of the parts of a tuple."""
        if own is not None:
            return ErrorNorm(function=lambda joined: abs(own(self.split(joined))))
        if self.shapes is None:
            return ErrorNorm()
        ends = itertools.accumulate((shape.numel() for shape in self.shapes), initial=0)
        return ErrorNorm(tuple((i, j) for i, j in itertools.pairwise(ends) if j > i))


class JoinedField:
    """A user's `func(t, y)` as a field of joined states."""

    def __init__(self, func: Callable[[Tensor, State], State], form: JoinedState) -> None:
        self._func, self._form = func, form

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        dy = self._form.join(self._func(self._form.seen(t), self._form.split(y)))
        if dy.shape != y.shape:
            dy = dy.expand_as(y)
        return dy if dy.dtype == y.dtype else dy.to(y.dtype)


class Callbacks(StepObserver):
    """The callbacks that a user's func has.

    Attributes:
        given: which, by their names in CALLBACKS.
    """

    def __init__(self, func: object, suffix: str, split: Callable[[Tensor], State]) -> None:
        self._split = split
        named = {name: getattr(func, name + suffix, None) for name in CALLBACKS}
        self.given = {name: callback for name, callback in named.items() if callback is not None}

    def trying(self, t: float, y: Tensor, h: float) -> None:
        self._call("callback_step", t, y, h)

    def accepted(self, t: float, y: Tensor, h: float) -> None:
        self._call("callback_accept_step", t, y, h)

    def rejected(self, t: float, y: Tensor, h: float) -> None:
        self._call("callback_reject_step", t, y, h)

    def _call(self, name: str, t: float, y: Tensor, h: float) -> None:
        callback = self.given.get(name)
        if callback is not None:
            dtype = torch.float32 if y.device.type == "mps" else torch.float64  # of which that device has none
            time, size = torch.tensor([t, math.fabs(h)], dtype=dtype, device=y.device)
            callback(time, self._split(y), size)


class ThroughTime:
    """An event function through which the event's time has gradients; with a plain function it has none."""

    def __init__(self, event_fn: Callable[[Tensor, State], Tensor]) -> None:
        self._event_fn = event_fn

    def __call__(self, t: Tensor, y: State) -> Tensor:
        return self._event_fn(t, y)


@torch.no_grad()
def starts_on_event(condition: Callable[[Tensor, Tensor], Tensor], t0: Tensor, y0: Tensor) -> bool:
    """Whether a value of the condition is zero at the start: torchdiffeq then stops there."""
    return bool((condition(t0.to(y0.device, y0.dtype.to_real()), y0) == 0).any())
