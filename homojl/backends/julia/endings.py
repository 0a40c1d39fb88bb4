"""What is said of a solve in Julia that did not reach its end: what happened, where, and what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from homojl.algorithms import (
    AbstractJacobianBased,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    ArcLength,
)
from homojl.solution import Status

Tensor = torch.Tensor


def of_integration(
    algorithm: AbstractODEAlgorithm,
    status: Status,
    ts: Sequence[float],
    states: Sequence[Tensor],
    *,
    accepted: int,
    rejected: int,
    step: float,
    condition_is_nan: bool,
) -> str:
    """Of an ODE solve that was saved at the times `ts`, the last one where it stopped; empty: it reached its end.

    Args:
        step: size of the step that stopped it; 0: none did, and equal steps went on to the end.
        condition_is_nan: whether an event's condition stopped it.
    """
    if status.ok:
        return ""
    place = f"at t = {ts[-1]:.6g} after {accepted} accepted and {rejected} rejected steps, step {step:.2g}"
    advice = "the field returns NaN or infinity near this state; look at it there"
    stiff = isinstance(algorithm, AbstractJacobianBased)
    suspect = "suspect a stiff field, for which there are Rodas5P, TRBDF2 and FBDF"
    last = "check the Jacobian, or suspect a field that is not smooth here" if stiff else suspect
    if condition_is_nan:
        place = f"at t = {ts[-1]:.6g} after {accepted} steps"
        advice = "the event's condition is NaN in the next step"
    elif status is Status.DIVERGED and step == 0:
        bad = next(i for i, y in enumerate(states) if not bool(torch.isfinite(y).all()))
        between = f"in t = {ts[bad - 1]:.6g} .. {ts[bad]:.6g}" if bad else f"at t = {ts[0]:.6g}"
        place, advice = f"{between}, after {accepted} steps", "try a smaller step_size or an adaptive method"
    elif status is Status.MAX_STEPS:
        most = getattr(algorithm, "max_steps", None)
        advice = f"raise max_steps (now {most}), loosen rtol and atol, or {last}"
    elif status is Status.STEP_TOO_SMALL:
        advice = f"loosen rtol and atol, use float64, or {last}"
    return f"{algorithm.name}: {status.value} ({place}); {advice}"


def of_path(
    algorithm: AbstractPathAlgorithm,
    status: Status,
    s: Sequence[float],
    lambdas: Sequence[float],
    residuals: Sequence[float],
    last: Tensor,
    *,
    rejected: int,
    step: float,
) -> str:
    """Of a zero path that was followed to the state `last`; empty: it reached its end."""
    if status.ok:
        return ""
    size = torch.linalg.vector_norm(last).item() / math.sqrt(last.numel())
    place = f"at lambda = {lambdas[-1]:.6g}, s = {s[-1]:.6g}, norm(z) = {size:.3g}"
    counts = f"{len(s) - 1} accepted and {rejected} rejected steps, step {step:.2g}"
    advice = {
        Status.MAX_STEPS: f"raise max_steps (now {algorithm.max_steps}), loosen rtol and atol, or start elsewhere",
        Status.RETURNED: "this path has no root: start elsewhere, or try the other kind",
        Status.FOLD: "ArcLength() follows the path round it",
        Status.DIVERGED: "the residual or its derivative is NaN or infinite near this point; look at it there",
        Status.STALLED: "loosen rtol and atol, use float64, or look for a singular Jacobian near this point",
        Status.STEP_TOO_SMALL: "the path may branch or end near this point: start elsewhere, or try the other kind",
    }
    if isinstance(algorithm, ArcLength):
        bound = f"raise bound (now {algorithm.bound}), start elsewhere, or try the other kind"
        advice[Status.LEFT_BOUNDS] = bound
    words = advice[status]
    if len(s) == 1 and not rejected:
        words = "the Jacobian at z0 is singular or not finite: start elsewhere"
    elif lambdas[-1] == 1:
        small = "take a smaller first_step"
        stalled = f"norm(r) is {residuals[-1]:.2g} at lambda = 1: allow max_corrections, or {small}"
        words = stalled if status is Status.STALLED else small
    return f"{algorithm.name}: {status.value} ({place} after {counts}); {words}"
