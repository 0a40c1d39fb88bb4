"""Gradients with respect to the times of an ODE solve, the same for every adjoint and backend.

A saved state follows its time along the solution, dy(t_i)/dt_i = f(t_i, y_i), and the initial time acts as the initial
state does, dy/dt_0 = -(dy/dy_0) f(t_0, y_0). So the times enter around the solve, whose own times are plain numbers.
The field is evaluated for this in the backward pass alone, and only where a time's gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from homojl.errors import ConfigError
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor
VectorField = Callable[[Tensor, Tensor], Tensor]


class Times:
    """The times of a problem that require a gradient.

    Args:
        problem: one whose `times` are not None.
        stats: what counts the evaluations of the backward pass.
    """

    def __init__(self, problem: ODEProblem, stats: Stats) -> None:
        self._problem, self._stats = problem, stats
        self._times = problem.times.unbind()

    def problem(self) -> ODEProblem:
        """The problem, its initial state depending on the initial time."""
        y0 = _Following.apply(self._field, -1.0, self._times[0], self._problem.y0)
        return replace(self._problem, y0=y0)

    def attach(self, ts: Sequence[float], ys: Sequence[Tensor]) -> list[Tensor]:
        """The saved states at the times `ts`, each depending on its own; the first is the problem's own state.

        A time that is not one of the problem's, as where a solve stopped early, has no gradient.
        """
        states = [self._problem.y0]
        for i in range(1, len(ys)):
            y = ys[i]
            if i < len(self._times) and ts[i] == self._problem.ts[i]:
                y = _Following.apply(self._field, 1.0, self._times[i], y)
            states.append(y)
        return states

    def _field(self, t: Tensor, y: Tensor) -> Tensor:
        self._stats.nfe_backward += 1
        return self._problem.f(t, y, *self._problem.args)


class _Following(torch.autograd.Function):
    """The state y as it moves with a time t: its value is y, its derivative by t is `sign` f(t, y)."""

    @staticmethod
    def forward(ctx, field: VectorField, sign: float, t: Tensor, y: Tensor) -> Tensor:
        ctx.field, ctx.sign = field, sign
        ctx.save_for_backward(t, y)
        ctx.set_materialize_grads(False)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, cotangent: Tensor | None):
        if cotangent is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack how f changes along the way
            raise ConfigError("ts has first derivatives only; pass ts.detach() to differentiate the others again")
        t, y = ctx.saved_tensors
        dy = ctx.field(t.to(y.device, y.abs().dtype), y)
        product = (cotangent.conj() * dy).real if y.is_complex() else cotangent * dy
        return None, None, ctx.sign * product.sum().to(t), cotangent
