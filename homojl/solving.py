"""The one entry point: a problem, an algorithm, an adjoint and a backend in; a solution out."""

from __future__ import annotations

import time

import torch

from homojl.adjoints import AbstractODEAdjoint, DirectAdjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends import get_backend
from homojl.errors import BackendUnavailable, ConfigError, SolveError
from homojl.problems import ODEProblem
from homojl.solution import Solution, Stats


def solve(
    problem: ODEProblem,
    algorithm: AbstractODEAlgorithm,
    *,
    adjoint: AbstractODEAdjoint | None = None,
    backend: str = "auto",
    throw: bool = True,
) -> Solution:
    """Solve a problem.

    Args:
        problem: what to solve.
        algorithm: how, with its tolerances.
        adjoint: how gradients are computed; None: `DirectAdjoint()`.
        backend: "auto", "pytorch" or "julia".
        throw: raise when the solve does not reach its end; otherwise the solution's status says so.

    Returns:
        The solution, its states on the device of the problem's.

    Raises:
        ConfigError: if the parts do not fit together.
        BackendUnavailable: if the backend cannot be used here.
        SolveError: if the solve did not reach its end and `throw` is true; carries the partial solution.
    """
    if not isinstance(problem, ODEProblem):
        raise ConfigError(f"problem must be an ODEProblem, got {type(problem).__name__}")
    if not isinstance(algorithm, AbstractODEAlgorithm):
        raise ConfigError(f"algorithm must be one for ODEs such as Tsit5(), got {algorithm!r}")
    adjoint = DirectAdjoint() if adjoint is None else adjoint
    if not isinstance(adjoint, AbstractODEAdjoint):
        raise ConfigError(f"adjoint must be one for ODEs such as CheckpointAdjoint(), got {adjoint!r}")
    chosen = get_backend(backend)
    if not chosen.supports(algorithm, problem.y0.device):
        raise BackendUnavailable(f"the {chosen.name} backend has no {algorithm.name} on {problem.y0.device}")

    stats = Stats(backend=chosen.name, algorithm=algorithm.name, adjoint=adjoint.name)
    started = time.perf_counter()
    result = adjoint.integrate(problem, algorithm, chosen, stats)
    stats.seconds = time.perf_counter() - started
    stats.nfe, stats.n_accepted, stats.n_rejected = result.nfe, len(result.steps), result.n_rejected
    solution = Solution(
        ts=torch.tensor(result.ts, dtype=torch.float64),
        states=tuple(result.ys),
        status=result.status,
        stats=stats,
        steps=result.steps,
        message=result.message,
    )
    if throw and not result.status.ok:
        raise SolveError(result.message, solution)
    return solution
