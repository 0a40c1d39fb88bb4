"""What one step of a method is: a value, and the steppers that make it.

A step is of one size for the whole state, or of one size for each row of it: times and sizes are then arrays (b,), and
states (b, n). It has one arithmetic, whether gradients are recorded or not, so that a replay takes the very steps of
the solve.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from homojl.algorithms.tableaus import ButcherTableau
from homojl.solution import Status

Tensor = torch.Tensor
Field = Any  # (t, y) -> dy/dt, with what else a stepper asks of it
Number = Any  # a float, or an array (b,) of one number for each row
Stages = Any  # a sequence of tensors, or one tensor: the derivatives at a step's stages, each of the state's shape

# Up to this many elements an operation costs what it takes to start it, beyond it what it moves in memory.
SMALL = 16_384


class Step(NamedTuple):
    """A step of size h from (t, y).

    Attributes:
        t, h: where it starts and its signed size.
        y, y_next: the states at its ends.
        ks: its stages.
        error: the estimate of its error, where the stepper has computed it.
        ratio: that as a multiple of what is tolerated, where the step knows it.
        status, reason: why it could not be taken, with what else than a field that is not finite; None: it was.
    """

    t: Number
    h: Number
    y: Tensor
    y_next: Tensor
    ks: Stages
    error: Tensor | None = None
    ratio: float | None = None
    status: Status | None = None
    reason: str = ""


def combine(y: Tensor | None, h: Number, weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor:
    """y + h sum_j weights[j] ks[j], leaving out zero weights, of which there must be others; no y: the sum alone."""
    if isinstance(h, Tensor):
        total = combine(None, 1.0, weights, ks)
        return total * h if y is None else torch.addcmul(y, total, h)
    out = None
    for weight, k in zip(weights, ks, strict=False):
        if weight == 0.0:
            continue
        if out is not None:
            out.add_(k, alpha=h * weight)  # our own intermediate: addition keeps nothing for its gradient
        else:
            out = k * (h * weight) if y is None else torch.add(y, k, alpha=h * weight)
    if out is None:
        assert y is not None, weights
        return y
    return out


def time_like(t: float, y: Tensor) -> Tensor:
    """The time as the field receives it: a 0-d tensor of y's real dtype and its device, made without a host copy."""
    dtype = y.dtype
    return torch.scalar_tensor(t, dtype=dtype.to_real() if dtype.is_complex else dtype, device=y.device)


def on(like: Tensor, numbers: np.ndarray) -> Tensor:
    """An array on the device of a tensor, numbers in its real dtype."""
    tensor = torch.from_numpy(numbers)
    if numbers.dtype == np.float64:
        tensor = tensor.to(like.dtype.to_real())
    return tensor.to(like.device, non_blocking=True)


class AbstractStepper(abc.ABC):
    """The steps of one algorithm.

    Attributes:
        order: of the solution that is carried on; one more than that of its error estimate.
        error_order: the power of the step size with which that estimate falls.
        interpolates: whether a step can be evaluated inside; else steps have to end on the save times.
        carries: whether the stages hold the derivative at the end of the step.
        last_resort: what to try where the steps have become too small.
    """

    order: int
    error_order: int
    interpolates: bool
    carries = False
    last_resort = "loosen rtol and atol, use float64, or take a method for stiff fields such as KenCarp4()"

    @abc.abstractmethod
    def step(
        self, f: Field, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True
    ) -> Step:
        """The step of size h from (t, y); not finite where it cannot be taken.

        Args:
            f, t, h, y: field, time, signed size, state.
            first: the derivative at (t, y) where it is known.
            last: whether a stage is evaluated that only the error, the interpolant and the next step need.
        """

    @abc.abstractmethod
    def error(self, step: Step) -> Tensor:
        """The estimate of the step's error, of y's shape; called where no gradient is recorded."""

    @abc.abstractmethod
    def inside(self, step: Step, fractions: Sequence[float]) -> list[Tensor]:
        """The states at fractions in (0, 1] of a step; at 1 y_next itself."""

    def rows_inside(self, step: Step, at: np.ndarray, fractions: np.ndarray) -> Tensor:
        """The states at fractions of the steps of the rows `at`, (p, n); at 1 those of y_next."""
        raise AssertionError("rows take the steps of explicit methods")

    def inside_steps(self, steps: Sequence[tuple[Step, Sequence[float]]]) -> list[list[Tensor]]:
        """What `inside` gives for each of several steps; a stepper may compute them together."""
        return [self.inside(step, fractions) for step, fractions in steps]

    def carried(self, step: Step) -> Tensor | None:
        """The derivative at the end of the step where the stages hold it: the next step's `first`."""
        return None


class ExplicitStepper(AbstractStepper):
    """An explicit Runge-Kutta method.

    A stage's argument is built by one addition per weight: a product of the weights with the stages in one buffer takes
    fewer operations, but copying the stages there costs more than that saves, for small states and for large ones.
    """

    def __init__(self, tableau: ButcherTableau) -> None:
        self.tableau = tableau
        self.order = self.error_order = tableau.order
        self.interpolates, self.carries = tableau.dense is not None, tableau.fsal

    def step(
        self, f: Field, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True
    ) -> Step:
        a, c, fsal = self.tableau.a, self.tableau.c, self.tableau.fsal
        size, times = (h, None) if isinstance(h, float) else self._of_rows(t, h, y)
        ks = [f(time_like(t, y) if times is None else times[0], y) if first is None else first]
        time = None
        for i in range(1, len(c) - 1 if fsal else len(c)):
            if times is not None:
                time = times[i]
            elif time is None or c[i] != c[i - 1]:
                time = time_like(t + c[i] * h, y)
            ks.append(f(time, combine(y, size, a[i], ks)))
        y_next = combine(y, size, self.tableau.b, ks)
        if fsal and last:
            if times is not None:
                time = times[-1]
            elif time is None or c[-2] != 1.0:
                time = time_like(t + h, y)
            ks.append(f(time, y_next))
        return Step(t, h, y, y_next, ks)

    def _of_rows(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Sizes (b, 1) and the times of the stages, (b,) each, on the state's device by one copy."""
        size, *times = on(y, np.stack([h, *(t + c * h for c in self.tableau.c)])).unbind()
        return size[:, None], times

    def error(self, step: Step) -> Tensor:
        assert self.tableau.b_error is not None, self.tableau
        size = step.h if isinstance(step.h, float) else on(step.y, step.h)[:, None]
        return combine(None, size, self.tableau.b_error, step.ks)

    def inside(self, step: Step, fractions: Sequence[float]) -> list[Tensor]:
        return [
            step.y_next if f == 1.0 else combine(step.y, step.h, self._weights([f])[0].tolist(), step.ks)
            for f in fractions
        ]

    def rows_inside(self, step: Step, at: np.ndarray, fractions: np.ndarray) -> Tensor:
        rows, at_end = on(step.y, at), fractions == 1.0
        ends = step.y_next.index_select(0, rows)
        if at_end.all():
            return ends
        dense = self.tableau.dense_rows.T
        weights = np.zeros((len(at), self.tableau.stages))
        for m in reversed(range(dense.shape[1])):  # a matrix product would round by how many rows there are
            weights = (weights + dense[:, m]) * fractions[:, None]
        sizes, states = on(step.y, weights * step.h[at, None]), step.y.index_select(0, rows)
        for j in range(self.tableau.stages):
            if dense[j].any():
                states = torch.addcmul(states, step.ks[j].index_select(0, rows), sizes[:, j : j + 1])
        return torch.where(on(step.y, at_end)[:, None], ends, states) if at_end.any() else states

    def _weights(self, fractions: Sequence[float]) -> np.ndarray:
        dense = self.tableau.dense_rows
        return (np.array(fractions)[:, None] ** np.arange(1, len(dense) + 1)) @ dense

    def inside_steps(self, steps: Sequence[tuple[Step, Sequence[float]]]) -> list[list[Tensor]]:
        within = [[f for f in fractions if f != 1.0] for _, fractions in steps]
        counts = [len(fractions) for fractions in within]
        wanted, most = sum(counts), max(counts, default=0)
        like = steps[0][0].y
        # The steps are filled up to as many states as the fullest of them has, for one batched product.
        if wanted < 4 or like.numel() > SMALL or len(steps) * most > 4 * wanted:
            return super().inside_steps(steps)
        together = self.side_by_side([step for step, _ in steps])
        if together is None:
            return super().inside_steps(steps)
        starts, stages = together
        weights = np.zeros((len(steps), most, stages.shape[1]))
        filled = np.arange(most) < np.array(counts)[:, None]
        weights[filled] = self._weights([f for fs in within for f in fs])
        weights *= np.array([step.h for step, _ in steps])[:, None, None]
        weights_like = torch.from_numpy(weights).to(starts.device, starts.dtype)
        block = torch.baddbmm(starts.view(len(steps), 1, -1), weights_like, stages.view(*weights.shape[::2], -1))
        rows = block.view(-1, *like.shape)
        inner = iter(rows.index_select(0, torch.from_numpy(np.flatnonzero(filled)).to(rows.device)).unbind())
        return [[step.y_next if f == 1.0 else next(inner) for f in fractions] for step, fractions in steps]

    def side_by_side(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor] | None:
        """The states at the starts of steps (N, ...) and the stages (N, S, ...); None: their memory format is kept."""
        if not all(x.is_contiguous() for x in (steps[0].y, *steps[0].ks)):
            return None
        stages = torch.stack([k for step in steps for k in step.ks])
        return torch.stack([step.y for step in steps]), stages.unflatten(0, (len(steps), -1))

    def carried(self, step: Step) -> Tensor | None:
        return step.ks[-1] if self.tableau.fsal else None
