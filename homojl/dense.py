"""A solve's solution between its save times."""

from __future__ import annotations

import bisect

import torch

from homojl.adjoints.field import Field
from homojl.adjoints.times import follow
from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.base import Integration
from homojl.backends.pytorch.schemes import Stages, scheme_for
from homojl.errors import ConfigError
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor


class DenseOutput:
    """The solution as a function of time: the step that holds a time is taken again, as far as needed.

    Where the method has a continuous extension its stages are computed once for the times in one step; else a shorter
    step is taken to each. The last step asked about is remembered.

    Args:
        problem, algorithm: of the solve.
        result: what came of it, with the states at which its steps start.
        stats: what counts the evaluations.

    Raises:
        ConfigError: if PyTorch cannot take the method's steps again.
    """

    def __init__(self, problem: ODEProblem, algorithm: AbstractODEAlgorithm, result: Integration, stats: Stats) -> None:
        if algorithm.tableau is None:
            raise ConfigError(f"dense output takes steps again in PyTorch, which has no tableau of {algorithm.name}")
        self._problem, self._result = problem, result
        self._field = Field(problem, stats)
        self._scheme = scheme_for(algorithm, self._field.jvp)
        self._direction = 1.0 if problem.ts[-1] > problem.ts[0] else -1.0
        self._starts = [t * self._direction for t in result.steps.starts]
        self._step: tuple[int, bool, Tensor, Stages] | None = None

    def __call__(self, t: float | Tensor) -> Tensor:
        """The state at a number or 0-d tensor, (*shape of y0), or at a 1-D tensor of T times, (T, *shape of y0)."""
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        if times.ndim > 1:
            raise ConfigError(f"t must be a number or a 1-D tensor, got shape {tuple(times.shape)}")
        recorded = any(y.requires_grad for y in self._result.states[1:2])
        if torch.is_grad_enabled() and self._result.ys[-1].requires_grad and not recorded:
            raise ConfigError(
                "the solution between its save times has gradients with DirectAdjoint() alone: add the times to ts, or "
                "ask under torch.no_grad()"
            )
        flat = times.reshape(-1)
        states = [self._at(s) for s in flat.tolist()]
        if times.requires_grad and torch.is_grad_enabled():
            states = [follow(self._field.evaluate, s, y) for s, y in zip(flat, states, strict=True)]
        return states[0] if times.ndim == 0 else torch.stack(states)

    def _at(self, t: float) -> Tensor:
        first, last = self._result.ts[0], self._result.ts[-1]
        if not min(first, last) <= t <= max(first, last):
            raise ConfigError(f"t = {t:.6g} lies outside the solution, which goes from {first:.6g} to {last:.6g}")
        if t == first:
            return self._result.ys[0]
        steps = self._result.steps
        index = max(bisect.bisect_left(self._starts, t * self._direction) - 1, 0)
        start, size, y = steps.starts[index], steps.sizes[index], self._result.states[index]
        fraction = min(max((t - start) / size, 0.0), 1.0)
        if fraction == 0.0:
            return y
        if not self._scheme.interpolates:
            return self._scheme.step(self._field.evaluate, start, fraction * size, y, last_stage=False)[0]
        if self._step is None or self._step[:2] != (index, torch.is_grad_enabled()):
            taken = self._scheme.step(self._field.evaluate, start, size, y)
            self._step = (index, torch.is_grad_enabled(), *taken)
        y_next, ks = self._step[2:]
        return self._scheme.inside(y, y_next, size, ks, [fraction])[0]
