"""What every backend offers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    ErrorNorm,
    StepMemory,
)
from homojl.functions.base import AbstractField, AbstractMap
from homojl.solution import Happened, Samples, Status

if TYPE_CHECKING:
    from homojl.backends.pytorch.record import Record

Tensor = torch.Tensor


@dataclass(frozen=True)
class EventCondition:
    """An `Event` with the arguments bound.

    Attributes:
        condition: (t, y, rows) -> one value or several, at those rows of a batch, None: of the whole state; the event
            is where one changes its sign.
        direction: 1: only where it rises, -1: only where it falls, along the way that the solve takes; 0: either.
        passed: which of the values has just changed, as where a solve goes on from an event, or which of each
            sample's, (B,), -1 for none; None: none.
    """

    condition: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    direction: int = 0
    passed: Any = None


@dataclass(frozen=True, eq=False)
class Task:
    """What a backend integrates: dy/dt = f(t, y) from ts[0], saved at ts[1:].

    Attributes:
        f: the field.
        ts: strictly monotone save times in either direction.
        algorithm: method, tolerances and step control.
        norm: what the step-size control looks at.
        keep_states: whether to record the state at the start of every accepted step.
        event: where to end early; its time is then the last of the saved times. Where samples end one by one, the state
            of one there is saved at the save times that follow.
        jumps: times that adaptive steps end on, and where the field is evaluated anew.
        each: whether every sample, a row of the state, has steps, an error and an end of its own.
        starts: times from which the samples go on, (B,); None: all from ts[0]. One that starts at the end is done.
    """

    f: AbstractField
    ts: tuple[float, ...]
    algorithm: AbstractODEAlgorithm
    norm: ErrorNorm = ErrorNorm()
    keep_states: bool = False
    event: EventCondition | None = None
    jumps: Sequence[float] = ()
    each: bool = False
    starts: np.ndarray | None = None

    def but(self, **changes: Any) -> Self:
        """The same with other attributes."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **changes)
        return other


@dataclass(eq=False)
class Integration:
    """What a backend returns from `integrate`, and an adjoint with gradients.

    Attributes:
        ts: times of the saved states; a tensor where they have gradients.
        ys: saved states, one per time, each of y0's shape; more than the first even if the solve stopped early:
            the last one is then the last accepted state.
        record: the accepted steps, with the states at which they start where asked for.
        status, message: how it ended, and one line on what to try.
        nfe, n_rejected: evaluations and rejected steps.
        event: which of the values of the condition changed, where an event ended it.
        samples: of each sample, where they have steps of their own.
        first_step: what `StepMemory` would learn of such a solve.
        events: those on the way, of an integration that went on after them.
    """

    ts: Any
    ys: Sequence[Tensor]
    record: Record
    status: Status
    message: str
    nfe: int
    n_rejected: int
    event: int | None = None
    samples: Samples | None = None
    first_step: float | None = None
    events: Sequence[Happened] = ()

    @cached_property
    def n_accepted(self) -> int:
        """Accepted steps; where samples have their own, of the one that took most."""
        if self.samples is None:
            return len(self.record.rounds)
        accepted = self.samples.n_accepted
        return int(accepted[(accepted + self.samples.n_rejected).argmax()]) if len(accepted) else 0


@dataclass(frozen=True, eq=False)
class AdjointTask:
    """The adjoint equation of a solve that was done, for a backend that can integrate it by itself.

    Attributes:
        solve: the forward solve, with its field at the tensors of the solve.
        algorithm: of the backward solve; its norm is the forward solve's.
        ts, ys: times of the saved states, and the states, the first of them the initial one.
        cotangents: the loss's gradients with respect to each of `ys`; None: zero.
        wrt: tensors of the field that receive gradients.
        rule: nodes and weights of a quadrature over each step, on (-1, 1); None: state, costate and gradients are
            integrated backwards as one vector.
        seminorm: whether the step-size control leaves those gradients out.
    """

    solve: Task
    algorithm: AbstractODEAlgorithm
    ts: Sequence[float]
    ys: Sequence[Tensor]
    cotangents: Sequence[Tensor | None]
    wrt: Sequence[Tensor]
    rule: tuple[np.ndarray, np.ndarray] | None
    seminorm: bool


def note_first_step(memory: StepMemory, ts: Sequence[float], result: Integration) -> None:
    """Let an algorithm's memory learn from a solve that reached its end."""
    if not result.status.ok:
        return
    if result.samples is None:
        memory.learn_from(ts, [taken.h for taken in result.record.rounds[:2]], result.n_rejected)
    elif result.first_step is not None:
        memory.learn(ts, result.first_step)


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """What a backend returns from `find_fixed_point`: the fields of `EquilibriumSolution`, detached."""

    value: Tensor
    residuals: Tensor
    iterations: Tensor
    converged: Tensor
    status: Status
    message: str
    nfe: int
    n_jvp: int


@dataclass(frozen=True, eq=False)
class Path:
    """What a backend returns from `trace_path`: the fields of `PathSolution`, detached."""

    s: Tensor
    lambdas: Tensor
    states: list[Tensor]
    residuals: Tensor
    folds: int
    status: Status
    message: str
    nfe: int
    n_jvp: int
    n_rejected: int


class AbstractBackend(abc.ABC):
    """Solves on tensors. It knows nothing of models or adjoints; those are written once, above it."""

    name: ClassVar[str]
    records: ClassVar[bool] = False  # whether autograd passes through the operations of its solves

    @abc.abstractmethod
    def supports(
        self,
        algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm,
        device: torch.device,
    ) -> bool:
        """Whether this backend runs `algorithm` on tensors of `device`."""

    @abc.abstractmethod
    def integrate(self, task: Task, y0: Tensor) -> Integration:
        """Integrate from the initial state y0."""

    def integrate_whole(self, task: Task, y0: Tensor) -> Integration | None:
        """`integrate` with a gradient of the backend's own that keeps only the states that the steps start from, and
        evaluates again; None: it has none."""
        return None

    def adjoint(self, task: AdjointTask) -> tuple[Tensor | None, list[Tensor | None]] | None:
        """Gradients with respect to the initial state and each of `task.wrt`; None: it leaves them to `integrate`.

        Raises:
            SolveError: if a solve on the way fails.
        """
        return None

    @abc.abstractmethod
    def find_fixed_point(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        """Solve z = f(z) for every sample (row) of z0.

        Args:
            f: the map, which may be given fewer rows than z0 has.
            z0: initial guess (B, ...).
            algorithm: method and tolerances.
        """

    @abc.abstractmethod
    def trace_path(self, r: AbstractMap, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str) -> Path:
        """Follow H(z, lambda) = 0 from (z0, 0) to lambda = 1.

        Args:
            r: the residual, of the whole state.
            z0: start of the path.
            algorithm: how to follow it, with tolerances.
            kind: "fixed-point" or "newton", as in `HomotopyProblem`.
        """
