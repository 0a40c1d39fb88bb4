"""HomoODE: the input as a condition, as in a DEQ; the output by an ODE solve from a shared, learnable start."""

from __future__ import annotations

import torch

from homojl.adjoints import AbstractODEAdjoint, CheckpointAdjoint
from homojl.algorithms import AbstractODEAlgorithm, Dopri5
from homojl.errors import ConfigError
from homojl.models.base import AbstractImplicitModel
from homojl.models.blocks import ConditionedField, Features, Head, InitialPoint, channel_dropout_mask
from homojl.problems import ODEProblem

Tensor = torch.Tensor


class HomoODE(AbstractImplicitModel):
    """dz/ds = F(z; x) for s in [0, 1] from z(0) = z0, x = features(image), logits = head(z(1)).

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout: probability in [0, 1) of the variational dropout inside F; one mask per solve, none at evaluation.
        init: "learned": the shared initial point follows the mean equilibrium; "zero": it stays at zero.
        algorithm, adjoint, backend: how the ODE is solved; the default is the paper's dopri5 at 1e-3.

    Attributes:
        initial_point: the shared start. Train it with its own optimiser, never with the other parameters.

    References: Ding et al. (2023), arXiv 2310.09583, (17), (18), Algorithm 1.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = 64,
        dropout: float = 0.1,
        init: str = "learned",
        algorithm: AbstractODEAlgorithm | None = None,
        adjoint: AbstractODEAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            algorithm=Dopri5(rtol=1e-3, atol=1e-3) if algorithm is None else algorithm,
            adjoint=CheckpointAdjoint() if adjoint is None else adjoint,
            backend=backend,
        )
        if channels < 1:
            raise ConfigError(f"channels must be positive, got {channels}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")
        if init not in ("learned", "zero"):
            raise ConfigError(f"init must be 'learned' or 'zero', got {init!r}")
        self.dropout = dropout
        self.features = Features(input_shape[0], channels)
        self.field = ConditionedField(channels)
        self.initial_point = InitialPoint(channels, learned=init == "learned")
        self.head = Head(channels, n_classes)
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions, CPU and GPU alike

    def encode(self, image: Tensor) -> Tensor:
        return self.features(image.contiguous(memory_format=torch.channels_last))

    def problem(self, h: Tensor) -> ODEProblem:
        mask = channel_dropout_mask(h, self.dropout) if self.training and self.dropout > 0 else None
        return ODEProblem(self.field, self.initial_point.expand_like(h), (0.0, 1.0), args=(h, mask))

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z)
