"""The arithmetic of step sizes, one formula each: for one step in numbers, for a batch of them in arrays or tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from homojl.algorithms import PIController

Tensor = torch.Tensor
Number = Any  # a float, an array, or a tensor

SMALLEST_CHANGE = 1e-3  # by which a step that is taken again is shorter at least
LEAST_RATIO = 1e-4  # of an accepted step, as the control remembers it


def _clip(x: Number, low: Number, high: Number) -> Number:
    if isinstance(x, float):
        return min(max(x, low), high)
    return x.clamp(low, high) if isinstance(x, Tensor) else x.clip(low, high)


def after_rejection(h: Number, ratio: Number, order: int, control: PIController) -> Number:
    """The size to try in the place of one whose error was `ratio` times what is tolerated, which may not be finite."""
    quotient = ratio ** (1 / order) / control.safety
    if isinstance(ratio, float):
        quotient = quotient if math.isfinite(ratio) else math.inf
    elif isinstance(ratio, Tensor):
        quotient = torch.where(torch.isfinite(ratio), quotient, math.inf)
    else:
        quotient = np.where(np.isfinite(ratio), quotient, math.inf)
    return h / _clip(quotient, 1.0 + SMALLEST_CHANGE, 1 / control.min_factor)


def after_first(h: Number, ratio: Number, order: int, control: PIController) -> Number:
    """The size after the first accepted step, and after a jump."""
    return _bounded(h, ratio ** (1 / order) / control.safety, control)


def after_step(
    h: Number, ratio: Number, h_old: Number, ratio_old: Number, ratio_older: Number, order: int, control: PIController
) -> Number:
    """The size after an accepted step that follows others: `PIController` has the formula.

    Args:
        h, ratio: size of the step and its error as a multiple of what is tolerated.
        h_old, ratio_old: of the step before, the ratio not below `LEAST_RATIO`.
        ratio_older: of the step before that.
        order, control: of the method.
    """
    beta1, beta2, beta3 = control.exponents(order)
    quotient = ratio**beta1 / ratio_old**beta2
    if (beta_older := control.older_exponent(order)) != 0.0:
        quotient = quotient * ratio_older**beta_older
    if beta3 != 0.0:
        quotient = quotient / (h / h_old) ** beta3
    return _bounded(h, quotient / control.safety, control)


def _bounded(h: Number, quotient: Number, control: PIController) -> Number:
    return h / _clip(quotient, 1 / control.max_factor, 1 / control.min_factor)


def first_sizes(
    measure: Callable[[Tensor], np.ndarray],
    probe: Callable[[np.ndarray], Tensor],
    y: Tensor,
    k: Tensor,
    span: float,
    order: int,
) -> np.ndarray:
    """Hairer's estimate of good first steps, (b,): at most `span` long, positive; NaN where the start is not finite.

    Args:
        measure: the norms of states in units of the tolerance, (b,).
        probe: sizes (b,) -> the derivative after an Euler step of each.
        y, k: the initial states and the derivatives there.
        span: length of the interval.
        order: of the method.

    References: Hairer, Norsett, Wanner (1993), II.4.
    """
    d0, d1 = measure(y), measure(k)
    finite = np.isfinite(d0) & np.isfinite(d1)
    if not finite.any():
        return np.full(d0.shape, np.nan)
    with np.errstate(all="ignore"):
        h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        h0 = np.where(finite, np.minimum(h0, span), 0.0)
        d2 = measure(probe(h0) - k) / h0
        steepest = np.maximum(d1, d2)
        h1 = np.where(steepest <= 1e-15, np.maximum(1e-6, 1e-3 * h0), (0.01 / steepest) ** (1 / order))
        first = np.where(np.isfinite(steepest), np.minimum(np.minimum(100 * h0, h1), span), h0)
    return np.where(finite, first, np.nan)
