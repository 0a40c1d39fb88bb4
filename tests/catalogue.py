"""Initial value problems with exact answers, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from homojl.algorithms import ODE_ALGORITHMS
from homojl.algorithms.implicit_tableaus import ImplicitTableau
from homojl.algorithms.tableaus import ButcherTableau

Tensor = torch.Tensor

# The explicit methods that every backend runs but for those that homojl.backends.julia.methods does not name.
EXPLICIT = {name: cls for name, cls in ODE_ALGORITHMS.items() if isinstance(cls.tableau, ButcherTableau)}
IMPLICIT = {name: cls for name, cls in ODE_ALGORITHMS.items() if isinstance(cls.tableau, ImplicitTableau)}


@dataclass(frozen=True, eq=False)
class ExactODE:
    """dy/dt = f(t, y), y(t0) = y0, with the solution `exact(t)`."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    t0: float
    t1: float
    exact: Callable[[float], Tensor]


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_MATRIX = torch.tensor([[-0.5, 2.0, 0.3], [-2.0, -0.2, 0.1], [0.4, -0.3, -1.0]], dtype=torch.float64)
_START = _tensor(1.0, -0.5, 2.0)

EXACT_ODES = [
    ExactODE(
        "linear",
        lambda t, y: _MATRIX @ y,
        _START,
        0.0,
        2.0,
        lambda t: torch.linalg.matrix_exp(_MATRIX * t) @ _START,
    ),
    ExactODE(
        "logistic",
        lambda t, y: 2 * y * (1 - y),
        _tensor(0.1, 0.7),
        0.0,
        2.0,
        lambda t: 1 / (1 + (1 / _tensor(0.1, 0.7) - 1) * math.exp(-2 * t)),
    ),
    ExactODE(
        "forced",  # depends on time: y' = cos(t) y
        lambda t, y: torch.cos(t) * y,
        _tensor(1.0),
        0.3,
        3.3,
        lambda t: _tensor(math.exp(math.sin(t) - math.sin(0.3))),
    ),
    ExactODE(
        "rotation backwards in time",
        lambda t, y: torch.stack([-y[1], y[0]]),
        _tensor(1.0, 0.0),
        2.0,
        -1.0,
        lambda t: _tensor(math.cos(t - 2), math.sin(t - 2)),
    ),
]
