"""pcDEQ's layer: a map that is positive and concave, whose equilibrium is unique and found by iterating alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from homojl.adjoints import AbstractFixedPointAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, Picard
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.nn.choices import ACTIVATIONS, CONSTRAINTS
from homojl.nn.concave import ConcaveMap, NonnegativeWeight
from homojl.nn.equilibrium import Equilibrium
from homojl.problems import FixedPointProblem

Tensor = torch.Tensor


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
