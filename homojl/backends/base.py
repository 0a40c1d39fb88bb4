"""What every backend offers."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from homojl.algorithms import AbstractODEAlgorithm
from homojl.solution import Status, StepSequence

RightHandSide = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ErrorNorm:
    """Which parts of a flat state the step-size control looks at.

    The error ratio is the largest of the parts' root mean squares; elements outside every part are carried
    along uncontrolled. Data rather than a function, so that any backend can apply it.

    Attributes:
        parts: (start, stop) pairs of positions in the flat state; None: the whole state, of any shape.
    """

    parts: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, eq=False)
class Integration:
    """What a backend returns from `integrate`.

    Attributes:
        ts: times of the saved states.
        ys: saved states, one per time, each of y0's shape; more than the first even if the solve stopped early:
            the last one is then the last accepted state.
        steps: the accepted steps.
        states: the states at which the accepted steps start, where asked for, else empty.
        status, message: how it ended, and one line on what to try.
        nfe, n_rejected: evaluations and rejected steps.
    """

    ts: tuple[float, ...]
    ys: list[torch.Tensor]
    steps: StepSequence
    states: list[torch.Tensor]
    status: Status
    message: str
    nfe: int
    n_rejected: int


class AbstractBackend(abc.ABC):
    """Solves on tensors. It knows nothing of models or adjoints; those are written once, above it."""

    name: ClassVar[str]

    @abc.abstractmethod
    def supports(self, algorithm: AbstractODEAlgorithm, device: torch.device) -> bool:
        """Whether this backend runs `algorithm` on tensors of `device`."""

    @abc.abstractmethod
    def integrate(
        self,
        rhs: RightHandSide,
        y0: torch.Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractODEAlgorithm,
        *,
        error_norm: ErrorNorm = ErrorNorm(),
        keep_states: bool = False,
    ) -> Integration:
        """Integrate dy/dt = rhs(t, y) from y0 at ts[0] and save at ts[1:].

        Args:
            rhs: maps a 0-d time and a state of y0's shape to the derivative.
            y0: initial state.
            ts: strictly monotone save times in either direction.
            algorithm: method, tolerances and step control.
            error_norm: what the step-size control looks at.
            keep_states: whether to return the state at the start of every accepted step.
        """
