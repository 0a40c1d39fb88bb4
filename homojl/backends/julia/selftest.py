"""One small solve of each kind in Julia, compared with PyTorch's: what an installation ends with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from homojl.algorithms import Anderson, ArcLength, Dopri5, NewtonKrylov, Rodas5P
from homojl.errors import BackendUnavailable
from homojl.problems import FixedPointProblem, HomotopyProblem, ODEProblem
from homojl.solving import solve

Tensor = torch.Tensor


def _cases() -> dict[str, Callable[[str], Tensor]]:
    weights = torch.tensor([[0.3, -0.8], [0.6, 0.2]], dtype=torch.float64)
    start = torch.tensor([[1.0, -0.5]], dtype=torch.float64)

    def layer(z: Tensor) -> Tensor:
        return torch.tanh(z @ weights + 0.1)

    ode = ODEProblem(lambda t, y: layer(y) - y, start, (0.0, 1.0))
    equilibrium = FixedPointProblem(layer, torch.zeros_like(start))
    path = HomotopyProblem(lambda z: z - layer(z), torch.zeros_like(start), kind="newton")
    tight: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    reference = {"pytorch": Dopri5(**tight), "julia": Rodas5P(**tight)}
    return {
        "an explicit ODE solve": lambda backend: solve(ode, Dopri5(**tight), backend=backend).value,
        "an equilibrium by Anderson": lambda backend: solve(equilibrium, Anderson(**tight), backend=backend).value,
        "a zero path": lambda backend: solve(path, ArcLength(**tight), backend=backend).value,
        "a stiff ODE solve": lambda backend: solve(ode, reference[backend], backend=backend).value,
        "an equilibrium by Newton-Krylov": lambda backend: (
            solve(equilibrium, NewtonKrylov(**tight), backend=backend).value
        ),
    }


def self_test() -> Iterator[tuple[str, float]]:
    """What was solved and the seconds that it took in Julia, loading included, one after the other.

    Raises:
        BackendUnavailable: if an answer differs from PyTorch's.
    """
    for name, answer in _cases().items():
        started = time.perf_counter()
        found = answer("julia")
        seconds = time.perf_counter() - started
        difference = (found - answer("pytorch")).abs().max().item()
        if not difference < 1e-7:
            raise BackendUnavailable(f"the self-test failed: {name} differs from PyTorch's by {difference:.1e}")
        yield name, seconds
