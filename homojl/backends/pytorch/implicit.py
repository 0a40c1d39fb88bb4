"""Implicit Runge-Kutta methods: stages that are solved for, one after the other or together."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from homojl.algorithms import AbstractImplicit, AbstractImplicitFixedStep
from homojl.algorithms.implicit_tableaus import ImplicitTableau
from homojl.backends.pytorch.stage_equations import StageEquations
from homojl.backends.pytorch.steps import AbstractStepper, Field, Number, Step, combine, time_like
from homojl.solution import Status

Tensor = torch.Tensor


class ImplicitStepper(AbstractStepper):
    """An implicit Runge-Kutta method; its gradient is that of the implicit function theorem.

    A step depends on nothing but its start, so that it can be taken again: no Jacobian and no guess outlives it, and
    the derivative at its start is evaluated there, not carried on. A stage's derivative is (Y - base) / (h a), never
    the field at the solved state Y, which would magnify the error that Newton's iteration leaves by the stiffness.
    """

    interpolates = False
    last_resort = "loosen rtol and atol, or use float64"

    def __init__(self, algorithm: AbstractImplicit | AbstractImplicitFixedStep) -> None:
        assert isinstance(algorithm.tableau, ImplicitTableau), algorithm
        self.tableau = algorithm.tableau
        self.order = self.tableau.order
        self.error_order = self.order if self.tableau.error_order is None else self.tableau.error_order
        self._algorithm = algorithm
        self._guesses = predictors(self.tableau)

    def step(
        self, f: Field, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True
    ) -> Step:
        a, c = self.tableau.a, self.tableau.c
        ks: list[Tensor] = []
        states: list[Tensor] = []
        equations = StageEquations(f, self._algorithm, t, h, y)
        for block in self.tableau.blocks:
            bases = [combine(y, h, a[i][: block.start], ks) for i in block]
            weights = np.array([a[i][block.start : block.stop] for i in block])
            if not weights.any():  # explicit, and the first: its state is y
                ks.append(f(time_like(t, y), y) if first is None else first)
                states.append(y)
                continue
            guesses = [self._guess(i, h * sum(a[i][block.start :]), ks) for i in block]
            changes = equations.solve(weights, [t + c[i] * h for i in block], bases, guesses)
            if changes is None:
                ks += equations.values  # they show where the field is not finite
                reason = "Newton's iteration does not solve the equations of the stages" if equations.finite else ""
                status = Status.STALLED if equations.finite else Status.DIVERGED
                return Step(t, h, y, torch.full_like(y, torch.nan), ks, status=status, reason=reason)
            states += [base + change for base, change in zip(bases, changes, strict=True)]
            ks += [combine(None, 1.0 / h, row, changes) for row in np.linalg.inv(weights).tolist()]
        y_next = states[-1] if self.tableau.stiffly_accurate else combine(y, h, self.tableau.b, ks)
        error = None if self.tableau.b_error is None else self._estimate(equations, h, ks)
        return Step(t, h, y, y_next, ks, error=error)

    def _guess(self, stage: int, h: float, ks: Sequence[Tensor]) -> Tensor | None:
        """The stage's change after h, as the stages that have been solved for suggest; None: they suggest nothing."""
        weights = self._guesses[stage][: len(ks)]
        return combine(None, h, weights, ks) if any(weights) else None

    @torch.no_grad()
    def _estimate(self, equations: StageEquations, h: float, ks: Sequence[Tensor]) -> Tensor:
        assert self.tableau.b_error is not None, self.tableau
        error = combine(None, h, self.tableau.b_error, ks)
        return equations.filtered(self.tableau.a[-1][-1], error) if self.tableau.filtered else error

    def error(self, step: Step) -> Tensor:
        assert step.error is not None, "a step that was taken has its estimate"
        return step.error

    def inside(self, step: Step, fractions: Sequence[float]) -> list[Tensor]:
        states = []
        for fraction in fractions:
            if fraction == 1.0:
                states.append(step.y_next)
                continue
            dense = np.array(self.tableau.dense)
            weights = (dense @ fraction ** np.arange(1, dense.shape[1] + 1)).tolist()
            states.append(combine(step.y, step.h, weights, step.ks))
        return states


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
