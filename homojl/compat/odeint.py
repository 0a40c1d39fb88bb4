"""`odeint`, `odeint_adjoint` and `odeint_dense`: torchdiffeq's calls, each lowered to one `solve`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar, Unpack, overload

import torch

from homojl.adjoints import BacksolveAdjoint, DirectAdjoint
from homojl.adjoints.continuous import augmented_tolerance
from homojl.algorithms import AbstractODEAlgorithm, ErrorNorm
from homojl.compat.methods import GridConstructor, Options
from homojl.compat.states import Callbacks, JoinedField, JoinedState, State, ThroughTime, starts_on_event
from homojl.errors import ConfigError, SolveError
from homojl.functions.layout import Layout
from homojl.problems import Event, ODEProblem
from homojl.solution import Solution, Status
from homojl.solving import solve

Tensor = torch.Tensor


AnyState = TypeVar("AnyState", Tensor, tuple[Tensor, ...])
Tolerance = float | Tensor | Sequence[float]


class OdeintError(SolveError, AssertionError):
    """A solve that did not reach its end; an AssertionError too, which torchdiffeq raises then."""


class _Method(TypedDict, total=False):
    """Arguments of a call that its overloads share."""

    rtol: Tolerance
    atol: Tolerance
    method: str | None
    options: dict[str, Any] | None


class _AdjointMethod(_Method, total=False):
    """Those of `odeint_adjoint`."""

    adjoint_rtol: Tolerance | None
    adjoint_atol: Tolerance | None
    adjoint_method: str | None
    adjoint_options: dict[str, Any] | None
    adjoint_params: Sequence[Tensor] | None


Func = Callable[[Tensor, AnyState], AnyState]
EventFunction = Callable[[Tensor, AnyState], Tensor]


@overload
def odeint(
    func: Func[AnyState], y0: AnyState, t: Tensor, *, event_fn: None = None, **how: Unpack[_Method]
) -> AnyState: ...


@overload
def odeint(
    func: Func[AnyState], y0: AnyState, t: Tensor, *, event_fn: EventFunction[AnyState], **how: Unpack[_Method]
) -> tuple[Tensor, AnyState]: ...


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, with gradients through the operations of the solver.

    Args:
        func: maps a 0-d time and a state to its derivative; states are what y0 is.
        y0: initial state: a tensor of any shape, real or complex, or a tuple of tensors.
        t: times to save at, (T,), floating point, strictly increasing or decreasing; the first is the initial time. It
            receives a gradient where it requires one.
        rtol, atol: tolerances: numbers, tensors of y0's shape, or for a tuple y0 tuples of numbers.
        method: one of `homojl.compat.methods.METHODS`; None: "dopri5".
        options: of the method, as in torchdiffeq; docs/migrating.md lists them.
        event_fn: (t, y) -> one value or several. The solve ends where one of them changes its sign; `t` then has two
            times, of which the second gives the direction alone.

    Returns:
        The states at the times, (T, *shape of y0), a tuple for a tuple. With event_fn: the event's time, 0-d, and the
        states at the start and there, (2, *shape of y0); use `odeint_event` for gradients through that time.

    Raises:
        ConfigError: if an argument is of the wrong kind; a ValueError.
        OdeintError: if the solve does not reach its end; a SolveError and an AssertionError.
    """
    call = _Call.of(func, y0, t, rtol, atol, method, options, event_fn)
    return call.run(DirectAdjoint(), event_fn)


@overload
def odeint_adjoint(
    func: Func[AnyState], y0: AnyState, t: Tensor, *, event_fn: None = None, **how: Unpack[_AdjointMethod]
) -> AnyState: ...


@overload
def odeint_adjoint(
    func: Func[AnyState], y0: AnyState, t: Tensor, *, event_fn: EventFunction[AnyState], **how: Unpack[_AdjointMethod]
) -> tuple[Tensor, AnyState]: ...


def odeint_adjoint(
    func: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: Tolerance | None = None,
    adjoint_atol: Tolerance | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """`odeint` with gradients by the adjoint equation solved backwards: memory does not grow with the steps.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as in `odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: for the backward solve; None: the forward solve's
            (of its options all but the norm; a tolerance of its own for each element or part of y0 holds for their
            adjoints too, the smallest for the parameters). The norm may be "seminorm", which leaves the parameters out.
        adjoint_params: tensors inside `func` that receive gradients; None: `func.parameters()` and, other than with
            torchdiffeq, what else it holds, as weights that another module has computed.

    Returns:
        As `odeint`.

    Raises:
        ConfigError: if an argument is of the wrong kind; a ValueError.
        OdeintError: if the solve does not reach its end.
        SolveError: from the backward pass, if the backward solve does not.
    """
    given = _parameters_of(func) if adjoint_params is None else tuple(adjoint_params)
    if adjoint_method is None:
        adjoint_method = method
    if adjoint_method != method and options is not None and adjoint_options is None:
        raise ConfigError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. So as `options` has "
            "been passed then `adjoint_options` must be passed as well."
        )
    if adjoint_options is None:
        adjoint_options = {key: value for key, value in (options or {}).items() if key != "norm"}
    params = tuple(p for p in given if p.requires_grad)
    if len(params) != len(given) and callable(adjoint_options.get("norm")):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. For efficiency this will be excluded from the "
            "adjoint pass, and will not appear as a tensor in the adjoint norm.",
            stacklevel=2,
        )
    call = _Call.of(func, y0, t, rtol, atol, method, options, event_fn)
    adjoint = call.backsolve(adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options, params)
    return replace(call, closed=adjoint_params is not None).run(adjoint, event_fn, params)


def odeint_dense(
    func: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Solve from t0 to t1 and return the solution as a function of time, with gradients through the solver.

    Args:
        func, y0, rtol, atol, method, options: as in `odeint`; y0 is a tensor, the method any with a tableau.
        t0, t1: ends of the interval, 0-d tensors.

    Returns:
        A function from a time in the interval, 0-d or (T,), to the state there, (*shape of y0) or (T, *shape of y0).
    """
    if not isinstance(y0, torch.Tensor):
        raise ConfigError(f"odeint_dense takes one tensor as y0, got {type(y0).__name__}")
    t = torch.stack([torch.as_tensor(t0), torch.as_tensor(t1)])
    call = _Call.of(func, y0, t, rtol, atol, method, options, None)
    return call.solution(DirectAdjoint(), call.times(), dense=True).at


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of a call, checked.

    Attributes:
        func, form: the user's function, and the form of the user's state.
        y0, field: the joined state and its field.
        t: the times.
        options: method and options of the forward solve.
        closed: whether what else the function holds receives no gradients.
    """

    func: Callable[[Tensor, Any], Any]
    form: JoinedState
    y0: Tensor
    field: JoinedField
    t: Tensor
    options: Options
    closed: bool = False

    @staticmethod
    def of(
        func: Callable[[Tensor, Any], Any],
        y0: State,
        t: Tensor,
        rtol: Tolerance,
        atol: Tolerance,
        method: str | None,
        options: dict[str, Any] | None,
        event_fn: Callable[[Tensor, Any], Tensor] | None,
    ) -> _Call:
        form = JoinedState(y0)
        joined = form.join(y0)
        _check_times(t)
        if event_fn is not None and len(t) != 2:
            raise ConfigError(f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}.")
        tolerances = {
            "rtol": form.tolerance("rtol", rtol, joined),
            "atol": form.tolerance("atol", atol, joined),
        }
        chosen = Options(method, options, **tolerances, intervals=max(len(t) - 1, 1))
        return _Call(func, form, joined, JoinedField(func, form), t, chosen)

    def times(self) -> Tensor | tuple[float, ...]:
        return self.t if self.t.requires_grad else tuple(self.t.tolist())

    def run(
        self,
        adjoint: DirectAdjoint | BacksolveAdjoint,
        event_fn: Callable[[Tensor, Any], Tensor] | None,
        params: tuple[Tensor, ...] = (),
    ) -> State | tuple[Tensor, State]:
        """What the user gets back."""
        if event_fn is not None:
            return self._until(adjoint, event_fn, params)
        if len(self.t) == 1:
            return self.form.split(self.y0[None])
        return self.form.split(self.solution(adjoint, self.times(), params).ys)

    def _until(
        self,
        adjoint: DirectAdjoint | BacksolveAdjoint,
        event_fn: Callable[[Tensor, Any], Tensor],
        params: tuple[Tensor, ...],
    ) -> tuple[Tensor, State]:
        t0, direction = self.t[0], 1.0 if self.t[1] > self.t[0] else -1.0

        def condition(t: Tensor, y: Tensor) -> Tensor:
            return event_fn(self.form.seen(t), self.form.split(y))

        if starts_on_event(condition, t0.detach(), self.y0):
            return t0, self.form.split(torch.stack([self.y0, self.y0]))
        end = self.options.horizon(t0.item(), direction)
        times = torch.stack([t0, t0.new_tensor(end)]) if t0.requires_grad else (t0.item(), end)
        event = Event(condition if isinstance(event_fn, ThroughTime) else torch.no_grad()(condition))
        solution = self.solution(adjoint, times, params, event)
        if solution.status is not Status.EVENT:
            raise OdeintError(f"no event took place in {len(solution.steps)} steps, up to t = {end:.3g}", solution)
        t_event = solution.ts[-1].to(self.t)
        if isinstance(adjoint, BacksolveAdjoint) and not t_event.requires_grad:
            t_event = t_event + 0 * solution.value.sum().real.to(t_event)  # a gradient of zero, as torchdiffeq's has
        return t_event, self.form.split(solution.ys)

    def solution(
        self,
        adjoint: DirectAdjoint | BacksolveAdjoint,
        times: Tensor | tuple[float, ...],
        params: tuple[Tensor, ...] = (),
        event: Event | None = None,
        *,
        dense: bool = False,
    ) -> Solution:
        """The one `solve` of the call."""
        own = self.options.norm
        if isinstance(own, str):
            raise ConfigError(f"norm must be a function of a state, got {own!r}")
        algorithm = self._algorithm(self.options, self.form.norm(own), self.func, "", self.form.split)
        problem = ODEProblem(
            self.field,
            self.y0,
            times,
            params=params,
            event=event,
            discontinuities=self.options.discontinuities(),
        )
        direct = isinstance(adjoint, DirectAdjoint)
        object.__setattr__(problem, "closed", self.closed)  # gradients of the adjoint_params alone
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (direct and self.options.outside)):
                return solve(problem, algorithm, adjoint=adjoint, backend="pytorch", dense=dense)
        except SolveError as error:
            raise OdeintError(str(error), error.solution) from None

    def _algorithm(
        self, options: Options, norm: ErrorNorm, func: object, suffix: str, split: Callable[[Tensor], State]
    ) -> AbstractODEAlgorithm:
        callbacks = Callbacks(func, suffix, split)
        unsupported = set(callbacks.given) - set(options.callbacks)
        if unsupported and not suffix:
            warnings.warn(f"Solver '{options.name}' does not support callbacks {unsupported}", stacklevel=5)

        def grid(constructor: GridConstructor, ts: tuple[float, ...]) -> list[float]:
            points: list[float] = constructor(self.field, self.y0.detach(), self.t.detach().new_tensor(ts)).tolist()
            return points

        return options.algorithm(norm, grid, observer=callbacks if callbacks.given else None)

    def backsolve(
        self,
        rtol: Tolerance | None,
        atol: Tolerance | None,
        method: str | None,
        options: dict[str, Any],
        params: tuple[Tensor, ...],
    ) -> BacksolveAdjoint:
        """The adjoint of the call: torchdiffeq's augmented state is (t, y, adjoint of y, gradients of the params)."""
        layout = Layout([self.y0, self.y0, *params])
        nothing = self.y0.detach().new_zeros(())

        def split(flat: Tensor) -> tuple[Tensor, ...]:
            return (nothing, *layout.unpack(flat))

        def parts_of_user(flat: Tensor) -> tuple[Tensor, ...]:
            y, adjoint, *gradients = layout.unpack(flat)
            if self.form.shapes is None:
                return (nothing, y, adjoint, *gradients)
            return (nothing, *self.form.split(y), *self.form.split(adjoint), *gradients)

        augmented = JoinedState((nothing, self.y0, self.y0, *params))
        tolerances = {}
        for name, value, forward in (("rtol", rtol, self.options.rtol), ("atol", atol, self.options.atol)):
            if value is None:
                tolerances[name] = augmented_tolerance(forward, layout)
                continue
            tolerance = augmented.tolerance(f"adjoint_{name}", value, self.y0)
            # The time is no part of the state here.
            tolerances[name] = tolerance[1:] if isinstance(tolerance, torch.Tensor) else tolerance
        chosen = Options(method, options, **tolerances, intervals=1)
        norm = ErrorNorm()
        own = chosen.norm
        if callable(own):
            norm = ErrorNorm(function=lambda flat: abs(own(parts_of_user(flat))))
        algorithm = self._algorithm(chosen, norm, self.func, "_adjoint", split)
        return BacksolveAdjoint(algorithm=algorithm, seminorm=chosen.norm == "seminorm")


def _parameters_of(module: object) -> tuple[Tensor, ...]:
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            "func must be an instance of nn.Module to specify the adjoint parameters; alternatively they can be "
            "specified explicitly via the `adjoint_params` argument. If there are no parameters then it is allowable "
            "to set `adjoint_params=()`."
        )
    if getattr(module, "_is_replica", False):  # in DataParallel the parameters are plain attributes
        parts = (m.__dict__.values() for m in module.modules())
        return tuple(v for values in parts for v in values if isinstance(v, torch.Tensor) and v.requires_grad)
    return tuple(module.parameters())


def _check_times(t: object) -> None:
    if not isinstance(t, torch.Tensor):
        raise ConfigError(f"t must be a torch.Tensor, got {type(t).__name__}")
    if not t.is_floating_point():
        raise ConfigError(f"t must be a floating point Tensor but is a {t.dtype}")
    if t.ndim != 1 or len(t) == 0:
        raise ConfigError(f"t must be one dimensional and not empty, got shape {tuple(t.shape)}")
    ahead = t[1:] > t[:-1]
    if not (ahead.all() or (t[1:] < t[:-1]).all()):
        raise ConfigError("t must be strictly increasing or decreasing")
