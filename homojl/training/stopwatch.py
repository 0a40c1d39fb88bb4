"""Wall time of the phases of a training step."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Divides wall time among what is done one after the other.

    A GPU works behind the program's back, so its queue is awaited at the end of each lap; the loop waits for the loss
    and for the count of right answers in any case.

    Args:
        device: that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last lap, or since the start."""
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
