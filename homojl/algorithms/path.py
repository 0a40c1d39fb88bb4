"""Methods for a `HomotopyProblem`: how to follow a zero path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from homojl.algorithms.base import AbstractODEAlgorithm
from homojl.algorithms.checks import by_name, methods_of, require
from homojl.algorithms.ode import Midpoint
from homojl.algorithms.tableaus import ButcherTableau

_DENSE_UP_TO = 64


@dataclass(frozen=True, kw_only=True)
class AbstractPathAlgorithm:
    """Base of every method that follows H(z, lambda) = 0 from lambda = 0 to 1.

    A step is a predictor's, along the tangent, and then Newton's corrections back onto the path. It is halved and taken
    again where the corrections fail or the path turns by too much, and grows, at most twofold, where all is easy.

    Attributes:
        rtol, atol: the path is corrected until norm(H) <= atol + rtol * norm(z), root mean squares over the state;
            at lambda = 1 likewise. Not negative, not both zero.
        predictor: an explicit Runge-Kutta method, of which one step is taken along the tangent field. If it estimates
            its error, its own tolerances limit the step too; its other options are not used.
        max_corrections: Newton's corrections of one step before it is halved.
        first_step, max_step: first and largest step along the path, in its unit of length.
        max_steps: accepted and rejected steps together before the solve stops.
        linear_solver: "dense": the Jacobian column by column and an LU factorisation; "krylov": GMRES on
            Jacobian-vector products; "auto": dense for states of up to 64 elements.
        krylov_steps: most products for one linear system.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    predictor: AbstractODEAlgorithm = field(default_factory=Midpoint)
    max_corrections: int = 5
    first_step: float = 0.05
    max_step: float = math.inf
    max_steps: int = 2000
    linear_solver: str = "auto"
    krylov_steps: int = 60

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")
        require(self.rtol + self.atol > 0, "rtol and atol must not both be zero")
        explicit = isinstance(getattr(self.predictor, "tableau", None), ButcherTableau)
        require(explicit, f"predictor must be an explicit Runge-Kutta method such as Tsit5(), got {self.predictor!r}")
        ok = math.isfinite(self.first_step) and self.first_step > 0
        require(ok, f"first_step must be positive and finite, got {self.first_step}")
        require(self.max_step > 0, f"max_step must be positive, got {self.max_step}")
        require(self.max_steps >= 1, f"max_steps must be at least 1, got {self.max_steps}")
        require(self.max_corrections >= 0, f"max_corrections must be at least 0, got {self.max_corrections}")
        kinds = ("auto", "dense", "krylov")
        require(self.linear_solver in kinds, f"linear_solver must be one of {kinds}, got {self.linear_solver!r}")
        require(self.krylov_steps >= 1, f"krylov_steps must be at least 1, got {self.krylov_steps}")

    @property
    def name(self) -> str:
        return type(self).__name__

    def solves_densely(self, size: int) -> bool:
        """Whether linear systems of a state of `size` elements are solved by a factorisation."""
        return self.linear_solver == "dense" or (self.linear_solver == "auto" and size <= _DENSE_UP_TO)


@dataclass(frozen=True, kw_only=True)
class ArcLength(AbstractPathAlgorithm):
    """Follow the path by its length, through folds where it turns back in lambda.

    The tangent is the null space of [H_z, H_lambda], at first with lambda growing, then oriented by continuity. The
    corrections stay in the hyperplane orthogonal to it, so nothing is ever divided by dlambda/ds. Where the path
    crosses lambda = 1, Newton's method for r itself, started from the crossing, ends it there.

    Attributes:
        velocity: length of the tangent (dz/ds, dlambda/ds): a positive number, or a function of s; it changes the
            parametrisation of the path, not the path: steps are chosen by length.
        bound: give up where the root mean square of z exceeds this.

    References: Allgower, Georg (1990), Numerical Continuation Methods, chapters 4 to 6; Ding et al. (2023), (2), (9).
    """

    velocity: float | Callable[[float], float] = 1.0
    bound: float = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_corrections >= 1, f"max_corrections must be at least 1, got {self.max_corrections}")
        if not callable(self.velocity):
            ok = math.isfinite(self.velocity) and self.velocity > 0
            require(ok, f"velocity must be positive and finite, or a function of s, got {self.velocity}")
        require(self.bound > 0, f"bound must be positive, got {self.bound}")

    def velocity_at(self, s: float) -> float:
        """v(s).

        Raises:
            ConfigError: if a velocity that is a function returns anything but a positive finite number.
        """
        if not callable(self.velocity):
            return self.velocity
        v = float(self.velocity(s))
        require(math.isfinite(v) and v > 0, f"velocity must be positive and finite, got {v} at s = {s:.6g}")
        return v


@dataclass(frozen=True, kw_only=True)
class NaturalParameter(AbstractPathAlgorithm):
    """Follow the path by lambda itself; cannot pass a fold, and says so.

    Steps are lengths in lambda; s is the path's length all the same. With `max_corrections=0` nothing pulls back onto
    the path, and steps stay as long as the first unless the predictor estimates its error: on a Newton homotopy one
    Euler step of length 1 is then Newton's step.
    """


PATH_ALGORITHMS = methods_of(globals(), AbstractPathAlgorithm)


def path_algorithm(name: str, **options: object) -> AbstractPathAlgorithm:
    """The algorithm of a name such as "arclength", with those of `options` that are not None.

    Raises:
        ConfigError: for an unknown name, or an option that the method does not have.
    """
    return by_name(PATH_ALGORITHMS, "path algorithm", name, options)
