"""What to solve: small frozen objects that say nothing of how, or where, or how to differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from homojl.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Event:
    """Something that ends a solve: a condition that changes its sign.

    It is looked at after each accepted step, so that two changes within one step go unseen; tighter tolerances take
    shorter steps. A condition that is zero at the start is no event; one that reaches zero is.

    Args:
        condition: `condition(t, y, *args)` with the arguments of the field; a tensor of one value or several, of
            which the first to change its sign counts.
        direction: 1: only where it rises through zero, -1: only where it falls, along the way that the solve takes;
            0: either.
    """

    condition: Callable[..., torch.Tensor]
    direction: int = 0

    def __post_init__(self) -> None:
        _check_function("condition", self.condition, "condition(t, y, *args)")
        if self.direction not in (-1, 0, 1):
            raise ConfigError(f"direction must be -1, 0 or 1, got {self.direction!r}")


@dataclass(frozen=True, eq=False)
class ODEProblem:
    """The initial value problem dy/dt = f(t, y, *args), y(ts[0]) = y0.

    Args:
        f: vector field `f(t, y, *args) -> dy/dt`; `t` is a 0-d tensor of y0's real dtype, the result has y0's
            shape and dtype. It must be deterministic: adjoints evaluate it again.
        y0: initial state, any shape, float32 or float64, with the PyTorch backend complex64 or complex128 too, any
            strides (the memory format is kept).
        ts: times to save the state at, at least two, strictly increasing or strictly decreasing; the first is
            the initial time. Numbers or a 1-D tensor, which receives a gradient where it requires one; dimension of
            time as in `f`. Kept as numbers.
        args: further arguments of `f`: a condition, a dropout mask. Tensors in it receive gradients.
        params: tensors inside `f` that receive gradients. The default, None, takes `f.parameters()` where `f` is
            a `torch.nn.Module`, else nothing. `DirectAdjoint` does not need it.
        event: where to end before the last of `ts`. Its time is then the last of the solution's, and its status
            `Status.EVENT`.
        discontinuities: times at which `f` jumps. Adaptive steps end there and start anew.

    Raises:
        ConfigError: if anything is of the wrong type, shape, dtype or order.
    """

    f: Callable[..., torch.Tensor]
    y0: torch.Tensor
    ts: tuple[float, ...]
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None
    event: Event | None = None
    discontinuities: tuple[float, ...] = ()
    times: torch.Tensor | None = field(init=False, repr=False, default=None)  # ts, where it requires a gradient

    if TYPE_CHECKING:  # what may be given; the attributes say what is kept of it

        def __init__(
            self,
            f: Callable[..., torch.Tensor],
            y0: torch.Tensor,
            ts: Sequence[float] | torch.Tensor,
            args: tuple[Any, ...] = (),
            params: Sequence[torch.Tensor] | None = None,
            event: Event | None = None,
            discontinuities: Sequence[float] | torch.Tensor = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        _check_function("f", self.f, "f(t, y, *args)")
        _check_start("y0", self.y0, or_complex=True)
        _check_args(self.args)
        if getattr(self.ts, "requires_grad", False):
            object.__setattr__(self, "times", self.ts)
        object.__setattr__(self, "ts", _checked_times(self.ts))
        if not isinstance(self.event, Event | None):
            raise ConfigError(f"event must be an Event(condition), got {self.event!r}")
        object.__setattr__(self, "discontinuities", _finite_times("discontinuities", self.discontinuities))
        object.__setattr__(self, "params", _params(self.f, self.params))


@dataclass(frozen=True, eq=False)
class FixedPointProblem:
    """The equilibrium z = f(z, *args) of every sample of a batch.

    Args:
        f: map `f(z, *args)` to a tensor of z's shape and dtype. It must be deterministic, and no sample may depend on
            another: rows of z (its first dimension) and of those args that have as many are taken out and put back
            as samples converge.
        z0: initial guess (B, ...), float32 or float64, any strides (the memory format is kept).
        args: further arguments of `f`; a tensor with B rows belongs to the samples. Tensors in it receive gradients.
        params: tensors inside `f` that receive gradients. The default, None, takes `f.parameters()` where `f` is
            a `torch.nn.Module`, else nothing.

    Raises:
        ConfigError: if anything is of the wrong type, shape or dtype.
    """

    f: Callable[..., torch.Tensor]
    z0: torch.Tensor
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        _check_function("f", self.f, "f(z, *args)")
        _check_start("z0", self.z0)
        if self.z0.ndim == 0:
            raise ConfigError("z0 needs a first dimension that counts samples; write z0[None] for one sample")
        _check_args(self.args)
        object.__setattr__(self, "params", _params(self.f, self.params))


@dataclass(frozen=True, eq=False)
class HomotopyProblem:
    """The zero path of H(z, lambda) from (z0, 0), where it is known, to lambda = 1, where r(z) = 0.

    Args:
        r: residual `r(z, *args)`, a tensor of z's shape and dtype; for an equilibrium of f, z - f(z).
        z0: where the path starts, any shape, float32 or float64; the whole of it is one system.
        kind: "fixed-point": H = lambda r(z) + (1 - lambda)(z - z0); "newton": H = r(z) - (1 - lambda) r(z0).
        args: further arguments of `r`. Tensors in it receive gradients.
        params: tensors inside `r` that receive gradients. The default, None, takes `r.parameters()` where `r` is
            a `torch.nn.Module`, else nothing.

    Raises:
        ConfigError: if anything is of the wrong type, shape or dtype.

    References: Ding et al. (2023), arXiv 2310.09583, (1), (21), (23).
    """

    r: Callable[..., torch.Tensor]
    z0: torch.Tensor
    kind: str = "fixed-point"
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        _check_function("r", self.r, "r(z, *args)")
        _check_start("z0", self.z0)
        if self.kind not in ("fixed-point", "newton"):
            raise ConfigError(f"kind must be 'fixed-point' or 'newton', got {self.kind!r}")
        _check_args(self.args)
        object.__setattr__(self, "params", _params(self.r, self.params))


def _check_function(name: str, function: object, form: str) -> None:
    if not callable(function):
        raise ConfigError(f"{name} must be callable as {form}, got {type(function).__name__}")


def _check_start(name: str, start: object, *, or_complex: bool = False) -> None:
    import torch

    if not isinstance(start, torch.Tensor):
        raise ConfigError(f"{name} must be a torch.Tensor, got {type(start).__name__}")
    if (start.dtype.to_real() if or_complex else start.dtype) not in (torch.float32, torch.float64):
        raise ConfigError(f"{name} must be float32 or float64, got {start.dtype}; convert it with {name}.float()")
    if start.numel() == 0:
        raise ConfigError(f"{name} is empty: its shape is {tuple(start.shape)}")


def _check_args(args: object) -> None:
    if not isinstance(args, tuple):
        raise ConfigError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for one argument")


def _params(function: object, params: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
    import torch

    if params is not None:
        return tuple(params)
    return tuple(function.parameters()) if isinstance(function, torch.nn.Module) else ()


def _finite_times(name: str, ts: Sequence[float] | torch.Tensor) -> tuple[float, ...]:
    try:
        times = tuple(map(float, ts.tolist() if hasattr(ts, "tolist") else ts))
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a sequence of numbers or a 1-D tensor, got {ts!r}") from None
    if not all(map(math.isfinite, times)):
        raise ConfigError(f"{name} has a time that is not finite")
    return times


def _checked_times(ts: Sequence[float] | torch.Tensor) -> tuple[float, ...]:
    times = _finite_times("ts", ts)
    if len(times) < 2:
        raise ConfigError(f"ts needs the initial time and at least one more, got {len(times)} time(s)")
    ahead = sorted(set(times), reverse=times[-1] < times[0])
    if times != tuple(ahead):
        raise ConfigError("ts must be strictly increasing or strictly decreasing")
    return times
