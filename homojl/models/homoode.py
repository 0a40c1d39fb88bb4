"""HomoODE: the input as a condition, as in a DEQ; the output by an ODE solve from a shared, learnable start."""

from __future__ import annotations

from typing import ClassVar

import torch

from homojl.adjoints import AbstractODEAdjoint, ode_adjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.models.conditioned import AbstractConditionedModel
from homojl.models.settings import HomoODESettings
from homojl.problems import ODEProblem

Tensor = torch.Tensor


class HomoODE(AbstractConditionedModel):
    """dz/ds = F(z; x) for s in [0, 1] from z(0) = z0, x = features(image), logits = head(z(1)).

    Arguments as of `AbstractConditionedModel`; the default algorithm is the paper's dopri5 at 1e-3.

    References: Ding et al. (2023), arXiv 2310.09583, (17), (18), Algorithm 1.
    """

    default_algorithm: ClassVar[AbstractODEAlgorithm] = HomoODESettings.algorithm
    default_adjoint: ClassVar[AbstractODEAdjoint] = ode_adjoint(HomoODESettings.adjoint)

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = HomoODESettings.channels,
        dropout: float = HomoODESettings.dropout,
        init: str = HomoODESettings.init,
        gain: float = HomoODESettings.gain,
        algorithm: AbstractODEAlgorithm | None = None,
        adjoint: AbstractODEAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_shape=input_shape,
            n_classes=n_classes,
            channels=channels,
            dropout=dropout,
            init=init,
            gain=gain,
            algorithm=algorithm,
            adjoint=adjoint,
            backend=backend,
        )

    def problem(self, h: Tensor) -> ODEProblem:
        mask = self.dropout_mask(h)
        return ODEProblem(self.field, self.initial_point.expand_like(h), (0.0, 1.0), args=(h, mask))
