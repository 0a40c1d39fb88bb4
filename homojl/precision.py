"""A problem's function in a lower precision: its operations under `torch.autocast`, all else in the state's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractSplitting
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.problems import FixedPointProblem, HomotopyProblem, ODEProblem

Tensor = torch.Tensor
Problem = ODEProblem | FixedPointProblem | HomotopyProblem

PRECISIONS = ("full", "bfloat16", "float16")


class Autocast:
    """A function under `torch.autocast`, what it returns in the lower precision cast back to float32.

    Its gradient is that of the operations as they were done, whatever is enabled where the backward pass runs.

    Args:
        function: of tensors, to a tensor.
        dtype: bfloat16 or float16.
        device_type: "cpu", "cuda" ...
    """

    def __init__(self, function: Callable[..., Tensor], dtype: torch.dtype, device_type: str) -> None:
        # Called as in a bound method, so that what was compiled for a function is found again under it.
        self.__func__ = function
        self._dtype, self._device_type = dtype, device_type

    def __call__(self, *inputs: Any) -> Tensor:
        # Autocast's cache would give weights that were cast without a graph to an evaluation that needs one.
        with torch.autocast(self._device_type, self._dtype, cache_enabled=False):
            value = self.__func__(*inputs)
        return value.float() if getattr(value, "dtype", None) == self._dtype else value


@contextmanager
def in_precision(problem: Problem, algorithm: object, precision: str) -> Iterator[Problem]:
    """The problem with its function in that precision, and what solves it outside of any `torch.autocast`.

    With "full", the function is evaluated under a `torch.autocast` that encloses the solve, in its backward pass too.

    Raises:
        ConfigError: for an unknown precision, or what has none but its own.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; {did_you_mean(str(precision), PRECISIONS)}")
    state = problem.y0 if isinstance(problem, ODEProblem) else problem.z0
    device_type = state.device.type
    enclosed = torch.is_autocast_enabled(device_type)
    if precision == "full" and not enclosed:
        yield problem
        return
    obstacle = _obstacle(problem, algorithm)
    if precision != "full" and obstacle:
        raise ConfigError(f"precision={precision!r} does not go with {obstacle}; use precision='full'")
    if not obstacle:
        assert not isinstance(problem, HomotopyProblem), problem
        dtype = torch.get_autocast_dtype(device_type) if precision == "full" else getattr(torch, precision)
        _check_tolerance(algorithm, dtype)
        problem = copy.copy(problem)
        object.__setattr__(problem, "f", Autocast(problem.f, dtype, device_type))
    with torch.autocast(device_type, enabled=False):
        yield problem


def _obstacle(problem: Problem, algorithm: object) -> str:
    """Why the problem's function cannot be evaluated in a lower precision; empty: it can."""
    if isinstance(problem, HomotopyProblem):
        return "zero paths"
    state = problem.y0 if isinstance(problem, ODEProblem) else problem.z0
    if state.dtype != torch.float32:
        return f"a state in {str(state.dtype).removeprefix('torch.')}, which autocast leaves as it is"
    if getattr(problem.f, "native_to", None) is not None:
        return f"a {type(problem.f).__name__}"
    if isinstance(algorithm, AbstractSplitting):
        return f"{algorithm.name}, which takes the map apart"
    return ""


def _check_tolerance(algorithm: object, dtype: torch.dtype) -> None:
    """Warn of a tolerance that evaluations in that type do not hold; docs/precision.md has what was measured."""
    tolerances = [getattr(algorithm, name) for name in ("rtol", "atol") if hasattr(algorithm, name)]
    if not tolerances:
        return
    eps = torch.finfo(dtype).eps
    limit, what = eps / 10, "steps get shorter and the error does not fall"
    if isinstance(algorithm, AbstractFixedPointAlgorithm):
        limit, what = eps, "iterations may not end"
    if max(torch.as_tensor(x).max().item() for x in tolerances) < limit:
        warnings.warn(
            f"a tolerance below {limit:.2g} is less than evaluations in {str(dtype).removeprefix('torch.')} hold: "
            f"{what}; loosen rtol or use precision='full'",
            stacklevel=5,
        )
