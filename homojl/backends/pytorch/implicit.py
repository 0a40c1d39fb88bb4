"""Implicit Runge-Kutta methods: stages that are solved for, one after the other or together."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from homojl.algorithms import AbstractImplicit, AbstractImplicitFixedStep
from homojl.backends.base import AbstractRightHandSideJVP, RightHandSide
from homojl.backends.pytorch.runge_kutta import combine, time_like
from homojl.backends.pytorch.schemes import AbstractScheme, Stages
from homojl.backends.pytorch.stage_equations import StageEquations
from homojl.implicit_tableaus import ImplicitTableau

Tensor = torch.Tensor


class ImplicitStages(list[Tensor]):
    """The derivatives at the stages, and what only the implicit scheme reads.

    Attributes:
        error: the step's error estimate; None: the method has none, or the step could not be taken.
    """

    error: Tensor | None = None


class ImplicitScheme(AbstractScheme):
    """An implicit Runge-Kutta method; its gradient is that of the implicit function theorem.

    A step depends on nothing but its start, so that it can be taken again: no Jacobian and no guess outlives it, and
    the derivative at its start is evaluated there, not carried on. A stage's derivative is (Y - base) / (h a), never
    the field at the solved state Y, which would magnify the error that Newton's iteration leaves by the stiffness.
    """

    interpolates = False
    last_resort = "loosen rtol and atol, or use float64"

    def __init__(self, algorithm: AbstractImplicit | AbstractImplicitFixedStep, jvp: AbstractRightHandSideJVP) -> None:
        assert isinstance(algorithm.tableau, ImplicitTableau), algorithm
        self.tableau = algorithm.tableau
        self.order = self.tableau.order
        self._algorithm, self._jvp = algorithm, jvp
        self._guesses = predictors(self.tableau)
        self._trouble, self._finite = "", True

    @property
    def error_order(self) -> int:
        return self.order if self.tableau.error_order is None else self.tableau.error_order

    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, ImplicitStages]:
        self._trouble, self._finite = "", True
        a, c = self.tableau.a, self.tableau.c
        ks, states = ImplicitStages(), []
        equations = StageEquations(rhs, self._jvp, self._algorithm, t, h, y)
        for block in self.tableau.blocks:
            bases = [combine(y, h, a[i][: block.start], ks) for i in block]
            weights = np.array([a[i][block.start : block.stop] for i in block])
            if not weights.any():  # explicit, and the first: its state is y
                ks.append(rhs(time_like(t, y), y) if k_first is None else k_first)
                states.append(y)
                continue
            guesses = [self._guess(i, h * sum(a[i][block.start :]), ks) for i in block]
            changes = equations.solve(weights, [t + c[i] * h for i in block], bases, guesses)
            if changes is None:
                self._finite = equations.finite
                if self._finite:
                    self._trouble = "Newton's iteration does not solve the equations of the stages"
                ks += equations.values  # they show where the field is not finite
                return torch.full_like(y, torch.nan), ks
            states += [base + change for base, change in zip(bases, changes, strict=True)]
            ks += [combine(None, 1.0 / h, row, changes) for row in np.linalg.inv(weights).tolist()]
        y_next = states[-1] if self.tableau.stiffly_accurate else combine(y, h, self.tableau.b, ks)
        if self.tableau.b_error is not None:
            ks.error = self._estimate(equations, h, ks)
        return y_next, ks

    def _guess(self, stage: int, h: float, ks: ImplicitStages) -> Tensor | None:
        """The stage's change after h, as the stages that have been solved for suggest; None: they suggest nothing."""
        weights = self._guesses[stage][: len(ks)]
        return combine(None, h, weights, ks) if any(weights) else None

    @torch.no_grad()
    def _estimate(self, equations: StageEquations, h: float, ks: ImplicitStages) -> Tensor:
        assert self.tableau.b_error is not None, self.tableau
        error = combine(None, h, self.tableau.b_error, ks)
        return equations.filtered(self.tableau.a[-1][-1], error) if self.tableau.filtered else error

    def error(self, y: Tensor, h: float, ks: Stages) -> Tensor:
        assert isinstance(ks, ImplicitStages)
        return torch.full_like(y, torch.nan) if ks.error is None else ks.error

    def inside(self, y: Tensor, y_next: Tensor, h: float, ks: Stages, fractions: Sequence[float]) -> list[Tensor]:
        states = []
        for fraction in fractions:
            if fraction == 1.0:
                states.append(y_next)
                continue
            dense = np.array(self.tableau.dense)
            states.append(combine(y, h, (dense @ fraction ** np.arange(1, dense.shape[1] + 1)).tolist(), ks))
        return states

    def carried(self, ks: Stages) -> None:
        return None

    @property
    def trouble(self) -> str:
        return self._trouble

    @property
    def finite(self) -> bool:
        return self._finite


@functools.cache
def predictors(tableau: ImplicitTableau) -> list[list[float]]:
    """For each stage the weights of the earlier stages' derivatives in the guess of its own.

    The polynomial in time through the last three stages at different times, the explicit first one left out where
    there is another, since in stiff components it is far off; a stage without earlier ones starts from zero.
    """
    weights = []
    for i in range(tableau.stages):
        row = [0.0] * i
        nodes: list[int] = []
        for j in reversed(range(i)):
            if len(nodes) < 3 and (j > 0 or not nodes) and all(abs(tableau.c[j] - tableau.c[n]) > 0.05 for n in nodes):
                nodes.append(j)
        for j in nodes:
            others = [tableau.c[n] for n in nodes if n != j]
            row[j] = float(np.prod([(tableau.c[i] - other) / (tableau.c[j] - other) for other in others]))
        weights.append(row)
    return weights
