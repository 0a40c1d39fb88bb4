"""HomoODE's layer: the input is a condition of the field, and the state starts from a point that all inputs share."""

from __future__ import annotations

import torch

from homojl.adjoints import AbstractODEAdjoint
from homojl.algorithms import AbstractODEAlgorithm, Dopri5
from homojl.errors import ConfigError
from homojl.nn.choices import INITIAL_POINTS
from homojl.nn.ode import ODE
from homojl.nn.parts import ConditionedField, MovingPoint, channel_dropout_mask

Tensor = torch.Tensor


class HomoODE(ODE):
    """z(1) from z(0) = z0, where dz/ds = F(z; x), F = GN(drop(conv2(relu(GN(conv1(z))) + x))).

    `layer(x)` of feature maps x (B, C, H, W) has their shape. With a learned initial point the shared z0 follows the
    mean of z(1) in training mode by its own rule, a moving mean, which needs no optimiser: it is a buffer.

    Args:
        channels: C; at most 32 or a multiple of 32.
        algorithm: how, with its tolerances; None: the paper's dopri5 at 1e-3.
        dropout: probability in [0, 1) of the variational dropout inside F; one mask for each call in training mode.
        init: "learned": the initial point starts from random numbers and moves; "zero": it stays at zero.
        rate: of the initial point's moves, as the learning rate of SGD on the paper's (18).
        every: how many calls in training mode there are for each move.
        gain: of F's first normalisation to begin with, that is, how much z counts in F beside x.
        times, adjoint, batch, backend, precision, strict: as of `ODE`.

    Attributes:
        initial_point: what z0 is.

    References: Ding et al. (2023), arXiv 2310.09583, (17), (18), Table 5.
    """

    def __init__(
        self,
        channels: int,
        algorithm: AbstractODEAlgorithm | None = None,
        *,
        dropout: float = 0.0,
        init: str = "learned",
        rate: float = 0.02,
        every: int = 20,
        gain: float = 1.0,
        times: tuple[float, float] = (0.0, 1.0),
        adjoint: AbstractODEAdjoint | None = None,
        batch: str = "joint",
        backend: str = "pytorch",
        precision: str = "full",
        strict: bool = False,
    ) -> None:
        if init not in INITIAL_POINTS:
            raise ConfigError(f"init must be one of {', '.join(INITIAL_POINTS)}, got {init!r}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")
        field = ConditionedField(channels)
        torch.nn.init.constant_(field.norm1.weight, gain)
        super().__init__(
            field,
            Dopri5(rtol=1e-3, atol=1e-3, max_steps=1000) if algorithm is None else algorithm,
            times=times,
            adjoint=adjoint,
            batch=batch,
            backend=backend,
            precision=precision,
            strict=strict,
        )
        self.dropout = dropout
        self.initial_point = MovingPoint(channels, learned=init == "learned", rate=rate, every=every)

    def _solved(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the condition alone
        mask = channel_dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        z = super()._solved(self.initial_point.expand_like(x), x, mask)
        if self.training:
            self.initial_point.follow_(z)
        return z
