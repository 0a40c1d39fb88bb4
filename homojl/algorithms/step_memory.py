"""A first step that is remembered from one solve to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Algorithm = TypeVar("Algorithm", bound=DataclassInstance)

# After the first step a controller asks for no less than its safety factor times that step, 0.9 unless told otherwise.
SMALLEST_CHANGE = 0.9


class StepMemory:
    """The size of first step that earlier solves have found to be good, instead of an estimate in every solve.

    Give it to the algorithm of solves that are almost the same again and again, as in training:
    `Tsit5(first_step=StepMemory())`. It saves the estimate's evaluation and the short first steps of a cautious
    estimate. What is remembered is the second step, which the step-size control has chosen by the error of the first; a
    first step that proves too large is rejected as any other, so that accuracy does not depend on the memory.

    Solves on in time and back in time, as an adjoint's, are remembered apart. Failed solves do not update it. The
    result of a solve then depends, within the tolerance, on those before: a model that holds a memory leaves it as it
    is in evaluation, and has it in its `state_dict`.

    Attributes:
        onwards, backwards: sizes for rising and for falling time, positive, in the unit of time; None: not known yet.
    """

    def __init__(self, onwards: float | None = None, backwards: float | None = None) -> None:
        self.onwards, self.backwards = onwards, backwards

    def __repr__(self) -> str:
        return f"StepMemory(onwards={self.onwards}, backwards={self.backwards})"

    def copy(self) -> StepMemory:
        """One that knows as much, and learns for itself."""
        return StepMemory(self.onwards, self.backwards)

    def recall(self, ts: Sequence[float]) -> float | None:
        """The first step for a solve with those save times; None: to be estimated."""
        return self.onwards if ts[-1] > ts[0] else self.backwards

    def learn(self, ts: Sequence[float], size: float) -> None:
        """Note a good first step of a solve with those save times."""
        setattr(self, "onwards" if ts[-1] > ts[0] else "backwards", size)

    def learn_from(self, ts: Sequence[float], sizes: Sequence[float], n_rejected: int) -> None:
        """The same, found from the sizes of a solve's first accepted steps and the number of rejected ones."""
        sizes = [abs(h) for h in sizes[:2]]
        if not sizes:
            return
        if len(sizes) == 2:
            # The second step is shorter than that only if it was cut short or, later in time, rejected.
            self.learn(ts, max(sizes[1], SMALLEST_CHANGE * sizes[0]))
            return
        # A single step may have been cut short by the end, which says nothing against a longer one.
        known = self.recall(ts)
        self.learn(ts, sizes[0] if n_rejected or known is None else max(sizes[0], known))


def with_first_step(algorithm: Algorithm, ts: Sequence[float]) -> Algorithm:
    """The algorithm with what its memory, where it has one, says of a solve with those save times."""
    memory = memory_of(algorithm)
    return algorithm if memory is None else replace(algorithm, first_step=memory.recall(ts))


def memory_of(algorithm: object) -> StepMemory | None:
    """The memory that an algorithm has in the place of a first step."""
    first_step = getattr(algorithm, "first_step", None)
    return first_step if isinstance(first_step, StepMemory) else None
