"""The sizes of the steps of a joint solve: planned ahead, or chosen by the estimate of the error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractErrorControlled, AbstractFixedStep, ErrorNorm, StepMemory
from homojl.backends.pytorch import control
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import AbstractStepper, Step, time_like
from homojl.errors import ConfigError
from homojl.functions import AbstractField
from homojl.solution import Status

Tensor = torch.Tensor


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


class Stop(Exception):
    """The solve ends early: a status, and advice."""


class Sizes:
    """What decides the sizes of a solve's steps.

    Attributes:
        algorithm: of the solve.
        decides: whether steps are tried.
        t: where the first step starts.
        size: of the step that was tried last, for messages.
        rejected: steps so far.
    """

    algorithm: Any
    decides = False
    t = size = 0.0
    rejected = 0

    def describe(self, t: float, accepted: int) -> str:
        """Where the solve is, for a message."""
        raise NotImplementedError

    def flaw(self, f: AbstractField, ts: tuple[float, ...], states: Sequence[Tensor]) -> str:
        """Where the states of a solve that has reached its end are not finite; empty: nowhere."""
        return ""

    def explained(self, stop: Stop, t: float, seen: Sequence[Tensor], accepted: int) -> str:
        """One line on why a solve stopped at t, of which the last tensors that were `seen` may show a sample."""
        status, advice = stop.args[:2]
        where = self.describe(t, accepted) + (which_sample(seen) if status is Status.DIVERGED else "")
        return f"{self.algorithm.name}: {status.value} ({where}); {advice}"


class Planned(Sizes):
    """Equal steps from each save time to the next, or those of a grid, all of them accepted."""

    def __init__(self, algorithm: AbstractFixedStep, ts: tuple[float, ...]) -> None:
        self.algorithm, self._steps, self.t = algorithm, _steps_ahead(ts, algorithm), ts[0]

    def start(self, f: AbstractField, y: Tensor) -> Tensor | None:
        return None

    def propose(self, t: float, next_save: int) -> Move:
        _, h, t_next = next(self._steps)
        self.size = h
        return Move(h, t_next, t_next)

    def accepts(self, step: Step, move: Move) -> bool:
        if step.status is not None:
            raise Stop(
                step.status, f"{step.reason}; try a smaller step_size" if step.reason else "try a smaller step_size"
            )
        return True

    def describe(self, t: float, accepted: int) -> str:
        return f"at t = {t:.6g} after {accepted} steps of {abs(self.size):.2g}"

    def flaw(self, f: AbstractField, ts: tuple[float, ...], states: Sequence[Tensor]) -> str:
        # A state that is not finite leaves none after it that is.
        return "" if _finite(states[-1]) else _first_not_finite(f, states[0], ts, self.algorithm)


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


class Controlled(Sizes):
    """Steps that the estimate of the error chooses, under PI control.

    Attributes:
        ratio: of the error of the step that was tried last to what is tolerated.
    """

    decides = True

    def __init__(
        self,
        algorithm: AbstractErrorControlled,
        stepper: AbstractStepper,
        ts: tuple[float, ...],
        y0: Tensor,
        norm: ErrorNorm,
        jumps: Sequence[float],
    ) -> None:
        self.algorithm, self._stepper, self._ts, self._norm = algorithm, stepper, ts, norm
        self._control, self._order = algorithm.step_control, stepper.error_order
        self._direction = 1.0 if ts[-1] > ts[0] else -1.0
        dtype = y0.dtype.to_real()
        self._rtol, self._atol = (
            _fitting(name, torch.as_tensor(x, dtype=dtype, device=y0.device), y0)
            for name, x in (("rtol", algorithm.rtol), ("atol", algorithm.atol))
        )
        # A tensor may have zeros, which are not looked for: that would wait for the device.
        self._relative = isinstance(algorithm.atol, Tensor) or algorithm.atol == 0
        self._least = torch.finfo(dtype).tiny
        self._abs = self._abs_next = y0.detach().abs()  # of the states at the ends of the step
        self.t = ts[0]
        if self.t in jumps:
            start, end = torch.tensor([self.t, ts[-1]], dtype=dtype)
            self.t = torch.nextafter(start, end).item()
        self._jumps = _sides_of(jumps, self.t, ts[-1], dtype) if jumps else []
        self.ratio, self._accepted = 0.0, 0
        self._h = self._wanted = 0.0  # the size to try next, and that of the last try before it was cut short
        self._lands = False
        # Of the last accepted step its size and error ratio, and the error ratio of the one before it.
        self._before: tuple[float, float, float] | None = None

    def start(self, f: AbstractField, y: Tensor) -> Tensor:
        if self.t != self._ts[0]:
            f.forget()
        first = f(time_like(self.t, y), y)
        given = self.algorithm.first_step
        assert not isinstance(given, StepMemory), "with_first_step() puts a number in its place"
        self._h = self._direction * (self._estimated(f, y.detach(), first.detach()) if given is None else given)
        if math.isnan(self._h):
            raise Stop(Status.DIVERGED, "the initial state or the field's value there has NaN or infinity in it", first)
        return first

    @torch.no_grad()
    def _estimated(self, f: AbstractField, y: Tensor, k: Tensor) -> float:
        scale = (y.abs() * self._rtol).add_(self._atol).clamp_min_(self._least)

        def probe(size: np.ndarray) -> Tensor:
            h0 = self._direction * float(size[0])
            return f(time_like(self.t + h0, y), torch.add(y, k, alpha=h0))

        def measure(x: Tensor) -> np.ndarray:
            return np.array([self._measured(x / scale)])

        return float(control.first_sizes(measure, probe, y, k, abs(self._ts[-1] - self.t), self.algorithm.order)[0])

    def propose(self, t: float, next_save: int) -> Move:
        algorithm, least = self.algorithm, self._control.floor
        if self._accepted + self.rejected >= algorithm.max_steps:
            advice = f"raise max_steps (now {algorithm.max_steps}), {self._stepper.last_resort}"
            raise Stop(Status.MAX_STEPS, advice)
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

    def _too_small(self) -> Stop:
        if self._reason:
            return Stop(Status.STEP_TOO_SMALL, f"{self._reason}; {self._stepper.last_resort}")
        if not math.isfinite(self.ratio):
            return Stop(Status.DIVERGED, "the field returns NaN or infinity near this state; look at it there")
        return Stop(Status.STEP_TOO_SMALL, self._stepper.last_resort)

    _reason = ""

    def accepts(self, step: Step, move: Move) -> bool:
        self._reason, h = step.reason, step.h
        self.ratio = ratio = step.ratio if step.ratio is not None else self._error_ratio(step)
        if not ratio <= 1.0:  # or NaN
            if abs(h) > self._control.floor:
                self.rejected += 1
                self._h = control.after_rejection(h, ratio, self._order, self._control)
                return False
            if not math.isfinite(ratio):
                raise Stop(Status.DIVERGED, "the field returns NaN or infinity in a step of the controller's floor")
        self._accepted += 1
        self._abs = self._abs_next
        if self._before is None:
            self._h = control.after_first(h, ratio, self._order, self._control)
        else:
            self._h = control.after_step(h, ratio, *self._before, self._order, self._control)
        bounded = max(ratio, control.LEAST_RATIO)
        self._before = None if move.jumps else (h, bounded, bounded if self._before is None else self._before[1])
        if move.jumps:
            self._jumps.pop()
        if self._lands and abs(self._h) < abs(self._wanted):
            self._h = self._wanted  # a step cut short to end on a save time says nothing against the size before it
        return True

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

    def describe(self, t: float, accepted: int) -> str:
        counts = f"at t = {t:.6g} after {accepted} accepted and {self.rejected} rejected steps"
        return f"{counts}, step {abs(self.size):.2g}"


def _fitting(name: str, tolerance: Tensor, y0: Tensor) -> Tensor:
    """A tolerance, which must broadcast to the state's shape."""
    own = tolerance.shape
    if len(own) > y0.ndim or any(n not in (1, m) for n, m in zip(reversed(own), reversed(y0.shape), strict=False)):
        raise ConfigError(f"{name} is a tensor of shape {tuple(own)}, which does not fit a state of {tuple(y0.shape)}")
    return tolerance


def _sides_of(jumps: Sequence[float], t0: float, t1: float, dtype: torch.dtype) -> list[tuple[float, float]]:
    """The last time before and the first time after each jump after t0 up to t1, the next jump last.

    Times as the field can tell them apart, so that each step sees one side alone whichever side the jump itself is on.
    """
    ahead = sorted((s for s in jumps if t0 < s <= t1 or t0 > s >= t1), reverse=t1 > t0)
    times = torch.tensor([ahead, [t0] * len(ahead), [t1] * len(ahead)], dtype=dtype)
    before, after = torch.nextafter(times[0], times[1]), torch.nextafter(times[0], times[2])
    return list(zip(before.tolist(), after.tolist(), strict=True))


def _finite(y: Tensor) -> bool:
    return bool(torch.isfinite(y.detach()).all().item())


@torch.no_grad()
def _first_not_finite(f: AbstractField, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractFixedStep) -> str:
    """Where equal steps are first not finite, for a message: they are taken again, each looked at."""
    stepper, y, first = stepper_for(algorithm), y0, None
    for count, (t, h, _) in enumerate(_steps_ahead(ts, algorithm)):
        step = stepper.step(f, t, h, y, first)
        if not _finite(step.y_next):
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
