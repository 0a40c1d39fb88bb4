"""Explicit Runge-Kutta methods in eager PyTorch: one step, its interpolant, and the two loops over steps.

Nothing here asks whether gradients are recorded: under `torch.no_grad()` this is a plain solver, otherwise
PyTorch records its operations and differentiates through them. Step sizes are plain numbers, decided on
values alone, so they are constants to any gradient.
"""

from __future__ import annotations

import itertools
import math

import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep
from homojl.backends.base import ErrorNorm, Integration, RightHandSide
from homojl.solution import Status, StepSequence
from homojl.tableaus import ButcherTableau, Row

Tensor = torch.Tensor


def combine(y: Tensor, h: float, weights: Row, ks: list[Tensor]) -> Tensor:
    """y + h sum_j weights[j] ks[j], leaving out zero weights; shape and dtype of y."""
    out = None
    for weight, k in zip(weights, ks, strict=False):
        if weight != 0.0:
            # In place on our own intermediate: addition keeps nothing for its gradient.
            out = torch.add(y, k, alpha=h * weight) if out is None else out.add_(k, alpha=h * weight)
    return y if out is None else out


def time_like(t: float, y: Tensor) -> Tensor:
    """The time as the field receives it: a 0-d tensor of y's dtype and device, made without a host copy."""
    return torch.full((), t, dtype=y.dtype, device=y.device)


def step(
    rhs: RightHandSide,
    tableau: ButcherTableau,
    t: float,
    h: float,
    y: Tensor,
    k_first: Tensor | None = None,
    *,
    last_stage: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """One step of size h from (t, y).

    Args:
        rhs, tableau, t, h, y: field, method, time, signed size, state.
        k_first: the derivative at (t, y) where it is already known.
        last_stage: whether a method with first-same-as-last evaluates that last stage, which the new state does
            not need but the error estimate, the interpolant and the next step do.

    Returns:
        The state at t + h, and the stage derivatives.
    """
    ks = [rhs(time_like(t, y), y) if k_first is None else k_first]
    stages = tableau.stages - 1 if tableau.fsal else tableau.stages
    for i in range(1, stages):
        ks.append(rhs(time_like(t + tableau.c[i] * h, y), combine(y, h, tableau.a[i], ks)))
    y_next = combine(y, h, tableau.b, ks)
    if tableau.fsal and last_stage:
        ks.append(rhs(time_like(t + h, y), y_next))
    return y_next, ks


def interpolate(tableau: ButcherTableau, y: Tensor, h: float, ks: list[Tensor], fraction: float) -> Tensor:
    """The continuous extension at a fraction in (0, 1) of a step from y with stages ks."""
    weights = tuple(
        sum(coefficient * fraction ** (power + 1) for power, coefficient in enumerate(row)) for row in tableau.dense
    )
    return combine(y, h, weights, ks)


def save_within_step(
    tableau: ButcherTableau, y: Tensor, y_next: Tensor, h: float, ks: list[Tensor], fraction: float
) -> Tensor:
    """The state to save at a fraction in (0, 1] of a step; 1 is the end of the step itself."""
    return y_next if fraction == 1.0 else interpolate(tableau, y, h, ks, fraction)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / math.sqrt(x.numel())


def _ratio(x: Tensor, scale: Tensor, norm: ErrorNorm) -> float:
    """The norm of x / scale as a number: the only place where the host waits for the device."""
    x = x / scale
    if norm.parts is None:
        return _rms(x).item()
    return max(torch.stack([_rms(x[start:stop]) for start, stop in norm.parts]).tolist())


@torch.no_grad()
def _error_ratio(
    algorithm: AbstractAdaptive, y: Tensor, y_next: Tensor, h: float, ks: list[Tensor], norm: ErrorNorm
) -> float:
    error = combine(torch.zeros_like(y), h, algorithm.tableau.b_error, ks)
    scale = torch.maximum(y.abs(), y_next.abs()).mul_(algorithm.rtol).add_(algorithm.atol)
    return _ratio(error, scale, norm)


@torch.no_grad()
def initial_step(
    rhs: RightHandSide,
    t: float,
    y: Tensor,
    k: Tensor,
    span: float,
    algorithm: AbstractAdaptive,
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
    order = algorithm.tableau.order
    h1 = max(1e-6, abs(h0) * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / order)
    return math.copysign(min(100 * abs(h0), h1, abs(span)), span)


class _Counted:
    """A right-hand side that counts its evaluations."""

    def __init__(self, rhs: RightHandSide) -> None:
        self.rhs, self.calls = rhs, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.rhs(t, y)


class _Record:
    """What both loops write down about the accepted steps."""

    def __init__(self, ts: tuple[float, ...], y0: Tensor, keep_states: bool) -> None:
        self.ts, self.ys = [ts[0]], [y0]
        self.starts: list[float] = []
        self.sizes: list[float] = []
        self.saves: list[tuple[int, float]] = []
        self.states: list[Tensor] = []
        self.keep_states = keep_states

    def accept(self, t: float, h: float, y: Tensor) -> None:
        self.starts.append(t)
        self.sizes.append(h)
        if self.keep_states:
            self.states.append(y)

    def save(self, t: float, y: Tensor, fraction: float) -> None:
        self.saves.append((len(self.starts) - 1, fraction))
        self.ts.append(t)
        self.ys.append(y)

    def finish(self, rhs: _Counted, rejected: int, status: Status, message: str) -> Integration:
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


def integrate_fixed(
    rhs: RightHandSide, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractFixedStep, *, keep_states: bool
) -> Integration:
    """Equal steps between save times; see `AbstractBackend.integrate`."""
    rhs, record, y = _Counted(rhs), _Record(ts, y0, keep_states), y0
    for t0, t1 in itertools.pairwise(ts):
        # The small allowance keeps 0.3 / 0.1 from becoming four steps.
        n = 1 if algorithm.step_size is None else max(1, math.ceil(abs(t1 - t0) / algorithm.step_size - 1e-9))
        h = (t1 - t0) / n
        for i in range(n):
            t = t0 + i * h
            y_next, _ = step(rhs, algorithm.tableau, t, h, y)
            record.accept(t, h, y)
            y = y_next
        record.save(t1, y, 1.0)
    finite = torch.stack([torch.isfinite(y.detach()).all() for y in record.ys]).tolist()
    if all(finite):
        return record.finish(rhs, 0, Status.SUCCESS, "")
    first_bad = finite.index(False)
    where = f"at t = {ts[0]:.6g}" if first_bad == 0 else f"in t = {ts[first_bad - 1]:.6g} .. {ts[first_bad]:.6g}"
    message = (
        f"{algorithm.name}: {Status.DIVERGED.value} ({where}, after {len(record.starts)} steps); "
        "try a smaller step_size or an adaptive method"
    )
    return record.finish(rhs, 0, Status.DIVERGED, message)


def integrate_adaptive(
    rhs: RightHandSide,
    y0: Tensor,
    ts: tuple[float, ...],
    algorithm: AbstractAdaptive,
    *,
    error_norm: ErrorNorm,
    keep_states: bool,
) -> Integration:
    """Steps under PI control; see `AbstractBackend.integrate`."""
    rhs, record, tableau = _Counted(rhs), _Record(ts, y0, keep_states), algorithm.tableau
    control = algorithm.controller
    beta1, beta2, beta3 = control.exponents(tableau.order)
    t, t_end, y = ts[0], ts[-1], y0
    direction = 1.0 if t_end > t else -1.0
    rejected, next_save, ratio = 0, 1, 0.0
    before: tuple[float, float] | None = None  # size and error ratio of the last accepted step

    def stop(status: Status, advice: str) -> Integration:
        if record.ts[-1] != t:
            record.ts.append(t)
            record.ys.append(y)
        counts = f"at t = {t:.6g} after {len(record.starts)} accepted and {rejected} rejected steps"
        message = f"{algorithm.name}: {status.value} ({counts}, step {abs(h):.2g}); {advice}"
        return record.finish(rhs, rejected, status, message)

    k_first = rhs(time_like(t, y), y)
    if algorithm.first_step is None:
        h = initial_step(rhs, t, y.detach(), k_first.detach(), t_end - t, algorithm, error_norm)
        if math.isnan(h):
            return stop(Status.DIVERGED, "the initial state or the field's value there has NaN or infinity in it")
    else:
        h = direction * algorithm.first_step

    while next_save < len(ts):
        if len(record.starts) + rejected >= algorithm.max_steps:
            return stop(
                Status.MAX_STEPS,
                f"raise max_steps (now {algorithm.max_steps}), loosen rtol and atol, or suspect a stiff field",
            )
        # Without a continuous extension the steps have to end on every save time.
        target = t_end if tableau.dense is not None else ts[next_save]
        h_wanted = h
        lands = abs(h) >= abs(target - t) * (1 - 1e-12)
        if lands:
            h = target - t
        elif abs(h) <= max(algorithm.min_step, 8 * math.ulp(t)):
            if not math.isfinite(ratio):
                return stop(Status.DIVERGED, "the field returns NaN or infinity near this state; look at it there")
            return stop(Status.STEP_TOO_SMALL, "loosen rtol and atol, use float64, or suspect a stiff field")
        y_next, ks = step(rhs, tableau, t, h, y, k_first)
        ratio = _error_ratio(algorithm, y, y_next, h, ks, error_norm)
        if not ratio <= 1.0:  # written so that NaN is rejected too
            rejected += 1
            shrink = ratio ** (1 / tableau.order) / control.safety if math.isfinite(ratio) else math.inf
            h /= min(1 / control.min_factor, max(shrink, 1.0 + 1e-3))
            k_first = ks[0]
            continue

        t_next = target if lands else t + h
        record.accept(t, h, y)
        while next_save < len(ts) and (ts[next_save] - t_next) * direction <= 0:
            # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
            fraction = 1.0 if ts[next_save] == t_next else (ts[next_save] - t) / h
            y_save = save_within_step(tableau, y, y_next, h, ks, fraction)
            record.save(ts[next_save], y_save, fraction)
            next_save += 1
        t, y = t_next, y_next
        k_first = ks[-1] if tableau.fsal else None

        if before is None:
            quotient = ratio ** (1 / tableau.order) / control.safety
        else:
            h_old, ratio_old = before
            quotient = ratio**beta1 / ratio_old**beta2 / (h / h_old) ** beta3 / control.safety
        before = h, max(ratio, 1e-4)
        h /= min(1 / control.min_factor, max(1 / control.max_factor, quotient))
        if lands and abs(h) < abs(h_wanted):
            h = h_wanted  # a step cut short to end on a save time says nothing against the size before it
    return record.finish(rhs, rejected, Status.SUCCESS, "")
