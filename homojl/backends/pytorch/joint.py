"""The loop over steps in eager PyTorch where the whole state has one step size.

Nothing here asks whether gradients are recorded: under `torch.no_grad()` this is a plain solver, otherwise
PyTorch records its operations and differentiates through them. Step sizes are plain numbers, decided on
values alone, so they are constants to any gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from homojl.algorithms import AbstractErrorControlled, AbstractFixedStep
from homojl.backends.base import Integration, Task
from homojl.backends.pytorch.events import StateEvents, StepEvent
from homojl.backends.pytorch.record import Record, Round
from homojl.backends.pytorch.sizes import Controlled, Move, Planned, Stop
from homojl.backends.pytorch.steps import AbstractStepper, Step
from homojl.solution import Status

Tensor = torch.Tensor

_PENDING = 2**21  # elements of stages to hold at most for states inside steps that are yet to be computed


class Saved:
    """The states that a solve saves, with the record of its steps."""

    def __init__(self, ts: tuple[float, ...], y0: Tensor, stepper: AbstractStepper, *, keep_states: bool) -> None:
        self.record = Record(states=[] if keep_states else None)
        self.ts, self.ys = [ts[0]], [y0]
        self.next = 1
        self._wanted, self._stepper = ts, stepper
        self._direction = 1.0 if ts[-1] > ts[0] else -1.0
        self._pending: list[tuple[int, Step, Sequence[float]]] = []  # with the position in ys of their first state

    def accept(self, step: Step, move: Move, *, fresh: bool, event: StepEvent | None) -> None:
        """Write a step down, and save the states in it up to the event, if any.

        Args:
            step, move: the step.
            fresh: whether its first derivative was evaluated anew.
            event: what ends the solve in it.
        """
        first, end, direction = self.next, move.reached if event is None else event.t, self._direction
        if self.record.states is not None:
            self.record.states.append(step.y)
        if event is None and (self._wanted[first] - end) * direction > 0:  # most steps
            self.record.rounds.append(Round(step.t, step.h, fresh, (), ()))
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
        self.record.rounds.append(Round(step.t, h, fresh, fractions, saves))

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


def integrate(task: Task, y0: Tensor, stepper: AbstractStepper) -> Integration:
    """See `AbstractBackend.integrate`."""
    f, ts, algorithm, event = task.f, task.ts, task.algorithm, task.event
    saved = Saved(ts, y0, stepper, keep_states=task.keep_states)
    sizes: Planned | Controlled
    if isinstance(algorithm, AbstractErrorControlled):
        sizes = Controlled(algorithm, stepper, ts, y0, task.norm, task.jumps)
    else:
        assert isinstance(algorithm, AbstractFixedStep), algorithm
        sizes = Planned(algorithm, ts)
    t, y, step, which, started = sizes.t, y0, None, None, f.calls
    status, message = Status.SUCCESS, ""
    observer = algorithm.observer
    try:
        watch = None if event is None else StateEvents(event, stepper, f, t, y)
        first, fresh = sizes.start(f, y), True
        while saved.next < len(ts):
            move = sizes.propose(t, saved.next)
            if observer is not None:
                observer.trying(t, y.detach(), move.h)
            step = stepper.step(f, t, move.h, y, first)
            if not sizes.accepts(step, move):
                if observer is not None:
                    observer.rejected(t, y.detach(), move.h)
                first = step.ks[0] if len(step.ks) else None
                continue
            found = None if watch is None else watch.within(step, move.t_next)
            if found is not None and found.which < 0:
                raise Stop(Status.DIVERGED, "the event's condition is NaN in the next step")
            saved.accept(step, move, fresh=fresh, event=found)
            if observer is not None and sizes.decides:
                observer.accepted(t, y.detach(), move.h)
            if found is not None:
                status, which = Status.EVENT, found.which
                break
            t, y = move.reached, step.y_next
            first, fresh = None if move.jumps else stepper.carried(step), move.jumps
    except Stop as stop:
        saved.stop(t, y)
        seen = [y, *(stop.args[2:] or (step.ks if step is not None else ()))]
        status, message = stop.args[0], sizes.explained(stop, t, seen, len(saved.record.rounds))
    saved.compute()
    if status.ok and (where := sizes.flaw(f, ts, saved.ys)):
        status = Status.DIVERGED
        message = f"{algorithm.name}: {status.value} ({where}); try a smaller step_size or an adaptive method"
    return Integration(
        ts=tuple(saved.ts),
        ys=saved.ys,
        record=saved.record,
        status=status,
        message=message,
        nfe=f.calls - started,
        n_rejected=sizes.rejected,
        event=which,
    )
