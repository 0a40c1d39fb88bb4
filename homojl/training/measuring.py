"""Time and memory of training: the phases of a step, the peak of a process, and what a part of it adds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        # Not ru_maxrss, which a process inherits from the one that started it.
        return _of_status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@contextlib.contextmanager
def added_memory(device: torch.device) -> Iterator[list[float]]:
    """MiB that the body takes at its peak beside what was taken before, in the list that it gets, once it has ended.

    NaN on a CPU where the system does not let a process measure anew, as on all but Linux.
    """
    added: list[float] = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, where it is not counted
        before = float("nan")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is from here on
            before = _of_status("VmRSS")
    yield added
    added.append(peak_memory(device) - before)


def _of_status(name: str) -> float:
    """A line of the process's status on Linux, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


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
