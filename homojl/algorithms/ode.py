"""Methods for an `ODEProblem`: one small frozen object each, holding its tableau, tolerances and step control."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from homojl.algorithms import implicit_tableaus, tableaus
from homojl.algorithms.base import (
    AbstractAdaptive,
    AbstractESDIRK,
    AbstractFixedStep,
    AbstractImplicit,
    AbstractImplicitFixedStep,
    AbstractODEAlgorithm,
)
from homojl.algorithms.checks import by_name, methods_of, require


class Euler(AbstractFixedStep):
    """Euler's method, order 1, one evaluation a step."""

    tableau: ClassVar = tableaus.EULER


class Midpoint(AbstractFixedStep):
    """Explicit midpoint rule, order 2, two evaluations a step."""

    tableau: ClassVar = tableaus.MIDPOINT


class Heun2(AbstractFixedStep):
    """Heun's method of order 2, the explicit trapezoidal rule, two evaluations a step."""

    tableau: ClassVar = tableaus.HEUN2


class Heun3(AbstractFixedStep):
    """Heun's method of order 3, three evaluations a step."""

    tableau: ClassVar = tableaus.HEUN3


class RK4(AbstractFixedStep):
    """The classical Runge-Kutta method, order 4, four evaluations a step."""

    tableau: ClassVar = tableaus.RK4


class RK38(AbstractFixedStep):
    """Kutta's 3/8 rule, order 4, four evaluations a step; most often a smaller error than `RK4`."""

    tableau: ClassVar = tableaus.RK38


class AdaptiveHeun(AbstractAdaptive):
    """Heun's method with Euler's embedded, 2(1), two evaluations a step; for tolerances above 1e-2."""

    tableau: ClassVar = tableaus.ADAPTIVE_HEUN


class Fehlberg2(AbstractAdaptive):
    """Fehlberg's 2(1) pair, three evaluations a step, with a small estimate of the error; for loose tolerances."""

    tableau: ClassVar = tableaus.FEHLBERG2


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(AbstractFixedStep):
    """Explicit Adams-Bashforth methods, one evaluation a step, in PyTorch; they start with `RK38`.

    The weights follow from the times of the steps before, so that the steps need not be equal.

    Attributes:
        step_size, grid: as in `AbstractFixedStep`.
        max_order: one more than the number of derivatives used, from 4, below which all steps are those of `RK38`, to
            12. High orders need small steps.

    References: Hairer, Norsett, Wanner (1993), III.1.
    """

    order: ClassVar = 4
    max_order: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_order <= 12, f"max_order must lie in 1 .. 12, got {self.max_order}")


@dataclass(frozen=True, kw_only=True)
class AdamsMoulton(AdamsBashforth):
    """Adams-Bashforth prediction and Adams-Moulton correction, iterated to a tolerance, in PyTorch.

    Attributes:
        step_size, grid, max_order: as in `AdamsBashforth`.
        rtol, atol: how closely the corrector is solved for, element by element.
        max_iter: most corrections of a step; a warning says where they did not suffice.
    """

    rtol: float = 1e-3
    atol: float = 1e-6
    max_iter: int = 4


@dataclass(frozen=True, kw_only=True)
class SciPy(AbstractODEAlgorithm):
    """A solver of `scipy.integrate.solve_ivp`, on the CPU in float64 and in SciPy's own steps.

    It needs SciPy installed. Gradients come from `GaussAdjoint` or `BacksolveAdjoint`, whose backward solves it
    does too.

    Attributes:
        solver: SciPy's name of the method: "LSODA", "RK45", "DOP853", "Radau", "BDF" ...
        rtol, atol: tolerances.
        min_step, max_step: bounds of its steps; only LSODA has the first.
    """

    order: ClassVar = 5

    solver: str = "LSODA"
    rtol: float = 1e-3
    atol: float = 1e-6
    min_step: float = 0.0
    max_step: float = math.inf


class Bosh3(AbstractAdaptive):
    """Bogacki and Shampine's 3(2) pair, three evaluations a step; good at tolerances above 1e-3."""

    tableau: ClassVar = tableaus.BOSH3


class Dopri5(AbstractAdaptive):
    """Dormand and Prince's 5(4) pair, six evaluations a step; Julia's DP5, SciPy's RK45."""

    tableau: ClassVar = tableaus.DOPRI5


class Tsit5(AbstractAdaptive):
    """Tsitouras' 5(4) pair, six evaluations a step; a good default."""

    tableau: ClassVar = tableaus.TSIT5


class Dopri8(AbstractAdaptive):
    """Prince and Dormand's 8(7) pair, thirteen evaluations a step that end on the save times; for rtol below 1e-8."""

    tableau: ClassVar = tableaus.DOPRI8


class Vern7(AbstractAdaptive):
    """Verner's most efficient 7(6) pair, ten evaluations a step, in Julia; for tolerances below 1e-8."""

    order: ClassVar = 7


class Rodas5P(AbstractImplicit):
    """Steinebach's Rosenbrock method of order 5(4), in Julia; the first choice for small stiff systems."""

    order: ClassVar = 5


class TRBDF2(AbstractImplicit):
    """Trapezoidal rule and BDF2 in one step, 2(3), L-stable; for stiff systems at loose tolerances."""

    tableau: ClassVar = implicit_tableaus.TRBDF2


class KenCarp4(AbstractESDIRK):
    """Kennedy and Carpenter's 4(3) pair, five implicit stages, L-stable; the first choice for stiff systems."""

    tableau: ClassVar = implicit_tableaus.KENCARP4


class Kvaerno5(AbstractESDIRK):
    """Kvaerno's 5(4) pair, six implicit stages, L-stable; for stiff systems at rtol below 1e-5.

    One stage lies 0.23 of a step behind the step's end: the field is evaluated beyond the last save time.
    """

    tableau: ClassVar = implicit_tableaus.KVAERNO5


class AutoSwitch(AbstractImplicit):
    """The default of DifferentialEquations.jl, in Julia: an explicit method until the field turns out stiff.

    For fields of which nothing is known. Its first solve compiles all that it may switch to, some ten seconds.
    """

    order: ClassVar = 7


class FBDF(AbstractImplicit):
    """Backward differentiation of order 1 to 5 with fixed leading coefficient, in Julia; for large stiff systems."""

    order: ClassVar = 5


class ImplicitEuler(AbstractImplicitFixedStep):
    """Implicit Euler, order 1, L-stable."""

    tableau: ClassVar = implicit_tableaus.IMPLICIT_EULER


class ImplicitMidpoint(AbstractImplicitFixedStep):
    """Implicit midpoint rule, order 2, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.IMPLICIT_MIDPOINT


class Trapezoid(AbstractImplicitFixedStep):
    """Trapezoidal rule, order 2, A-stable, symmetric."""

    tableau: ClassVar = implicit_tableaus.TRAPEZOID


class SDIRK2(AbstractImplicitFixedStep):
    """Alexander's singly diagonally implicit method, order 2, two stages, L-stable."""

    tableau: ClassVar = implicit_tableaus.SDIRK2


class FixedTRBDF2(AbstractImplicitFixedStep):
    """`TRBDF2` with equal steps: order 2, two implicit stages, L-stable."""

    tableau: ClassVar = implicit_tableaus.TRBDF2


class RadauIIA3(AbstractImplicitFixedStep):
    """Radau IIA, order 3, two stages solved for together, L-stable."""

    tableau: ClassVar = implicit_tableaus.RADAU_IIA_3


class RadauIIA5(AbstractImplicitFixedStep):
    """Radau IIA, order 5, three stages solved for together, L-stable."""

    tableau: ClassVar = implicit_tableaus.RADAU_IIA_5


class GaussLegendre4(AbstractImplicitFixedStep):
    """Gauss-Legendre, order 4, two stages solved for together, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.GAUSS_LEGENDRE_4


class GaussLegendre6(AbstractImplicitFixedStep):
    """Gauss-Legendre, order 6, three stages solved for together, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.GAUSS_LEGENDRE_6


ODE_ALGORITHMS = methods_of(globals(), AbstractODEAlgorithm)


def ode_algorithm(name: str, **options: object) -> AbstractODEAlgorithm:
    """The algorithm of a name such as "dopri5", with those of `options` that are not None.

    Raises:
        ConfigError: for an unknown name, or an option that the method does not have.
    """
    return by_name(ODE_ALGORITHMS, "ODE algorithm", name, options)
