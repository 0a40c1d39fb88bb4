"""Events where every sample of a batch has steps of its own: looked for in all steps of a round at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from homojl.backends.base import EventCondition
from homojl.backends.pytorch.events import FRACTIONS, changed
from homojl.backends.pytorch.steps import AbstractStepper, Step, on
from homojl.errors import ConfigError

Tensor = torch.Tensor


class RowEvents:
    """The events of a batch's samples. States are flat here, (b, n): a row for each sample still at work.

    Args:
        event: the condition.
        stepper: of the solve, whose steps can be evaluated inside.
        evaluate: (times (b,), states (b, n)) -> the condition's values at the rows at work.
        t, y: where the samples start, (B,) and (B, n).

    Attributes:
        which: of the condition's values changed its sign, of each sample, (B,); -1: none, or not a number.
        states: at the events of the last round.
    """

    def __init__(
        self,
        event: EventCondition,
        stepper: AbstractStepper,
        evaluate: Callable[[np.ndarray, Tensor], Tensor],
        t: np.ndarray,
        y: Tensor,
    ) -> None:
        self._direction, self._stepper, self._evaluate = event.direction, stepper, evaluate
        self.which, self.states = np.full(len(t), -1), y[:0]
        self._before = self._values(t, y)  # (B, m)
        if event.passed is not None:
            passed = np.asarray(event.passed)
            (just,) = np.nonzero(passed >= 0)
            self._before[just, passed[just]] = 0.0

    def _values(self, t: np.ndarray, y: Tensor) -> np.ndarray:
        values = self._evaluate(t, y)
        if values.ndim == 0 or len(values) != len(y):
            raise ConfigError(
                "with batch='per-sample' an event's condition has a row for each sample: got shape "
                f"{tuple(values.shape)} for {len(y)} samples"
            )
        return values.reshape(len(y), -1).to("cpu", torch.float64).numpy().copy()

    def _inside(self, step: Step, rows: np.ndarray, fractions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The states at fractions of the steps of some rows, and the condition's values there."""
        states, times = self._stepper.rows_inside(step, rows, fractions), np.array(step.t)
        times[rows] = step.t[rows] + fractions * step.h[rows]
        return states, self._values(times, step.y_next.index_copy(0, on(step.y, rows), states))[rows]

    def within(self, index: np.ndarray, rows: np.ndarray, t_next: np.ndarray, step: Step) -> np.ndarray:
        """The fractions of the accepted steps at which events took place, to rounding, (b,); 2 where none did.

        Args:
            index: which samples the rows are.
            rows: whose steps were accepted.
            t_next: times at which those end.
            step: the steps of all rows.
        """
        before, ends = self._before[index], np.full(len(rows), 2.0)
        times = np.array(step.t)
        times[rows] = t_next
        after, states = self._values(times, step.y_next), step.y_next
        low_all, high_all = np.zeros(len(index)), np.ones(len(index))
        zero = rows[np.any(before[rows] == 0, axis=1)]
        if len(zero):
            states = self._look_inside(zero, step, before, after, low_all, high_all)
        hit = np.zeros(len(index), dtype=bool)
        hit[rows] = np.any(changed(before, after, self._direction), axis=1)[rows]
        kept = np.setdiff1d(rows, np.flatnonzero(hit))
        self._before[index[kept]] = after[kept]
        (at,) = np.nonzero(hit)
        if not len(at):
            return ends
        low, high, found = low_all[at], high_all[at], states.index_select(0, on(step.y, at))
        values, resolution = after[at], torch.finfo(step.y.dtype).eps
        while np.any(high - low > resolution * high):
            middle = (low + high) / 2
            states, now = self._inside(step, at, middle)
            over = np.any(changed(before[at], now, self._direction), axis=1)
            found = torch.where(on(step.y, over)[:, None], states, found)
            values = np.where(over[:, None], now, values)
            high, low = np.where(over, middle, high), np.where(over, low, middle)
        which = changed(before[at], values, self._direction).argmax(1)
        self.which[index[at]] = np.where(np.isnan(values[np.arange(len(at)), which]), -1, which)
        self.states = found
        ends[np.searchsorted(rows, at)] = high
        return ends

    def _look_inside(
        self, rows: np.ndarray, step: Step, before: np.ndarray, after: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> Tensor:
        """Follow conditions that are zero at the start of a step, as just after an event, through it.

        Args:
            rows: whose; where an event is found in the step, `after` becomes the values there.
            before, after: the condition's at the ends of the step, (b, m).
            low, high: fractions of the step between which an event lies, (b,).

        Returns:
            The states at `high`.
        """
        states = step.y_next
        for fraction in FRACTIONS:
            inner, now = self._inside(step, rows, np.full(len(rows), fraction))
            over = np.any(changed(before[rows], now, self._direction), axis=1)
            found = rows[over]
            high[found], after[found] = fraction, now[over]
            states = states.index_copy(0, on(step.y, found), inner[on(step.y, over)])
            rows, now = rows[~over], now[~over]
            low[rows], before[rows] = fraction, np.where(before[rows] == 0, now, before[rows])
            if not len(rows):
                break
        return states
