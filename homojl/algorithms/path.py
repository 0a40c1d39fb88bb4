"""Methods for a `HomotopyProblem`: how to follow a zero path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from homojl.algorithms.checks import require


@dataclass(frozen=True, kw_only=True)
class AbstractPathAlgorithm:
    """Base of every method that follows H(z, lambda) = 0 from lambda = 0 to 1.

    Attributes:
        rtol, atol: the path is corrected until norm(H) <= atol + rtol * norm(z), root mean squares over the state;
            at lambda = 1 likewise. Not negative, not both zero.
        first_step, max_step: first and largest step along the path, in its unit of length.
        max_steps: accepted and rejected steps together before the solve stops.
        linear_solver: "dense": the Jacobian column by column and an LU factorisation; "krylov": GMRES on
            Jacobian-vector products; "auto": dense for states of up to 64 elements.
    """

    rtol: float = 1e-6
    atol: float = 1e-8
    first_step: float = 0.05
    max_step: float = math.inf
    max_steps: int = 2000
    linear_solver: str = "auto"

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")
        require(self.rtol + self.atol > 0, "rtol and atol must not both be zero")
        ok = math.isfinite(self.first_step) and self.first_step > 0
        require(ok, f"first_step must be positive and finite, got {self.first_step}")
        require(self.max_step > 0, f"max_step must be positive, got {self.max_step}")
        require(self.max_steps >= 1, f"max_steps must be at least 1, got {self.max_steps}")
        kinds = ("auto", "dense", "krylov")
        require(self.linear_solver in kinds, f"linear_solver must be one of {kinds}, got {self.linear_solver!r}")

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class ArcLength(AbstractPathAlgorithm):
    """Follow the path by its length, through folds where it turns back in lambda.

    A predictor step along the tangent, which is oriented by continuity, then Newton's corrections back onto the path.

    Attributes:
        rtol, atol, first_step, max_step, max_steps, linear_solver: as in `AbstractPathAlgorithm`.
        velocity: length of the tangent (dz/ds, dlambda/ds): a positive number, or a function of s; it changes the
            parametrisation of the path, not the path.
        bound: give up where the root mean square of z exceeds this.
    """

    velocity: float | Callable[[float], float] = 1.0
    bound: float = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.velocity):
            ok = math.isfinite(self.velocity) and self.velocity > 0
            require(ok, f"velocity must be positive and finite, or a function of s, got {self.velocity}")
        require(self.bound > 0, f"bound must be positive, got {self.bound}")


@dataclass(frozen=True, kw_only=True)
class NaturalParameter(AbstractPathAlgorithm):
    """Follow the path by lambda itself; cannot pass a fold, and says so."""
