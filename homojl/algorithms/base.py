"""What the methods for an `ODEProblem` have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from homojl.algorithms.checks import require
from homojl.algorithms.control import ErrorNorm, Grid, PIController, StepObserver
from homojl.algorithms.implicit_tableaus import ImplicitTableau
from homojl.algorithms.step_memory import StepMemory
from homojl.algorithms.tableaus import ButcherTableau

if TYPE_CHECKING:
    from torch import Tensor


_NO_GRID: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class AbstractODEAlgorithm:
    """Base of every method for an `ODEProblem`.

    Attributes:
        observer: what is told of every step; None: nothing is.
        tableau: coefficients of a Runge-Kutta method, which the PyTorch backend runs and with which a gradient can take
            the steps again; None: a method that only Julia has.
        order: order of convergence.
        explicit: whether the tableau is an explicit method's.
    """

    name: ClassVar[str]
    explicit: ClassVar[bool]
    tableau: ClassVar[ButcherTableau | ImplicitTableau | None] = None
    order: ClassVar[int]

    observer: StepObserver | None = None

    # No settings, but of some methods.
    norm = ErrorNorm()
    grid = _NO_GRID

    def __post_init__(self) -> None:
        """Check the options; a ConfigError names the first that is not acceptable."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        cls.explicit = isinstance(cls.tableau, ButcherTableau)
        if cls.tableau is not None:
            cls.order = cls.tableau.order

    @property
    def explicit_tableau(self) -> ButcherTableau:
        """The tableau of a method that is known to be an explicit one."""
        assert isinstance(self.tableau, ButcherTableau), self
        return self.tableau


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
        first_step: size of the first step, in the unit of time; None: Hairer's estimate, one more evaluation; a
            `StepMemory`: what earlier solves found to be good.
        min_step: smallest step before the solve stops; 0: what rounding of the time allows.
        max_step: largest step.
        max_steps: accepted and rejected steps together before the solve stops.
        norm: another measure of the error.
    """

    rtol: float | Tensor = 1e-3
    atol: float | Tensor = 1e-6
    first_step: float | StepMemory | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    max_steps: int = 10_000
    norm: ErrorNorm = ErrorNorm()

    def __post_init__(self) -> None:
        # On the host, so that a device is waited for once for each.
        tolerances: list[Any] = [self.rtol, self.atol]
        rtol, atol = (x.detach().cpu() if hasattr(x, "detach") else x for x in tolerances)
        for name, value in (("rtol", rtol), ("atol", atol)):
            ends = (value.min().item(), value.max().item()) if hasattr(value, "min") else (value, value)
            ok = math.isfinite(ends[0] + ends[1]) and ends[0] >= 0
            require(ok, f"{name} must be a finite number >= 0, got {value}")
        shapes = [getattr(x, "shape", ()) for x in (rtol, atol)]
        fit = all(n == m or 1 in (n, m) for n, m in zip(*(reversed(shape) for shape in shapes), strict=False))
        require(
            fit, f"rtol and atol must fit each other, got tensors of shapes {tuple(shapes[0])} and {tuple(shapes[1])}"
        )
        both = rtol + atol
        require((both.min().item() if hasattr(both, "min") else both) > 0, "rtol and atol must not both be zero")
        if not isinstance(self.first_step, StepMemory | None):
            ok = math.isfinite(self.first_step) and self.first_step > 0
            require(ok, f"first_step must be positive and finite, got {self.first_step}")
        require(self.min_step >= 0, f"min_step must be >= 0, got {self.min_step}")
        require(self.max_step > self.min_step, f"max_step must be greater than min_step, got {self.max_step}")
        require(self.max_steps >= 1, f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def step_control(self) -> PIController:
        """How the steps are chosen: the default where the method has no option for it."""
        return PIController()


@dataclass(frozen=True, kw_only=True)
class AbstractAdaptive(AbstractErrorControlled):
    """Embedded explicit Runge-Kutta pairs.

    Attributes:
        rtol, atol, first_step, min_step, max_step, max_steps: as in `AbstractErrorControlled`.
        controller: the step-size control.
    """

    controller: PIController = PIController()

    @property
    def step_control(self) -> PIController:
        return self.controller


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


@dataclass(frozen=True, kw_only=True)
class AbstractESDIRK(AbstractImplicit):
    """Embedded diagonally implicit Runge-Kutta pairs with an explicit first stage, stiffly accurate, in PyTorch.

    Attributes:
        rtol, atol, first_step, min_step, max_step, max_steps: as in `AbstractErrorControlled`.
        linear_solver: as in `AbstractJacobianBased`.
        controller: the step-size control.
    """

    controller: PIController = PIController()

    @property
    def step_control(self) -> PIController:
        return self.controller


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
