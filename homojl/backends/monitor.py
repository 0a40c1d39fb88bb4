"""Telling how far a long solve of many samples has come."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, int, int], None]

_SLICES = 100  # of a batch that is solved in one call, between which something is told
_LEAST = 4096  # samples in a slice
_report: ContextVar[Report | None] = ContextVar("homojl_progress", default=None)


class Line:
    """Writes the part that is done over the last line of the terminal, a few times a second; elsewhere nothing."""

    def __init__(self) -> None:
        self._written = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (done < total and now - self._written < 0.2):
            return
        self._written = now
        end = "\n" if done == total else ""
        print(f"\r{what}: {done:,} of {total:,} samples", end=end, file=sys.stderr, flush=True)


@contextmanager
def progress(report: Report | None = None) -> Iterator[None]:
    """Within it, solves with `batch="per-sample"` tell how many of their samples are done, and so do their gradients.

        with hj.progress():
            solution = hj.solve(problem, hj.Tsit5(), batch="per-sample", backend="pytorch-compiled")

    Args:
        report: called with "solve" or "gradient", how many samples are done and how many there are, whenever some more
            are; None: that is written to the terminal. Gradients tell it where the solve was compiled whole.
    """
    token = _report.set(Line() if report is None else report)
    try:
        yield
    finally:
        _report.reset(token)


class Told:
    """What one solve or gradient tells.

    Args:
        what: "solve" or "gradient".
        total: its samples.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._report, self._lock = _report.get(), threading.Lock()

    def reached(self, done: int) -> None:
        """So many samples are done."""
        if self._report is not None and done > self._done:
            self._done = done
            self._report(self._what, done, self._total)

    def in_slices(self, start: int, stop: int, size: int, work: Callable[[int, int], object]) -> None:
        """Work on samples start ... stop, in multiples of `size` where that is to be told; from several threads too."""
        slice_ = -(-max(self._total // _SLICES, _LEAST) // size) * size
        bounds = [start, stop] if self._report is None else [*range(start, stop, slice_), stop]
        for a, b in itertools.pairwise(bounds):
            work(a, b)
            with self._lock:
                self.reached(self._done + b - a)
