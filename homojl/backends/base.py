"""What every backend offers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm, AbstractPathAlgorithm, ErrorNorm
from homojl.solution import Status, StepSequence

Tensor = torch.Tensor

RightHandSide = Callable[[Tensor, Tensor], Tensor]  # (t, y) -> dy/dt
Map = Callable[[Tensor, Tensor | None], Tensor]  # (z, rows) -> f(z), where z holds those rows of the batch; None: all
MapJVP = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (z, v, rows) -> (df/dz) v
Residual = Callable[[Tensor], Tensor]  # z -> r(z)
ResidualJVP = Callable[[Tensor, Tensor], Tensor]  # (z, v) -> (dr/dz) v


class AbstractRightHandSideJVP(abc.ABC):
    """Products of the Jacobian df/dy of a right-hand side with vectors, without a graph."""

    @abc.abstractmethod
    def __call__(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(df/dy)(t, y) v, of y's shape."""

    def matrix(self, t: Tensor, y: Tensor) -> Tensor:
        """The Jacobian on states as flat vectors of n real numbers in the order of their elements, (n, n).

        A complex state's real and imaginary parts are neighbours. Here column by column.
        """
        columns = [self(t, y, v) for v in real_basis(y)]
        if y.is_complex():
            columns = [torch.view_as_real(column.resolve_conj()) for column in columns]
        return torch.stack([column.reshape(-1) for column in columns], dim=1)


def real_basis(y: Tensor) -> Tensor:
    """The unit vectors of y's space over the real numbers: (n, *shape of y)."""
    n = y.numel() * (2 if y.is_complex() else 1)
    eye = torch.eye(n, dtype=y.dtype.to_real(), device=y.device)
    return torch.view_as_complex(eye.view(n, *y.shape, 2)) if y.is_complex() else eye.view(n, *y.shape)


@dataclass(frozen=True)
class EventCondition:
    """An `Event` with the arguments bound.

    Attributes:
        condition: (t, y) -> one value or several; the event is where one changes its sign.
        direction: 1: only where it rises, -1: only where it falls, along the way that the solve takes; 0: either.
    """

    condition: Callable[[Tensor, Tensor], Tensor]
    direction: int = 0


@dataclass(frozen=True, eq=False)
class OpenField:
    """A right-hand side that a backend may take apart: calling it is `evaluate`, whose value is `function`'s.

    Attributes:
        evaluate: what an adjoint gives a backend to call.
        function, args: the problem's own function, called as `function(t, y, *args)`.
        on_backward: to be called with the number of evaluations whose gradient is being computed.
    """

    evaluate: RightHandSide
    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    on_backward: Callable[[int], None]

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.evaluate(t, y)


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
    ys: Sequence[Tensor]
    steps: StepSequence
    states: list[Tensor]
    status: Status
    message: str
    nfe: int
    n_rejected: int


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
    opens: ClassVar[bool] = False  # whether `integrate` takes an `OpenField` apart

    @abc.abstractmethod
    def supports(
        self,
        algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm,
        device: torch.device,
    ) -> bool:
        """Whether this backend runs `algorithm` on tensors of `device`."""

    @abc.abstractmethod
    def integrate(
        self,
        rhs: RightHandSide,
        y0: Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractODEAlgorithm,
        *,
        error_norm: ErrorNorm = ErrorNorm(),
        keep_states: bool = False,
        jvp: AbstractRightHandSideJVP | None = None,
        event: EventCondition | None = None,
        discontinuities: tuple[float, ...] = (),
    ) -> Integration:
        """Integrate dy/dt = rhs(t, y) from y0 at ts[0] and save at ts[1:].

        Args:
            rhs: maps a 0-d time and a state of y0's shape to the derivative.
            y0: initial state.
            ts: strictly monotone save times in either direction.
            algorithm: method, tolerances and step control.
            error_norm: what the step-size control looks at.
            keep_states: whether to return the state at the start of every accepted step.
            jvp: the field's Jacobian-vector product, which implicit methods need.
            event: where to end early; its time is then the last of the saved times.
            discontinuities: times that adaptive steps end on, and where the field is evaluated anew.
        """

    @abc.abstractmethod
    def find_fixed_point(
        self, f: Map, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, *, jvp: MapJVP | None = None
    ) -> FixedPoint:
        """Solve z = f(z) for every sample (row) of z0.

        Args:
            f: the map, which may be given fewer rows than z0 has.
            z0: initial guess (B, ...).
            algorithm: method and tolerances.
            jvp: the map's Jacobian-vector product, which Newton's methods need.
        """

    @abc.abstractmethod
    def trace_path(
        self, r: Residual, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str, jvp: ResidualJVP
    ) -> Path:
        """Follow H(z, lambda) = 0 from (z0, 0) to lambda = 1.

        Args:
            r: the residual.
            z0: start of the path.
            algorithm: how to follow it, with tolerances.
            kind: "fixed-point" or "newton", as in `HomotopyProblem`.
            jvp: the residual's Jacobian-vector product.
        """
