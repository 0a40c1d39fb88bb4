"""The course of an ODE solve: one integration, or several where events and jumps of the field divide it.

An adjoint knows nothing of times that require gradients, nor of events: they enter here, between integrations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from homojl.adjoints.ode import AbstractODEAdjoint, Solve
from homojl.adjoints.times import at_event, follow
from homojl.backends.base import EventCondition, Integration
from homojl.backends.pytorch.record import Record
from homojl.errors import ConfigError
from homojl.problems import Event, ODEProblem
from homojl.solution import Happened, Samples, Status, StepSequence

Tensor = torch.Tensor
Time = float | Tensor  # a tensor where it requires a gradient

MOST_EVENTS = 10_000  # of one solve, as of a ball that comes to rest


class Course:
    """A solve that is divided by events or jumps, or has gradients by its times.

    Args:
        problem: the problem.
        solve: how and where it is integrated.
        adjoint: how the integrations are differentiated.
        split: from a joined state to the user's.
    """

    def __init__(
        self, problem: ODEProblem, solve: Solve, adjoint: AbstractODEAdjoint, split: Callable[[Tensor], Any]
    ) -> None:
        self._problem, self._solve, self._adjoint, self._split = problem, solve, adjoint, split
        self._times: tuple[Time, ...] = problem.times if problem.times and torch.is_grad_enabled() else problem.ts
        self._events: list[Happened] = []
        self._costs: list[tuple[int, int, int]] = []  # of each integration: evaluations, rejected and accepted steps

    def run(self, y0: Tensor) -> Integration:
        """Integrate from the initial state."""
        problem, recording = self._problem, torch.is_grad_enabled()
        backwards = problem.ts[-1] < problem.ts[0]
        jumps = sorted(problem.jumps, key=_number, reverse=backwards) if recording else []
        if not jumps and (problem.event is None or problem.event.terminal):
            result = self._integrate(y0, self._times, None)
            result.ts = _stacked(result.ts)
            return result
        if self._solve.keep_states:
            raise ConfigError("events that do not end the solve, and gradients of jumps, do not go with dense=True")
        result = self._each_in_parts(y0) if self._solve.each else self._in_parts(y0, jumps)
        result.events = self._events
        result.nfe, result.n_rejected, result.n_accepted = (sum(c) for c in zip(*self._costs, strict=True))
        return result

    def _in_parts(self, y0: Tensor, jumps: Sequence[Tensor]) -> Integration:
        """Integrate from event to event, and from jump to jump."""
        ts, event = self._problem.ts, self._problem.event
        way = 1.0 if ts[-1] > ts[0] else -1.0
        ahead = [j for j in jumps if (_number(j) - ts[0]) * way > 0 and (ts[-1] - _number(j)) * way > 0]
        start, y, passed = self._times[0], y0, None
        saved_ts, saved = [start], [y0]
        starts: list[float] = []
        sizes: list[float] = []
        saves: list[tuple[int, float]] = []
        while True:
            at, bound = _number(start), ahead[0] if ahead else self._times[-1]
            inner = [t for t in self._times[len(saved) :] if (_number(bound) - _number(t)) * way > 0]
            result = self._integrate(y, (start, *inner, bound), passed)
            got, ys, steps, first = result.ts, result.ys, result.record.steps(), len(starts)
            starts += steps.starts
            sizes += steps.sizes
            reached = len(got) - 1 - (result.status is Status.EVENT or result.record.held is not None)
            kept = min(reached, len(inner) + (not ahead))
            saved_ts += got[1 : 1 + kept]
            saved += ys[1 : 1 + kept]
            saves += [(first + i, x) for i, x in steps.saves[:kept]]
            if not result.status.ok:
                if reached < len(got) - 1:
                    saved_ts, saved = [*saved_ts, got[-1]], [*saved, ys[-1]]
                break
            if result.status is not Status.EVENT:
                if not ahead:
                    break
                start, y, passed = ahead.pop(0), ys[-1], None
                if _number(start) == _number(self._times[len(saved)]):
                    saved_ts.append(self._times[len(saved)])
                    saved.append(self._after_jump(start, y, len(saved)))
                    saves.append((len(starts) - 1, 1.0))
                continue
            start, y, passed = self._after_event(result)
            if event is not None and event.terminal:
                saved_ts, saved, saves = [*saved_ts, start], [*saved, y], [*saves, (len(starts) - 1, 1.0)]
                break
            result.status = Status.SUCCESS
            if _number(start) == at:
                start = math.nextafter(at, _number(bound))
            self._refuse_accumulation(result, _number(start))
            if (ts[-1] - _number(start)) * way <= 0 or not result.status.ok:
                saved_ts, saved = [*saved_ts, start], [*saved, y]
                break
        result.ts, result.ys = _stacked(saved_ts), saved
        result.record = Record(taken=StepSequence(tuple(starts), tuple(sizes), tuple(saves)))
        return result

    def _after_jump(self, jump: Tensor, y: Tensor, i: int) -> Tensor:
        """The state at the save time with index i where the field jumps, with the gradients by both times."""
        time, beside = self._times[i], self._beside(_number(jump), self._problem.ts[-1])
        state = follow(self._solve.f, -1.0, jump, y, beside)
        if isinstance(time, Tensor) and time.requires_grad:
            state = follow(self._solve.f, 1.0, time, state, beside)
        return state

    def _each_in_parts(self, y0: Tensor) -> Integration:
        """Integrate from event to event, every sample from its own; those that have no other wait at the end."""
        event, ts = self._problem.event, np.array(self._problem.ts)
        assert event is not None
        column = (-1, *[1] * (y0.ndim - 1))
        y, starts, passed, states, total = y0, None, None, None, None
        while True:
            result = self._integrate(y, self._times, passed, starts)
            ys, samples = result.ys, result.samples
            assert samples is not None
            total = samples if total is None else _gone_on(total, samples, starts)
            if states is None or starts is None:
                states = list(ys)
            else:
                at = starts.detach().numpy()
                later = torch.from_numpy((ts[1:, None] - at) * np.sign(ts[-1] - ts[0]) > 0).to(y0.device)
                states[1:] = [
                    torch.where(mask.view(column), new, old)
                    for mask, new, old in zip(later, ys[1:], states[1:], strict=True)
                ]
            happened = samples.events >= 0
            if not bool(happened.any()):
                break
            self._events.append(
                Happened(torch.where(happened, samples.times, torch.nan), self._split(ys[-1]), samples.events)
            )
            if len(self._events) >= MOST_EVENTS or self._accumulate(result, samples.times, event):
                break
            mask = happened.to(y0.device).view(column)
            y = ys[-1]
            if event.then is not None:
                # Others than those that it is about may not be finite.
                given = torch.where(mask, y, y[int(happened.nonzero()[0])].detach())
                times = samples.times.to(y0.device, y0.dtype.to_real()).view(column)
                y = torch.where(mask, self._changed(event, times, given), y)
            starts, passed = torch.where(happened, samples.times, ts[-1]), samples.events.numpy()
        if all(s.ok for s in total.statuses) and result.status.ok:
            result.status = Status.SUCCESS
        statuses = tuple(Status.SUCCESS if s is Status.EVENT else s for s in total.statuses)
        result.samples, result.ts, result.ys = replace(total, statuses=statuses), _stacked(self._times), states
        return result

    def _accumulate(self, result: Integration, times: Tensor, event: Event) -> bool:
        """Whether a sample's events follow each other too fast; the solve's status says so then."""
        if event.then is None or len(self._events) < 2:
            return False
        gaps = (self._events[-1].time - self._events[-2].time).abs().detach().nan_to_num(torch.inf)
        ts, eps = self._problem.ts, torch.finfo(self._solve.f.dtype).eps
        fast = gaps <= 64 * eps * torch.clamp_min(times.detach().abs(), abs(ts[-1] - ts[0]))
        if bool(fast.any()):
            first = int(fast.nonzero()[0])
            _give_up(result, float(times[first]), f", sample {first}")
        return bool(fast.any())

    def _refuse_accumulation(self, result: Integration, t: float) -> None:
        """End the solve where events follow each other without end, or too fast for times to be told apart."""
        then = self._problem.event is not None and self._problem.event.then is not None
        last = [h.time.item() for h in self._events[-2:] if h.which == self._events[-1].which]
        ts, eps = self._problem.ts, torch.finfo(self._solve.f.dtype).eps
        if then and len(last) == 2 and abs(last[1] - last[0]) <= 64 * eps * max(abs(t), abs(ts[-1] - ts[0])):
            _give_up(result, t)
        elif len(self._events) >= MOST_EVENTS:
            result.status, result.message = Status.MAX_STEPS, f"{MOST_EVENTS} events took place; loosen direction"

    def _after_event(self, result: Integration) -> tuple[Time, Tensor, int | None]:
        """Note an event; the time and the state that the solve goes on from, and which value has just changed."""
        event, which, t, y = self._problem.event, result.event, result.ts[-1], result.ys[-1]
        assert event is not None, "an event ended the integration"
        assert which is not None, event
        time = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        self._events.append(Happened(time, self._split(y), which))
        if event.then is not None:
            y = self._changed(event, time.to(y.device, y.dtype.to_real()), y)
        return t, y, which

    def _changed(self, event: Event, t: Tensor, y: Tensor) -> Tensor:
        """The state that an event changes y to."""
        assert event.then is not None
        after = event.then(t, self._split(y), *self._solve.f.args)
        y = self._problem.form.join(after, "then") if not self._problem.form.plain else after
        self._solve.f.check(y, "then")
        return y

    def _integrate(self, y0: Tensor, times: Sequence[Time], passed: Any, starts: Tensor | None = None) -> Integration:
        """One integration, its times and states with their gradients.

        Args:
            y0: where it starts.
            times: to save states at.
            passed: as in `EventCondition`.
            starts: times of the samples' own starts, (B,).
        """
        recording, ts, start = torch.is_grad_enabled(), tuple(map(_number, times)), y0
        event = None if self._problem.event is None else self._condition(self._problem.event, passed)
        solve = self._solve.but(ts=ts, event=event)
        if starts is not None:
            solve = solve.but(starts=starts.detach().numpy())
            if recording and starts.requires_grad:
                start = follow(solve.f, -1.0, starts, y0)
        first = times[0]
        if recording and isinstance(first, Tensor) and first.requires_grad:
            start = follow(solve.f, -1.0, first, y0, self._beside(ts[0], ts[-1]))
        result = self._adjoint.integrate(solve, start)
        self._costs.append((result.nfe, result.n_rejected, result.n_accepted))
        if recording and any(map(_wants, times)):
            got: list[Time] = list(result.ts)
            ys = [y0, *result.ys[1:]]
            for i, time in enumerate(times[: len(got)]):
                if isinstance(time, Tensor) and time.requires_grad and got[i] == ts[i]:
                    got[i] = time
                    if i:
                        ys[i] = follow(solve.f, 1.0, time, ys[i], self._beside(ts[i], ts[0]))
            result.ts, result.ys = got, ys
        if result.status is Status.EVENT and recording:
            self._through_event(solve, result)
        return result

    def _through_event(self, solve: Solve, result: Integration) -> None:
        """Give times and states their gradients through the times of events."""
        event, samples, got, ys = solve.event, result.samples, list(result.ts), list(result.ys)
        assert event is not None
        if samples is None:
            time = torch.tensor(_number(got[-1]), dtype=torch.float64)
            got[-1], ys[-1] = at_event(solve.f, event.condition, time, ys[-1], result.event)
            result.ts, result.ys = got, ys
            return
        which = samples.events
        times, last = at_event(solve.f, event.condition, samples.times, ys[-1], which)
        result.samples = replace(samples, times=times)
        ended = which >= 0
        for i in range(1, len(ys)):  # the state at the event stands for the save times after it
            after = ended & ((samples.times - _number(got[i])) * (_number(got[-1]) - _number(got[0])) <= 0)
            ys[i] = torch.where(after.to(last.device).view(-1, *[1] * (last.ndim - 1)), last, ys[i])
        result.ys = ys

    def _beside(self, t: float, towards: float) -> float | None:
        """The time next to a jump of the field on that side of it; None: the field does not jump there."""
        if t not in self._solve.jumps:
            return None
        dtype = self._solve.f.dtype.to_real()
        return torch.nextafter(torch.tensor(t, dtype=dtype), torch.tensor(towards, dtype=dtype)).item()

    def _condition(self, event: Event, passed: Any) -> EventCondition:
        f, split = self._solve.f, self._split

        def condition(t: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
            values = event.condition(t, split(y), *f.args_at(rows))
            if not isinstance(values, Tensor):
                raise ConfigError(f"an event's condition must return a torch.Tensor, got {type(values).__name__}")
            return values

        return EventCondition(condition, event.direction, passed)


def _give_up(result: Integration, t: float, where: str = "") -> None:
    result.status = Status.STEP_TOO_SMALL
    result.message = (
        f"events follow each other ever faster up to t = {t:.6g}{where}, as those of a ball that comes to rest; "
        "end the solve before, by an event that is terminal"
    )


def _gone_on(before: Samples, after: Samples, starts: Tensor | None) -> Samples:
    """The samples of a solve that went on, for some of them, from their events."""
    assert starts is not None
    went = before.events >= 0
    statuses = [b if not w else a for b, a, w in zip(before.statuses, after.statuses, went.tolist(), strict=True)]
    return Samples(
        statuses=tuple(statuses),
        times=torch.where(went, after.times, before.times),
        n_accepted=before.n_accepted + after.n_accepted,
        n_rejected=before.n_rejected + after.n_rejected,
        nfe=before.nfe + after.nfe,
        events=torch.where(went, after.events, before.events),
    )


def _number(t: Time) -> float:
    return t.item() if isinstance(t, Tensor) else t


def _wants(t: Time) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


def _stacked(ts: Sequence[Time]) -> Tensor:
    """Times as one tensor, float64 on the CPU; those of events, and given ones, with their gradients."""
    if not any(map(_wants, ts)):
        return torch.tensor([_number(t) for t in ts], dtype=torch.float64)
    return torch.stack([torch.as_tensor(t, dtype=torch.float64, device="cpu") for t in ts])
