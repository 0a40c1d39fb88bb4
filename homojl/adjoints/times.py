"""Gradients through the times of an ODE solve, given ones and an event's: the same for every adjoint and backend.

A saved state follows its time along the solution, dy(t_i)/dt_i = f(t_i, y_i), and the initial time acts as the initial
state does, dy/dt_0 = -(dy/dy_0) f(t_0, y_0). The time t of an event g(t, y(t)) = 0 changes by -dg / (dg/dt along the
solution), by the implicit function theorem. So times enter around the solve, whose own times are plain numbers. Where
the field jumps at a time, it is evaluated on the side of the solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from homojl.adjoints.implicit_function import refuse_transforms
from homojl.errors import ConfigError
from homojl.functions import VectorField

Tensor = torch.Tensor


def follow(f: VectorField, sign: float, t: Tensor, y: Tensor, at: float | Tensor | None = None) -> Tensor:
    """The state y, its derivative by the time t being `sign` f(t, y).

    Args:
        f: the field.
        sign: 1 for a saved state, -1 for an initial one.
        t: time that requires a gradient, 0-d, or one for each sample, (B,).
        y: the state.
        at: the time to evaluate the field at; None: t.
    """
    _refuse_transforms()
    with torch.no_grad():
        time = _like(t if at is None else torch.as_tensor(at, dtype=torch.float64), y)
        calls = f.calls
        dy = f(time if time.ndim == 0 else time.view(-1, *[1] * (y.ndim - 1)), y.detach())
        f.stats.nfe_backward += f.calls - calls
    return _Following.apply(sign, t, y, dy)


def at_event(
    f: VectorField, condition: Callable[[Tensor, Tensor, Tensor | None], Tensor], t: Tensor, y: Tensor, which: Any
) -> tuple[Tensor, Tensor]:
    """Time and state of an event, with the gradient through that time.

    Args:
        f: the field.
        condition: of the event.
        t, y: its time, 0-d, or one for each sample, (B,); and the state there as it depends on all but that time.
        which: of the condition's values is zero there: a number, or one for each sample; -1: the sample has no event.

    Returns:
        The time, float64 on the CPU, and the state.

    References: Chen, Amos, Nickel (2021), arXiv 2011.03902, appendix A.
    """
    _refuse_transforms()
    each, index = t.ndim == 1, torch.as_tensor(which)

    def value(time: Tensor, y: Tensor) -> Tensor:
        if not each:
            return condition(time, y, None).reshape(-1)[index]
        values = condition(time.view(-1, *[1] * (y.ndim - 1)), y, None).reshape(len(y), -1)
        return values.gather(1, index.clamp(min=0).to(values.device)[:, None])[:, 0]

    with torch.enable_grad():
        zero = value(_like(t, y), y)
        if not zero.requires_grad:
            return t, y
        inputs = [_like(t, y).requires_grad_(), y.detach().requires_grad_()]
        again = value(*inputs)
    by_time, by_state = torch.autograd.grad(again.sum(), inputs, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        time, calls = _like(t, y), f.calls
        dy = f(time.view(-1, *[1] * (y.ndim - 1)) if each else time, y.detach())
        f.stats.nfe_backward += f.calls - calls
        slope = by_time + _inner(by_state, dy, each=each)
        if each:
            slope = torch.where(index.to(slope.device) < 0, torch.inf, slope)  # no event, no gradient
    moved = _EventTime.apply(t, zero, slope)
    return moved, _Following.apply(1.0, moved, y, dy)


def _refuse_transforms() -> None:
    refuse_transforms("a gradient through a time", "torch.autograd.grad")


def _like(t: Tensor, y: Tensor) -> Tensor:
    """The time as the field takes it, of y's real dtype and on its device."""
    return t.detach().to(y.device, y.dtype.to_real(), copy=True)


def _inner(cotangent: Tensor, dy: Tensor, *, each: bool = False) -> Tensor:
    """The change of a real number with that gradient, 0-d, or of one for each sample, (B,)."""
    product = (cotangent.conj() * dy).real if dy.is_complex() else cotangent * dy
    return product.flatten(1).sum(1) if each and product.ndim > 1 else product if each else product.sum()


class _EventTime(torch.autograd.Function):
    """The time of an event as a function of its condition's value there, which is zero."""

    @staticmethod
    def forward(ctx: Any, time: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return time.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigError("the time of an event has first derivatives only")
        (slope,) = ctx.saved_tensors
        return None, -cotangent.to(slope) / slope, None


class _Following(torch.autograd.Function):
    """The state y as it moves with a time t: its value is y, its derivative by t is `sign` dy."""

    @staticmethod
    def forward(ctx: Any, sign: float, t: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        ctx.sign = sign
        ctx.save_for_backward(t, dy)
        ctx.set_materialize_grads(False)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[None, Tensor | None, Tensor | None, None]:
        if cotangent is None:
            return None, None, None, None
        t, dy = ctx.saved_tensors
        if torch.is_grad_enabled() and ctx.needs_input_grad[1]:  # create_graph=True; f's own change would be missed
            raise ConfigError("ts has first derivatives only; pass ts.detach() to differentiate the others again")
        by_time = ctx.sign * _inner(cotangent, dy, each=t.ndim == 1).to(t) if ctx.needs_input_grad[1] else None
        return None, by_time, cotangent, None
