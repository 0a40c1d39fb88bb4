"""DEQ: the equilibrium of the very block that HomoODE follows for a while."""

from __future__ import annotations

from typing import ClassVar

import torch

from homojl.adjoints import AbstractFixedPointAdjoint, fixed_point_adjoint
from homojl.algorithms import AbstractFixedPointAlgorithm
from homojl.models.conditioned import AbstractConditionedModel
from homojl.models.settings import DEQSettings
from homojl.nn.equilibrium import jacobian_norm
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution

Tensor = torch.Tensor


class DEQ(AbstractConditionedModel):
    """z = F(z; x), x = features(image), logits = head(z), with HomoODE's F, features and head.

    Arguments as of `AbstractConditionedModel`, where the gain of 0.1 has F start as a contraction, so that there is an
    equilibrium to begin with and every method finds it; and:

    Args:
        jacobian_weight: of the estimate of norm(dF/dz)_F^2 at the equilibrium, divided by the number of its elements,
            in the loss; 0: none.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377; for the Jacobian's weight Bai, Koltun, Kolter (2021),
    arXiv 2106.14342.
    """

    default_algorithm: ClassVar[AbstractFixedPointAlgorithm] = DEQSettings.algorithm
    default_adjoint: ClassVar[AbstractFixedPointAdjoint] = fixed_point_adjoint(DEQSettings.adjoint)

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = DEQSettings.channels,
        dropout: float = DEQSettings.dropout,
        init: str = DEQSettings.init,
        gain: float = DEQSettings.gain,
        jacobian_weight: float = DEQSettings.jacobian_weight,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
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
        DEQSettings(jacobian_weight=jacobian_weight)  # refuses what cannot be
        self.jacobian_weight = jacobian_weight
        self._penalty: Tensor | None = None

    def problem(self, h: Tensor) -> FixedPointProblem:
        field = self.field  # alone, so that a gradient depends on nothing else of the model

        def block(z: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
            return field(None, z, x, mask)

        return FixedPointProblem(block, self.initial_point.expand_like(h), (h, self.dropout_mask(h)))

    def _solved(self, problem: ODEProblem | FixedPointProblem) -> EquilibriumSolution:
        solution = super()._solved(problem)
        assert isinstance(solution, EquilibriumSolution)
        self._penalty = None
        if self.training and self.jacobian_weight > 0:
            norm = jacobian_norm(problem.f, solution.value, problem.args, part=self.part)
            self._penalty = self.jacobian_weight * norm
        return solution

    def regularization(self) -> Tensor | None:
        penalty, self._penalty = self._penalty, None
        return penalty
