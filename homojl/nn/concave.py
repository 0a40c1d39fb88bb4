"""Maps that are positive and concave, so that Picard's iteration alone finds their only fixed point.

Source: Gabor, Piotrowski, Cavalcante (2024), arXiv 2402.04029.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from homojl.nn.choices import ACTIVATIONS

Tensor = torch.Tensor

# sigma by name; "sigmoid" alone is positive at 0, which pcDEQ-2 needs and pcDEQ-1, with its positive input, does not.
_SIGMAS: dict[str, Callable[[Tensor], Tensor]] = dict(
    zip(ACTIVATIONS, (torch.tanh, F.softsign, F.relu6, torch.sigmoid), strict=True)
)


class NonnegativeWeight(nn.Module):
    """W = gain * direction / norm(direction), row by row, both factors kept >= 0.

    It starts positive and tiny: rows that add up to about 0.5, below which every sigma here contracts (ours).

    Args:
        shape: (n, n), or (C, C, 3, 3) for a convolution; a row is what makes one output.
        constraint: "projection": `project_` puts negative elements to zero, to be called after each step of an
            optimiser; "absolute": the absolute values of both factors are used, whatever the parameters are.
    """

    def __init__(self, shape: tuple[int, ...], *, constraint: str) -> None:
        super().__init__()
        self.constraint = constraint
        fan_in = torch.Size(shape[1:]).numel()
        direction = torch.rand(shape)
        if not direction.is_meta:  # where there are no numbers, dividing them would load PyTorch's compiler
            direction /= fan_in**0.5
        self.direction = nn.Parameter(direction)
        self.gain = nn.Parameter(torch.full((shape[0],), 0.5 / fan_in**0.5))

    def forward(self) -> Tensor:
        """W, of that shape, >= 0."""
        direction: Tensor = self.direction
        gain: Tensor = self.gain
        if self.constraint == "absolute":
            direction, gain = direction.abs(), gain.abs()
        norm = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        # A row that the projection has emptied is zero, not 0/0.
        scale = gain / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return direction * scale.view(-1, *[1] * (direction.ndim - 1))

    @torch.no_grad()
    def project_(self) -> None:
        if self.constraint == "projection":
            self.direction.clamp_(min=0)
            self.gain.clamp_(min=0)


class ConcaveMap:
    """sigma(W z + x) with args = (x of z's shape, W (1, n, n) or (1, C, C, 3, 3)), W and x >= 0."""

    def __init__(self, activation: str) -> None:
        self._sigma = _SIGMAS[activation]

    def __call__(self, z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        product = F.linear(z, weight[0]) if z.ndim == 2 else F.conv2d(z, weight[0], padding=1)
        return self._sigma(product + x)
