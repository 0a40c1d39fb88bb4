"""Which stepper takes an algorithm's steps; those of Adams methods, and of steps from point to point of a grid."""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from homojl.algorithms import RK38, AdamsBashforth, AdamsMoulton, Grid
from homojl.backends.pytorch.implicit import ImplicitStepper
from homojl.backends.pytorch.steps import AbstractStepper, ExplicitStepper, Field, Number, Step, combine, time_like

Tensor = torch.Tensor

_FEWEST = 3  # derivatives, below which a step of an Adams method is one of RK38


def stepper_for(algorithm: Any) -> AbstractStepper:
    """The stepper of an `AbstractODEAlgorithm` that has a tableau, or of an Adams method."""
    stepper: AbstractStepper
    if algorithm.explicit:
        stepper = ExplicitStepper(algorithm.tableau)
    else:
        stepper = AdamsStepper(algorithm) if algorithm.tableau is None else ImplicitStepper(algorithm)
    return stepper if algorithm.grid is None else GridStepper(stepper, algorithm.grid)


class AdamsStepper(AbstractStepper):
    """The steps of one solve, which have to be asked for in their order; the last one may be asked for again."""

    interpolates = False

    def __init__(self, algorithm: AdamsBashforth) -> None:
        self.order = self.error_order = algorithm.order
        self._algorithm = algorithm
        self._start = ExplicitStepper(RK38.tableau)
        self._past: deque[tuple[float, Tensor]] = deque(maxlen=max(algorithm.max_order - 1, 1))  # the newest first

    def step(
        self, f: Field, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True
    ) -> Step:
        first = f(time_like(t, y), y) if first is None else first
        if not self._past or self._past[0][0] != t:
            self._past.appendleft((t, first))
        if len(self._past) < _FEWEST:
            return self._start.step(f, t, h, y, first)
        nodes, ks = [(time - t) / h for time, _ in self._past], [k for _, k in self._past]
        y_next = combine(y, h, weights(_exactly(nodes)), ks)
        if isinstance(self._algorithm, AdamsMoulton):
            y_next = self._correct(self._algorithm, f, t, h, y, y_next, nodes, ks)
        return Step(t, h, y, y_next, ks)

    def _correct(
        self,
        algorithm: AdamsMoulton,
        f: Field,
        t: float,
        h: float,
        y: Tensor,
        y_next: Tensor,
        nodes: list[float],
        ks: list[Tensor],
    ) -> Tensor:
        end = time_like(t + h, y)
        newest, *others = weights(_exactly([1.0, *nodes]))
        known = combine(y, h, others, ks)
        for _ in range(algorithm.max_iter):
            before, y_next = y_next, torch.add(known, f(end, y_next), alpha=h * newest)
            with torch.no_grad():
                size = torch.maximum((before - y).abs(), (y_next - y).abs())
                ratio = (y_next - before).abs() / (algorithm.atol + algorithm.rtol * size)
                if bool((ratio < 1).all()):
                    return y_next
        self._past.pop()  # a lower order is stable with larger steps
        warnings.warn(
            f"AdamsMoulton: the correction did not converge at t = {t:.6g}; take smaller steps or raise max_iter",
            stacklevel=2,
        )
        return y_next

    def error(self, step: Step) -> Tensor:
        raise AssertionError("Adams methods take the steps they are told to")

    def inside(self, step: Step, fractions: Sequence[float]) -> list[Tensor]:
        return [step.y_next for _ in fractions]  # all of them 1: steps end on the save times


def _exactly(nodes: list[float]) -> tuple[Fraction, ...]:
    """The nodes as fractions, those of equal steps without the rounding of their times."""
    return tuple(Fraction(round(x)) if abs(x - round(x)) < 1e-5 else Fraction(x) for x in nodes)


@functools.lru_cache(maxsize=256)
def weights(nodes: tuple[Fraction, ...]) -> tuple[float, ...]:
    """The integral over [0, 1] of each node's Lagrange polynomial."""
    found = []
    for j, x in enumerate(nodes):
        polynomial, scale = [Fraction(1)], Fraction(1)  # coefficients, the constant first
        for i, other in enumerate(nodes):
            if i != j:
                shifted = [Fraction(0), *polynomial]
                polynomial = [a - other * b for a, b in zip(shifted, [*polynomial, Fraction(0)], strict=True)]
                scale *= x - other
        found.append(float(sum(c / (m + 1) for m, c in enumerate(polynomial)) / scale))
    return tuple(found)


class GridStepper(AbstractStepper):
    """The steps of another stepper, interpolated from their ends alone; see `Grid`.

    With cubic interpolation the stages are followed by the derivatives at the start and at the end of the step.
    """

    interpolates = True

    def __init__(self, stepper: AbstractStepper, grid: Grid) -> None:
        self._stepper, self._grid = stepper, grid
        self._cubic = grid.interpolation == "cubic"
        self.order = self.error_order = stepper.order

    def step(
        self, f: Field, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True
    ) -> Step:
        start, field = t, f
        if self._grid.apart:
            field = _Within(f, t, h, y.dtype.to_real())
            start = field.first
        if not self._cubic:
            return self._stepper.step(field, start, h, y, first, last=last)._replace(t=t)
        first = field(time_like(start, y), y) if first is None else first
        step = self._stepper.step(field, start, h, y, first, last=last)
        end = [field(time_like(start + h, y), step.y_next)] if last else []
        return step._replace(t=t, ks=[*step.ks, first, *end])

    def error(self, step: Step) -> Tensor:
        return self._stepper.error(step)

    def inside(self, step: Step, fractions: Sequence[float]) -> list[Tensor]:
        states, rise = [], step.y_next - step.y
        for x in fractions:
            if x == 1.0:
                states.append(step.y_next)
            elif self._cubic:
                weights = (x * (1 - x) ** 2, x * x * (x - 1))
                start = torch.add(step.y, rise, alpha=x * x * (3 - 2 * x))
                states.append(combine(start, step.h, weights, step.ks[-2:]))
            else:
                states.append(torch.add(step.y, rise, alpha=x))
        return states

    def carried(self, step: Step) -> Tensor | None:
        return step.ks[-1] if self._cubic and not self._grid.apart else None


class _Within:
    """The field at times of that dtype strictly inside a step from t.

    Attributes:
        first: the first of them.
    """

    def __init__(self, f: Field, t: float, h: float, dtype: torch.dtype) -> None:
        ends = torch.tensor([t, t + h], dtype=dtype)
        self.first, last = torch.nextafter(ends, ends.flip(0)).tolist()
        self._f, self._low, self._high = f, min(self.first, last), max(self.first, last)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self._f(t.clamp(self._low, self._high), y)

    def linearised(self, t: Tensor, y: Tensor) -> Any:
        return self._f.linearised(t.clamp(self._low, self._high), y)
