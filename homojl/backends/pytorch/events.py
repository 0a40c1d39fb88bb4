"""Where along a solve an event's condition changes its sign."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from homojl.backends.base import EventCondition
from homojl.backends.pytorch.steps import time_like

Tensor = torch.Tensor
StateAt = Callable[[float], Tensor]

FRACTIONS = tuple(2.0**-k for k in range(24, 0, -1))  # of a step that starts where a condition is zero


def changed(before: np.ndarray, after: np.ndarray, direction: int) -> np.ndarray:
    """Which values have changed their sign, or are no longer numbers: a value that was zero has not."""
    crossed = np.isnan(after) & ~np.isnan(before)
    with np.errstate(invalid="ignore"):
        if direction >= 0:
            crossed = crossed | ((before < 0) & (after >= 0))
        if direction <= 0:
            crossed = crossed | ((before > 0) & (after <= 0))
    return np.asarray(crossed)


class EventWatch:
    """Follows the values of a condition from one accepted step to the next."""

    def __init__(self, event: EventCondition, t0: float, y0: Tensor) -> None:
        self._event = event
        self._before = self._values(t0, y0)
        if event.passed is not None:
            self._before[event.passed] = 0.0

    @torch.no_grad()
    def _values(self, t: float, y: Tensor) -> np.ndarray:
        values = self._event.condition(time_like(t, y), y, None)
        return values.detach().reshape(-1).to("cpu", torch.float64).numpy().copy()

    def happens_by(self, t: float, h: float, t_next: float, y_next: Tensor, state_at: StateAt) -> bool:
        """Whether the condition changes its sign in an accepted step.

        A value that is zero at the start, as just after an event, says nothing of the sign that it has next: the step
        is looked into then.

        Args:
            t, h, t_next, y_next: the step, and the time and state at its end.
            state_at: fraction in (0, 1) -> state.
        """
        after = self._values(t_next, y_next)
        self._low, self._high, self._end = 0.0, 1.0, (y_next, after)
        if (self._before == 0).any():
            for fraction in FRACTIONS:
                y = state_at(fraction)
                values = self._values(t + fraction * h, y)
                if changed(self._before, values, self._event.direction).any():
                    self._high, self._end = fraction, (y, values)
                    return True
                self._low, self._before = fraction, np.where(self._before == 0, values, self._before)
        if changed(self._before, after, self._event.direction).any():
            return True
        self._before = after
        return False

    def locate(self, t: float, h: float, state_at: StateAt) -> tuple[float, Tensor, int]:
        """The fraction of the step from t of size h at which the sign has just changed, to rounding.

        Returns:
            The fraction, the state there, and which of the values changed; -1 where it is not a number there.
        """
        low, high, (y, after) = self._low, self._high, self._end
        resolution = torch.finfo(y.dtype).eps
        while high - low > resolution * high:
            middle = (low + high) / 2
            y_middle = state_at(middle)
            values = self._values(t + middle * h, y_middle)
            if changed(self._before, values, self._event.direction).any():
                high, y, after = middle, y_middle, values
            else:
                low = middle
        which = int(changed(self._before, after, self._event.direction).argmax())
        return high, y, -1 if math.isnan(after[which]) else which
