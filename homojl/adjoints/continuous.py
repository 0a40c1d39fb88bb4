"""Adjoints that integrate the adjoint equation: gradients of the exact solution, to the tolerance."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from homojl.adjoints.base import AbstractRecomputingAdjoint, Solve, add
from homojl.adjoints.implicit_function import refuse_batched
from homojl.algorithms import (
    AbstractErrorControlled,
    AbstractODEAlgorithm,
    ErrorNorm,
    with_first_step,
)
from homojl.backends.base import Integration, note_first_step
from homojl.backends.pytorch.record import OTHER
from homojl.backends.pytorch.steps import time_like
from homojl.errors import ConfigError, SolveError
from homojl.functions import DerivedField, VectorField
from homojl.layout import Layout

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Backward:
    """A backward solve: the forward one, and its field at the tensors of the solve with those it depends on."""

    solve: Solve
    result: Integration
    f: VectorField
    wrt: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class AbstractContinuousAdjoint(AbstractRecomputingAdjoint):
    """Adjoints that integrate the adjoint equation da/dt = -a^T df/dy backwards beside the state.

    Between two save times the state is integrated backwards from the later one, which is known.

    Attributes:
        algorithm: for the backward solve; None: the forward solve's, unobserved. A norm of its own is given state,
            costate and, with `BacksolveAdjoint`, all gradients as one flat vector.
    """

    keeps_start: ClassVar[bool] = True

    algorithm: AbstractODEAlgorithm | None = None

    def backward(
        self,
        solve: Solve,
        result: Integration,
        f: VectorField,
        wrt: Sequence[Tensor],
        saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        times, back = result.ts, Backward(solve, result, f, wrt)
        for cotangent in cotangents:
            refuse_batched(cotangent, self.name, "CheckpointAdjoint()")
        self._check_sameness(f, time_like(times[0], saved[0]), saved[0].detach())
        costate: Tensor | None = None
        totals = [torch.zeros_like(w) for w in wrt]
        for i in reversed(range(1, len(times))):
            costate = add(costate, cotangents[i - 1])
            if costate is not None:
                costate, totals = self.segment(back, times[i], times[i - 1], saved[i], costate, totals)
        return costate, list(totals)

    @torch.no_grad()
    def _check_sameness(self, f: VectorField, t: Tensor, y: Tensor) -> None:
        """Raise a ConfigError where f at the start has not the value that it had in the solve, or twice the same."""
        first, second = (f.start if f.start is not None else f(t, y).clone()), f(t, y)
        if ((first - second).abs().max() > torch.finfo(y.dtype).eps ** 0.5 * first.abs().max()).item():
            raise ConfigError(OTHER)

    @abc.abstractmethod
    def segment(
        self, back: Backward, t1: float, t0: float, y1: Tensor, costate: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """From t1 back to t0: the costate at t0, and the inputs' gradients with this segment added."""

    def _integrate(
        self,
        back: Backward,
        layout: Layout,
        rhs: Callable[[Tensor, Tensor], Tensor],
        y: Tensor,
        ts: tuple[float, ...],
        norm: ErrorNorm,
    ) -> Sequence[Tensor]:
        """Integrate state, costate and perhaps their gradients, laid out in one vector, along ts."""
        solve = back.solve
        algorithm = self.algorithm or _unobserved(solve.algorithm, layout)
        first = with_first_step(algorithm, ts)
        result = solve.backend.integrate(DerivedField(rhs), y, ts, first, norm=norm, jumps=solve.jumps)
        note_first_step(algorithm, ts, result)
        if not result.status.ok:
            raise SolveError(f"the backward solve of {self.name} failed: {result.message}; or use CheckpointAdjoint()")
        return result.ys

    def _norm(self, solve: Solve, layout: Layout, watched: int) -> ErrorNorm:
        """Of state, costate and gradients as one flat vector, of which the first `watched` parts count.

        That of the backward algorithm where it has one of its own; else the state and the costate are each measured
        as the forward solve measures the state.
        """
        own, forward = _norm_of(self.algorithm), _norm_of(solve.algorithm)
        if own != ErrorNorm():
            return own
        parts = [part for part in layout.parts[:watched] if part[1] > part[0]]
        if (measure := forward.function) is not None:

            def largest(flat: Tensor) -> float:
                both = [float(measure(x)) for x in layout.unpack(flat, 2)]
                rest = [float(torch.linalg.vector_norm(flat[i:j])) / (j - i) ** 0.5 for i, j in parts[2:]]
                return max(both + rest)

            return ErrorNorm(function=largest)
        if forward.parts is not None:
            within = [(start + i, start + j) for start, _ in layout.parts[:2] for i, j in forward.parts]
            parts = within + parts[2:]
        return ErrorNorm(tuple(parts))


def _unobserved(algorithm: AbstractODEAlgorithm, layout: Layout) -> AbstractODEAlgorithm:
    """A forward solve's algorithm for state, costate and gradients laid out in one vector."""
    if isinstance(algorithm, AbstractErrorControlled):
        rtol, atol = (augmented_tolerance(value, layout) for value in (algorithm.rtol, algorithm.atol))
        return replace(algorithm, observer=None, rtol=rtol, atol=atol)
    return replace(algorithm, observer=None)


def augmented_tolerance(value: float | Tensor, layout: Layout) -> float | Tensor:
    """A state's tolerance for state, costate and gradients laid out in one vector.

    One that differs from element to element holds for state and costate alike, its smallest for the gradients.
    """
    if not isinstance(value, Tensor):
        return value
    shapes = layout.shapes
    parts = [value.expand(shape) for shape in shapes[:2]] + [value.min().expand(shape) for shape in shapes[2:]]
    return layout.pack(parts, value.dtype)


def _norm_of(algorithm: AbstractODEAlgorithm | None) -> ErrorNorm:
    return algorithm.norm if isinstance(algorithm, AbstractErrorControlled) else ErrorNorm()


def _real(t: Tensor) -> Tensor:
    """The time of a complex right-hand side as the field takes it."""
    return t.real if t.is_complex() else t


@dataclass(frozen=True, kw_only=True)
class BacksolveAdjoint(AbstractContinuousAdjoint):
    """The classic augmented system: state, costate and all gradients integrated backwards together.

    Constant memory. The state is recovered by running the field backwards, which can lose accuracy where the
    forward field contracts; compare with `CheckpointAdjoint`.

    Attributes:
        seminorm: leave the gradients of arguments and parameters out of the step-size control.

    References: Chen et al. (2018); the HomoODE paper's Algorithm 1; for `seminorm`, Kidger et al. (2021).
    """

    seminorm: bool = False

    def segment(
        self, back: Backward, t1: float, t0: float, y1: Tensor, costate: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        layout, dtype = Layout([y1, costate, *totals]), y1.dtype

        def rhs(t: Tensor, flat: Tensor) -> Tensor:
            y, a = layout.unpack(flat, 2)
            dy, grads = back.f.vjp(_real(t), y, a, back.wrt)
            return layout.pack([dy, *(g.neg() for g in grads)], dtype)

        norm = self._norm(back.solve, layout, 2 if self.seminorm else len(layout.parts))
        flat = layout.pack([y1, costate, *totals], dtype)
        end = self._integrate(back, layout, rhs, flat, (t1, t0), norm)[-1]
        _, costate, *ends = layout.unpack(end)
        # In a complex state the real gradients of real tensors travel as complex numbers.
        pairs = zip(ends, totals, strict=True)
        return costate, [(e if total.is_complex() else e.real).to(total.dtype) for e, total in pairs]


@dataclass(frozen=True, kw_only=True)
class GaussAdjoint(AbstractContinuousAdjoint):
    """State and costate integrated backwards; the other gradients by Gauss-Legendre quadrature along the way.

    The integrand a^T df/d(args, params) is evaluated at the quadrature nodes of each forward step, so the many
    parameters never enter the step-size control, and rejected steps cost no gradient of theirs.

    Attributes:
        nodes: quadrature nodes per forward step; None: enough for the method's order.
    """

    nodes: int | None = None

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 1:
            raise ConfigError(f"nodes must be at least 1, got {self.nodes}")

    def segment(
        self, back: Backward, t1: float, t0: float, y1: Tensor, costate: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        points, weights = self._quadrature(back, t1, t0)
        layout = Layout([y1, costate])

        def rhs(t: Tensor, flat: Tensor) -> Tensor:
            y, a = layout.unpack(flat)
            dy, (grad,) = back.f.vjp(_real(t), y, a)
            return layout.pack([dy, grad.neg()], y1.dtype)

        flat = layout.pack([y1, costate], y1.dtype)
        norm = self._norm(back.solve, layout, 2)
        states = self._integrate(back, layout, rhs, flat, (t1, *points, t0), norm)
        if totals:
            for t, weight, state in zip(points, weights, states[1:-1], strict=True):
                y, a = layout.unpack(state)
                node = torch.full((), t, dtype=y.dtype.to_real(), device=y.device)
                _, (_, *grads) = back.f.vjp(node, y, a, back.wrt)
                for total, grad in zip(totals, grads, strict=True):
                    total.add_(grad, alpha=weight)
        return layout.unpack(states[-1])[1], totals

    def _quadrature(self, back: Backward, t1: float, t0: float) -> tuple[list[float], list[float]]:
        """Nodes from t1 back to t0 and their weights, those of each forward step's part of that interval."""
        low, high = min(t0, t1), max(t0, t1)
        starts = (taken.t for taken in back.result.record.rounds)
        edges = sorted({t0, t1, *(start for start in starts if low < start < high)}, reverse=t1 > t0)
        x, w = np.polynomial.legendre.leggauss(self.nodes or (back.solve.algorithm.order + 2) // 2)
        points, weights = [], []
        for a, b in itertools.pairwise(edges):
            points += [a + (b - a) * (1 + node) / 2 for node in x.tolist()]
            # The integral runs forward in the solve's own direction, from t0 to t1: hence (a - b).
            weights += [(a - b) / 2 * weight for weight in w.tolist()]
        return points, weights
