"""Root problems whose answers are known, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from homojl.problems import HomotopyProblem

if TYPE_CHECKING:
    from torch import Tensor

SUMMARIES = {
    "arctan": "arctan(z) = 0: Newton's method diverges from everywhere beyond 1.39",
    "cubic": "z^3 - 2 z + 2 = 0: Newton's method goes back and forth between 0 and 1 for ever",
    "fold": "z^3 - 3 z + 2.1 = 0: the path from 1.5 folds twice, so lambda cannot lead",
    "several": "(z - 1)(z - 2)(z - 4) = 0: which of the roots is found depends on the start",
    "ripples": "z - 1 + 0.8 sin(5 (z - 1)) = 0: one root, on whose ripples Newton's method loses its way",
    "himmelblau": "the nine stationary points of Himmelblau's function",
    "rosenbrock": "the stationary point of Rosenbrock's function, at the end of its curved valley",
    "freudenstein-roth": "Freudenstein and Roth's system, in whose valley minimisers get stuck",
    "tanh-layer": "the equilibrium of a dense layer of 50 tanh units whose map does not contract",
    "conv-layer": "the equilibrium of a convolution of 6 channels on 8 x 8 pixels, 384 unknowns",
}
"""One line on each example, by its name: what there is to see."""


@dataclass(frozen=True, eq=False)
class Example:
    """A root problem whose answers are known.

    Attributes:
        name: what it is called by.
        summary: its line in `SUMMARIES`.
        r: the residual z -> r(z), any shape in and the same out.
        z0: where it is usually started from, float64.
        roots: the roots there are, each of z0's shape; or the only one that is known, see `all_roots`.
        all_roots: whether there are no others.
        low, high: random starts are drawn from this interval, element by element.
        kind: the homotopy that finds a root from nearly everywhere there.
    """

    name: str
    summary: str
    r: Callable[[Tensor], Tensor]
    z0: Tensor
    roots: tuple[Tensor, ...]
    low: float
    high: float
    all_roots: bool = True
    kind: str = "fixed-point"

    def problem(self, z0: Tensor | None = None, *, kind: str | None = None) -> HomotopyProblem:
        """The problem, with its usual start and homotopy unless others are given."""
        return HomotopyProblem(self.r, self.z0 if z0 is None else z0, kind=self.kind if kind is None else kind)

    def random_starts(self, count: int, *, seed: int = 0) -> list[Tensor]:
        """Starts drawn uniformly from [low, high], each of z0's shape; the same for the same seed."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        shape = (count, *self.z0.shape)
        return list(torch.rand(shape, generator=generator, dtype=torch.float64) * (self.high - self.low) + self.low)

    def is_root(self, z: Tensor, *, tolerance: float = 1e-4) -> bool:
        """Whether z is within the tolerance, in every element, of a root that is known."""
        import torch

        return any(torch.allclose(z.double(), root, rtol=0, atol=tolerance) for root in self.roots)
