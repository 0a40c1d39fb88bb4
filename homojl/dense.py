"""A solve's solution between its save times."""

from __future__ import annotations

import bisect

import torch

from homojl.adjoints.ode import Solve
from homojl.adjoints.times import follow
from homojl.backends.base import Integration
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import Step
from homojl.errors import ConfigError

Tensor = torch.Tensor


class DenseOutput:
    """The solution as a function of time: the step that holds a time is taken again, as far as needed.

    Where the method has a continuous extension its stages are computed once for the times in one step; else a shorter
    step is taken to each. The last step asked about is remembered.

    Args:
        solve: the solve.
        result: its result, with the states at which its steps start.

    Raises:
        ConfigError: if PyTorch cannot take the method's steps again.
    """

    def __init__(self, solve: Solve, result: Integration) -> None:
        if solve.algorithm.tableau is None:
            name = solve.algorithm.name
            raise ConfigError(f"dense output takes steps again in PyTorch, which has no tableau of {name}")
        self._solve, self._result, self._f = solve, result, solve.f
        self._stepper = stepper_for(solve.algorithm)
        self._direction = 1.0 if solve.ts[-1] > solve.ts[0] else -1.0
        self._rounds, self._states = result.record.rounds, result.record.states or []
        times = torch.as_tensor(result.ts, dtype=torch.float64).detach()
        self._first, self._last = times[0].item(), times[-1].item()
        self._starts = [taken.t * self._direction for taken in self._rounds]
        self._step: tuple[int, bool, Step] | None = None
        self._versions = self._f.versions()

    def __call__(self, t: float | Tensor) -> Tensor:
        """The state at a number or 0-d tensor, (*shape of y0), or at a 1-D tensor of T times, (T, *shape of y0)."""
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        if times.ndim > 1:
            raise ConfigError(f"t must be a number or a 1-D tensor, got shape {tuple(times.shape)}")
        if self._f.versions() != self._versions:
            raise ConfigError(
                "what f depends on has changed since the solve, so that its steps cannot be taken again: ask for the "
                "states before, or save them with ts"
            )
        recorded = any(y.requires_grad for y in self._states[1:2])
        if torch.is_grad_enabled() and self._result.ys[-1].requires_grad and not recorded and len(self._rounds) > 1:
            raise ConfigError(
                "the solution between its save times has gradients with DirectAdjoint() alone: add the times to ts, or "
                "ask under torch.no_grad()"
            )
        flat = times.reshape(-1)
        states = [self._at(s) for s in flat.tolist()]
        if times.requires_grad and torch.is_grad_enabled():
            states = [follow(self._f, 1.0, s, y) for s, y in zip(flat, states, strict=True)]
        self._versions = self._f.versions()  # f may have counters of its own
        return states[0] if times.ndim == 0 else torch.stack(states)

    def _at(self, t: float) -> Tensor:
        first, last = self._first, self._last
        if not min(first, last) <= t <= max(first, last):
            raise ConfigError(f"t = {t:.6g} lies outside the solution, which goes from {first:.6g} to {last:.6g}")
        if t == first:
            return self._result.ys[0]
        if not self._rounds:  # a state without elements takes no steps
            return self._result.ys[-1]
        index = max(bisect.bisect_left(self._starts, t * self._direction) - 1, 0)
        taken, y = self._rounds[index], self._states[index]
        fraction = min(max((t - taken.t) / taken.h, 0.0), 1.0)
        if fraction == 0.0:
            return y
        if not self._stepper.interpolates:
            return self._stepper.step(self._f, taken.t, fraction * taken.h, y, last=False).y_next
        if self._step is None or self._step[:2] != (index, torch.is_grad_enabled()):
            step = self._stepper.step(self._f, taken.t, taken.h, y)
            self._step = (index, torch.is_grad_enabled(), step)
        return self._stepper.inside(self._step[2], [fraction])[0]
