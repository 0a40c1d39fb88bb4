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
    **dict.fromkeys(["ODEProblem", "Event", "FixedPointProblem", "HomotopyProblem"], "homojl.problems"),
    **dict.fromkeys(
        [
            "Euler",
            "Midpoint",
            "Heun2",
            "Heun3",
            "RK4",
            "RK38",
            "AdaptiveHeun",
            "Fehlberg2",
            "AdamsBashforth",
            "AdamsMoulton",
            "SciPy",
            "Bosh3",
            "Dopri5",
            "Tsit5",
            "Dopri8",
            "Vern7",
            "Rodas5P",
            "TRBDF2",
            "FBDF",
            "AutoSwitch",
            "KenCarp4",
            "Kvaerno5",
            "ImplicitEuler",
            "ImplicitMidpoint",
            "Trapezoid",
            "SDIRK2",
            "FixedTRBDF2",
            "RadauIIA3",
            "RadauIIA5",
            "GaussLegendre4",
            "GaussLegendre6",
            "ode_algorithm",
            "PIController",
            "PredictiveController",
            "StepMemory",
            "ErrorNorm",
            "Grid",
            "StepObserver",
            "Picard",
            "Anderson",
            "Broyden",
            "NewtonKrylov",
            "PseudoTransient",
            "Relaxation",
            "Homotopy",
            "TrustRegion",
            "DFSane",
            "ForwardBackward",
            "PeacemanRachford",
            "fixed_point_algorithm",
            "ArcLength",
            "NaturalParameter",
        ],
        "homojl.algorithms",
    ),
    **dict.fromkeys(
        ["Solution", "EquilibriumSolution", "PathSolution", "Samples", "Stats", "Status"], "homojl.solution"
    ),
    **dict.fromkeys(
        [
            "DirectAdjoint",
            "CheckpointAdjoint",
            "BacksolveAdjoint",
            "GaussAdjoint",
            "ImplicitAdjoint",
            "PhantomAdjoint",
            "OneStepAdjoint",
            "UnrolledAdjoint",
            "jacobian_regularization",
        ],
        "homojl.adjoints",
    ),
    **dict.fromkeys(["solve"], "homojl.solving"),
    **dict.fromkeys(["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"], "homojl.compat"),
    **dict.fromkeys(["JuliaField"], "homojl.backends.julia.field"),
    **dict.fromkeys(["create_model", "model_names"], "homojl.models"),
    **dict.fromkeys(["load_dataset", "dataset_names"], "homojl.data"),
    **dict.fromkeys(["load_run"], "homojl.training"),
    **dict.fromkeys(
        [
            "HomoJLError",
            "ConfigError",
            "DataError",
            "CheckpointError",
            "BackendUnavailable",
            "SolveError",
            "JuliaCodeError",
        ],
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
    from homojl.adjoints import (
        BacksolveAdjoint,
        CheckpointAdjoint,
        DirectAdjoint,
        GaussAdjoint,
        ImplicitAdjoint,
        OneStepAdjoint,
        PhantomAdjoint,
        UnrolledAdjoint,
        jacobian_regularization,
    )
    from homojl.algorithms import (
        FBDF,
        RK4,
        RK38,
        SDIRK2,
        TRBDF2,
        AdamsBashforth,
        AdamsMoulton,
        AdaptiveHeun,
        Anderson,
        ArcLength,
        AutoSwitch,
        Bosh3,
        Broyden,
        DFSane,
        Dopri5,
        Dopri8,
        Euler,
        Fehlberg2,
        FixedTRBDF2,
        ForwardBackward,
        GaussLegendre4,
        GaussLegendre6,
        Heun2,
        Heun3,
        Homotopy,
        ImplicitEuler,
        ImplicitMidpoint,
        KenCarp4,
        Kvaerno5,
        Midpoint,
        NaturalParameter,
        NewtonKrylov,
        PeacemanRachford,
        Picard,
        PIController,
        PredictiveController,
        PseudoTransient,
        RadauIIA3,
        RadauIIA5,
        Relaxation,
        Rodas5P,
        StepMemory,
        Trapezoid,
        TrustRegion,
        Tsit5,
        Vern7,
        fixed_point_algorithm,
        ode_algorithm,
    )
    from homojl.backends.julia.field import JuliaField
    from homojl.compat import odeint, odeint_adjoint, odeint_dense, odeint_event
    from homojl.data import dataset_names, load_dataset
    from homojl.errors import (
        BackendUnavailable,
        CheckpointError,
        ConfigError,
        DataError,
        HomoJLError,
        JuliaCodeError,
        SolveError,
    )
    from homojl.models import create_model, model_names
    from homojl.problems import Event, FixedPointProblem, HomotopyProblem, ODEProblem
    from homojl.solution import EquilibriumSolution, PathSolution, Samples, Solution, Stats, Status
    from homojl.solving import solve
    from homojl.training import load_run
