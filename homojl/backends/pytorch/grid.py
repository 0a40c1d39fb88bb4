"""Steps from point to point of a grid, between which states are interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from homojl.algorithms import Grid
from homojl.backends.pytorch.steps import AbstractStepper, Field, Number, Step, combine, time_like

Tensor = torch.Tensor


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
