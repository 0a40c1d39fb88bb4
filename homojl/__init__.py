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
    **dict.fromkeys(
        ["ODEProblem", "Event", "FixedPointProblem", "HomotopyProblem", "PerSample", "Shared"], "homojl.problems"
    ),
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
            "PIDController",
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
        ["Solution", "EquilibriumSolution", "PathSolution", "Samples", "Happened", "Stats", "Status"], "homojl.solution"
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
    **dict.fromkeys(["ImageDataset"], "homojl.data.datasets"),
    **dict.fromkeys(["allow"], "homojl.own"),
    **dict.fromkeys(["Callback", "load_run", "train"], "homojl.training"),
    **dict.fromkeys(
        [
            "HomoJLError",
            "ConfigError",
            "DataError",
            "CheckpointError",
            "BackendUnavailable",
            "BusyError",
            "SolveError",
            "JuliaCodeError",
            "ConvergenceWarning",
        ],
        "homojl.errors",
    ),
}

__all__ = ["__version__", "nn", *sorted(_EXPORTS)]


if not TYPE_CHECKING:  # to a type checker it would say that every name exists

    def __getattr__(name: str):
        if name in _EXPORTS:
            value = getattr(importlib.import_module(_EXPORTS[name]), name)
            globals()[name] = value
            return value
        if name == "nn":
            return importlib.import_module("homojl.nn")
        raise AttributeError(f"module 'homojl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "nn", *_EXPORTS})


if TYPE_CHECKING:  # the same names for type checkers and editors, each re-exported on purpose
    from homojl import nn as nn
    from homojl.adjoints import BacksolveAdjoint as BacksolveAdjoint
    from homojl.adjoints import CheckpointAdjoint as CheckpointAdjoint
    from homojl.adjoints import DirectAdjoint as DirectAdjoint
    from homojl.adjoints import GaussAdjoint as GaussAdjoint
    from homojl.adjoints import ImplicitAdjoint as ImplicitAdjoint
    from homojl.adjoints import OneStepAdjoint as OneStepAdjoint
    from homojl.adjoints import PhantomAdjoint as PhantomAdjoint
    from homojl.adjoints import UnrolledAdjoint as UnrolledAdjoint
    from homojl.adjoints import jacobian_regularization as jacobian_regularization
    from homojl.algorithms import FBDF as FBDF
    from homojl.algorithms import RK4 as RK4
    from homojl.algorithms import RK38 as RK38
    from homojl.algorithms import SDIRK2 as SDIRK2
    from homojl.algorithms import TRBDF2 as TRBDF2
    from homojl.algorithms import AdamsBashforth as AdamsBashforth
    from homojl.algorithms import AdamsMoulton as AdamsMoulton
    from homojl.algorithms import AdaptiveHeun as AdaptiveHeun
    from homojl.algorithms import Anderson as Anderson
    from homojl.algorithms import ArcLength as ArcLength
    from homojl.algorithms import AutoSwitch as AutoSwitch
    from homojl.algorithms import Bosh3 as Bosh3
    from homojl.algorithms import Broyden as Broyden
    from homojl.algorithms import DFSane as DFSane
    from homojl.algorithms import Dopri5 as Dopri5
    from homojl.algorithms import Dopri8 as Dopri8
    from homojl.algorithms import ErrorNorm as ErrorNorm
    from homojl.algorithms import Euler as Euler
    from homojl.algorithms import Fehlberg2 as Fehlberg2
    from homojl.algorithms import FixedTRBDF2 as FixedTRBDF2
    from homojl.algorithms import ForwardBackward as ForwardBackward
    from homojl.algorithms import GaussLegendre4 as GaussLegendre4
    from homojl.algorithms import GaussLegendre6 as GaussLegendre6
    from homojl.algorithms import Grid as Grid
    from homojl.algorithms import Heun2 as Heun2
    from homojl.algorithms import Heun3 as Heun3
    from homojl.algorithms import Homotopy as Homotopy
    from homojl.algorithms import ImplicitEuler as ImplicitEuler
    from homojl.algorithms import ImplicitMidpoint as ImplicitMidpoint
    from homojl.algorithms import KenCarp4 as KenCarp4
    from homojl.algorithms import Kvaerno5 as Kvaerno5
    from homojl.algorithms import Midpoint as Midpoint
    from homojl.algorithms import NaturalParameter as NaturalParameter
    from homojl.algorithms import NewtonKrylov as NewtonKrylov
    from homojl.algorithms import PeacemanRachford as PeacemanRachford
    from homojl.algorithms import Picard as Picard
    from homojl.algorithms import PIController as PIController
    from homojl.algorithms import PIDController as PIDController
    from homojl.algorithms import PredictiveController as PredictiveController
    from homojl.algorithms import PseudoTransient as PseudoTransient
    from homojl.algorithms import RadauIIA3 as RadauIIA3
    from homojl.algorithms import RadauIIA5 as RadauIIA5
    from homojl.algorithms import Relaxation as Relaxation
    from homojl.algorithms import Rodas5P as Rodas5P
    from homojl.algorithms import SciPy as SciPy
    from homojl.algorithms import StepMemory as StepMemory
    from homojl.algorithms import StepObserver as StepObserver
    from homojl.algorithms import Trapezoid as Trapezoid
    from homojl.algorithms import TrustRegion as TrustRegion
    from homojl.algorithms import Tsit5 as Tsit5
    from homojl.algorithms import Vern7 as Vern7
    from homojl.algorithms import fixed_point_algorithm as fixed_point_algorithm
    from homojl.algorithms import ode_algorithm as ode_algorithm
    from homojl.backends.julia.field import JuliaField as JuliaField
    from homojl.compat import odeint_event as odeint_event
    from homojl.compat.odeint import odeint as odeint
    from homojl.compat.odeint import odeint_adjoint as odeint_adjoint
    from homojl.compat.odeint import odeint_dense as odeint_dense
    from homojl.data import dataset_names as dataset_names
    from homojl.data import load_dataset as load_dataset
    from homojl.data.datasets import ImageDataset as ImageDataset
    from homojl.errors import BackendUnavailable as BackendUnavailable
    from homojl.errors import BusyError as BusyError
    from homojl.errors import CheckpointError as CheckpointError
    from homojl.errors import ConfigError as ConfigError
    from homojl.errors import ConvergenceWarning as ConvergenceWarning
    from homojl.errors import DataError as DataError
    from homojl.errors import HomoJLError as HomoJLError
    from homojl.errors import JuliaCodeError as JuliaCodeError
    from homojl.errors import SolveError as SolveError
    from homojl.models import create_model as create_model
    from homojl.models import model_names as model_names
    from homojl.own import allow as allow
    from homojl.problems import Event as Event
    from homojl.problems import FixedPointProblem as FixedPointProblem
    from homojl.problems import HomotopyProblem as HomotopyProblem
    from homojl.problems import ODEProblem as ODEProblem
    from homojl.problems import PerSample as PerSample
    from homojl.problems import Shared as Shared
    from homojl.solution import EquilibriumSolution as EquilibriumSolution
    from homojl.solution import Happened as Happened
    from homojl.solution import PathSolution as PathSolution
    from homojl.solution import Samples as Samples
    from homojl.solution import Solution as Solution
    from homojl.solution import Stats as Stats
    from homojl.solution import Status as Status
    from homojl.solving import solve as solve
    from homojl.training import Callback as Callback
    from homojl.training import load_run as load_run
    from homojl.training import train as train
