"""The loop over steps that every sample of a batch chooses for itself: its own size, time, error and end.

States are flat here, (b, n): one row for each sample still at work. All that is decided is decided on the host, in
float64 and for all rows at once, from one row of error ratios; so a step costs one wait for the device. Nothing here
records gradients: the record holds what a gradient needs to take the accepted steps again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractAdaptive, StepMemory
from homojl.algorithms.step_memory import SMALLEST_CHANGE
from homojl.backends.base import Integration, Task
from homojl.backends.monitor import Told
from homojl.backends.pytorch import control
from homojl.backends.pytorch.events import RowEvents
from homojl.backends.pytorch.record import Record, Round
from homojl.backends.pytorch.rows import COMPACT_AT, RowLayout
from homojl.backends.pytorch.steps import ExplicitStepper, Step, on
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.functions.user import Mixes
from homojl.solution import Samples, Status

Tensor = torch.Tensor

_WORST = (Status.DIVERGED, Status.STEP_TOO_SMALL, Status.MAX_STEPS)


class Moves(NamedTuple):
    """The steps that are to be tried, one of each row, (b,): sizes, those before they were cut short, ends, and more.

    Attributes:
        h, wanted: signed sizes, and those if the steps were not cut short.
        t_next: times at which they end.
        lands: which end on a time that was set.
    """

    h: np.ndarray
    wanted: np.ndarray
    t_next: np.ndarray
    lands: np.ndarray


@torch.no_grad()
def integrate_samples(task: Task, y0: Tensor) -> Integration:
    """`AbstractBackend.integrate` under step control of each sample's own.

    Args:
        task: its field may be given fewer rows than y0 has, and so may the condition of its event.
        y0: initial states (B, ...).

    Returns:
        The solve; a sample that stopped early has its last accepted state at the save times that it did not reach.
    """
    return _Batch(task, y0).run()


class _Batch:
    """The solve of one batch. Arrays named without a shape have a number for each of the B samples.

    The rows of a tensor are the samples `index`; those that have ended stay among them until enough have for the rest
    to move together, and take steps of size zero.
    """

    def __init__(self, task: Task, y0: Tensor) -> None:
        f, algorithm, ts, starts, event = task.f, task.algorithm, task.ts, task.starts, task.event
        assert isinstance(f, VectorField), f
        assert isinstance(algorithm, AbstractAdaptive), algorithm
        count = len(y0)
        self.f, self.algorithm = f, algorithm
        self.stepper = ExplicitStepper(algorithm.explicit_tableau)
        self.ts, self.direction = np.array(ts), 1.0 if ts[-1] > ts[0] else -1.0
        self.y0, self.layout = y0, RowLayout(y0)
        self.y = self.layout.flatten(y0)
        self.k: Tensor | None = None
        self.saved = torch.empty((len(ts) - 1, *self.y.shape), dtype=y0.dtype, device=y0.device)
        self.record = Record(states=[] if task.keep_states else None, layout=self.layout)
        self.held: list[tuple[int, int]] = []
        self.index = np.arange(count)
        self.rows: Tensor | None = None
        self.field = self.layout.field(f, None)
        self.status = np.full(count, None, dtype=object)
        self.going = np.ones(count, dtype=bool)
        self.t, self.h = np.full(count, self.ts[0]) if starts is None else starts.copy(), np.zeros(count)
        self.ratio = np.zeros(count)  # of the last try
        self.h_old, self.ratio_old = np.full(count, math.nan), np.full(count, math.nan)  # of the last accepted step
        self.ratio_older = np.full(count, math.nan)  # of the one before it, or of the last where it was the first
        self.next_save = np.ones(count, dtype=np.int64)
        self.accepted, self.rejected, self.nfe = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.opening = np.full(count, math.nan)  # the first step, then what the second says of it
        self.started = f.calls
        self.asked = -1  # how many rows were at work when it was last asked whether the others may leave
        self.events: RowEvents | None = None
        self.which = np.full(count, -1)  # of the values of the condition, that changed
        if event is not None:
            condition = event.condition

            def values(t: np.ndarray, y: Tensor) -> Tensor:
                return condition(self.field_times(t), self.layout.unflatten(y), self.rows)

            self.events = RowEvents(event, self.stepper, values, self.t, self.y)
            self.which = self.events.which
        if starts is not None:
            self.go_on()

    def run(self) -> Integration:
        self.k = k = self.evaluate(on(self.y, self.t), self.y)
        self.first_steps(k)
        told = Told("solve", len(self.going))
        while True:
            moves = self.proposal()
            live = self.live()
            told.reached(len(self.going) - int(np.count_nonzero(self.going)))
            if not live.any():
                self.may_leave(np.array([s is not None and s.ok for s in self.status[self.index]]))
                return self.result()
            may_leave = live.all() or self.may_leave(live)
            if may_leave and live.sum() <= (1 - COMPACT_AT) * len(live):
                self.compact(live)
                moves = Moves(*(x[live] for x in moves))
                live = live[live]
            self.advance(moves, live)

    def go_on(self) -> None:
        """Samples that start later than ts[0] have no states at the save times before, for which their first stand."""
        self.next_save[:] = np.searchsorted(self.direction * self.ts, self.direction * self.t, side="right")
        done = self.next_save == len(self.ts)
        self.status[done], self.going[done] = Status.SUCCESS, False
        saves, rows = np.nonzero(np.arange(1, len(self.ts))[:, None] < self.next_save)
        self.hold(saves, rows)

    def hold(self, saves: np.ndarray, rows: np.ndarray) -> None:
        """Save the present states of rows at save times, numbered after the first."""
        if len(saves):
            places = on(self.y, saves * self.saved.shape[1] + self.index[rows])
            self.saved.view(-1, self.saved.shape[2]).index_copy_(0, places, self.y.index_select(0, on(self.y, rows)))
            self.held += zip(saves.tolist(), self.index[rows].tolist(), strict=True)

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe[self.index] += 1
        value: Tensor = self.field(t, y)
        return value

    def live(self) -> np.ndarray:
        """Which rows are still at work, (b,)."""
        return self.going[self.index]

    def measured(self, x: Tensor) -> np.ndarray:
        """The root mean square of each row, on the host: the only place where it waits for the device."""
        return torch.linalg.vector_norm(x, dim=1).to("cpu", torch.float64).numpy() / math.sqrt(x.shape[1])

    def first_steps(self, k: Tensor) -> None:
        """Choose the first step of each sample, where the field's value is k."""
        algorithm = self.algorithm
        if algorithm.first_step is not None:
            assert not isinstance(algorithm.first_step, StepMemory), "with_first_step() puts a number in its place"
            self.h[:] = self.direction * algorithm.first_step
            return
        scale = (self.y.abs() * algorithm.rtol).add_(algorithm.atol)

        def probe(size: np.ndarray) -> Tensor:
            signed = self.direction * size
            return self.evaluate(on(self.y, self.t + signed), torch.addcmul(self.y, k, on(self.y, signed)[:, None]))

        span = abs(self.ts[-1] - self.ts[0])
        first = control.first_sizes(lambda x: self.measured(x / scale), probe, self.y, k, span, algorithm.order)
        self.h[:] = self.direction * np.nan_to_num(first)
        self.end(np.isnan(first), Status.DIVERGED)

    def proposal(self) -> Moves:
        """Each row's next step. Rows that cannot go on end here."""
        algorithm, i = self.algorithm, self.index
        self.end(self.live() & (self.accepted[i] + self.rejected[i] >= algorithm.max_steps), Status.MAX_STEPS)
        t, last = self.t[i], len(self.ts) - 1
        # Without a continuous extension the steps have to end on every save time.
        target = self.ts[last if self.stepper.interpolates else np.minimum(self.next_save[i], last)]
        target = np.broadcast_to(target, t.shape)
        wanted = np.clip(self.h[i], -algorithm.max_step, algorithm.max_step)
        lands = np.abs(wanted) >= np.abs(target - t) * (1 - 1e-12)
        short = self.live() & ~lands & (np.abs(wanted) <= np.maximum(algorithm.min_step, 8 * np.spacing(np.abs(t))))
        finite = np.isfinite(self.ratio[i])
        self.end(short & ~finite, Status.DIVERGED)
        self.end(short & finite, Status.STEP_TOO_SMALL)
        return Moves(np.where(lands, target - t, wanted), wanted, np.where(lands, target, t + wanted), lands)

    def advance(self, moves: Moves, live: np.ndarray) -> None:
        """Try a step of every row, of size zero where a sample has ended."""
        algorithm, y, i = self.algorithm, self.y, self.index
        h = np.where(live, moves.h, 0.0)
        before = self.f.calls
        step = self.stepper.step(self.field, self.t[i], h, y, self.k)
        self.nfe[i] += self.f.calls - before
        scale = torch.maximum(y.abs(), step.y_next.abs()).mul_(algorithm.rtol).add_(algorithm.atol)
        ratio = np.where(live, self.measured(self.stepper.error(step).div_(scale)), 0.0)
        good = live & (ratio <= 1.0)  # written so that NaN is rejected too
        bad = live & ~good
        self.ratio[i] = ratio
        with np.errstate(all="ignore"):
            self.h[i[bad]] = control.after_rejection(h, ratio, algorithm.order, algorithm.step_control)[bad]
        self.rejected[i[bad]] += 1
        happened = self.accept(good, moves, step) if good.any() else bad & False
        y_next = step.y_next
        if self.events is not None and happened.any():  # those rows stay at their events
            y_next = y_next.index_copy(0, on(y, np.flatnonzero(happened)), self.events.states)
        self.y = y_next if good.all() else torch.where(on(y, good)[:, None], y_next, y)
        carried = self.stepper.carried(step)
        if carried is not None:
            self.k = carried if good.all() else torch.where(on(y, good)[:, None], carried, step.ks[0])
        else:
            # At the rows that were rejected this is the value they had.
            self.k = None if good.any() else step.ks[0]
        self.end(happened & (self.which[i] < 0), Status.DIVERGED)  # the condition is not a number
        self.end(happened & (self.which[i] >= 0), Status.EVENT)
        self.end(self.live() & (self.next_save[i] == len(self.ts)), Status.SUCCESS)

    def accept(self, good: np.ndarray, moves: Moves, step: Step) -> np.ndarray:
        """Note the steps of the rows `good` (b,), save what lies in them, and choose the next sizes.

        Returns:
            In which rows an event took place, (b,).
        """
        rows = np.flatnonzero(good)
        i, h, t, t_next, ratio = (
            self.index[rows],
            step.h[rows],
            step.t[rows],
            moves.t_next[rows],
            self.ratio[self.index[rows]],
        )
        happened = np.zeros(len(good), dtype=bool)
        ends = np.ones(len(rows))  # the fraction of each step at which its sample is from now on
        if self.events is not None:
            ends = self.events.within(self.index, rows, t_next, step)
            happened[rows] = ends < 2.0
            t_next = np.where(ends < 2.0, t + ends * h, t_next)
        reached = np.searchsorted(self.direction * self.ts, self.direction * t_next, side="right")
        reached = np.maximum(reached, self.next_save[i])
        counts = reached - self.next_save[i]
        at = np.repeat(np.arange(len(rows)), counts)
        saves = np.arange(len(at)) + np.repeat(self.next_save[i] - (np.cumsum(counts) - counts), counts)
        # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
        over = ((self.ts[saves] - t_next[at]) * self.direction >= 0) & ~happened[rows][at]
        fractions = np.where(over, 1.0, (self.ts[saves] - t[at]) / h[at])
        for row in np.flatnonzero(happened[rows]):  # the state at the event stands for the save times that follow
            left = np.arange(reached[row], len(self.ts))
            at, saves = np.append(at, np.full(len(left), row)), np.append(saves, left)
            fractions = np.append(fractions, np.full(len(left), ends[row]))
        if len(at):
            states = self.stepper.rows_inside(step, rows[at], fractions)
            places = on(self.y, (saves - 1) * self.saved.shape[1] + i[at])
            self.saved.view(-1, self.saved.shape[2]).index_copy_(0, places, states)
        if self.record.states is not None:
            self.record.states.append(self.y if good.all() else self.y.index_select(0, on(self.y, rows)))
        self.record.rounds.append(Round(t, h, False, fractions, saves - 1, i, at))
        self.choose(i, h, ratio)
        cut = moves.lands[rows] & (np.abs(self.h[i]) < np.abs(moves.wanted[rows]))
        self.h[i[cut]] = moves.wanted[rows][cut]  # cut short, which says nothing against the size before it
        self.t[i], self.next_save[i] = t_next, np.where(happened[rows], len(self.ts), reached)
        return happened

    def choose(self, i: np.ndarray, h: np.ndarray, ratio: np.ndarray) -> None:
        """The sizes after accepted steps of the samples i, (b,)."""
        order, size = self.algorithm.order, self.algorithm.step_control
        first, second = self.accepted[i] == 0, self.accepted[i] == 1
        self.opening[i[first]] = np.abs(h[first])
        self.opening[i[second]] = np.maximum(np.abs(h[second]), SMALLEST_CHANGE * self.opening[i[second]])
        with np.errstate(all="ignore"):
            later = control.after_step(h, ratio, self.h_old[i], self.ratio_old[i], self.ratio_older[i], order, size)
            self.h[i] = np.where(first, control.after_first(h, ratio, order, size), later)
        bounded = np.maximum(ratio, control.LEAST_RATIO)
        self.ratio_older[i] = np.where(first, bounded, self.ratio_old[i])
        self.h_old[i], self.ratio_old[i] = h, bounded
        self.accepted[i] += 1

    # Samples that end

    def may_leave(self, live: np.ndarray) -> bool:
        """Whether the rows that are done may leave, so that the others are evaluated alone; asked as they end.

        Raises:
            ConfigError: if the samples depend on each other.
        """
        if len(self.y0) == 1 or self.rows is not None or self.f.separates is not None or live.sum() == self.asked:
            return self.rows is not None or bool(self.f.separates)
        self.asked = live.sum()
        t, y = self.field_times(self.t[self.index]), self.layout.unflatten(self.y)
        value = self.f(t, y) if self.k is None else self.layout.unflatten(self.k)
        finite = torch.isfinite(self.y).all(1) & torch.isfinite(value.reshape(len(value), -1)).all(1)
        (staying,) = np.nonzero(live & finite.cpu().numpy())
        if not len(staying):
            return False
        try:
            return self.f.separable((t, y), value, on(self.y, staying))
        except Mixes as error:
            raise ConfigError(
                f"{error}, so samples cannot have steps of their own: use batch='joint', or the field in "
                "evaluation mode"
            ) from None

    def field_times(self, t: np.ndarray) -> Tensor:
        """Times of rows as the field receives them, (b, 1, ..., 1)."""
        return on(self.y, t).view(-1, *[1] * (self.y0.ndim - 1))

    def end(self, which: np.ndarray, status: Status) -> None:
        """The rows `which` (b,) end; those that fail hold their last state at save times that they did not reach."""
        if not which.any():
            return
        i = self.index[which]
        self.status[i], self.going[i] = status, False
        if status.ok:
            return
        held = [
            (save - 1, row)
            for row in np.flatnonzero(which)
            for save in range(self.next_save[self.index[row]], len(self.ts))
        ]
        self.hold(*np.array(held, dtype=np.int64).reshape(-1, 2).T)

    def compact(self, live: np.ndarray) -> None:
        self.index = self.index[live]
        rows = on(self.y, np.flatnonzero(live))
        self.y = self.y.index_select(0, rows)
        self.k = None if self.k is None else self.k.index_select(0, rows)
        self.rows = on(self.y, self.index)
        self.field = self.layout.field(self.f, self.rows)

    def result(self) -> Integration:
        samples = Samples(
            statuses=tuple(self.status),
            times=torch.from_numpy(self.t),
            n_accepted=torch.from_numpy(self.accepted),
            n_rejected=torch.from_numpy(self.rejected),
            nfe=torch.from_numpy(self.nfe),
            events=torch.from_numpy(self.which),
        )
        status, message = self.verdict()
        saves, held = np.array(self.held, dtype=np.int64).reshape(-1, 2).T
        self.record.held = saves, held
        most = int((self.accepted + self.rejected).argmax())
        return Integration(
            ts=tuple(self.ts.tolist()),
            ys=[self.y0, *(self.layout.restore(y) for y in self.saved.unbind())],
            record=self.record,
            status=status,
            message=message,
            nfe=self.f.calls - self.started,
            n_rejected=int(self.rejected[most]),
            samples=samples,
            first_step=float(np.nanmedian(self.opening)) if self.accepted.any() else None,
        )

    def verdict(self) -> tuple[Status, str]:
        """The worst status among the samples, and one line on what happened and what to try."""
        failed = [i for i, status in enumerate(self.status) if not status.ok]
        if not failed:
            return Status.EVENT if Status.EVENT in self.status else Status.SUCCESS, ""
        status = next(s for s in _WORST if s in self.status)
        worst = next(i for i in failed if self.status[i] is status)
        others = f" and {len(failed) - 1} more of {len(self.status)}" if len(failed) > 1 else ""
        counts = f"after {self.accepted[worst]} accepted and {self.rejected[worst]} rejected steps"
        where = f"sample {worst}{others}, at t = {self.t[worst]:.6g} {counts}, step {abs(self.h[worst]):.2g}"
        start = self.accepted[worst] == 0
        advice = {
            Status.DIVERGED: "its initial state or the field's value there has NaN or infinity in it"
            if start
            else "the field returns NaN or infinity near its last state; look at it there",
            Status.STEP_TOO_SMALL: "loosen rtol and atol, use float64, or suspect a stiff field",
            Status.MAX_STEPS: f"raise max_steps (now {self.algorithm.max_steps}), loosen rtol and atol, or suspect a "
            "stiff field",
        }[status]
        return status, f"{self.algorithm.name}: {status.value} ({where}); {advice}"
