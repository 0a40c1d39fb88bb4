"""Steps that every sample of a batch chooses for itself: its own size, time, error and end.

States are flat here, (b, n): one row for each sample still at work. All that is decided is decided on the host, in
float64 and for all rows at once, from one row of error ratios; so a step costs one wait for the device. Nothing here
records gradients: `Round` holds what a gradient needs to take the accepted steps again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from homojl.algorithms import AbstractAdaptive, StepMemory
from homojl.algorithms.step_memory import SMALLEST_CHANGE
from homojl.backends.pytorch.evaluations import Untouched
from homojl.backends.pytorch.runge_kutta import combine
from homojl.backends.pytorch.samples import COMPACT_AT, RowLayout
from homojl.solution import Samples, Status
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor
RowsField = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (t, y, rows) -> dy/dt of those rows; None: of all
FlatField = Callable[[Tensor, Tensor], Tensor]  # ((b,), (b, n)) -> (b, n)


@dataclass(frozen=True, eq=False)
class Round:
    """The steps that were accepted together: b of them, each of another sample.

    Attributes:
        samples: whose, (b,), int64.
        starts, sizes: times at which they start and their signed sizes, (b,), float64.
        at, fractions, saves: for each state that was saved in them, which of the steps it lies in, at which fraction
            of it in (0, 1], 1 being its end, and the position of its time among the save times after the first.
        states: those the steps start from, (b, n); None where they were not asked for.
    """

    samples: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    at: np.ndarray
    fractions: np.ndarray
    saves: np.ndarray
    states: Tensor | None


@dataclass(frozen=True, eq=False)
class SampleIntegration:
    """What came of a batch of B samples with n elements each.

    Attributes:
        saved: the states at the T save times after the first, (T, B, n); a sample that stopped early has its last
            accepted state at those that it did not reach.
        layout: between such rows and the caller's batch.
        rounds: the accepted steps, in the order in which they were taken.
        held: positions of the save time and of the sample, (m,) each, wherever `saved` holds such a last state.
        samples: how each of them fared.
        status, message: the gravest end of any sample, and one line on what to try.
        nfe: calls of the field, each on the rows still at work.
        typical_first_step: the median over the samples of what `StepMemory` would learn of each; NaN without a step.
    """

    saved: Tensor
    layout: RowLayout
    rounds: list[Round]
    held: tuple[np.ndarray, np.ndarray]
    samples: Samples
    status: Status
    message: str
    nfe: int
    typical_first_step: float


def flat_field(f: RowsField, layout: RowLayout, ndim: int, rows: Tensor | None) -> FlatField:
    """The field at those rows of the batch, for flat states; times go in as (b, 1, ..., 1), of `ndim` dimensions."""
    if ndim == 2:  # states that are flat already
        return lambda t, y: f(t.view(-1, 1), y, rows)

    def evaluate(t: Tensor, y: Tensor) -> Tensor:
        return layout.flatten(f(t.view(-1, *[1] * (ndim - 1)), layout.unflatten(y), rows))

    return evaluate


def step_rows(
    rhs: FlatField,
    tableau: ButcherTableau,
    t: np.ndarray,
    h: np.ndarray,
    y: Tensor,
    k_first: Tensor | None = None,
    *,
    last_stage: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """One step of every row, of its own size; as `runge_kutta.step`, with t and h of shape (b,) and y of (b, n)."""
    times = _on(y, t + np.multiply.outer(np.array(tableau.c), h)).unbind()
    size = _on(y, h)[:, None]
    ks = [rhs(times[0], y) if k_first is None else k_first]
    stages = tableau.stages - 1 if tableau.fsal else tableau.stages
    for i in range(1, stages):
        ks.append(rhs(times[i], torch.addcmul(y, combine(None, 1.0, tableau.a[i], ks), size)))
    y_next = torch.addcmul(y, combine(None, 1.0, tableau.b, ks), size)
    if tableau.fsal and last_stage:
        ks.append(rhs(times[-1], y_next))
    return y_next, ks


def states_inside(
    tableau: ButcherTableau,
    h: np.ndarray,
    y: Tensor,
    y_next: Tensor,
    ks: list[Tensor],
    at: np.ndarray,
    fractions: np.ndarray,
) -> Tensor:
    """The states at fractions of the steps of the rows `at`, (p, n); at 1 those of y_next."""
    rows = indices(at, y)
    at_end = fractions == 1.0
    ends = y_next.index_select(0, rows)
    if at_end.all():
        return ends
    dense = np.array(tableau.dense)
    weights = np.zeros((len(at), tableau.stages))
    for m in reversed(range(dense.shape[1])):  # a matrix product would round by how many rows there are
        weights = (weights + dense[:, m]) * fractions[:, None]
    sizes, states = _on(y, weights * h[at, None]), y.index_select(0, rows)
    for j in range(tableau.stages):
        if dense[j].any():
            states = torch.addcmul(states, ks[j].index_select(0, rows), sizes[:, j : j + 1])
    if at_end.any():
        states = torch.where(_mask(at_end, y), ends, states)
    return states


def indices(positions: np.ndarray, like: Tensor) -> Tensor:
    """Positions on the device of a tensor."""
    return torch.from_numpy(positions).to(like.device, non_blocking=True)


def _on(like: Tensor, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(like.dtype.to_real()).to(like.device, non_blocking=True)


def _mask(rows: np.ndarray, like: Tensor) -> Tensor:
    return indices(rows, like)[:, None]


def _rms(*tensors: Tensor) -> np.ndarray:
    """Of each row of each of them, on the host: the only place where it waits for the device."""
    norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in tensors])
    return norms.to("cpu", torch.float64).numpy() / math.sqrt(tensors[0].shape[1])


@torch.no_grad()
def integrate_samples(
    f: RowsField, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractAdaptive, *, keep_states: bool
) -> SampleIntegration:
    """Integrate dy/dt = f(t, y) from y0 at ts[0] and save at ts[1:], under step control of each sample's own.

    Args:
        f: the field, which may be given fewer rows than y0 has.
        y0: initial states (B, ...).
        ts: strictly monotone save times in either direction, common to all samples.
        algorithm: method, tolerances and step control; each sample has its own steps to count.
        keep_states: whether to keep the states at which the accepted steps start.
    """
    return _Batch(f, y0, ts, algorithm, keep_states).run()


class _Batch:
    """The solve of one batch. Arrays named without a shape have a number for each of the B samples.

    The rows of a tensor are the samples `index`; those that have ended stay among them until enough have for the rest
    to move together, and take steps of size zero.
    """

    def __init__(self, f: RowsField, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractAdaptive, keep: bool):
        count = len(y0)
        self.f, self.algorithm, self.tableau, self.keep = f, algorithm, algorithm.explicit_tableau, keep
        self.ts, self.direction = np.array(ts), 1.0 if ts[-1] > ts[0] else -1.0
        self.layout, self.ndim = RowLayout(y0), y0.ndim
        self.y = self.layout.flatten(y0)
        self.k: Tensor | None = None
        self.saved = torch.empty((len(ts) - 1, *self.y.shape), dtype=y0.dtype, device=y0.device)
        self.rounds: list[Round] = []
        self.held: list[tuple[int, int]] = []
        self.index = np.arange(count)
        self.rhs, self.untouched = flat_field(f, self.layout, self.ndim, None), Untouched()
        self.status = np.full(count, None, dtype=object)
        self.going = np.ones(count, dtype=bool)
        self.t, self.h = np.full(count, self.ts[0]), np.zeros(count)
        self.ratio = np.zeros(count)  # of the last try
        self.h_old, self.ratio_old = np.full(count, math.nan), np.full(count, math.nan)  # of the last accepted step
        self.ratio_older = np.full(count, math.nan)  # of the one before it, or of the last where it was the first
        self.next_save = np.ones(count, dtype=np.int64)
        self.accepted, self.rejected, self.nfe = (np.zeros(count, dtype=np.int64) for _ in range(3))
        self.opening = np.full(count, math.nan)  # the first step, then what the second says of it
        self.calls = 0

    def run(self) -> SampleIntegration:
        self.k = k = self.evaluate(_on(self.y, self.t), self.y)
        self.first_steps(k)
        while True:
            h, wanted, target, lands = self.proposal()
            live = self.live()
            if not live.any():
                return self.result()
            if live.sum() <= (1 - COMPACT_AT) * len(live):
                self.compact(live)
                h, wanted, target, lands = h[live], wanted[live], target[live], lands[live]
                live = live[live]
            self.advance(np.where(live, h, 0.0), wanted, target, lands, live)

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        self.nfe[self.index] += 1
        return self.untouched(self.rhs(t, y))

    def live(self) -> np.ndarray:
        """Which rows are still at work, (b,)."""
        return self.going[self.index]

    def first_steps(self, k: Tensor) -> None:
        """Hairer's estimate for each sample, where the field's value is k; see `integrate.initial_step`."""
        algorithm, span = self.algorithm, abs(self.ts[-1] - self.ts[0])
        if algorithm.first_step is not None:
            assert not isinstance(algorithm.first_step, StepMemory), "with_first_step() puts a number in its place"
            self.h[:] = self.direction * algorithm.first_step
            return
        scale = (self.y.abs() * algorithm.rtol).add_(algorithm.atol)
        d0, d1 = _rms(self.y / scale, k / scale)
        finite = np.isfinite(d0) & np.isfinite(d1)
        with np.errstate(all="ignore"):
            h0 = np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
            h0 = np.where(finite, np.minimum(h0, span), 0.0)
            signed = self.direction * h0
            probe = self.evaluate(_on(self.y, self.t + signed), torch.addcmul(self.y, k, _on(self.y, signed)[:, None]))
            d2 = _rms((probe - k) / scale)[0] / h0
            steepest = np.maximum(d1, d2)
            h1 = (0.01 / steepest) ** (1 / algorithm.order)
            h1 = np.where(steepest <= 1e-15, np.maximum(1e-6, 1e-3 * h0), h1)
            first = np.where(np.isfinite(steepest), np.minimum(np.minimum(100 * h0, h1), span), h0)
        self.h[:] = self.direction * first
        self.end(~finite, Status.DIVERGED)

    def proposal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Each row's next step: its size, the size if it were not cut short, where it may end, whether it does.

        Rows that cannot go on end here.
        """
        algorithm, i = self.algorithm, self.index
        self.end(self.live() & (self.accepted[i] + self.rejected[i] >= algorithm.max_steps), Status.MAX_STEPS)
        t, last = self.t[i], len(self.ts) - 1
        # Without a continuous extension the steps have to end on every save time.
        target = self.ts[last if self.tableau.dense is not None else np.minimum(self.next_save[i], last)]
        target = np.broadcast_to(target, t.shape)
        wanted = np.clip(self.h[i], -algorithm.max_step, algorithm.max_step)
        lands = np.abs(wanted) >= np.abs(target - t) * (1 - 1e-12)
        short = self.live() & ~lands & (np.abs(wanted) <= np.maximum(algorithm.min_step, 8 * np.spacing(np.abs(t))))
        finite = np.isfinite(self.ratio[i])
        self.end(short & ~finite, Status.DIVERGED)
        self.end(short & finite, Status.STEP_TOO_SMALL)
        return np.where(lands, target - t, wanted), wanted, target, lands

    def advance(
        self, h: np.ndarray, wanted: np.ndarray, target: np.ndarray, lands: np.ndarray, live: np.ndarray
    ) -> None:
        """Try a step of every row; h (b,) is zero where a sample has ended."""
        algorithm, tableau, y, i = self.algorithm, self.tableau, self.y, self.index
        t, order = self.t[i], algorithm.order
        y_next, ks = step_rows(self.evaluate, tableau, t, h, y, self.k)
        scale = torch.maximum(y.abs(), y_next.abs()).mul_(algorithm.rtol).add_(algorithm.atol)
        assert tableau.b_error is not None, algorithm
        error = combine(None, 1.0, tableau.b_error, ks)
        with np.errstate(all="ignore"):
            ratio = _rms(error.div_(scale))[0] * np.abs(h)
            shrink = np.where(np.isfinite(ratio), ratio ** (1 / order), math.inf)
        ratio = np.where(live, ratio, 0.0)
        good = live & (ratio <= 1.0)  # written so that NaN is rejected too
        bad = live & ~good
        self.ratio[i] = ratio
        control = algorithm.step_control
        quotient = np.clip(shrink / control.safety, 1.0 + 1e-3, 1 / control.min_factor)
        self.h[i[bad]] = (h / quotient)[bad]
        self.rejected[i[bad]] += 1
        if good.any():
            self.accept(good, h, np.where(lands, target, t + h), ratio, y_next, ks)
            cut = good & lands & (np.abs(self.h[i]) < np.abs(wanted))
            self.h[i[cut]] = wanted[cut]  # a step cut short to end on a save time says nothing against its size before
        self.y = y_next if good.all() else torch.where(_mask(good, y), y_next, y)
        if tableau.fsal:
            self.k = ks[-1] if good.all() else torch.where(_mask(good, y), ks[-1], ks[0])
        else:
            # At the rows that were rejected this is the value they had.
            self.k = None if good.any() else ks[0]
        self.end(live & (self.next_save[i] == len(self.ts)), Status.SUCCESS)

    def accept(
        self, good: np.ndarray, h: np.ndarray, t_next: np.ndarray, ratio: np.ndarray, y_next: Tensor, ks: list[Tensor]
    ) -> None:
        """Note the steps of the rows `good` (b,), save what lies in them, and choose the next sizes."""
        rows, control = np.flatnonzero(good), self.algorithm.step_control
        i, h, t_next, ratio = self.index[rows], h[rows], t_next[rows], ratio[rows]
        t = self.t[i]
        reached = np.searchsorted(self.direction * self.ts, self.direction * t_next, side="right")
        reached = np.maximum(reached, self.next_save[i])
        counts = reached - self.next_save[i]
        at = np.repeat(np.arange(len(rows)), counts)
        saves = np.arange(len(at)) + np.repeat(self.next_save[i] - (np.cumsum(counts) - counts), counts)
        # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
        ends = (self.ts[saves] - t_next[at]) * self.direction >= 0
        fractions = np.where(ends, 1.0, (self.ts[saves] - t[at]) / h[at])
        if len(at):
            all_h = np.zeros(len(good))
            all_h[rows] = h
            states = states_inside(self.tableau, all_h, self.y, y_next, ks, rows[at], fractions)
            self.save(saves - 1, i[at], states)
        starts = None
        if self.keep:
            starts = self.y if good.all() else self.y.index_select(0, indices(rows, self.y))
        self.rounds.append(Round(i, t, h, at, fractions, saves - 1, starts))
        first, second = i[self.accepted[i] == 0], i[self.accepted[i] == 1]
        self.opening[first] = np.abs(h[self.accepted[i] == 0])
        second_size = np.abs(h[self.accepted[i] == 1])
        self.opening[second] = np.maximum(second_size, SMALLEST_CHANGE * self.opening[second])
        self.t[i], self.next_save[i] = t_next, reached
        self.accepted[i] += 1

        order = self.algorithm.order
        beta1, beta2, beta3 = control.exponents(order)
        with np.errstate(all="ignore"):
            older = self.ratio_older[i] ** control.older_exponent(order)
            quotient = ratio**beta1 / self.ratio_old[i] ** beta2 * older / (h / self.h_old[i]) ** beta3
            quotient = np.where(np.isnan(self.h_old[i]), ratio ** (1 / order), quotient) / control.safety
        bounded = np.maximum(ratio, 1e-4)
        self.ratio_older[i] = np.where(np.isnan(self.h_old[i]), bounded, self.ratio_old[i])
        self.h_old[i], self.ratio_old[i] = h, bounded
        self.h[i] = h / np.clip(quotient, 1 / control.max_factor, 1 / control.min_factor)

    def save(self, saves: np.ndarray, samples: np.ndarray, states: Tensor) -> None:
        place = indices(saves * len(self.t) + samples, states)
        self.saved.view(-1, self.saved.shape[2]).index_copy_(0, place, states)

    def end(self, which: np.ndarray, status: Status) -> None:
        """The rows `which` (b,) end here; those that did not reach every save time hold their last state there."""
        if not which.any():
            return
        self.status[self.index[which]], self.going[self.index[which]] = status, False
        if status is Status.SUCCESS:
            return
        held = [
            (s - 1, row) for row in np.flatnonzero(which) for s in range(self.next_save[self.index[row]], len(self.ts))
        ]
        saves, rows = np.array(held).T
        self.save(saves, self.index[rows], self.y.index_select(0, indices(rows, self.y)))
        self.held += zip(saves.tolist(), self.index[rows].tolist(), strict=True)

    def compact(self, live: np.ndarray) -> None:
        """Only the rows `live` go on."""
        self.index = self.index[live]
        rows = indices(np.flatnonzero(live), self.y)
        self.y = self.y.index_select(0, rows)
        self.k = None if self.k is None else self.k.index_select(0, rows)
        self.rhs = flat_field(self.f, self.layout, self.ndim, indices(self.index, self.y))

    def result(self) -> SampleIntegration:
        samples = Samples(
            statuses=tuple(self.status),
            times=torch.from_numpy(self.t),
            n_accepted=torch.from_numpy(self.accepted),
            n_rejected=torch.from_numpy(self.rejected),
            nfe=torch.from_numpy(self.nfe),
        )
        status, message = self.verdict()
        saves, held = np.array(self.held, dtype=np.int64).reshape(-1, 2).T
        return SampleIntegration(
            saved=self.saved,
            layout=self.layout,
            rounds=self.rounds,
            held=(saves, held),
            samples=samples,
            status=status,
            message=message,
            nfe=self.calls,
            typical_first_step=float(np.nanmedian(self.opening)) if self.accepted.any() else math.nan,
        )

    def verdict(self) -> tuple[Status, str]:
        """The gravest end of any sample, and one line on what happened and what to try."""
        failed = [i for i, status in enumerate(self.status) if not status.ok]
        if not failed:
            return Status.SUCCESS, ""
        grave = (Status.DIVERGED, Status.STEP_TOO_SMALL, Status.MAX_STEPS)
        status = next(s for s in grave if s in self.status)
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
