"""The one entry point: a problem, an algorithm, an adjoint and a backend in; a solution out."""

from __future__ import annotations

import time

import torch

from homojl.adjoints import AbstractODEAdjoint, DirectAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm, AbstractPathAlgorithm
from homojl.backends import AbstractBackend, get_backend
from homojl.errors import BackendUnavailable, ConfigError, SolveError
from homojl.problems import FixedPointProblem, HomotopyProblem, ODEProblem
from homojl.solution import EquilibriumSolution, PathSolution, Solution, Stats


def solve(
    problem: ODEProblem | FixedPointProblem | HomotopyProblem,
    algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm,
    *,
    adjoint: AbstractODEAdjoint | None = None,
    backend: str = "auto",
    throw: bool = True,
) -> Solution | EquilibriumSolution | PathSolution:
    """Solve a problem.

    Args:
        problem: what to solve.
        algorithm: how, with its tolerances; one for the problem's kind.
        adjoint: how gradients are computed; None: `DirectAdjoint()` for an ODE.
        backend: "auto", "pytorch" or "julia".
        throw: raise when the solve does not reach its end; otherwise the solution's status says so.

    Returns:
        The solution, its states on the device of the problem's.

    Raises:
        ConfigError: if the parts do not fit together.
        BackendUnavailable: if the backend cannot be used here.
        SolveError: if the solve did not reach its end and `throw` is true; carries the partial solution.
    """
    solve_kind = _KINDS.get(type(problem))
    if solve_kind is None:
        raise ConfigError(
            f"problem must be one of {', '.join(k.__name__ for k in _KINDS)}, got {type(problem).__name__}"
        )
    solution = solve_kind(problem, algorithm, adjoint, backend)
    if throw and not solution.status.ok:
        raise SolveError(solution.message, solution)
    return solution


def _solve_ode(problem: ODEProblem, algorithm, adjoint, backend: str) -> Solution:
    if not isinstance(algorithm, AbstractODEAlgorithm):
        raise ConfigError(f"algorithm must be one for ODEs such as Tsit5(), got {algorithm!r}")
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, AbstractODEAdjoint):
        raise ConfigError(f"adjoint must be one for ODEs such as CheckpointAdjoint(), got {adjoint!r}")
    chosen = _backend_for(backend, algorithm, problem.y0.device)
    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    started = time.perf_counter()
    result = adjoint.integrate(problem, algorithm, chosen, stats)
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_accepted, stats.n_rejected = result.nfe, len(result.steps), result.n_rejected
    return Solution(
        ts=torch.tensor(result.ts, dtype=torch.float64),
        states=tuple(result.ys),
        status=result.status,
        stats=stats,
        steps=result.steps,
        message=result.message,
    )


def _backend_for(name: str, algorithm, device: torch.device) -> AbstractBackend:
    chosen = get_backend(name)
    if not chosen.supports(algorithm, device):
        other = "pytorch" if chosen.name == "julia" else "julia"
        raise BackendUnavailable(
            f"the {chosen.name} backend has no {algorithm.name} on {device}; try backend={other!r}"
        )
    return chosen


_KINDS = {ODEProblem: _solve_ode}
