"""A problem's function in a lower precision: which, and whether it can be."""

from __future__ import annotations

import warnings

import torch

from homojl.algorithms import AbstractErrorControlled, AbstractFixedPointAlgorithm, AbstractSplitting, AdamsBashforth
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.problems import FixedPointProblem, HomotopyProblem, ODEProblem

Tensor = torch.Tensor
Problem = ODEProblem | FixedPointProblem | HomotopyProblem

PRECISIONS = ("full", "bfloat16", "float16")


def evaluated_in(problem: Problem, algorithm: object, precision: str, state: Tensor) -> torch.dtype | None:
    """The dtype to which the problem's function is autocast; None: it is evaluated as it is.

    With "full", the function is evaluated under a `torch.autocast` that encloses the solve, in its backward pass too.

    Args:
        problem, algorithm, precision: as given to `solve`.
        state: the initial one as solvers see it.

    Raises:
        ConfigError: for an unknown precision, or what has none but its own.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; {did_you_mean(str(precision), PRECISIONS)}")
    device_type = state.device.type
    if precision == "full" and not torch.is_autocast_enabled(device_type):
        return None
    if precision == "full" and isinstance(problem, HomotopyProblem) and state.dtype == torch.float32:
        # As the autocast around the solve asks; the path's own arithmetic stays in float32.
        return torch.get_autocast_dtype(device_type)
    obstacle = _obstacle(problem, algorithm, state)
    if precision != "full" and obstacle:
        raise ConfigError(f"precision={precision!r} does not go with {obstacle}; use precision='full'")
    if obstacle:
        return None
    dtype = torch.get_autocast_dtype(device_type) if precision == "full" else getattr(torch, precision)
    if isinstance(algorithm, AdamsBashforth):
        raise ConfigError(
            f"{algorithm.name} does not go with {str(dtype).removeprefix('torch.')}: its weights of many derivatives "
            "enlarge their rounding; solve outside autocast, or take a Runge-Kutta method such as Tsit5()"
        )
    _check_tolerance(algorithm, dtype)
    return dtype


def _obstacle(problem: Problem, algorithm: object, state: Tensor) -> str:
    """Why the problem's function cannot be evaluated in a lower precision; empty: it can."""
    if isinstance(problem, HomotopyProblem):
        return "zero paths"
    if state.dtype != torch.float32:
        return f"a state in {str(state.dtype).removeprefix('torch.')}, which autocast leaves as it is"
    if problem.native:
        return f"a {problem.native}"
    if isinstance(algorithm, AbstractSplitting):
        return f"{algorithm.name}, which takes the map apart"
    return ""


def _check_tolerance(algorithm: object, dtype: torch.dtype) -> None:
    """Warn of a tolerance that evaluations in that type do not hold; docs/precision.md has what was measured."""
    if not isinstance(algorithm, AbstractErrorControlled | AbstractFixedPointAlgorithm):
        return
    eps = torch.finfo(dtype).eps
    limit, what = eps / 10, "steps get shorter and the error does not fall"
    if isinstance(algorithm, AbstractFixedPointAlgorithm):
        limit, what = eps, "iterations may not end"
    if max(torch.as_tensor(x).max().item() for x in (algorithm.rtol, algorithm.atol)) < limit:
        warnings.warn(
            f"a tolerance below {limit:.2g} is less than evaluations in {str(dtype).removeprefix('torch.')} hold: "
            f"{what}; loosen rtol or use precision='full'",
            stacklevel=4,
        )
