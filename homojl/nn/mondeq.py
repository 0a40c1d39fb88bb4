"""monDEQ's layer: one equilibrium for every value of its parameters, found by operator splitting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from homojl.adjoints import AbstractFixedPointAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, PeacemanRachford
from homojl.errors import ConfigError
from homojl.nn.equilibrium import Equilibrium
from homojl.nn.monotone import MonotoneConvolution, MonotoneLinear

Tensor = torch.Tensor


class MonDEQ(Equilibrium):
    """z* = relu(W z* + x), W = (1 - m) I - A^T A + B - B^T.

    `layer(x)` of (B, channels) or of feature maps (B, channels, H, W), of any size, has their shape. The injection
    U x + b of the paper is a layer before it.

    Args:
        channels: width.
        algorithm: how, with its tolerances; None: the paper's Peaceman-Rachford splitting at 1e-2, at most 300 times.
        convolution: whether A and B are 3 x 3 convolutions.
        m: monotonicity, positive.
        backward, adjoint, backend, strict: as of `Equilibrium`.

    References: Winston, Kolter (2020), arXiv 2006.08591.
    """

    block: Callable[..., Any]
    operator: MonotoneLinear | MonotoneConvolution

    def __init__(
        self,
        channels: int,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        *,
        convolution: bool = True,
        m: float = 1.0,
        backward: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "pytorch",
        strict: bool = False,
    ) -> None:
        if not m > 0:
            raise ConfigError(f"m must be positive, got {m}")
        operator = MonotoneConvolution([channels], (1, 1), m=m) if convolution else MonotoneLinear(channels, m=m)
        super().__init__(
            operator.map,
            PeacemanRachford(rtol=1e-2, max_steps=300) if algorithm is None else algorithm,
            backward=backward,
            adjoint=adjoint,
            init=None,
            backend=backend,
            strict=strict,
        )
        self.operator = operator

    def _solved(self, x: Tensor) -> Tensor:  # type: ignore[override]  # nothing further
        operator = self.operator
        if isinstance(operator, MonotoneLinear):
            return super()._solved(x, *operator())
        height, width = x.shape[2:]
        operator.resize_((height, width))
        self.block = operator.map
        z = super()._solved(operator.map.place(x), *operator())
        return operator.map.crop(z, 0)
