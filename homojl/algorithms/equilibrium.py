"""Methods for a `FixedPointProblem`: one small frozen object each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from homojl.algorithms.checks import by_name, methods_of, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AbstractFixedPointAlgorithm:
    """Base of every method for z = f(z).

    A sample has converged when norm(f(z) - z) <= atol + rtol * norm(f(z)), the Euclidean norm over that sample.

    Attributes:
        rtol, atol: relative and absolute tolerance, not negative, not both zero.
        max_steps: iterations before the solve stops.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 100

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")
        require(self.rtol + self.atol > 0, "rtol and atol must not both be zero")
        require(self.max_steps >= 1, f"max_steps must be at least 1, got {self.max_steps}")

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
class Picard(AbstractFixedPointAlgorithm):
    """z <- (1 - damping) f(z) + damping z: converges where f contracts.

    Attributes:
        damping: in [0, 1).
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.damping < 1, f"damping must lie in [0, 1), got {self.damping}")


@dataclass(frozen=True, kw_only=True)
class Anderson(AbstractFixedPointAlgorithm):
    """Anderson acceleration: the combination of the last iterates whose residuals cancel best.

    Attributes:
        memory: how many iterates are combined.
        mixing: in (0, 1]; how much of f(z) rather than z enters.
        regularization: added to the diagonal of the scaled least-squares problem.

    References: Anderson (1965); Walker, Ni (2011).
    """

    memory: int = 6
    mixing: float = 1.0
    regularization: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.memory >= 1, f"memory must be at least 1, got {self.memory}")
        require(0 < self.mixing <= 1, f"mixing must lie in (0, 1], got {self.mixing}")
        require(self.regularization >= 0, f"regularization must be >= 0, got {self.regularization}")


@dataclass(frozen=True, kw_only=True)
class Broyden(AbstractFixedPointAlgorithm):
    """Broyden's method: a Jacobian of f(z) - z that is updated by rank one with every evaluation; starts from -I.

    Attributes:
        memory: how many updates are kept; when it is full, the method starts again from -I. (In Julia
            NonlinearSolve's `LimitedMemoryBroyden`, whose oldest updates go first.)
    """

    memory: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.memory >= 1, f"memory must be at least 1, got {self.memory}")


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(AbstractFixedPointAlgorithm):
    """Newton's method, its linear systems solved by GMRES on Jacobian-vector products, with a line search.

    The directions that one linear system was slowest to solve for are where the next one begins.

    Attributes:
        krylov_steps: most products for one linear system, beside six for those directions.
        preconditioner: (v, z) -> about (I - df/dz)^-1 v, linear in v; v and z are (b, ...), the samples still at work,
            on their device, and so is what it returns. On the PyTorch backend alone.
        differences: products by forward differences of f, which cost one evaluation each and need no derivative of it,
            in the place of exact ones; for float64, on the PyTorch backend alone.
    """

    krylov_steps: int = 30
    preconditioner: Callable[[Tensor, Tensor], Tensor] | None = None
    differences: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.krylov_steps >= 1, f"krylov_steps must be at least 1, got {self.krylov_steps}")
        given = self.preconditioner
        require(given is None or callable(given), f"preconditioner must be a function (v, z), got {given!r}")


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(AbstractFixedPointAlgorithm):
    """Implicit Euler steps of dz/ds = f(z) - z that grow as the residual falls, until they are Newton's.

    Attributes:
        first_step: size of the first step.
        krylov_steps: most products for one linear system.

    References: Kelley, Keyes (1998).
    """

    first_step: float = 1.0
    krylov_steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = math.isfinite(self.first_step) and self.first_step > 0
        require(ok, f"first_step must be positive and finite, got {self.first_step}")
        require(self.krylov_steps >= 1, f"krylov_steps must be at least 1, got {self.krylov_steps}")


@dataclass(frozen=True, kw_only=True)
class Relaxation(AbstractFixedPointAlgorithm):
    """The ODE dz/ds = f(z) - z followed until it rests; robust, and slow. In Julia SteadyStateDiffEq's `DynamicSS`.

    Here `max_steps` counts steps of the ODE solver.
    """

    max_steps: int = 1000


@dataclass(frozen=True, kw_only=True)
class Homotopy(AbstractFixedPointAlgorithm):
    """The zero path of a homotopy from z0 to the equilibrium, each sample along its own, by its length: for bad starts.

    Only the end of the path is kept; `HomotopyProblem` gives the path itself. Here `max_steps` counts steps along it.

    Attributes:
        kind: "fixed-point": H = lambda (z - f(z)) + (1 - lambda)(z - z0), whose path stays bounded where f is;
            "newton": H = z - f(z) - (1 - lambda)(z0 - f(z0)).
        krylov_steps: most products for one linear system.

    References: Ding et al. (2023), arXiv 2310.09583, (1), (23).
    """

    max_steps: int = 1000
    kind: str = "fixed-point"
    krylov_steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kind in ("fixed-point", "newton"), f"kind must be 'fixed-point' or 'newton', got {self.kind!r}")
        require(self.krylov_steps >= 1, f"krylov_steps must be at least 1, got {self.krylov_steps}")


class TrustRegion(AbstractFixedPointAlgorithm):
    """Newton's method within a region of trust, in Julia; from bad starts."""


class DFSane(AbstractFixedPointAlgorithm):
    """Spectral residual steps without a Jacobian, in Julia.

    References: La Cruz, Martinez, Raydan (2006).
    """


@dataclass(frozen=True, kw_only=True)
class AbstractSplitting(AbstractFixedPointAlgorithm):
    """Base of the methods that split a monotone inclusion into a linear and a proximal part.

    They need a map that shows its parts: a `homojl.splitting.AbstractMonotoneMap`. Iterations, tolerances and gradients
    are those of the method's own iteration, whose fixed point gives the equilibrium.

    Attributes:
        alpha: step size, positive and finite.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = math.isfinite(self.alpha) and self.alpha > 0
        require(ok, f"alpha must be positive and finite, got {self.alpha}")

    def iteration(self) -> Picard:
        """What iterates the split map, with the same tolerances."""
        return Picard(rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)


class ForwardBackward(AbstractSplitting):
    """z <- prox(z + alpha (W z + bias - z)): an evaluation an iteration; converges for small alpha.

    Linearly for alpha < 2 m / L^2 where I - W has the monotonicity m and the Lipschitz constant L.

    References: Winston, Kolter (2020), arXiv 2006.08591, section 3.2.
    """


class PeacemanRachford(AbstractSplitting):
    """Reflections in the resolvent of the linear part and in the prox in turn; converges for every alpha.

    References: Winston, Kolter (2020), arXiv 2006.08591, section 3.2.
    """


FIXED_POINT_ALGORITHMS = methods_of(globals(), AbstractFixedPointAlgorithm)


def fixed_point_algorithm(name: str, **options: object) -> AbstractFixedPointAlgorithm:
    """The algorithm of a name such as "anderson", with those of `options` that are not None.

    Raises:
        ConfigError: for an unknown name, or an option that the method does not have.
    """
    return by_name(FIXED_POINT_ALGORITHMS, "fixed-point algorithm", name, options)
