"""How the steps of an `ODEProblem`'s solve are chosen, measured and watched: small objects that algorithms hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from homojl.algorithms.checks import require

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

    def older_exponent(self, order: int) -> float:
        """That of the error ratio of the step before the old one, by whose power the quotient is multiplied."""
        return 0.0

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


@dataclass(frozen=True, kw_only=True)
class PIDController(PIController):
    """Proportional-integral-derivative control: the two error ratios before the last one count as well.

    With `e_older` for the step before the old one, the step is divided by the power 1/order of
    `e**(I + P + D) / e_old**(P + 2 D) * e_older**D`, over `safety`; I, P and D are the gains. Until there is one,
    `e_older` is `e_old`. Only with the PyTorch backend, whose compiled steps it keeps from being looked ahead at.

    Attributes:
        integral, proportional, derivative: gains; the defaults are those of Kennedy, Carpenter and Lewis.

    References: Soderlind (2003), ACM Trans. Math. Softw. 29(1); Kennedy, Carpenter, Lewis (2000), Appl. Numer.
    Math. 35(3).
    """

    integral: float = 0.25
    proportional: float = 0.14
    derivative: float = 0.10

    def exponents(self, order: int) -> tuple[float, float, float]:
        i, p, d = self.integral, self.proportional, self.derivative
        return (i + p + d) / order, (p + 2 * d) / order, 0.0

    def older_exponent(self, order: int) -> float:
        return self.derivative / order

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.integral > 0, f"integral must be positive, got {self.integral}")
        require(self.beta1 is None and self.beta2 is None, "give gains, or the exponents to a PIController")


CONTROLLERS: dict[str, type[PIController]] = {
    "pi": PIController,
    "predictive": PredictiveController,
    "pid": PIDController,
}


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
