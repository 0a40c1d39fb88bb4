"""The loop over steps in eager PyTorch where the whole state has one step size.

Nothing here asks whether gradients are recorded: under `torch.no_grad()` this is a plain solver, otherwise
PyTorch records its operations and differentiates through them. Step sizes are plain numbers, decided on
values alone, so they are constants to any gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractErrorControlled, AbstractFixedStep, ErrorNorm, StepMemory
from homojl.backends.base import EventCondition, Integration
from homojl.backends.pytorch import control
from homojl.backends.pytorch.events import EventWatch
from homojl.backends.pytorch.record import Record, Round
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import AbstractStepper, Step, time_like
from homojl.functions import AbstractField
from homojl.solution import Status

Tensor = torch.Tensor

_PENDING = 2**21  # elements of stages to hold at most for states inside steps that are yet to be computed


class Move(NamedTuple):
    """A step that is to be tried.

    Attributes:
        h, t_next: its signed size, and where it ends.
        reached: the time from which the solve goes on: after a jump at its end, the other side of that.
        jumps: whether there is one.
    """

    h: float
    t_next: float
    reached: float
    jumps: bool = False


class _Stop(Exception):
    """The solve ends early: a status, and advice."""


class Found(NamedTuple):
    """An event in a step: its time and state, which of the values changed, -1 where it is not a number there.

    The step is recorded with the size h, of which the event is at a fraction: a method that cannot be evaluated inside
    a step takes a shorter one.
    """

    t: float
    y: Tensor
    which: int
    h: float
    fraction: float


class Planned:
    """Equal steps from each save time to the next, or those of a grid, all of them accepted."""

    def __init__(self, algorithm: AbstractFixedStep, ts: tuple[float, ...]) -> None:
        self.algorithm, self._steps = algorithm, _steps_ahead(ts, algorithm)
        self.t, self.size = ts[0], 0.0

    def start(self, f: AbstractField, y: Tensor) -> Tensor | None:
        return None

    def propose(self, t: float, next_save: int) -> Move:
        _, h, t_next = next(self._steps)
        self.size = h
        return Move(h, t_next, t_next)

    def accepts(self, step: Step) -> bool:
        if step.status is not None:
            raise _Stop(
                step.status, f"{step.reason}; try a smaller step_size" if step.reason else "try a smaller step_size"
            )
        return True

    def accepted(self, step: Step, move: Move) -> None:
        pass


def _steps_ahead(ts: tuple[float, ...], algorithm: AbstractFixedStep) -> Iterator[tuple[float, float, float]]:
    """Start, size and end of each step."""
    if algorithm.grid is not None:
        for t, t_next in itertools.pairwise(algorithm.grid.over(ts)):
            yield t, t_next - t, t_next
        return
    for t0, t1 in itertools.pairwise(ts):
        # The small allowance keeps 0.3 / 0.1 from becoming four steps.
        n = 1 if algorithm.step_size is None else max(1, math.ceil(abs(t1 - t0) / algorithm.step_size - 1e-9))
        h = (t1 - t0) / n
        for i in range(n):
            yield t0 + i * h, h, t1 if i == n - 1 else t0 + (i + 1) * h


class Controlled:
    """Steps that the estimate of the error chooses, under PI control.

    Attributes:
        t: where the first step starts.
        size: of the step that was tried last, for messages.
        ratio: of its error to what is tolerated.
        rejected: steps so far.
    """

    def __init__(
        self,
        algorithm: AbstractErrorControlled,
        stepper: AbstractStepper,
        ts: tuple[float, ...],
        y0: Tensor,
        norm: ErrorNorm,
        jumps: Sequence[float],
    ) -> None:
        self._algorithm, self._stepper, self._ts, self._norm = algorithm, stepper, ts, norm
        self._control, self._order = algorithm.step_control, stepper.error_order
        self._direction = 1.0 if ts[-1] > ts[0] else -1.0
        dtype = y0.dtype.to_real()
        self._rtol, self._atol = (
            torch.as_tensor(x, dtype=dtype, device=y0.device) for x in (algorithm.rtol, algorithm.atol)
        )
        self._relative, self._least = bool((self._atol == 0).any()), torch.finfo(dtype).tiny
        self._abs = self._abs_next = y0.detach().abs()  # of the states at the ends of the step
        self.t = ts[0]
        if self.t in jumps:
            start, end = torch.tensor([self.t, ts[-1]], dtype=dtype)
            self.t = torch.nextafter(start, end).item()
        self._jumps = _sides_of(jumps, self.t, ts[-1], dtype)
        self.size = self.ratio = 0.0
        self.rejected = self._accepted = 0
        self._h = self._wanted = 0.0  # the size to try next, and that of the last try before it was cut short
        self._lands = False
        # Of the last accepted step its size and error ratio, and the error ratio of the one before it.
        self._before: tuple[float, float, float] | None = None

    def start(self, f: AbstractField, y: Tensor) -> Tensor:
        """Choose the first step; the derivative at the start."""
        if self.t != self._ts[0]:
            f.forget()
        first = f(time_like(self.t, y), y)
        given = self._algorithm.first_step
        assert not isinstance(given, StepMemory), "with_first_step() puts a number in its place"
        self._h = self._direction * (self._estimated(f, y.detach(), first.detach()) if given is None else given)
        if math.isnan(self._h):
            raise _Stop(
                Status.DIVERGED, "the initial state or the field's value there has NaN or infinity in it", first
            )
        return first

    @torch.no_grad()
    def _estimated(self, f: AbstractField, y: Tensor, k: Tensor) -> float:
        scale = (y.abs() * self._rtol).add_(self._atol).clamp_min_(self._least)

        def probe(size: np.ndarray) -> Tensor:
            h0 = self._direction * float(size[0])
            return f(time_like(self.t + h0, y), torch.add(y, k, alpha=h0))

        def measure(x: Tensor) -> np.ndarray:
            return np.array([self._measured(x / scale)])

        return float(control.first_sizes(measure, probe, y, k, abs(self._ts[-1] - self.t), self._algorithm.order)[0])

    def propose(self, t: float, next_save: int) -> Move:
        algorithm, least = self._algorithm, self._control.floor
        if self._accepted + self.rejected >= algorithm.max_steps:
            advice = f"raise max_steps (now {algorithm.max_steps}), {self._stepper.last_resort}"
            raise _Stop(Status.MAX_STEPS, advice)
        # Without a continuous extension the steps have to end on every save time.
        target = self._ts[-1] if self._stepper.interpolates else self._ts[next_save]
        jumps = bool(self._jumps) and (target - self._jumps[-1][0]) * self._direction > 0
        if jumps:
            target = self._jumps[-1][0]
        h = math.copysign(min(max(abs(self._h), least), algorithm.max_step), self._h)
        self._wanted, self.size = h, h
        self._lands = abs(h) >= abs(target - t) * (1 - 1e-12)
        if not self._lands:
            if abs(h) <= max(algorithm.min_step, 8 * math.ulp(t)):
                raise self._too_small()
            return Move(h, t + h, t + h)
        self.size = target - t
        return Move(target - t, target, self._jumps[-1][1] if jumps else target, jumps)

    def _too_small(self) -> _Stop:
        if self._reason:
            return _Stop(Status.STEP_TOO_SMALL, f"{self._reason}; {self._stepper.last_resort}")
        if not math.isfinite(self.ratio):
            return _Stop(Status.DIVERGED, "the field returns NaN or infinity near this state; look at it there")
        return _Stop(Status.STEP_TOO_SMALL, self._stepper.last_resort)

    _reason = ""

    def accepts(self, step: Step) -> bool:
        """Whether the step's error is tolerated; else the next one is shorter."""
        self._reason = step.reason
        self.ratio = ratio = step.ratio if step.ratio is not None else self._error_ratio(step)
        if ratio <= 1.0:
            return True
        floor = self._control.floor
        if abs(step.h) <= floor:
            if not math.isfinite(ratio):
                raise _Stop(Status.DIVERGED, "the field returns NaN or infinity in a step of the controller's floor")
            return True
        self.rejected += 1
        self._h = control.after_rejection(step.h, ratio, self._order, self._control)
        return False

    def _error_ratio(self, step: Step) -> float:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._error_ratio(step)
        if step.status is not None:
            return math.nan
        self._abs_next = step.y_next.abs()
        scale = torch.addcmul(self._atol, torch.maximum(self._abs, self._abs_next), self._rtol)
        if self._relative:  # where state and error are zero, the error is none
            scale.clamp_min_(self._least)
        error = self._stepper.error(step) if step.error is None else step.error
        return self._measured(error / scale)

    def _measured(self, x: Tensor) -> float:
        """The norm of a state in units of the tolerance: the only place where the host waits for the device."""
        norm = self._norm
        if norm.function is not None:
            return float(norm.function(x))
        if norm.parts is None:
            return torch.linalg.vector_norm(x).item() / math.sqrt(x.numel())
        parts = [torch.linalg.vector_norm(x[i:j]) / math.sqrt(j - i) for i, j in norm.parts]
        return max(torch.stack(parts).tolist())

    def accepted(self, step: Step, move: Move) -> None:
        """Choose the size of the step after this one."""
        h, ratio, order = step.h, self.ratio, self._order
        self._accepted += 1
        self._abs = self._abs_next
        if self._before is None:
            self._h = control.after_first(h, ratio, order, self._control)
        else:
            self._h = control.after_step(h, ratio, *self._before, order, self._control)
        bounded = max(ratio, control.LEAST_RATIO)
        self._before = None if move.jumps else (h, bounded, bounded if self._before is None else self._before[1])
        if move.jumps:
            self._jumps.pop()
        if self._lands and abs(self._h) < abs(self._wanted):
            self._h = self._wanted  # a step cut short to end on a save time says nothing against the size before it


def _sides_of(jumps: Sequence[float], t0: float, t1: float, dtype: torch.dtype) -> list[tuple[float, float]]:
    """The last time before and the first time after each jump after t0 up to t1, the next jump last.

    Times as the field can tell them apart, so that each step sees one side alone whichever side the jump itself is on.
    """
    ahead = sorted((s for s in jumps if t0 < s <= t1 or t0 > s >= t1), reverse=t1 > t0)
    times = torch.tensor([ahead, [t0] * len(ahead), [t1] * len(ahead)], dtype=dtype)
    before, after = torch.nextafter(times[0], times[1]), torch.nextafter(times[0], times[2])
    return list(zip(before.tolist(), after.tolist(), strict=True))


class Saved:
    """The states that a solve saves, with the record of its steps."""

    def __init__(self, ts: tuple[float, ...], y0: Tensor, stepper: AbstractStepper, *, keep_states: bool) -> None:
        self.record = Record()
        self.ts, self.ys = [ts[0]], [y0]
        self.next = 1
        self._wanted, self._stepper, self._keep = ts, stepper, keep_states
        self._direction = 1.0 if ts[-1] > ts[0] else -1.0
        self._pending: list[tuple[int, Step, Sequence[float]]] = []  # with the position in ys of their first state

    @property
    def complete(self) -> bool:
        return self.next == len(self._wanted)

    def accept(self, step: Step, move: Move, *, fresh: bool, event: Found | None) -> None:
        """Write a step down, and save the states in it up to the event, if any.

        Args:
            step, move: the step.
            fresh: whether its first derivative was evaluated anew.
            event: what ends the solve in it.
        """
        first, end, direction = self.next, move.reached if event is None else event.t, self._direction
        start = step.y if self._keep else None
        if event is None and (self._wanted[first] - end) * direction > 0:  # most steps
            self.record.rounds.append(Round(step.t, step.h, fresh, start, (), ()))
            return
        while self.next < len(self._wanted):
            beyond = (self._wanted[self.next] - end) * direction
            if beyond > 0 or (beyond == 0 and event is not None):
                break
            self.next += 1
        times = list(self._wanted[first : self.next])
        # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
        whole = event is None
        fractions = [1.0 if whole and (s - move.t_next) * direction >= 0 else (s - step.t) / step.h for s in times]
        saves = list(range(len(self.ts) - 1, len(self.ts) - 1 + len(times)))
        if times:
            self._save_inside(times, step, fractions)
        if event is not None:
            fractions.append(event.fraction)
            saves.append(len(self.ts) - 1)
            self.ts.append(event.t)
            self.ys.append(event.y)
        h = step.h if event is None else event.h
        self.record.rounds.append(Round(step.t, h, fresh, start, fractions, saves))

    def _save_inside(self, times: Sequence[float], step: Step, fractions: Sequence[float]) -> None:
        """Save the states at `times` of a step; those of many steps are computed together."""
        self.ts += times
        self.ys += [step.y_next] * len(times)
        if all(f == 1.0 for f in fractions):
            return
        self._pending.append((len(self.ys) - len(times), step, fractions))
        if len(self._pending) * len(step.ks) * step.y.numel() > _PENDING:
            self.compute()

    def compute(self) -> None:
        """Compute the states that wait inside their steps."""
        if self._pending:
            found = self._stepper.inside_steps([(step, fractions) for _, step, fractions in self._pending])
            for (first, _, _), ys in zip(self._pending, found, strict=True):
                self.ys[first : first + len(ys)] = ys
            self._pending.clear()

    def stop(self, t: float, y: Tensor) -> None:
        """Save the last state of a solve that ends early."""
        self.compute()
        if self.ts[-1] != t:
            self.record.held = (np.array([len(self.ts) - 1]), np.zeros(1, dtype=int))
            self.ts.append(t)
            self.ys.append(y)


def integrate(
    f: AbstractField,
    y0: Tensor,
    ts: tuple[float, ...],
    algorithm: AbstractErrorControlled | AbstractFixedStep,
    stepper: AbstractStepper,
    *,
    norm: ErrorNorm,
    keep_states: bool,
    event: EventCondition | None,
    jumps: Sequence[float],
) -> Integration:
    """See `AbstractBackend.integrate`."""
    saved = Saved(ts, y0, stepper, keep_states=keep_states)
    sizes: Planned | Controlled
    if isinstance(algorithm, AbstractErrorControlled):
        sizes = Controlled(algorithm, stepper, ts, y0, norm, jumps)
    else:
        sizes = Planned(algorithm, ts)
    t, y, step, which, started = sizes.t, y0, None, None, f.calls
    status, message = Status.SUCCESS, ""
    observer = algorithm.observer
    try:
        watch = None if event is None else EventWatch(event, t, y)
        first, fresh = sizes.start(f, y), True
        while not saved.complete:
            move = sizes.propose(t, saved.next)
            if observer is not None:
                observer.trying(t, y.detach(), move.h)
            step = stepper.step(f, t, move.h, y, first)
            if not sizes.accepts(step):
                if observer is not None:
                    observer.rejected(t, y.detach(), move.h)
                first = step.ks[0] if len(step.ks) else None
                continue
            found = None
            if watch is not None:
                found = _up_to_event(stepper, f, watch, step, move.t_next)
                if found is not None and found.which < 0:
                    raise _Stop(Status.DIVERGED, "the event's condition is NaN in the next step")
            saved.accept(step, move, fresh=fresh, event=found)
            if observer is not None and not isinstance(sizes, Planned):
                observer.accepted(t, y.detach(), move.h)
            sizes.accepted(step, move)
            if found is not None:
                status, which = Status.EVENT, found.which
                break
            t, y = move.reached, step.y_next
            first, fresh = None if move.jumps else stepper.carried(step), move.jumps
    except _Stop as stop:
        status, advice = stop.args[:2]
        saved.stop(t, y)
        seen = [y, *(stop.args[2:] or (step.ks if step is not None else ()))]
        message = _message(algorithm, sizes, status, advice, t, len(saved.record.rounds), seen)
    saved.compute()
    if status.ok and isinstance(sizes, Planned) and not _all_finite(saved.ys):
        status = Status.DIVERGED
        where = _first_not_finite(f, y0, ts, sizes.algorithm)
        message = f"{algorithm.name}: {status.value} ({where}); try a smaller step_size or an adaptive method"
    return Integration(
        ts=tuple(saved.ts),
        ys=saved.ys,
        record=saved.record,
        status=status,
        message=message,
        nfe=f.calls - started,
        n_rejected=0 if isinstance(sizes, Planned) else sizes.rejected,
        event=which,
    )


def _up_to_event(
    stepper: AbstractStepper, f: AbstractField, watch: EventWatch, step: Step, t_next: float
) -> Found | None:
    """The event in a step, if there is one."""
    t, h, y = step.t, step.h, step.y

    def state_at(fraction: float) -> Tensor:
        if stepper.interpolates:
            return stepper.inside(step, [fraction])[0]
        return stepper.step(f, t, fraction * h, y, last=False).y_next

    if not watch.happens_by(t, h, t_next, step.y_next, state_at):
        return None
    fraction, state, which = watch.locate(t, h, state_at)
    return Found(t + fraction * h, state, which, *((h, fraction) if stepper.interpolates else (fraction * h, 1.0)))


def _message(
    algorithm: AbstractErrorControlled | AbstractFixedStep,
    sizes: Planned | Controlled,
    status: Status,
    advice: str,
    t: float,
    accepted: int,
    seen: Sequence[Tensor],
) -> str:
    sample = which_sample(seen) if status is Status.DIVERGED else ""
    if isinstance(sizes, Planned):
        where = f"at t = {t:.6g} after {accepted} steps of {abs(sizes.size):.2g}{sample}"
        return f"{algorithm.name}: {status.value} ({where}); {advice}"
    counts = f"at t = {t:.6g} after {accepted} accepted and {sizes.rejected} rejected steps"
    return f"{algorithm.name}: {status.value} ({counts}, step {abs(sizes.size):.2g}{sample}); {advice}"


def _all_finite(states: Sequence[Tensor]) -> bool:
    return all(torch.stack([torch.isfinite(y.detach()).all() for y in states]).tolist())


@torch.no_grad()
def _first_not_finite(f: AbstractField, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractFixedStep) -> str:
    """Where equal steps are first not finite, for a message: they are taken again, each looked at."""
    stepper, y, first = stepper_for(algorithm), y0, None
    for count, (t, h, _) in enumerate(_steps_ahead(ts, algorithm)):
        step = stepper.step(f, t, h, y, first)
        if not _all_finite([step.y_next]):
            return f"at t = {t:.6g} after {count} steps of {abs(h):.2g}{which_sample([y, *step.ks, step.y_next])}"
        y, first = step.y_next, stepper.carried(step)
    return f"at t = {ts[-1]:.6g}, though not when the steps were taken again"


def which_sample(tensors: Sequence[Tensor]) -> str:
    """In which row of a batch something is not finite, for a message."""
    if tensors[0].ndim < 2:
        return ""
    bad = torch.stack([~torch.isfinite(x.detach()).flatten(1).all(1) for x in tensors]).any(0)
    rows = bad.nonzero().flatten().tolist()
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f", sample {rows[0]}{others}" if rows else ""
