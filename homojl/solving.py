"""The one entry point: a problem, an algorithm, an adjoint and a backend in; a solution out."""

from __future__ import annotations

import time
from typing import overload

import torch

from homojl.adjoints import (
    AbstractFixedPointAdjoint,
    AbstractODEAdjoint,
    DirectAdjoint,
    ImplicitAdjoint,
    UnrolledAdjoint,
)
from homojl.adjoints.inputs import check_form, native_to
from homojl.adjoints.path import Linearised, differentiable_root
from homojl.adjoints.per_sample import check_per_sample, solve_per_sample
from homojl.adjoints.times import Times, at_event
from homojl.algorithms import (
    AbstractAdaptive,
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AbstractSplitting,
)
from homojl.backends import AbstractBackend, TorchBackend, announce, get_backend
from homojl.dense import DenseOutput
from homojl.errors import BackendUnavailable, ConfigError, SolveError
from homojl.precision import in_precision
from homojl.problems import FixedPointProblem, HomotopyProblem, ODEProblem
from homojl.solution import EquilibriumSolution, PathSolution, Solution, StackedStates, Stats, Status
from homojl.splitting import Lowered, lower

BATCHES = ("joint", "per-sample")
PROBLEMS = (ODEProblem, FixedPointProblem, HomotopyProblem)

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
    algorithm: AbstractPathAlgorithm,
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
            explicit methods on the PyTorch backend, with `DirectAdjoint` or `CheckpointAdjoint`.
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
    _check_choices(problem, batch, dense)
    solution: Solution | EquilibriumSolution | PathSolution
    with in_precision(problem, algorithm, precision) as stated:
        if isinstance(stated, FixedPointProblem):
            solution = _solve_fixed_point(stated, algorithm, adjoint, backend)
        elif isinstance(stated, HomotopyProblem):
            solution = _solve_path(stated, algorithm, adjoint, backend)
        elif batch == "joint":
            solution = _solve_ode(stated, algorithm, adjoint, backend, dense=dense)
        else:
            solution = _solve_samples(stated, algorithm, adjoint, backend)
    if throw and not solution.status.ok:
        raise SolveError(solution.message, solution)
    return solution


def _check_choices(problem: object, batch: str, dense: bool) -> None:
    if not isinstance(problem, PROBLEMS):
        kinds = ", ".join(kind.__name__ for kind in PROBLEMS)
        raise ConfigError(f"problem must be one of {kinds}, got {type(problem).__name__}")
    if batch not in BATCHES:
        raise ConfigError(f"batch must be 'joint' or 'per-sample', got {batch!r}")
    if dense and (not isinstance(problem, ODEProblem) or batch != "joint"):
        raise ConfigError("dense=True is for an ODEProblem with batch='joint'")
    if batch != "joint" and not isinstance(problem, ODEProblem):
        raise ConfigError("batch='per-sample' is for an ODEProblem; a fixed point's samples always end one by one")


def _solve_ode(
    problem: ODEProblem,
    algorithm: Algorithm,
    adjoint: Adjoint | None,
    backend: str | AbstractBackend,
    *,
    dense: bool,
) -> Solution:
    if not isinstance(algorithm, AbstractODEAlgorithm):
        raise ConfigError(f"algorithm must be one for ODEs such as Tsit5(), got {algorithm!r}")
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, AbstractODEAdjoint):
        raise ConfigError(f"adjoint must be one for ODEs such as CheckpointAdjoint(), got {adjoint!r}")
    chosen = choose_backend(backend, algorithm, problem.y0.device, adjoint)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    times = Times(problem, stats) if problem.times is not None and torch.is_grad_enabled() else None
    started = time.perf_counter()
    timed = problem if times is None else times.problem()
    result = adjoint.integrate(timed, algorithm, chosen, stats, keep_states=dense)
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_accepted, stats.n_rejected = result.nfe, len(result.steps), result.n_rejected
    ts, states = torch.tensor(result.ts, dtype=torch.float64), result.ys
    if times is not None:
        states = times.attach(result.ts, states)
    if result.status is Status.EVENT and torch.is_grad_enabled():
        t_event, y_event = at_event(problem, result.ts[-1], states[-1], stats)
        ts, states = torch.cat([ts[:-1], t_event[None]]), [*states[:-1], y_event]
    return Solution(
        ts=ts,
        states=states if isinstance(states, StackedStates) else tuple(states),
        status=result.status,
        stats=stats,
        steps=result.steps,
        message=result.message,
        interpolant=DenseOutput(problem, algorithm, result, stats) if dense else None,
    )


def _solve_samples(
    problem: ODEProblem, algorithm: Algorithm, adjoint: Adjoint | None, backend: str | AbstractBackend
) -> Solution:
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    chosen = choose_backend(backend, algorithm, problem.y0.device, adjoint, batch="per-sample")
    assert isinstance(algorithm, AbstractAdaptive), algorithm  # choose_backend has refused the others
    assert isinstance(adjoint, AbstractODEAdjoint), adjoint
    return solve_per_sample(
        problem, algorithm, adjoint, Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    )


def _solve_fixed_point(
    problem: FixedPointProblem, algorithm: Algorithm, adjoint: Adjoint | None, backend: str | AbstractBackend
) -> EquilibriumSolution:
    if not isinstance(algorithm, AbstractFixedPointAlgorithm):
        raise ConfigError(f"algorithm must be one for fixed points such as Anderson(), got {algorithm!r}")
    adjoint = ImplicitAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, AbstractFixedPointAdjoint):
        raise ConfigError(f"adjoint must be one for fixed points such as ImplicitAdjoint(), got {adjoint!r}")
    chosen = choose_backend(backend, algorithm, problem.z0.device, adjoint)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    started = time.perf_counter()
    lowered, iterated = Lowered(problem, lambda z: z, 0), algorithm
    if isinstance(algorithm, AbstractSplitting):
        lowered, iterated = lower(problem, algorithm), algorithm.iteration()
    result = adjoint.find(lowered.problem, iterated, chosen, stats)
    value = lowered.recover(result.value)
    stats.seconds = time.perf_counter() - started
    stats.nfe = result.nfe + lowered.evaluations
    stats.n_jvp, stats.n_accepted = result.n_jvp, int(result.iterations.max())
    return EquilibriumSolution(
        value=value,
        residuals=result.residuals,
        iterations=result.iterations,
        converged=result.converged,
        status=result.status,
        stats=stats,
        message=result.message.replace(f"{iterated.name}:", f"{algorithm.name}:", 1),
    )


def _solve_path(
    problem: HomotopyProblem, algorithm: Algorithm, adjoint: Adjoint | None, backend: str | AbstractBackend
) -> PathSolution:
    if not isinstance(algorithm, AbstractPathAlgorithm):
        raise ConfigError(f"algorithm must be one for zero paths such as ArcLength(), got {algorithm!r}")
    if adjoint is not None:
        raise ConfigError(f"a path's end has one adjoint, the implicit one: leave it out, got {adjoint!r}")
    z0, args = problem.z0, problem.args
    chosen = choose_backend(backend, algorithm, z0.device)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint="implicit")
    checked = False

    def r(z: torch.Tensor) -> torch.Tensor:
        nonlocal checked
        value = problem.r(z, *args)
        if not checked:
            check_form("r", value, "z0", z0)
            checked = True
        return value

    started = time.perf_counter()
    with torch.no_grad():
        path = chosen.trace_path(
            native_to(chosen, problem.r, args) or r,
            z0.detach(),
            algorithm,
            kind=problem.kind,
            jvp=Linearised(r),
        )
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_jvp = path.nfe, path.n_jvp
    stats.n_accepted, stats.n_rejected = len(path.states) - 1, path.n_rejected
    value = path.states[-1]
    if path.status.ok:
        dense = algorithm.solves_densely(z0.numel())
        value = differentiable_root(
            problem.r, value, args, dense=dense, krylov_steps=algorithm.krylov_steps, stats=stats
        )
    return PathSolution(
        s=path.s,
        lambdas=path.lambdas,
        states=tuple(path.states),
        residuals=path.residuals,
        value=value,
        folds=path.folds,
        status=path.status,
        stats=stats,
        message=path.message,
    )


def choose_backend(
    name: str | AbstractBackend,
    algorithm: Algorithm,
    device: torch.device,
    adjoint: object = None,
    *,
    batch: str = "joint",
) -> AbstractBackend:
    """The backend that `solve` takes for a name.

    Raises:
        ConfigError: for an unknown name, or for steps of each sample's own with what has none.
        BackendUnavailable: if it cannot be used here, or has not that algorithm on that device.
    """
    if batch == "per-sample":
        check_per_sample(algorithm, adjoint)
        if name not in ("auto", "pytorch"):
            raise ConfigError(f"batch='per-sample' needs backend='pytorch' or 'auto', which takes it, got {name!r}")
        return get_backend("pytorch") if name == "pytorch" else announce(get_backend("pytorch"))
    if isinstance(algorithm, AbstractSplitting):
        algorithm = algorithm.iteration()
    through = isinstance(adjoint, DirectAdjoint | UnrolledAdjoint)
    if name == "auto" and through and TorchBackend().supports(algorithm, device):
        return announce(TorchBackend())
    chosen = name if isinstance(name, AbstractBackend) else get_backend(name)
    if name == "auto":
        chosen = announce(chosen if chosen.supports(algorithm, device) else TorchBackend())
    if not chosen.supports(algorithm, device):
        other = "pytorch" if chosen.name == "julia" else "julia"
        raise BackendUnavailable(
            f"the {chosen.name} backend has no {algorithm.name} on {device}; try backend={other!r}"
        )
    return chosen
