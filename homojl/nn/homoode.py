"""The layers of HomoODE's field F(z; x): the ODE that follows it, and the equilibrium of the same block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm, Anderson, Dopri5
from homojl.errors import ConfigError
from homojl.nn.choices import INITIAL_POINTS
from homojl.nn.equilibrium import Equilibrium
from homojl.nn.ode import ODE
from homojl.nn.parts import ConditionedField, MovingPoint, channel_dropout_mask
from homojl.problems import FixedPointProblem, ODEProblem

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
        _check(dropout, init)
        super().__init__(
            _field(channels, gain),
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

    def problem(self, x: Tensor, *, times: Sequence[float] | Tensor | None = None) -> ODEProblem:  # type: ignore[override]  # the condition alone
        """The problem of `layer(x)`; in training mode with a dropout mask of its own."""
        return super().problem(self.initial_point.expand_like(x), x, _mask(self, x), times=times)

    def _solved(self, *inputs: Any, **options: Any) -> Any:
        z = super()._solved(*inputs, **options)
        if self.training and z.ndim == 4:  # the last state alone
            self.initial_point.follow_(z)
        return z


class DEQ(Equilibrium):
    """z* = F(z*; x), with HomoODE's F.

    `layer(x)` of feature maps x (B, C, H, W) has their shape.

    Args:
        channels: C; at most 32 or a multiple of 32.
        algorithm: how, with its tolerances; None: Anderson at 1e-3, at most 50 times.
        dropout: probability in [0, 1) of the variational dropout inside F; one mask for each call in training mode.
        init: the first guess: "zero"; or "learned": a point that all inputs share and that follows the mean of z*.
        rate, every: of that point's moves, as of `HomoODE`.
        gain: of F's first normalisation to begin with. At 1, PyTorch's own value, F may expand differences in z; at 0.1
            (ours) it contracts them, so that there is an equilibrium to begin with and every method finds it.
        jacobian_weight, backward, adjoint, backend, precision, strict: as of `Equilibrium`.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377; for F Ding et al. (2023), arXiv 2310.09583, (17).
    """

    def __init__(
        self,
        channels: int,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        *,
        dropout: float = 0.0,
        init: str = "zero",
        rate: float = 0.02,
        every: int = 20,
        gain: float = 0.1,
        jacobian_weight: float = 0.0,
        backward: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "pytorch",
        precision: str = "full",
        strict: bool = False,
    ) -> None:
        _check(dropout, init)
        super().__init__(
            _Block(_field(channels, gain)),
            Anderson(rtol=1e-3, max_steps=50) if algorithm is None else algorithm,
            backward=backward,
            adjoint=adjoint,
            jacobian_weight=jacobian_weight,
            init=None,
            backend=backend,
            precision=precision,
            strict=strict,
        )
        self.dropout = dropout
        self.initial_point = MovingPoint(channels, learned=init == "learned", rate=rate, every=every)

    def problem(self, x: Tensor, *, start: Tensor | None = None) -> FixedPointProblem:  # type: ignore[override]  # nothing further
        """The problem of `layer(x)`; in training mode with a dropout mask of its own."""
        start = self.initial_point.expand_like(x) if start is None else start
        return super().problem(x, _mask(self, x), start=start)

    def _solved(self, *inputs: Any, **options: Any) -> Any:
        z = super()._solved(*inputs, **options)
        if self.training:
            self.initial_point.follow_(z)
        return z


class _Block(nn.Module):
    """A field that is told no time."""

    def __init__(self, field: ConditionedField) -> None:
        super().__init__()
        self.field = field

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.field(None, z, x, mask)


def _check(dropout: float, init: str) -> None:
    if init not in INITIAL_POINTS:
        raise ConfigError(f"init must be one of {', '.join(INITIAL_POINTS)}, got {init!r}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")


def _field(channels: int, gain: float) -> ConditionedField:
    field = ConditionedField(channels)
    nn.init.constant_(field.norm1.weight, gain)
    return field


def _mask(layer: HomoODE | DEQ, x: Tensor) -> Tensor | None:
    """The dropout mask of one call; None where there is none."""
    if not layer.training or layer.dropout == 0:
        return None
    return channel_dropout_mask(x, layer.dropout, layer.part)
