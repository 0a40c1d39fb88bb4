"""homojl: implicit deep models on ODE and equilibrium solvers.

Importing the package is light: every public name is loaded on first use, so neither PyTorch nor Julia
starts until something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# public name -> module that defines it
_EXPORTS = {
    **dict.fromkeys(["ODEProblem"], "homojl.problems"),
    **dict.fromkeys(
        [
            "Euler",
            "Midpoint",
            "RK4",
            "Bosh3",
            "Dopri5",
            "Tsit5",
            "Dopri8",
            "ode_algorithm",
            "PIController",
            "PredictiveController",
        ],
        "homojl.algorithms",
    ),
    **dict.fromkeys(["Solution", "Stats", "Status"], "homojl.solution"),
    **dict.fromkeys(["DirectAdjoint", "CheckpointAdjoint", "BacksolveAdjoint", "GaussAdjoint"], "homojl.adjoints"),
    **dict.fromkeys(["solve"], "homojl.solving"),
    **dict.fromkeys(["create_model", "model_names"], "homojl.models"),
    **dict.fromkeys(["load_dataset", "dataset_names"], "homojl.data"),
    **dict.fromkeys(["load_run"], "homojl.training"),
    **dict.fromkeys(
        ["HomoJLError", "ConfigError", "DataError", "CheckpointError", "BackendUnavailable", "SolveError"],
        "homojl.errors",
    ),
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'homojl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


if TYPE_CHECKING:
    from homojl.adjoints import BacksolveAdjoint, CheckpointAdjoint, DirectAdjoint, GaussAdjoint
    from homojl.algorithms import (
        RK4,
        Bosh3,
        Dopri5,
        Dopri8,
        Euler,
        Midpoint,
        PIController,
        PredictiveController,
        Tsit5,
        ode_algorithm,
    )
    from homojl.data import dataset_names, load_dataset
    from homojl.errors import (
        BackendUnavailable,
        CheckpointError,
        ConfigError,
        DataError,
        HomoJLError,
        SolveError,
    )
    from homojl.models import create_model, model_names
    from homojl.problems import ODEProblem
    from homojl.solution import Solution, Stats, Status
    from homojl.solving import solve
    from homojl.training import load_run
