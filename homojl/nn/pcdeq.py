"""pcDEQ's layer: a map that is positive and concave, whose equilibrium is unique and found by iterating alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from homojl.adjoints import AbstractFixedPointAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, Picard
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.nn.choices import ACTIVATIONS, CONSTRAINTS
from homojl.nn.equilibrium import Equilibrium
from homojl.problems import FixedPointProblem

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


class PcDEQ(Equilibrium):
    """z* = sigma(W z* + p), W >= 0, p the positive part of x: softplus(x, beta=5) in pcDEQ-1, relu(x) in pcDEQ-2.

    `layer(x)` of (B, channels) or of feature maps (B, channels, H, W) has their shape: the equilibrium, whose numbers
    all have one sign, after a BatchNorm, as in the paper's networks.

    Args:
        channels: width; W is (C, C), or a 3 x 3 convolution.
        algorithm: how, with its tolerances; None: the paper's plain iteration at 1e-4, at most 200 times.
        activation: sigma: "relu6", which saturates last, "tanh", "softsign" (pcDEQ-1) or "sigmoid" (pcDEQ-2).
        convolution: whether W is a convolution.
        norm: whether that BatchNorm follows; otherwise the value is z* itself.
        constraint: how W is kept >= 0: "absolute" values of its parameters; or "projection", which the training loop
            does by `project_()` after each step of its optimiser.
        backward, adjoint, backend, precision, strict: as of `Equilibrium`.

    References: Gabor, Piotrowski, Cavalcante (2024), arXiv 2402.04029.
    """

    def __init__(
        self,
        channels: int,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        *,
        activation: str = "relu6",
        convolution: bool = True,
        norm: bool = True,
        constraint: str = "absolute",
        backward: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "pytorch",
        precision: str = "full",
        strict: bool = False,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}; {did_you_mean(activation, ACTIVATIONS)}")
        if constraint not in CONSTRAINTS:
            raise ConfigError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
        super().__init__(
            ConcaveMap(activation),
            Picard(rtol=1e-4, max_steps=200) if algorithm is None else algorithm,
            backward=backward,
            adjoint=adjoint,
            init=None,
            backend=backend,
            precision=precision,
            strict=strict,
        )
        shape = (channels, channels, 3, 3) if convolution else (channels, channels)
        self.weight = NonnegativeWeight(shape, constraint=constraint)
        batch_norm = nn.BatchNorm2d if convolution else nn.BatchNorm1d
        self.norm = batch_norm(channels) if norm else nn.Identity()
        self._strict = activation != "sigmoid"

    def problem(self, x: Tensor) -> FixedPointProblem:  # type: ignore[override]  # nothing further
        """The problem of `layer(x)`."""
        positive = F.softplus(x, beta=5) if self._strict else F.relu(x)
        return super().problem(positive, self.weight()[None])

    def _value(self, solved: Tensor) -> Tensor:
        return self.norm(solved)

    def project_(self) -> None:
        self.weight.project_()
