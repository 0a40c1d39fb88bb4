"""The arithmetic of explicit Runge-Kutta methods in ordinary operations, which autograd records where it is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from homojl.backends.base import RightHandSide
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor


def combine(y: Tensor | None, h: float, weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor:
    """y + h sum_j weights[j] ks[j], leaving out zero weights, of which there must be others; no y: the sum alone."""
    out = None
    for weight, k in zip(weights, ks, strict=False):
        if weight == 0.0:
            continue
        if out is not None:
            out.add_(k, alpha=h * weight)  # our own intermediate: addition keeps nothing for its gradient
        else:
            out = k * (h * weight) if y is None else torch.add(y, k, alpha=h * weight)
    if out is None:
        assert y is not None, weights
        return y
    return out


def time_like(t: float, y: Tensor) -> Tensor:
    """The time as the field receives it: a 0-d tensor of y's real dtype and its device, made without a host copy."""
    if y.is_complex():
        return torch.full((), t, dtype=y.dtype.to_real(), device=y.device)
    return y.new_full((), t)


def step(
    rhs: RightHandSide,
    tableau: ButcherTableau,
    t: float,
    h: float,
    y: Tensor,
    k_first: Tensor | None = None,
    *,
    last_stage: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """One step of size h from (t, y).

    Args:
        rhs, tableau, t, h, y: field, method, time, signed size, state.
        k_first: the derivative at (t, y) where it is already known.
        last_stage: whether a method with first-same-as-last evaluates that last stage, which the new state does
            not need but the error estimate, the interpolant and the next step do.

    Returns:
        The state at t + h, and the stage derivatives.
    """
    ks = [rhs(time_like(t, y), y) if k_first is None else k_first]
    a, c, fsal = tableau.a, tableau.c, tableau.fsal
    time = None
    for i in range(1, len(c) - 1 if fsal else len(c)):
        if time is None or c[i] != c[i - 1]:
            time = time_like(t + c[i] * h, y)
        ks.append(rhs(time, combine(y, h, a[i], ks)))
    y_next = combine(y, h, tableau.b, ks)
    if fsal and last_stage:
        if time is None or c[-2] != 1.0:
            time = time_like(t + h, y)
        ks.append(rhs(time, y_next))
    return y_next, ks
