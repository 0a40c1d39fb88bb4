"""Gradients through the times of an ODE solve, given ones and an event's: the same for every adjoint and backend.

A saved state follows its time along the solution, dy(t_i)/dt_i = f(t_i, y_i), and the initial time acts as the initial
state does, dy/dt_0 = -(dy/dy_0) f(t_0, y_0). The time t of an event g(t, y(t)) = 0 changes by -dg / (dg/dt along the
solution), by the implicit function theorem. So times enter around the solve, whose own times are plain numbers. The
field is evaluated for this in the backward pass alone, and only where a time's gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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
        assert problem.times is not None, problem
        self._problem, self._field = problem, _counted_field(problem, stats)
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


def follow(field: VectorField, t: Tensor, y: Tensor) -> Tensor:
    """The state y at the time t, its derivative by that time f(t, y)."""
    return _Following.apply(field, 1.0, t, y)


def at_event(problem: ODEProblem, t: float, y: Tensor, stats: Stats) -> tuple[Tensor, Tensor]:
    """Time and state of the event that ended a solve, with the gradient through that time.

    Args:
        problem: one with an event.
        t, y: its time, and the state there as it depends on everything but that time.
        stats: what counts the evaluations of the backward pass.

    Returns:
        The time, 0-d, float64 on the CPU, and the state.

    References: Chen, Amos, Nickel (2021), arXiv 2011.03902, appendix A.
    """
    assert problem.event is not None, problem
    time, condition = torch.tensor(t, dtype=torch.float64), problem.event.condition
    values = condition(_like(time, y), y, *problem.args).reshape(-1)
    if not values.requires_grad:
        return time, y

    def slope() -> Tensor:
        """How fast the condition changes along the solution."""
        stats.nfe_backward += 1
        with torch.enable_grad():
            inputs = [_like(time, y).requires_grad_(), y.detach().requires_grad_()]
            value = condition(*inputs, *problem.args).reshape(-1)[index]
        by_time, by_state = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        dy = problem.f(_like(time, y), y.detach(), *problem.args).detach()
        return by_time + _inner(by_state, dy)

    index = int(values.detach().abs().argmin())
    time = _EventTime.apply(slope, time, values[index])
    return time, _Following.apply(_counted_field(problem, stats), 1.0, time, y)


def _like(t: Tensor, y: Tensor) -> Tensor:
    """The time as the field takes it, of y's real dtype and on its device."""
    return t.detach().to(y.device, y.dtype.to_real(), copy=True)


def _inner(cotangent: Tensor, dy: Tensor) -> Tensor:
    """The change of a real number with that gradient, 0-d, by PyTorch's convention for complex gradients."""
    return ((cotangent.conj() * dy).real if dy.is_complex() else cotangent * dy).sum()


def _counted_field(problem: ODEProblem, stats: Stats) -> VectorField:
    def field(t: Tensor, y: Tensor) -> Tensor:
        stats.nfe_backward += 1
        return problem.f(t, y, *problem.args)

    return field


class _EventTime(torch.autograd.Function):
    """The time of an event as a function of its condition's value there, which is zero."""

    @staticmethod
    def forward(ctx: Any, slope: Callable[[], Tensor], time: Tensor, value: Tensor) -> Tensor:
        ctx.slope, ctx.like = slope, value.detach()
        return time.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None, Tensor]:
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigError("the time of an event has first derivatives only")
        return None, None, -cotangent.to(ctx.like) / ctx.slope().to(ctx.like)


class _Following(torch.autograd.Function):
    """The state y as it moves with a time t: its value is y, its derivative by t is `sign` f(t, y)."""

    @staticmethod
    def forward(ctx: Any, field: VectorField, sign: float, t: Tensor, y: Tensor) -> Tensor:
        ctx.field, ctx.sign = field, sign
        ctx.save_for_backward(t, y)
        ctx.set_materialize_grads(False)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[None, None, Tensor | None, Tensor | None]:
        if cotangent is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack how f changes along the way
            raise ConfigError("ts has first derivatives only; pass ts.detach() to differentiate the others again")
        t, y = ctx.saved_tensors
        dy = ctx.field(_like(t, y), y)
        return None, None, ctx.sign * _inner(cotangent, dy).to(t), cotangent
