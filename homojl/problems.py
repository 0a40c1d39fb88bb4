"""What to solve: small frozen objects that say nothing of how, or where, or how to differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from homojl.errors import ConfigError
from homojl.marks import AbstractMark

if TYPE_CHECKING:
    import torch

    from homojl.functions.states import Form


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happens during a solve: a condition that changes its sign.

    It is looked at after each accepted step, so that two changes within one step go unseen; tighter tolerances take
    shorter steps. A condition that is zero at the start is no event; one that reaches zero is, and so is one that is
    no longer a number at the end of a step.

    Args:
        condition: `condition(t, y, *args)` with the arguments of the field; a tensor of one value or several, of
            which the first to change its sign counts. Those that change together, to rounding, are one event: it is
            said of the first in their order, and `then` is called once. With `batch="per-sample"` it has a row for each
            sample.
        direction: 1: only where it rises through zero, -1: only where it falls, along the way that the solve takes;
            0: either.
        terminal: whether the solve ends there; else it goes on, and the solution's `events` has the time and state.
        then: `then(t, y, *args) -> y`: the state that the solve goes on from, as after an impact; it is not terminal.
    """

    condition: Callable[..., torch.Tensor]
    direction: int = 0
    terminal: bool = True
    then: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        _check_function("condition", self.condition, "condition(t, y, *args)")
        if self.direction not in (-1, 0, 1):
            raise ConfigError(f"direction must be -1, 0 or 1, got {self.direction!r}")
        if self.then is not None:
            _check_function("then", self.then, "then(t, y, *args)")
            object.__setattr__(self, "terminal", False)


class AbstractProblem:
    """What the three problems have in common, as `solve` reads it.

    Attributes:
        function: what is evaluated.
        initial: state, as the user gave it.
        form: of the state.
        closed: whether args and params alone receive gradients.
        asks_for: what its solution is.
    """

    asks_for: ClassVar[str]
    function: Callable[..., Any]
    initial: Any
    form: Form
    closed = False
    args: tuple[Any, ...]
    params: tuple[torch.Tensor, ...] | None

    def _set_up(self, function: str, call: str, state: str, *, samples: bool = True, **how: bool) -> None:
        """Check what every problem has: its function, state, which may have samples, args and params."""
        from homojl.functions.states import FLOATS, Form

        given, initial = self.__dict__[function], self.__dict__[state]
        _check_function(function, given, call)
        form = Form(initial, state, **how)
        _check_args(self.args, form.shapes if samples else ())
        if getattr(given, "native_to", None) is not None and getattr(initial, "dtype", None) not in FLOATS:
            got = getattr(initial, "dtype", f"a {type(initial).__name__}")
            raise ConfigError(
                f"the state of a {type(given).__name__} must be one tensor of float32 or float64, got {got}"
            )
        params = None if self.params is None else tuple(self.params)
        # The dataclasses are frozen for those who use them.
        self.__dict__.update(function=given, initial=initial, form=form, params=params)

    @property
    def native(self) -> str:
        """The kind of a function that is held in another language; empty: it is PyTorch's."""
        return "" if getattr(self.function, "native_to", None) is None else type(self.function).__name__


@dataclass(frozen=True, eq=False)
class ODEProblem(AbstractProblem):
    """The initial value problem dy/dt = f(t, y, *args), y(ts[0]) = y0.

    Args:
        f: vector field `f(t, y, *args) -> dy/dt`; `t` is a 0-d tensor of y0's real dtype, the result has y0's
            shape and dtype. It must be deterministic: adjoints evaluate it again.
        y0: initial state, any shape, float32 or float64, with the PyTorch backend complex64 or complex128 too, any
            strides (the memory format is kept); or a tuple, list or dict of such tensors, nested as you like, which
            `f`, events and the solution then have too.
        ts: times to save the state at, at least two, strictly increasing or strictly decreasing; the first is
            the initial time. Numbers or a 1-D tensor, which receives a gradient where it requires one; dimension of
            time as in `f`. Kept as numbers.
        args: further arguments of `f`: a condition, a dropout mask. Tensors in it receive gradients. Where samples have
            steps of their own, `PerSample` and `Shared` say which have a row for each.
        params: tensors inside `f` that receive gradients, beside those that are found in it: in modules, closures,
            bound methods and callable objects. `DirectAdjoint` does not need it.
        event: what ends the solve before the last of `ts`, or happens on the way. The time of a terminal one is then
            the last of the solution's, and its status `Status.EVENT`.
        discontinuities: times at which `f` jumps. Adaptive steps end there and start anew. Those that require a
            gradient receive it.

    Raises:
        ConfigError: if anything is of the wrong type, shape, dtype or order.
    """

    asks_for: ClassVar[str] = "a course"

    f: Callable[..., Any]
    y0: Any
    ts: tuple[float, ...]
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None
    event: Event | None = None
    discontinuities: tuple[float, ...] = ()
    times: tuple[float | torch.Tensor, ...] = field(init=False, repr=False, default=())  # ts, where one has a gradient
    jumps: tuple[torch.Tensor, ...] = field(init=False, repr=False, default=())  # those that require a gradient
    form: Form = field(init=False, repr=False)  # of the state
    closed: bool = field(init=False, repr=False, default=False)  # whether args and params alone receive gradients

    if TYPE_CHECKING:  # what may be given; the attributes say what is kept of it

        def __init__(
            self,
            f: Callable[..., Any],
            y0: Any,
            ts: Sequence[float] | torch.Tensor,
            args: tuple[Any, ...] = (),
            params: Sequence[torch.Tensor] | None = None,
            event: Event | None = None,
            discontinuities: Sequence[float | torch.Tensor] | torch.Tensor = (),
        ) -> None: ...

    def __post_init__(self) -> None:
        self._set_up("f", "f(t, y, *args)", "y0")
        ts, times = _times("ts", self.ts)
        if len(ts) < 2:
            raise ConfigError(f"ts needs the initial time and at least one more, got {len(ts)} time(s)")
        if ts != tuple(sorted(set(ts), reverse=ts[-1] < ts[0])):
            raise ConfigError("ts must be strictly increasing or strictly decreasing")
        if self.event is not None and not isinstance(self.event, Event):
            raise ConfigError(f"event must be an Event(condition), got {self.event!r}")
        fixed, given = _times("discontinuities", self.discontinuities)
        jumps = tuple(t for t in given if getattr(t, "requires_grad", False))
        self.__dict__.update(ts=ts, times=times, discontinuities=fixed, jumps=jumps)


@dataclass(frozen=True, eq=False)
class FixedPointProblem(AbstractProblem):
    """The equilibrium z = f(z, *args) of every sample of a batch.

    Args:
        f: map `f(z, *args)` to a tensor of z's shape and dtype. It must be deterministic. Where samples that have
            converged leave, it is evaluated at some rows of z (its first dimension) and of the arguments that belong to
            them; where it mixes samples, as BatchNorm in training mode does, the batch converges as a whole.
        z0: initial guess (B, ...), floating-point or complex, any strides (the memory format is kept); or a tuple, list
            or dict of such tensors, all with the same B. Complex numbers are pairs of real ones to the methods.
        args: further arguments of `f`. Tensors in it receive gradients. `PerSample` and `Shared` say which have a row
            for each sample; a tensor with B rows that is not marked is tried as both.
        params: tensors inside `f` that receive gradients, beside those that are found in it: in modules, closures,
            bound methods and callable objects.

    Raises:
        ConfigError: if anything is of the wrong type, shape or dtype.
    """

    asks_for: ClassVar[str] = "an equilibrium"

    f: Callable[..., Any]
    z0: Any
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None
    form: Form = field(init=False, repr=False)  # of the state

    def __post_init__(self) -> None:
        self._set_up("f", "f(z, *args)", "z0", real=True, batched=True)


@dataclass(frozen=True, eq=False)
class HomotopyProblem(AbstractProblem):
    """The zero path of H(z, lambda) from (z0, 0), where it is known, to lambda = 1, where r(z) = 0.

    Args:
        r: residual `r(z, *args)`, a tensor of z's shape and dtype; for an equilibrium of f, z - f(z).
        z0: where the path starts, any shape, floating-point or complex, or a tuple, list or dict of tensors; the whole
            of it is one system.
        kind: "fixed-point": H = lambda r(z) + (1 - lambda)(z - z0); "newton": H = r(z) - (1 - lambda) r(z0).
        args: further arguments of `r`. Tensors in it receive gradients.
        params: tensors inside `r` that receive gradients, beside those that are found in it.

    Raises:
        ConfigError: if anything is of the wrong type, shape or dtype.

    References: Ding et al. (2023), arXiv 2310.09583, (1), (21), (23).
    """

    asks_for: ClassVar[str] = "a path"

    r: Callable[..., Any]
    z0: Any
    kind: str = "fixed-point"
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None
    form: Form = field(init=False, repr=False)  # of the state

    def __post_init__(self) -> None:
        self._set_up("r", "r(z, *args)", "z0", samples=False, real=True)
        if self.kind not in ("fixed-point", "newton"):
            raise ConfigError(f"kind must be 'fixed-point' or 'newton', got {self.kind!r}")


def _check_function(name: str, function: object, form: str) -> None:
    if not callable(function):
        raise ConfigError(f"{name} must be callable as {form}, got {type(function).__name__}")


def _check_args(args: object, shapes: Sequence[Sequence[int]]) -> None:
    if not isinstance(args, tuple):
        raise ConfigError(f"args must be a tuple, got {type(args).__name__}; write args=(x,) for one argument")
    for i, arg in enumerate(args):
        if not isinstance(arg, AbstractMark):
            continue
        mark, shape = type(arg).__name__, getattr(arg.value, "shape", None)
        if shape is None:
            raise ConfigError(f"{mark} marks a torch.Tensor, got {type(arg.value).__name__} in args[{i}]")
        if arg.per_sample and not shapes:
            raise ConfigError(
                f"args[{i}] is PerSample, but a path's state is one system without samples; pass it as it is"
            )
        if arg.per_sample and tuple(shape[:1]) != tuple(shapes[0][:1]):
            raise ConfigError(f"args[{i}] is PerSample, but has shape {tuple(shape)} beside a state {tuple(shapes[0])}")


def _times(name: str, ts: Any) -> tuple[tuple[float, ...], tuple[float | torch.Tensor, ...]]:
    """The times as numbers; and as they were given, one by one, where one of them requires a gradient."""
    try:
        if hasattr(ts, "tolist"):
            ts = ts.unbind() if getattr(ts, "requires_grad", False) else ts.tolist()
        given: list[Any] = [t if type(t) is float or hasattr(t, "item") else float(t) for t in ts]
        times: tuple[float, ...] = tuple([t if type(t) is float else t.item() for t in given])
        finite = all(map(math.isfinite, times))
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{name} must be a sequence of numbers or a 1-D tensor, got {ts!r}") from None
    if not finite:
        raise ConfigError(f"{name} has a time that is not finite")
    if not any(getattr(t, "requires_grad", False) for t in given):
        return times, ()
    return times, tuple(t.reshape(()) if hasattr(t, "reshape") else t for t in given)
