"""Adams methods: steps that use the derivatives of the steps before."""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import torch

from homojl.algorithms import RK38, AdamsBashforth, AdamsMoulton
from homojl.backends.pytorch.steps import AbstractStepper, ExplicitStepper, Field, Number, Step, combine, time_like

Tensor = torch.Tensor

_FEWEST = 3  # derivatives, below which a step is one of RK38


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
