"""The two loops over steps in eager PyTorch: equal ones, and those that an estimate of the error chooses.

Nothing here asks whether gradients are recorded: under `torch.no_grad()` this is a plain solver, otherwise
PyTorch records its operations and differentiates through them. Step sizes are plain numbers, decided on
values alone, so they are constants to any gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from homojl.algorithms import AbstractErrorControlled, AbstractFixedStep, ErrorNorm, StepMemory
from homojl.backends.base import EventCondition, Integration, RightHandSide
from homojl.backends.pytorch.evaluations import Counted, all_finite, which_sample
from homojl.backends.pytorch.events import EventWatch
from homojl.backends.pytorch.runge_kutta import time_like
from homojl.backends.pytorch.schemes import AbstractScheme, Part, Stages, scheme_for
from homojl.solution import Status, StepSequence

Tensor = torch.Tensor

_PENDING = 2**21  # elements of stages to hold at most for states inside steps that are yet to be computed


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / math.sqrt(x.numel())


def _ratio(x: Tensor, scale: Tensor, norm: ErrorNorm) -> float:
    """The norm of x / scale as a number: the only place where the host waits for the device."""
    x = x / scale
    if norm.function is not None:
        return float(norm.function(x))
    if norm.parts is None:
        return torch.linalg.vector_norm(x).item() / math.sqrt(x.numel())
    return max(torch.stack([_rms(x[start:stop]) for start, stop in norm.parts]).tolist())


class _ErrorRatio:
    """The size of a step's error as a multiple of what the tolerances allow."""

    def __init__(self, scheme: AbstractScheme, algorithm: AbstractErrorControlled, y: Tensor, norm: ErrorNorm) -> None:
        self._scheme, self._norm = scheme, norm
        self._rtol, self._atol = (
            torch.as_tensor(x, dtype=y.dtype.to_real(), device=y.device) for x in (algorithm.rtol, algorithm.atol)
        )
        self._size = self._size_next = y.detach().abs()

    def __call__(self, y: Tensor, y_next: Tensor, h: float, ks: Stages) -> float:
        known = self._scheme.known_ratio(ks)
        if known is not None:
            return known
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._find(y, y_next, h, ks)
        return self._find(y, y_next, h, ks)

    def _find(self, y: Tensor, y_next: Tensor, h: float, ks: Stages) -> float:
        self._size_next = y_next.abs()
        scale = torch.addcmul(self._atol, torch.maximum(self._size, self._size_next), self._rtol)
        return _ratio(self._scheme.error(y, h, ks), scale, self._norm)

    def accept(self) -> None:
        """The step that was last asked about is taken."""
        self._size = self._size_next


@torch.no_grad()
def initial_step(
    rhs: RightHandSide,
    t: float,
    y: Tensor,
    k: Tensor,
    span: float,
    algorithm: AbstractErrorControlled,
    norm: ErrorNorm,
) -> float:
    """Hairer's estimate of a good first step: signed, at most `span` long; NaN if the start is not finite.

    References: Hairer, Norsett, Wanner (1993), II.4.
    """
    scale = (y.abs() * algorithm.rtol).add_(algorithm.atol)
    d0, d1 = _ratio(y, scale, norm), _ratio(k, scale, norm)
    if not (math.isfinite(d0) and math.isfinite(d1)):
        return math.nan
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = math.copysign(min(h0, abs(span)), span)
    k_probe = rhs(time_like(t + h0, y), torch.add(y, k, alpha=h0))
    d2 = _ratio(k_probe - k, scale, norm) / abs(h0)
    steepest = max(d1, d2)
    if not math.isfinite(steepest):
        return h0
    h1 = max(1e-6, abs(h0) * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / algorithm.order)
    return math.copysign(min(100 * abs(h0), h1, abs(span)), span)


class _Record:
    """What both loops write down about the accepted steps."""

    def __init__(self, ts: tuple[float, ...], y0: Tensor, keep_states: bool) -> None:
        self.ts, self.ys = [ts[0]], [y0]
        self.starts: list[float] = []
        self.sizes: list[float] = []
        self.saves: list[tuple[int, float]] = []
        self.states: list[Tensor] = []
        self.keep_states = keep_states
        self._pending: list[tuple[int, Part]] = []  # steps with the position in ys of their first state

    def accept(self, t: float, h: float, y: Tensor) -> None:
        self.starts.append(t)
        self.sizes.append(h)
        if self.keep_states:
            self.states.append(y)

    def save(self, t: float, y: Tensor, fraction: float) -> None:
        self.saves.append((len(self.starts) - 1, fraction))
        self.ts.append(t)
        self.ys.append(y)

    def save_inside(self, scheme: AbstractScheme, times: Sequence[float], part: Part) -> None:
        """Save the states at `times` of the last step; those of many steps are computed together."""
        step = len(self.starts) - 1
        self.saves += [(step, fraction) for fraction in part.fractions]
        self.ts += times
        self.ys += [part.y_next] * len(times)
        if all(f == 1.0 for f in part.fractions):
            return
        self._pending.append((len(self.ys) - len(times), part))
        if len(self._pending) * len(part.ks) * part.y.numel() > _PENDING:
            self.compute_pending(scheme)

    def compute_pending(self, scheme: AbstractScheme) -> None:
        """Compute the states that wait inside their steps."""
        if self._pending:
            states = scheme.inside_steps([part for _, part in self._pending])
            for (first, _), ys in zip(self._pending, states, strict=True):
                self.ys[first : first + len(ys)] = ys
            self._pending.clear()

    def finish(self, scheme: AbstractScheme, rhs: Counted, rejected: int, status: Status, message: str) -> Integration:
        self.compute_pending(scheme)
        return Integration(
            ts=tuple(self.ts),
            ys=self.ys,
            steps=StepSequence(tuple(self.starts), tuple(self.sizes), tuple(self.saves)),
            states=self.states,
            status=status,
            message=message,
            nfe=rhs.calls,
            n_rejected=rejected,
        )


def _up_to_event(
    scheme: AbstractScheme,
    rhs: RightHandSide,
    watch: EventWatch,
    t: float,
    h: float,
    y: Tensor,
    y_next: Tensor,
    ks: Stages,
) -> tuple[float, tuple[float, Tensor]]:
    """Where in an accepted step the event is: size of the step to record; fraction of it, state.

    A method that cannot be evaluated inside a step takes a shorter one that ends at the event.
    """
    if scheme.interpolates:
        fraction, y_event = watch.locate(t, h, y_next, lambda f: scheme.inside(y, y_next, h, ks, [f])[0])
        return h, (fraction, y_event)
    fraction, y_event = watch.locate(t, h, y_next, lambda f: scheme.step(rhs, t, f * h, y, last_stage=False)[0])
    return h * fraction, (1.0, y_event)


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


def integrate_fixed(
    rhs: RightHandSide,
    y0: Tensor,
    ts: tuple[float, ...],
    algorithm: AbstractFixedStep,
    scheme: AbstractScheme,
    *,
    keep_states: bool,
    event: EventCondition | None,
) -> Integration:
    """Equal steps between save times, or those of a grid; see `AbstractBackend.integrate`."""
    rhs, record, y = Counted(rhs), _Record(ts, y0, keep_states), y0
    watch = None if event is None else EventWatch(event, ts[0], y0)
    k_first, status, next_save, observer = None, Status.SUCCESS, 1, algorithm.observer
    direction = 1.0 if ts[-1] > ts[0] else -1.0
    for t, h, t_next in _steps_ahead(ts, algorithm):
        if observer is not None:
            observer.trying(t, y.detach(), h)
        y_next, ks = scheme.step(rhs, t, h, y, k_first)
        if scheme.trouble or not scheme.finite:
            record.compute_pending(scheme)
            if record.ts[-1] != t:
                record.ts.append(t)
                record.ys.append(y)
            status = Status.STALLED if scheme.trouble else Status.DIVERGED
            sample = "" if scheme.trouble else which_sample([y, *ks])
            where = f"at t = {t:.6g} after {len(record.starts)} steps of {abs(h):.2g}{sample}"
            reason = f"; {scheme.trouble}" if scheme.trouble else ""
            message = f"{algorithm.name}: {status.value} ({where}){reason}; try a smaller step_size"
            return record.finish(scheme, rhs, 0, status, message)
        h_taken, stopped = h, None
        if watch is not None and watch.happens_by(t_next, y_next):
            h_taken, stopped = _up_to_event(scheme, rhs, watch, t, h, y, y_next, ks)
            status, t_next = Status.EVENT, t + stopped[0] * h_taken
        record.accept(t, h_taken, y)
        first_save = next_save
        while next_save < len(ts) and (ts[next_save] - t_next) * direction <= 0:
            next_save += 1
        if next_save > first_save:
            times = ts[first_save:next_save]
            fractions = [1.0 if s == t_next and stopped is None else (s - t) / h for s in times]
            record.save_inside(scheme, times, Part(y, y_next, h, ks, fractions))
        if stopped is not None:
            if record.ts[-1] != t_next:
                record.save(t_next, stopped[1], stopped[0])
            break
        y, k_first = y_next, scheme.carried(ks)
    record.compute_pending(scheme)
    finite = torch.stack([torch.isfinite(y.detach()).all() for y in record.ys]).tolist()
    if all(finite):
        return record.finish(scheme, rhs, 0, status, "")
    message = (
        f"{algorithm.name}: {Status.DIVERGED.value} ({_first_not_finite(rhs, y0, ts, algorithm)}); "
        "try a smaller step_size or an adaptive method"
    )
    return record.finish(scheme, rhs, 0, Status.DIVERGED, message)


@torch.no_grad()
def _first_not_finite(rhs: RightHandSide, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractFixedStep) -> str:
    """Where explicit equal steps are first not finite, for a message: they are taken again, each looked at."""
    scheme, y, k_first = scheme_for(algorithm), y0, None
    for count, (t, h, _) in enumerate(_steps_ahead(ts, algorithm)):
        y_next, ks = scheme.step(rhs, t, h, y, k_first)
        if not all_finite(y_next):
            return f"at t = {t:.6g} after {count} steps of {abs(h):.2g}{which_sample([y, *ks, y_next])}"
        y, k_first = y_next, scheme.carried(ks)
    return f"at t = {ts[-1]:.6g}, though not when the steps were taken again"


def _sides_of(
    discontinuities: tuple[float, ...], t0: float, t1: float, dtype: torch.dtype
) -> list[tuple[float, float]]:
    """The last time before and the first time after each jump after t0 up to t1, the next jump last.

    Times as the field can tell them apart, so that each step sees one side alone whichever side the jump itself is on.
    """
    ahead = sorted((s for s in discontinuities if t0 < s <= t1 or t0 > s >= t1), reverse=t1 > t0)
    times = torch.tensor([ahead, [t0] * len(ahead), [t1] * len(ahead)], dtype=dtype)
    before, after = torch.nextafter(times[0], times[1]), torch.nextafter(times[0], times[2])
    return list(zip(before.tolist(), after.tolist(), strict=True))


def integrate_adaptive(
    rhs: RightHandSide,
    y0: Tensor,
    ts: tuple[float, ...],
    algorithm: AbstractErrorControlled,
    scheme: AbstractScheme,
    *,
    error_norm: ErrorNorm,
    keep_states: bool,
    event: EventCondition | None,
    discontinuities: tuple[float, ...],
) -> Integration:
    """Steps under PI control; see `AbstractBackend.integrate`."""
    rhs, record = Counted(rhs), _Record(ts, y0, keep_states)
    control, order, observer = algorithm.step_control, scheme.error_order, algorithm.observer
    beta1, beta2, beta3 = control.exponents(order)
    beta_older = control.older_exponent(order)
    t, t_end, y = ts[0], ts[-1], y0
    ks: Stages = [y0]
    k_first: Tensor | None
    direction = 1.0 if t_end > t else -1.0
    if t in discontinuities:
        start, end = torch.tensor([t, t_end], dtype=y0.dtype.to_real())
        t = torch.nextafter(start, end).item()
    jumps = _sides_of(discontinuities, t, t_end, y0.dtype.to_real())
    watch = None if event is None else EventWatch(event, t, y0)
    error_ratio = _ErrorRatio(scheme, algorithm, y0, error_norm)
    rejected, next_save, ratio = 0, 1, 0.0
    # Of the last accepted step its size and error ratio, and the error ratio of the one before it.
    before: tuple[float, float, float] | None = None

    def stop(status: Status, advice: str) -> Integration:
        if record.ts[-1] != t:
            record.ts.append(t)
            record.ys.append(y)
        counts = f"at t = {t:.6g} after {len(record.starts)} accepted and {rejected} rejected steps"
        sample = which_sample([y, *ks]) if status is Status.DIVERGED else ""
        message = f"{algorithm.name}: {status.value} ({counts}, step {abs(h):.2g}{sample}); {advice}"
        return record.finish(scheme, rhs, rejected, status, message)

    k_first = rhs(time_like(t, y), y)
    if algorithm.first_step is None:
        ks = [k_first]
        h = initial_step(rhs, t, y.detach(), k_first.detach(), t_end - t, algorithm, error_norm)
        if math.isnan(h):
            return stop(Status.DIVERGED, "the initial state or the field's value there has NaN or infinity in it")
    else:
        assert not isinstance(algorithm.first_step, StepMemory), "with_first_step() puts a number in its place"
        h = direction * algorithm.first_step

    while next_save < len(ts):
        if len(record.starts) + rejected >= algorithm.max_steps:
            return stop(
                Status.MAX_STEPS,
                f"raise max_steps (now {algorithm.max_steps}), {scheme.last_resort}",
            )
        # Without a continuous extension the steps have to end on every save time.
        target = t_end if scheme.interpolates else ts[next_save]
        jumps_here = bool(jumps) and (target - jumps[-1][0]) * direction > 0
        if jumps_here:
            target = jumps[-1][0]
        h = math.copysign(min(max(abs(h), control.floor), algorithm.max_step), h)
        h_wanted = h
        lands = abs(h) >= abs(target - t) * (1 - 1e-12)
        if lands:
            h = target - t
        elif abs(h) <= max(algorithm.min_step, 8 * math.ulp(t)):
            if scheme.trouble:
                return stop(Status.STEP_TOO_SMALL, f"{scheme.trouble}; {scheme.last_resort}")
            if not math.isfinite(ratio):
                return stop(Status.DIVERGED, "the field returns NaN or infinity near this state; look at it there")
            return stop(Status.STEP_TOO_SMALL, scheme.last_resort)
        if observer is not None:
            observer.trying(t, y.detach(), h)
        y_next, ks = scheme.step(rhs, t, h, y, k_first)
        ratio = error_ratio(y, y_next, h, ks)
        if abs(h) <= control.floor and not math.isfinite(ratio):
            return stop(Status.DIVERGED, "the field returns NaN or infinity in a step of the controller's floor")
        if not ratio <= 1.0 and abs(h) > control.floor:  # written so that NaN is rejected too
            rejected += 1
            if observer is not None:
                observer.rejected(t, y.detach(), h)
            shrink = ratio ** (1 / order) / control.safety if math.isfinite(ratio) else math.inf
            h /= min(1 / control.min_factor, max(shrink, 1.0 + 1e-3))
            k_first = ks[0]
            continue

        t_next, stopped, h_taken = target if lands else t + h, None, h
        if watch is not None and watch.happens_by(t_next, y_next):
            h_taken, stopped = _up_to_event(scheme, rhs, watch, t, h, y, y_next, ks)
            t_next = t + stopped[0] * h_taken
        record.accept(t, h_taken, y)
        error_ratio.accept()
        if observer is not None:
            observer.accepted(t, y.detach(), h)
        jumped = jumps_here and lands and stopped is None
        reached = jumps.pop()[1] if jumped else t_next
        first_save = next_save
        while next_save < len(ts) and (ts[next_save] - reached) * direction <= 0:
            next_save += 1
        if next_save > first_save:
            # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
            times = ts[first_save:next_save]
            fractions = [1.0 if (s - t_next) * direction >= 0 and stopped is None else (s - t) / h for s in times]
            record.save_inside(scheme, times, Part(y, y_next, h, ks, fractions))
        if stopped is not None:
            if record.ts[-1] != t_next:
                record.save(t_next, stopped[1], stopped[0])
            return record.finish(scheme, rhs, rejected, Status.EVENT, "")
        t, y = reached, y_next
        k_first = None if jumped else scheme.carried(ks)

        if before is None:
            quotient = ratio ** (1 / order) / control.safety
        else:
            h_old, ratio_old, ratio_older = before
            quotient = ratio**beta1 / ratio_old**beta2 * ratio_older**beta_older / (h / h_old) ** beta3
            quotient /= control.safety
        bounded = max(ratio, 1e-4)
        before = None if jumped else (h, bounded, bounded if before is None else before[1])
        h /= min(1 / control.min_factor, max(1 / control.max_factor, quotient))
        if lands and abs(h) < abs(h_wanted):
            h = h_wanted  # a step cut short to end on a save time says nothing against the size before it
    return record.finish(scheme, rhs, rejected, Status.SUCCESS, "")
