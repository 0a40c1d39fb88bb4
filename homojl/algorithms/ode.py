"""Methods for an `ODEProblem`: one small frozen object each, holding its tableau, tolerances and step control."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from homojl import implicit_tableaus, tableaus
from homojl.algorithms.checks import by_name, require
from homojl.implicit_tableaus import ImplicitTableau
from homojl.tableaus import ButcherTableau

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PIController:
    """Proportional-integral step-size control.

    After a step of size `h` with error ratio `e` (1 is exactly the tolerance) that follows one of size `h_old` with
    ratio `e_old`, the step is divided by `e**beta1 / e_old**beta2 / (h / h_old)**beta3 / safety`, a quotient kept
    between 1/max_factor and 1/min_factor. After the first step, and after a rejected one, it is
    `e**(1 / order) / safety`.

    Attributes:
        safety: in (0, 1]; how much of the largest admissible step is taken.
        min_factor, max_factor: bounds of the change from one step to the next.
        floor: steps are not made shorter than this, in the unit of time, and one of this size is taken whatever its
            error; only with the PyTorch backend.
        beta1, beta2: exponents; None: 0.85/order and 0.2/order, the 0.17 and 0.04 of Hairer's dopri5. beta3 is 0.

    References: Hairer, Norsett, Wanner (1993), II.4; Hairer, Wanner (1996), IV.2.
    """

    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    floor: float = 0.0
    beta1: float | None = None
    beta2: float | None = None

    def exponents(self, order: int) -> tuple[float, float, float]:
        """beta1, beta2 and beta3 for a method of that order."""
        beta1 = 0.85 / order if self.beta1 is None else self.beta1
        return beta1, 0.2 / order if self.beta2 is None else self.beta2, 0.0

    def __post_init__(self) -> None:
        require(0 < self.safety <= 1, f"safety must lie in (0, 1], got {self.safety}")
        require(0 < self.min_factor < 1, f"min_factor must lie in (0, 1), got {self.min_factor}")
        require(self.floor >= 0, f"floor must be >= 0, got {self.floor}")
        require(self.max_factor > 1, f"max_factor must be greater than 1, got {self.max_factor}")


@dataclass(frozen=True, kw_only=True)
class PredictiveController(PIController):
    """Control that expects the admissible step to go on growing, or shrinking, as it has just done.

    The same formula as `PIController` with beta1 = (1 + p)/order, beta2 = p/order and beta3 = p, where p is
    `prediction`. It saves steps where the steps grow all the way, as from HomoODE's initial point, and costs
    rejected ones where they are limited by stability.

    Attributes:
        prediction: in [0, 1]; 0 is integral control, 1 Gustafsson's predictive control.

    References: Gustafsson (1994), ACM Trans. Math. Softw. 20(4); Hairer, Wanner (1996), IV.8.
    """

    prediction: float = 0.7

    def exponents(self, order: int) -> tuple[float, float, float]:
        return (1 + self.prediction) / order, self.prediction / order, self.prediction

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.prediction <= 1, f"prediction must lie in [0, 1], got {self.prediction}")
        require(self.beta1 is None and self.beta2 is None, "give prediction, or the exponents to a PIController")


CONTROLLERS: dict[str, type[PIController]] = {"pi": PIController, "predictive": PredictiveController}


@dataclass(frozen=True)
class ErrorNorm:
    """Which parts of a flat state the step-size control looks at.

    The error ratio is the largest of the parts' root mean squares; elements outside every part are carried
    along uncontrolled. Data rather than a function, so that any backend can apply it.

    Attributes:
        parts: (start, stop) pairs of positions in the flat state; None: the whole state, of any shape.
        function: a norm of one's own in the place of all that, from the scaled error, of the state's shape, to a
            number; for the PyTorch backend alone.
    """

    parts: tuple[tuple[int, int], ...] | None = None
    function: Callable[[Tensor], Tensor | float] | None = None


class StepObserver:
    """What is told of every step as it is tried, with its start, its state there and its signed size.

    For the PyTorch backend alone. What it does with the states is not part of any gradient.
    """

    def trying(self, t: float, y: Tensor, h: float) -> None:
        """Before the step is tried."""

    def accepted(self, t: float, y: Tensor, h: float) -> None:
        """After it was accepted; not called by methods of fixed steps."""

    def rejected(self, t: float, y: Tensor, h: float) -> None:
        """After it was rejected."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Steps from point to point of a grid that need not have the save times among its points.

    Attributes:
        points: from the save times to the grid's, in their order; the first and the last are those of the save times.
        interpolation: how the state is found inside a step: "linear", or "cubic", the Hermite polynomial of the states
            and derivatives at its ends.
        apart: whether the field may jump at the points: each step then evaluates it strictly between its ends.
    """

    points: Callable[[tuple[float, ...]], Sequence[float]]
    interpolation: str = "linear"
    apart: bool = False

    def __post_init__(self) -> None:
        kinds = ("linear", "cubic")
        require(self.interpolation in kinds, f"interpolation must be one of {kinds}, got {self.interpolation!r}")

    def over(self, ts: tuple[float, ...]) -> tuple[float, ...]:
        """The grid for those save times."""
        points = tuple(float(t) for t in self.points(ts))
        direction = 1.0 if ts[-1] > ts[0] else -1.0
        ends = len(points) >= 2 and (points[0], points[-1]) == (ts[0], ts[-1])
        require(ends, f"a grid must begin and end with the save times {ts[0]:.6g} and {ts[-1]:.6g}, got {points}")
        ahead = all((b - a) * direction > 0 for a, b in itertools.pairwise(points))
        require(ahead, "the points of a grid must be strictly increasing or strictly decreasing, as the save times are")
        return points


@dataclass(frozen=True, kw_only=True)
class AbstractODEAlgorithm:
    """Base of every method for an `ODEProblem`.

    Attributes:
        observer: what is told of every step; None: nothing is.
        tableau: coefficients of a Runge-Kutta method, which the PyTorch backend runs and with which a gradient can take
            the steps again; None: a method that only Julia has.
        order: order of convergence.
    """

    tableau: ClassVar[ButcherTableau | ImplicitTableau | None] = None
    order: ClassVar[int]

    observer: StepObserver | None = None

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if cls.tableau is not None:
            cls.order = cls.tableau.order

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class AbstractFixedStep(AbstractODEAlgorithm):
    """Equal steps from each save time to the next, so that every save time is met exactly.

    Attributes:
        step_size: the largest step to take, in the unit of time; None: one step from each save time to the next.
        grid: the steps to take instead, with the PyTorch backend alone.
    """

    step_size: float | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        require(self.step_size is None or self.grid is None, "give step_size or grid, not both")
        ok = self.step_size is None or (math.isfinite(self.step_size) and self.step_size > 0)
        require(ok, f"step_size must be positive and finite, got {self.step_size}")


@dataclass(frozen=True, kw_only=True)
class AbstractErrorControlled(AbstractODEAlgorithm):
    """Methods that choose their steps by an estimate of the error.

    A step is accepted when the root mean square of error / (atol + rtol * max(|y before|, |y after|)) over all
    elements of the state is at most 1. The last step ends on the last save time; the other save times are interpolated,
    or met exactly by a method without a continuous extension.

    Attributes:
        rtol, atol: relative and absolute tolerance, not negative, not both zero. With the PyTorch backend also tensors
            that broadcast to the state's shape, on its device.
        first_step: size of the first step, in the unit of time; None: Hairer's estimate, one more evaluation.
        min_step: smallest step before the solve stops; 0: what rounding of the time allows.
        max_step: largest step.
        max_steps: accepted and rejected steps together before the solve stops.
        norm: another measure of the error.
    """

    rtol: float | Tensor = 1e-3
    atol: float | Tensor = 1e-6
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    max_steps: int = 10_000
    norm: ErrorNorm = ErrorNorm()

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            ends = (value.min().item(), value.max().item()) if hasattr(value, "min") else (value, value)
            ok = math.isfinite(ends[0] + ends[1]) and ends[0] >= 0
            require(ok, f"{name} must be a finite number >= 0, got {value}")
        both = self.rtol + self.atol
        require((both.min().item() if hasattr(both, "min") else both) > 0, "rtol and atol must not both be zero")
        ok = self.first_step is None or (math.isfinite(self.first_step) and self.first_step > 0)
        require(ok, f"first_step must be positive and finite, got {self.first_step}")
        require(self.min_step >= 0, f"min_step must be >= 0, got {self.min_step}")
        require(self.max_step > self.min_step, f"max_step must be greater than min_step, got {self.max_step}")
        require(self.max_steps >= 1, f"max_steps must be at least 1, got {self.max_steps}")


@dataclass(frozen=True, kw_only=True)
class AbstractAdaptive(AbstractErrorControlled):
    """Embedded explicit Runge-Kutta pairs.

    Attributes:
        rtol, atol, first_step, min_step, max_step, max_steps: as in `AbstractErrorControlled`.
        controller: the step-size control.
    """

    controller: PIController = PIController()


@dataclass(frozen=True, kw_only=True)
class AbstractJacobianBased(AbstractODEAlgorithm):
    """Methods for stiff fields: every step solves linear systems with the field's Jacobian.

    The Jacobian is never asked for: its products with vectors come from PyTorch's automatic differentiation, or, for a
    field held in Julia, from Julia's.

    Attributes:
        linear_solver: "dense": the Jacobian column by column and an LU factorisation; "krylov": GMRES on
            Jacobian-vector products; "auto": dense for states of up to 64 elements.
    """

    linear_solver: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ("auto", "dense", "krylov")
        require(self.linear_solver in kinds, f"linear_solver must be one of {kinds}, got {self.linear_solver!r}")

    def solves_densely(self, n: int) -> bool:
        """Whether the Jacobian of a state of n elements is made and factorised."""
        return self.linear_solver == "dense" or (self.linear_solver == "auto" and n <= 64)


@dataclass(frozen=True, kw_only=True)
class AbstractImplicit(AbstractJacobianBased, AbstractErrorControlled):
    """Methods for stiff fields that choose their steps by an estimate of the error.

    Attributes:
        rtol, atol, first_step, min_step, max_step, max_steps: as in `AbstractErrorControlled`.
        linear_solver: as in `AbstractJacobianBased`.
    """

    controller: ClassVar[PIController] = PIController()


@dataclass(frozen=True, kw_only=True)
class AbstractESDIRK(AbstractImplicit):
    """Embedded diagonally implicit Runge-Kutta pairs with an explicit first stage, stiffly accurate, in PyTorch.

    Attributes:
        rtol, atol, first_step, min_step, max_step, max_steps: as in `AbstractErrorControlled`.
        linear_solver: as in `AbstractJacobianBased`.
        controller: the step-size control.
    """

    controller: PIController = PIController()


@dataclass(frozen=True, kw_only=True)
class AbstractImplicitFixedStep(AbstractJacobianBased, AbstractFixedStep):
    """Implicit Runge-Kutta methods with equal steps, in PyTorch.

    Attributes:
        step_size: as in `AbstractFixedStep`.
        linear_solver: as in `AbstractJacobianBased`.
        rtol, atol: how exactly the stages are solved for: Newton's iteration ends where its error is below a hundredth
            of atol + rtol |y|, or what rounding allows.
    """

    rtol: float = 1e-8
    atol: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Euler(AbstractFixedStep):
    """Euler's method, order 1, one evaluation a step."""

    tableau: ClassVar = tableaus.EULER


@dataclass(frozen=True, kw_only=True)
class Midpoint(AbstractFixedStep):
    """Explicit midpoint rule, order 2, two evaluations a step."""

    tableau: ClassVar = tableaus.MIDPOINT


@dataclass(frozen=True, kw_only=True)
class Heun2(AbstractFixedStep):
    """Heun's method of order 2, the explicit trapezoidal rule, two evaluations a step."""

    tableau: ClassVar = tableaus.HEUN2


@dataclass(frozen=True, kw_only=True)
class Heun3(AbstractFixedStep):
    """Heun's method of order 3, three evaluations a step."""

    tableau: ClassVar = tableaus.HEUN3


@dataclass(frozen=True, kw_only=True)
class RK4(AbstractFixedStep):
    """The classical Runge-Kutta method, order 4, four evaluations a step."""

    tableau: ClassVar = tableaus.RK4


@dataclass(frozen=True, kw_only=True)
class RK38(AbstractFixedStep):
    """Kutta's 3/8 rule, order 4, four evaluations a step; most often a smaller error than `RK4`."""

    tableau: ClassVar = tableaus.RK38


@dataclass(frozen=True, kw_only=True)
class AdaptiveHeun(AbstractAdaptive):
    """Heun's method with Euler's embedded, 2(1), two evaluations a step; for tolerances above 1e-2."""

    tableau: ClassVar = tableaus.ADAPTIVE_HEUN


@dataclass(frozen=True, kw_only=True)
class Fehlberg2(AbstractAdaptive):
    """Fehlberg's 2(1) pair, three evaluations a step, with a small estimate of the error; for loose tolerances."""

    tableau: ClassVar = tableaus.FEHLBERG2


@dataclass(frozen=True, kw_only=True)
class Bosh3(AbstractAdaptive):
    """Bogacki and Shampine's 3(2) pair, three evaluations a step; good at tolerances above 1e-3."""

    tableau: ClassVar = tableaus.BOSH3


@dataclass(frozen=True, kw_only=True)
class Dopri5(AbstractAdaptive):
    """Dormand and Prince's 5(4) pair, six evaluations a step; Julia's DP5, SciPy's RK45."""

    tableau: ClassVar = tableaus.DOPRI5


@dataclass(frozen=True, kw_only=True)
class Tsit5(AbstractAdaptive):
    """Tsitouras' 5(4) pair, six evaluations a step; a good default."""

    tableau: ClassVar = tableaus.TSIT5


@dataclass(frozen=True, kw_only=True)
class Dopri8(AbstractAdaptive):
    """Prince and Dormand's 8(7) pair, thirteen evaluations a step that end on the save times; for rtol below 1e-8."""

    tableau: ClassVar = tableaus.DOPRI8


@dataclass(frozen=True, kw_only=True)
class Vern7(AbstractAdaptive):
    """Verner's most efficient 7(6) pair, ten evaluations a step, in Julia; for tolerances below 1e-8."""

    order: ClassVar = 7


@dataclass(frozen=True, kw_only=True)
class Rodas5P(AbstractImplicit):
    """Steinebach's Rosenbrock method of order 5(4), in Julia; the first choice for small stiff systems."""

    order: ClassVar = 5


@dataclass(frozen=True, kw_only=True)
class TRBDF2(AbstractImplicit):
    """Trapezoidal rule and BDF2 in one step, 2(3), L-stable; for stiff systems at loose tolerances."""

    tableau: ClassVar = implicit_tableaus.TRBDF2


@dataclass(frozen=True, kw_only=True)
class KenCarp4(AbstractESDIRK):
    """Kennedy and Carpenter's 4(3) pair, five implicit stages, L-stable; the first choice for stiff systems."""

    tableau: ClassVar = implicit_tableaus.KENCARP4


@dataclass(frozen=True, kw_only=True)
class Kvaerno5(AbstractESDIRK):
    """Kvaerno's 5(4) pair, six implicit stages, L-stable; for stiff systems at rtol below 1e-5.

    One stage lies 0.23 of a step behind the step's end: the field is evaluated beyond the last save time.
    """

    tableau: ClassVar = implicit_tableaus.KVAERNO5


@dataclass(frozen=True, kw_only=True)
class FBDF(AbstractImplicit):
    """Backward differentiation of order 1 to 5 with fixed leading coefficient, in Julia; for large stiff systems."""

    order: ClassVar = 5


@dataclass(frozen=True, kw_only=True)
class ImplicitEuler(AbstractImplicitFixedStep):
    """Implicit Euler, order 1, L-stable."""

    tableau: ClassVar = implicit_tableaus.IMPLICIT_EULER


@dataclass(frozen=True, kw_only=True)
class ImplicitMidpoint(AbstractImplicitFixedStep):
    """Implicit midpoint rule, order 2, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.IMPLICIT_MIDPOINT


@dataclass(frozen=True, kw_only=True)
class Trapezoid(AbstractImplicitFixedStep):
    """Trapezoidal rule, order 2, A-stable, symmetric."""

    tableau: ClassVar = implicit_tableaus.TRAPEZOID


@dataclass(frozen=True, kw_only=True)
class SDIRK2(AbstractImplicitFixedStep):
    """Alexander's singly diagonally implicit method, order 2, two stages, L-stable."""

    tableau: ClassVar = implicit_tableaus.SDIRK2


@dataclass(frozen=True, kw_only=True)
class FixedTRBDF2(AbstractImplicitFixedStep):
    """`TRBDF2` with equal steps: order 2, two implicit stages, L-stable."""

    tableau: ClassVar = implicit_tableaus.TRBDF2


@dataclass(frozen=True, kw_only=True)
class RadauIIA3(AbstractImplicitFixedStep):
    """Radau IIA, order 3, two stages solved for together, L-stable."""

    tableau: ClassVar = implicit_tableaus.RADAU_IIA_3


@dataclass(frozen=True, kw_only=True)
class RadauIIA5(AbstractImplicitFixedStep):
    """Radau IIA, order 5, three stages solved for together, L-stable."""

    tableau: ClassVar = implicit_tableaus.RADAU_IIA_5


@dataclass(frozen=True, kw_only=True)
class GaussLegendre4(AbstractImplicitFixedStep):
    """Gauss-Legendre, order 4, two stages solved for together, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.GAUSS_LEGENDRE_4


@dataclass(frozen=True, kw_only=True)
class GaussLegendre6(AbstractImplicitFixedStep):
    """Gauss-Legendre, order 6, three stages solved for together, A-stable, symplectic and symmetric."""

    tableau: ClassVar = implicit_tableaus.GAUSS_LEGENDRE_6


ODE_ALGORITHMS: dict[str, type[AbstractODEAlgorithm]] = {
    cls.__name__.lower(): cls
    for cls in (
        Euler,
        Midpoint,
        Heun2,
        Heun3,
        RK4,
        RK38,
        AdaptiveHeun,
        Fehlberg2,
        Bosh3,
        Dopri5,
        Tsit5,
        Dopri8,
        Vern7,
        Rodas5P,
        TRBDF2,
        FBDF,
        KenCarp4,
        Kvaerno5,
        ImplicitEuler,
        ImplicitMidpoint,
        Trapezoid,
        SDIRK2,
        FixedTRBDF2,
        RadauIIA3,
        RadauIIA5,
        GaussLegendre4,
        GaussLegendre6,
    )
}

# Methods with a tableau of which HomoJL, in Julia, has no counterpart.
PYTORCH_ONLY: tuple[type[AbstractODEAlgorithm], ...] = (
    Heun2,
    Heun3,
    RK38,
    AdaptiveHeun,
    Fehlberg2,
    Dopri8,
    AbstractESDIRK,
    AbstractImplicitFixedStep,
)


def ode_algorithm(name: str, **options: object) -> AbstractODEAlgorithm:
    """The algorithm of a name such as "dopri5", with those of `options` that are not None.

    Raises:
        ConfigError: for an unknown name, or an option that the method does not have.
    """
    return by_name(ODE_ALGORITHMS, "ODE algorithm", name, options)
