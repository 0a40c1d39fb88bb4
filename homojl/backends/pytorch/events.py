"""Where along a solve an event's condition changes its sign."""

from __future__ import annotations

from collections.abc import Callable

import torch

from homojl.backends.base import EventCondition
from homojl.backends.pytorch.runge_kutta import time_like

Tensor = torch.Tensor


class EventWatch:
    """Follows the values of a condition from one accepted step to the next.

    A value that is zero at the start of a step is no event there; one that is zero at its end is.
    """

    def __init__(self, event: EventCondition, t0: float, y0: Tensor) -> None:
        self._event = event
        self._before = self._values(t0, y0)

    @torch.no_grad()
    def _values(self, t: float, y: Tensor) -> list[float]:
        return self._event.condition(time_like(t, y), y).reshape(-1).tolist()

    def _changed(self, after: list[float]) -> bool:
        rises, falls = self._event.direction >= 0, self._event.direction <= 0
        return any((rises and a < 0 <= b) or (falls and a > 0 >= b) for a, b in zip(self._before, after, strict=True))

    def happens_by(self, t: float, y: Tensor) -> bool:
        """Whether the condition changes its sign between the last state that was asked about and this one."""
        after = self._values(t, y)
        if self._changed(after):
            return True
        self._before = after
        return False

    def locate(self, t: float, h: float, y_next: Tensor, state_at: Callable[[float], Tensor]) -> tuple[float, Tensor]:
        """The fraction of the step from t of size h at which the sign has just changed, to rounding, and the state.

        Args:
            t, h, y_next: the step, and the state at its end.
            state_at: fraction in (0, 1) -> state.
        """
        low, high, y = 0.0, 1.0, y_next
        resolution = torch.finfo(y_next.dtype).eps
        while high - low > resolution:
            middle = (low + high) / 2
            y_middle = state_at(middle)
            if self._changed(self._values(t + middle * h, y_middle)):
                high, y = middle, y_middle
            else:
                low = middle
        return high, y
