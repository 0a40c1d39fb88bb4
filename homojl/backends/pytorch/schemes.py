"""What one step of a method is: the arithmetic that the loops over steps and the adjoints share.

A step has one arithmetic, whether gradients are recorded or not, so that a replay takes the very steps of the solve.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
import torch

from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.base import RightHandSide
from homojl.backends.pytorch.runge_kutta import combine, step
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor
Stages = Sequence[Tensor]  # the derivatives at a step's stages, each of the state's shape


class AbstractScheme(abc.ABC):
    """A one-step method for one algorithm.

    Attributes:
        order: of the solution that is carried on; one more than that of its error estimate.
        interpolates: whether a step can be evaluated inside; else steps have to end on the save times.
    """

    order: int
    interpolates: bool

    @abc.abstractmethod
    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, Stages]:
        """The state at t + h and the stages of the step from (t, y); not finite where the step cannot be taken.

        Args:
            rhs, t, h, y: field, time, signed size, state.
            k_first: the derivative at (t, y) where it is known.
            last_stage: whether a stage is evaluated that only the error, the interpolant and the next step need.
        """

    @abc.abstractmethod
    def error(self, y: Tensor, h: float, ks: Stages) -> Tensor:
        """The estimate of the step's error, of y's shape; no gradient."""

    @abc.abstractmethod
    def inside(self, y: Tensor, y_next: Tensor, h: float, ks: Stages, fractions: Sequence[float]) -> list[Tensor]:
        """The states at fractions in (0, 1] of a step; at 1 y_next itself."""

    @abc.abstractmethod
    def carried(self, ks: Stages) -> Tensor | None:
        """The derivative at the end of the step where the stages hold it: the next step's `k_first`."""


class ExplicitScheme(AbstractScheme):
    """An explicit Runge-Kutta method.

    One addition per weight: a product of the weights with the stages in one buffer takes fewer operations, but copying
    the stages there costs more than that saves, for small states and for large ones.
    """

    def __init__(self, tableau: ButcherTableau) -> None:
        self.tableau = tableau
        self.order = tableau.order
        self.interpolates = tableau.dense is not None
        if tableau.dense is not None:
            self._dense = np.array(tableau.dense).T
            self._powers = np.arange(1, len(self._dense) + 1)

    def step(self, rhs, t, h, y, k_first=None, *, last_stage=True):
        return step(rhs, self.tableau, t, h, y, k_first, last_stage=last_stage)

    @torch.no_grad()
    def error(self, y, h, ks):
        return combine(None, h, self.tableau.b_error, ks)

    def inside(self, y, y_next, h, ks, fractions):
        within = [f for f in fractions if f != 1.0]
        if not within:
            return [y_next] * len(fractions)
        weights = (np.array(within)[:, None] ** self._powers) @ self._dense
        if len(within) == 1:
            states = [combine(y, h, weights[0].tolist(), ks)]
        else:
            weights = torch.from_numpy(weights).to(y.device, y.dtype)
            block = torch.addmm(y.reshape(1, -1), weights, torch.stack(list(ks)).view(len(ks), -1), alpha=h)
            states = list(block.view(-1, *y.shape).unbind())
        for i, fraction in enumerate(fractions):
            if fraction == 1.0:
                states.insert(i, y_next)
        return states

    def carried(self, ks):
        return ks[-1] if self.tableau.fsal else None


def scheme_for(algorithm: AbstractODEAlgorithm) -> AbstractScheme:
    """The scheme of an algorithm that has a tableau."""
    return ExplicitScheme(algorithm.tableau)
