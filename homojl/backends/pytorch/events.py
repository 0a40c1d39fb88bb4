"""Where along a solve an event's condition changes its sign: of the whole state, or of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from homojl.backends.base import EventCondition
from homojl.backends.pytorch.steps import AbstractStepper, Field, Step, on, time_like
from homojl.errors import ConfigError

Tensor = torch.Tensor

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


class StepEvent(NamedTuple):
    """An event in a step: its time and state, which of the values changed, -1 where it is not a number there.

    The step is recorded with the size h, of which the event is at a fraction: a method that cannot be evaluated inside
    a step takes a shorter one.
    """

    t: float
    y: Tensor
    which: int
    h: float
    fraction: float


class StateEvents:
    """The events of a whole state, looked for in one accepted step after the other.

    Args:
        event: the condition.
        stepper, f: of the solve.
        t0, y0: where it starts.
    """

    def __init__(self, event: EventCondition, stepper: AbstractStepper, f: Field, t0: float, y0: Tensor) -> None:
        self._event, self._stepper, self._f = event, stepper, f
        self._before = self._values(t0, y0)
        if event.passed is not None:
            self._before[event.passed] = 0.0

    @torch.no_grad()
    def _values(self, t: float, y: Tensor) -> np.ndarray:
        values = self._event.condition(time_like(t, y), y, None)
        return values.detach().reshape(-1).to("cpu", torch.float64).numpy().copy()

    def _inside(self, step: Step, fraction: float) -> tuple[Tensor, np.ndarray]:
        """The state at a fraction of a step, and the condition's values there."""
        t, h = step.t, fraction * step.h
        if self._stepper.interpolates:
            y = self._stepper.inside(step, [fraction])[0]
        else:
            y = self._stepper.step(self._f, t, h, step.y, last=False).y_next
        return y, self._values(t + h, y)

    def _changed(self, values: np.ndarray) -> np.ndarray:
        return changed(self._before, values, self._event.direction)

    def within(self, step: Step, t_next: float) -> StepEvent | None:
        """The event in a step that ends at t_next, if there is one.

        A value that is zero at the start, as just after an event, says nothing of the sign that it has next: the step
        is looked into then.
        """
        low, high, y, after = 0.0, 1.0, step.y_next, self._values(t_next, step.y_next)
        if (self._before == 0).any():
            for fraction in FRACTIONS:
                inner, values = self._inside(step, fraction)
                if self._changed(values).any():
                    high, y, after = fraction, inner, values
                    break
                low, self._before = fraction, np.where(self._before == 0, values, self._before)
        if not self._changed(after).any():
            self._before = after
            return None
        resolution = torch.finfo(y.dtype).eps
        while high - low > resolution * high:
            middle = (low + high) / 2
            inner, values = self._inside(step, middle)
            if self._changed(values).any():
                high, y, after = middle, inner, values
            else:
                low = middle
        which = int(self._changed(after).argmax())
        which, t, h = -1 if math.isnan(after[which]) else which, step.t, high * step.h
        return StepEvent(t + h, y, which, *((step.h, high) if self._stepper.interpolates else (h, 1.0)))


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
