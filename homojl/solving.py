"""The one entry point: a problem, an algorithm, an adjoint and a backend in; a solution out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, NamedTuple, TypeVar, overload

import torch

from homojl import transforms
from homojl.adjoints import (
    AbstractFixedPointAdjoint,
    AbstractODEAdjoint,
    DirectAdjoint,
    ImplicitAdjoint,
)
from homojl.adjoints.ode import EmptyAdjoint, NoAdjoint, Solve
from homojl.adjoints.path import differentiable_root
from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AbstractSplitting,
    ArcLength,
    SciML,
    memory_of,
)
from homojl.backends import AbstractBackend, choose_backend, get_backend
from homojl.course import Course
from homojl.dense import DenseOutput
from homojl.errors import ConfigError, SolveError
from homojl.functions import Form, MapFunction, VectorField, WrittenOver
from homojl.functions.products import transformed
from homojl.functions.user import warn_caller
from homojl.marks import PerSample, Shared
from homojl.names import BATCHES
from homojl.precision import evaluated_in
from homojl.problems import AbstractProblem, FixedPointProblem, HomotopyProblem, ODEProblem
from homojl.roots import path_to_root
from homojl.solution import EquilibriumSolution, PathSolution, Solution, StackedStates, Stats, Status
from homojl.splitting import Lowered, lower

F = TypeVar("F", VectorField, MapFunction)
Algorithm = AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm
Adjoint = AbstractODEAdjoint | AbstractFixedPointAdjoint


@overload
def solve(
    problem: ODEProblem,
    algorithm: AbstractODEAlgorithm,
    *,
    adjoint: AbstractODEAdjoint | None = None,
    backend: str | AbstractBackend = "auto",
    batch: str = "joint",
    precision: str = "full",
    dense: bool = False,
    throw: bool = True,
) -> Solution: ...


@overload
def solve(
    problem: FixedPointProblem,
    algorithm: AbstractFixedPointAlgorithm,
    *,
    adjoint: AbstractFixedPointAdjoint | None = None,
    backend: str | AbstractBackend = "auto",
    precision: str = "full",
    throw: bool = True,
) -> EquilibriumSolution: ...


@overload
def solve(
    problem: HomotopyProblem,
    algorithm: AbstractPathAlgorithm | SciML,
    *,
    backend: str | AbstractBackend = "auto",
    throw: bool = True,
) -> PathSolution: ...


@overload
def solve(
    problem: ODEProblem | FixedPointProblem | HomotopyProblem,
    algorithm: Algorithm,
    *,
    adjoint: Adjoint | None = None,
    backend: str | AbstractBackend = "auto",
    batch: str = "joint",
    precision: str = "full",
    dense: bool = False,
    throw: bool = True,
) -> Solution | EquilibriumSolution | PathSolution: ...


def solve(
    problem: ODEProblem | FixedPointProblem | HomotopyProblem,
    algorithm: Algorithm,
    *,
    adjoint: Adjoint | None = None,
    backend: str | AbstractBackend = "auto",
    batch: str = "joint",
    precision: str = "full",
    dense: bool = False,
    throw: bool = True,
) -> Solution | EquilibriumSolution | PathSolution:
    """Solve a problem.

    Args:
        problem: what to solve.
        algorithm: how, with its tolerances; one for the problem's kind.
        adjoint: how gradients are computed; None: `DirectAdjoint()` for an ODE, `ImplicitAdjoint()` for an
            equilibrium. The end of a path has the implicit function theorem's gradient and takes no other.
        backend: "pytorch", "pytorch-compiled" (see `CompiledBackend`), "julia", or "auto": Julia where it is installed
            and has the algorithm and the device; but PyTorch for a `DirectAdjoint` or an `UnrolledAdjoint`, which go
            through its operations. Or a backend of your own.
        batch: for an ODE: "joint": one step size for the whole state, its error measured over all of it; "per-sample":
            every row of y0, its first dimension, has steps, an error and an end of its own, and samples that have ended
            cost no more evaluations. The field then receives the rows still at work, their times as (rows, 1, ..., 1),
            and of those args that have as many rows as y0 the same ones; no sample may depend on another. Adaptive
            explicit methods on the PyTorch backends, with `DirectAdjoint` or `CheckpointAdjoint`.
        precision: "full": the function as it is, under a `torch.autocast` that encloses the solve; "bfloat16" or
            "float16": its operations under an autocast of its own, in the backward pass too. The state, which must be
            float32, its steps and their control stay in float32. A tolerance that such evaluations do not hold is
            warned of. Gradients in float16 want the loss scaled, as by `torch.amp.GradScaler`. Not for paths, splitting
            methods and fields held in Julia.
        dense: for an ODE solved jointly: keep the states at which the steps start, so that `solution.at` gives the
            state at any time.
        throw: raise when the solve does not reach its end; otherwise the solution's status says so, and that of each
            sample, of which the others are not affected.

    Returns:
        The solution, its states on the device of the problem's.

    Raises:
        ConfigError: if the parts do not fit together.
        BackendUnavailable: if the backend cannot be used here.
        SolveError: if the solve did not reach its end and `throw` is true; carries the partial solution.
    """
    if not isinstance(problem, AbstractProblem):
        kinds = "ODEProblem, FixedPointProblem, HomotopyProblem"
        raise ConfigError(f"problem must be one of {kinds}, got {type(problem).__name__}")
    ode = problem.asks_for == "a course"
    if batch not in BATCHES:
        raise ConfigError(f"batch must be 'joint' or 'per-sample', got {batch!r}")
    if dense and not (ode and batch == "joint"):
        raise ConfigError("dense=True is for an ODEProblem with batch='joint'")
    if batch != "joint" and not ode:
        raise ConfigError("batch='per-sample' is for an ODEProblem; a fixed point's samples always end one by one")
    form = None if problem.form.plain else problem.form
    start = problem.initial if form is None else form.join(problem.initial)
    transforms.refuse_tracing(start)
    if start.is_inference() and not torch.is_inference_mode_enabled():
        start = start.clone()  # what was made in inference mode can be in no graph
    version = 0 if start.is_inference() else start._version
    device_type, dtype = start.device.type, evaluated_in(problem, algorithm, precision, start)
    for copies in (False, True):
        asked = _Asked(problem, algorithm, backend, start, form, dtype, copies)
        try:
            with torch.autocast(device_type, enabled=False) if dtype is not None else _AS_IT_IS:
                solution: Solution | EquilibriumSolution | PathSolution = _SOLVERS[problem.asks_for](
                    asked, adjoint, batch == "per-sample", dense
                )
            break
        except WrittenOver:
            if copies or (not start.is_inference() and start._version != version):
                raise
    if throw and not solution.status.ok:
        raise SolveError(solution.message, solution)
    return solution


_AS_IT_IS: AbstractContextManager[Any] = nullcontext()


class _Asked(NamedTuple):
    """What is solved, how and where.

    Attributes:
        problem, algorithm, backend: as given.
        start: the initial state as one tensor.
        form: of the user's state where it is another.
        precision: dtype of an autocast around the function; None: as it is.
        copies: whether the function gets, and gives, copies.
    """

    problem: Any
    algorithm: Any
    backend: str | AbstractBackend
    start: torch.Tensor
    form: Form | None
    precision: torch.dtype | None
    copies: bool

    def function(self, kind: type[F], stats: Stats, problem: Any, name: str, state: str) -> F:
        """A problem's function with all that it depends on."""
        return kind(
            problem.function,
            problem.args,
            problem.params,
            like=self.start,
            stats=stats,
            form=self.form,
            precision=self.precision,
            copies=self.copies,
            closed=problem.closed,
            name=name,
            state=state,
        )

    def split(self, state: torch.Tensor) -> Any:
        """A state as the user's."""
        return state if self.form is None else self.form.split(state)


def _require(part: str, given: object, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(given, kind):
        raise ConfigError(f"{part} must be one for {what}, got {given!r}")


def _solve_ode(asked: _Asked, adjoint: Any, each: bool, dense: bool) -> Solution:
    problem, algorithm, start = asked.problem, asked.algorithm, asked.start
    _require("algorithm", algorithm, AbstractODEAlgorithm, "ODEs such as Tsit5()")
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    _require("adjoint", adjoint, AbstractODEAdjoint, "ODEs such as CheckpointAdjoint()")
    if each and problem.native:
        chosen, adjoint = _ensemble_backend(problem, asked), NoAdjoint()
    else:
        chosen = choose_backend(
            asked.backend, algorithm, start.device, adjoint, batch="per-sample" if each else "joint"
        )
        _check_times(problem.ts, start.dtype)
    if each:
        _check_samples(problem)
    if torch._C._current_graph_task_id() != -1 and memory_of(algorithm) is not None:
        _refuse_recomputation()
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    f = asked.function(VectorField, stats, problem, "f", "y0")
    if start.numel() == 0:
        adjoint = EmptyAdjoint()
    elif transformed():
        adjoint = transforms.adjoint_for(algorithm, adjoint)
        if transforms.mapped([start, *f.held()]):
            if dense:
                raise ConfigError("dense=True does not go with torch.func.vmap; save the states with ts")
            return _solve_mapped(asked, f, stats)
    jumps = problem.discontinuities
    solve = Solve(f, problem.ts, algorithm, algorithm.norm, dense, None, jumps, each, backend=chosen)
    started = time.perf_counter()
    if problem.event is None and not problem.times and not problem.jumps:
        result = adjoint.integrate(solve, start)
    else:
        result = Course(problem, solve, adjoint, asked.split).run(start)
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_accepted, stats.n_rejected = result.nfe, result.n_accepted, result.n_rejected
    interpolant: Any = DenseOutput(solve, result) if dense else None
    states: Any = result.ys if isinstance(result.ys, StackedStates) else tuple(result.ys)
    if asked.form is not None:
        states = tuple(map(asked.form.split, states))
        if (between := interpolant) is not None:
            interpolant = lambda t: asked.split(between(t))  # noqa: E731
    return Solution(
        ts=torch.as_tensor(result.ts, dtype=torch.float64, device="cpu"),
        states=states,
        status=result.status,
        stats=stats,
        steps=result.record.steps(),
        message=result.message,
        samples=result.samples,
        events=tuple(result.events),
        interpolant=interpolant,
    )


def _ensemble_backend(problem: ODEProblem, asked: _Asked) -> AbstractBackend:
    """What solves a function in Julia of one sample, for each row of the batch with steps of its own: values alone."""
    if asked.backend not in ("julia", "auto"):
        raise ConfigError(f"batch='per-sample' with a {problem.native} needs backend='julia', got {asked.backend!r}")
    return get_backend("julia")


def _check_times(ts: tuple[float, ...], dtype: torch.dtype) -> None:
    """Say so where the field cannot tell the times of its steps apart, which it receives in the state's precision."""
    unit, span = torch.finfo(dtype).eps * max(abs(ts[0]), abs(ts[-1])), abs(ts[-1] - ts[0])
    if unit > 1e-3 * span:
        name = str(dtype.to_real()).removeprefix("torch.")
        warn_caller(
            f"f receives times in {name}, which near {ts[-1]:.6g} go in units of "
            f"{unit:.2g}, too coarse for an interval of {span:.2g}: let times begin at 0, or use float64"
        )


def _refuse_recomputation() -> None:
    """Raise a ConfigError where `torch.utils.checkpoint` solves for the second time, with what the first has taught."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            raise ConfigError(
                "torch.utils.checkpoint around a solve takes other steps in the backward pass than in the forward one, "
                "since the algorithm's StepMemory has learnt in between: leave the memory out, or that checkpoint, as "
                "CheckpointAdjoint() keeps no more than the states at the steps"
            )
        frame = frame.f_back


def _solve_mapped(asked: _Asked, f: VectorField, stats: Stats) -> Solution:
    """A solve under `torch.func.vmap`."""
    problem, algorithm = asked.problem, asked.algorithm
    if problem.event is not None or problem.discontinuities or problem.times:
        raise ConfigError("a solve under torch.func.vmap has no events, discontinuities or gradients by ts")

    def states(function: Any, y: torch.Tensor, tensors: Any, rows: Any, batch: str) -> torch.Tensor:
        args = tuple(
            PerSample(x) if row and batch != "joint" else Shared(x) for x, row in zip(tensors, rows, strict=True)
        )
        return solve(ODEProblem(function, y, problem.ts, args), algorithm, batch=batch, backend=asked.backend).ys

    ys = transforms.solve_mapped(states, f, asked.start, algorithm)
    return Solution(
        ts=torch.tensor(problem.ts, dtype=torch.float64),
        states=tuple(asked.split(y) for y in ys.unbind()),
        status=Status.SUCCESS,
        stats=stats,
    )


def _check_samples(problem: ODEProblem) -> None:
    what = "batch='per-sample'"
    if any(len(shape) == 0 for shape in problem.form.shapes):
        raise ConfigError(f"{what} needs a first dimension of y0 that counts samples; write y0[None] for one sample")
    refused = {
        "events, where the field is not PyTorch's": bool(problem.native) and problem.event is not None,
        "discontinuities": bool(problem.discontinuities),
        "gradients with respect to ts": bool(problem.times) and torch.is_grad_enabled(),
    }
    for name, asked in refused.items():
        if asked:
            raise ConfigError(f"{what} does not go with {name}; use batch='joint'")


def _solve_fixed_point(asked: _Asked, adjoint: Any, *_: object) -> EquilibriumSolution:
    problem, algorithm = asked.problem, asked.algorithm
    _require("algorithm", algorithm, AbstractFixedPointAlgorithm, "fixed points such as Anderson()")
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    _require("adjoint", adjoint, AbstractFixedPointAdjoint, "fixed points such as ImplicitAdjoint()")
    chosen = choose_backend(asked.backend, algorithm, asked.start.device, adjoint)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    started = time.perf_counter()
    lowered, iterated = Lowered(problem, lambda z: z, 0), algorithm
    if isinstance(algorithm, AbstractSplitting):
        lowered, iterated = lower(problem, algorithm), algorithm.iteration()
    f = asked.function(MapFunction, stats, lowered.problem, "f", "z0")
    result = adjoint.find(f, asked.start, iterated, chosen)
    value = lowered.recover(result.value)
    stats.seconds = time.perf_counter() - started
    stats.nfe = result.nfe + lowered.evaluations
    stats.n_jvp, stats.n_accepted = result.n_jvp, int(result.iterations.max()) if len(result.iterations) else 0
    return EquilibriumSolution(
        value=asked.split(value),
        residuals=result.residuals,
        iterations=result.iterations,
        converged=result.converged,
        status=result.status,
        stats=stats,
        message=result.message.replace(f"{iterated.name}:", f"{algorithm.name}:", 1),
    )


def _solve_path(asked: _Asked, adjoint: Adjoint | None, *_: object) -> PathSolution:
    problem, algorithm = asked.problem, asked.algorithm
    _require("algorithm", algorithm, (AbstractPathAlgorithm, SciML), "zero paths such as ArcLength()")
    if adjoint is not None:
        raise ConfigError(f"a path's end has one adjoint, the implicit one: leave it out, got {adjoint!r}")
    if transformed():
        raise ConfigError("zero paths do not go with torch.func; torch.autograd.grad differentiates their ends")
    z0 = asked.start
    if z0.numel() == 0:
        raise ConfigError("z0 has no elements, so that there is no path to follow")
    chosen = choose_backend(asked.backend, algorithm, z0.device)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint="implicit")
    r = asked.function(MapFunction, stats, problem, "r", "z0")
    started = time.perf_counter()
    with torch.no_grad():
        if isinstance(algorithm, SciML):
            path = path_to_root(r, z0.detach(), algorithm, chosen)
        else:
            path = chosen.trace_path(r, z0.detach(), algorithm, kind=problem.kind)
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_jvp = path.nfe, path.n_jvp
    stats.n_accepted, stats.n_rejected = len(path.states) - 1, path.n_rejected
    value = path.states[-1]
    if path.status.ok:
        linear = ArcLength() if isinstance(algorithm, SciML) else algorithm  # of the gradient's system
        dense = linear.solves_densely(z0.numel())
        value = differentiable_root(r, value, dense=dense, krylov_steps=linear.krylov_steps)
    return PathSolution(
        s=path.s,
        lambdas=path.lambdas,
        states=tuple(asked.split(z) for z in path.states),
        residuals=path.residuals,
        value=asked.split(value),
        folds=path.folds,
        status=path.status,
        stats=stats,
        message=path.message,
    )


_SOLVERS: dict[str, Callable[..., Any]] = {
    "a course": _solve_ode,
    "an equilibrium": _solve_fixed_point,
    "a path": _solve_path,
}
