"""Adjoints that integrate the adjoint equation: gradients of the exact solution, to the tolerance."""

from __future__ import annotations

import abc
import bisect
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from homojl.adjoints import anchors
from homojl.adjoints.implicit_function import refuse_batched
from homojl.adjoints.ode import AbstractRecomputingAdjoint, Solve
from homojl.algorithms import (
    AbstractAdaptive,
    AbstractErrorControlled,
    AbstractODEAlgorithm,
    ErrorNorm,
    with_first_step,
)
from homojl.backends.base import AdjointTask, Integration
from homojl.backends.pytorch.record import OTHER
from homojl.backends.pytorch.steps import time_like
from homojl.errors import ConfigError, SolveError
from homojl.functions import DerivedField, VectorField, dense_zeros
from homojl.functions.layout import Layout

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Backward:
    """A backward solve: the forward one, and its field at the tensors of the solve with those it depends on."""

    solve: Solve
    result: Integration
    f: VectorField
    wrt: Sequence[Tensor]

    def step_at(self, t: float) -> float:
        """The size of the forward solve's step that ends at t or holds it."""
        rounds = self.result.record.rounds
        if not rounds:  # of a solver that does not tell
            return abs(self.result.ts[-1] - self.result.ts[0])
        way = 1.0 if self.result.ts[-1] >= self.result.ts[0] else -1.0
        i = bisect.bisect_left(rounds, way * t, key=lambda taken: way * float(taken.t)) - 1
        return abs(float(rounds[max(i, 0)].h))


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
        if (own := self._by_the_backend(back, saved, [None, *cotangents])) is not None:
            return own
        totals = [dense_zeros(w) for w in wrt]
        places, kicks = self._kicks(back, saved, [None, *cotangents], totals)
        costate = kicks[0]
        for (i, j), kick in zip(itertools.pairwise(places), kicks[1:], strict=True):
            if costate is not None:
                costate, totals = self.segment(back, times[i], times[j], saved[i], costate, totals)
            costate = add(costate, kick)
        return costate, list(totals)

    def _by_the_backend(
        self, back: Backward, saved: Sequence[Tensor], cotangents: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]] | None:
        """All gradients, where the backend integrates the adjoint equation by itself."""
        if self.algorithm is not None and self.algorithm.norm != ErrorNorm():
            return None
        ts, solve = back.result.ts, back.solve.but(f=back.f)
        algorithm = with_first_step(self.algorithm or replace(solve.algorithm, observer=None), (ts[-1], ts[0]))
        rule = self._rule(solve.algorithm.order)
        return back.solve.backend.adjoint(
            AdjointTask(solve, algorithm, ts, saved, cotangents, back.wrt, rule, getattr(self, "seminorm", False))
        )

    def _rule(self, order: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Nodes and weights of the quadrature over each step of a forward solve of that order, if there is one."""
        return None

    def _kicks(
        self, back: Backward, saved: Sequence[Tensor], cotangents: Sequence[Tensor | None], totals: list[Tensor]
    ) -> tuple[list[int], list[Tensor | None]]:
        """The positions of the save times that the backward solve stops at, and what the costate gains there.

        Args:
            saved, cotangents: states, and the loss's gradients with respect to them, at all of `back.result.ts`.
            totals: the inputs' gradients, to be added to.
        """
        places = list(reversed(range(len(saved))))
        return places, [cotangents[i] for i in places]

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
        if self.algorithm is None and isinstance(algorithm, AbstractErrorControlled) and algorithm.first_step is None:
            algorithm = replace(algorithm, first_step=min(abs(ts[-1] - ts[0]), back.step_at(ts[0])))
        result = solve.but(f=DerivedField(rhs), ts=ts, algorithm=algorithm, norm=norm, keep_states=False).run(y)
        if not result.status.ok:
            raise SolveError(f"the backward solve of {self.name} failed: {result.message}; or use CheckpointAdjoint()")
        return result.ys

    def _norm(self, solve: Solve, layout: Layout, watched: int) -> ErrorNorm:
        """Of state, costate and gradients as one flat vector, of which the first `watched` parts count.

        That of the backward algorithm where it has one of its own; else the state and the costate are each measured
        as the forward solve measures the state.
        """
        forward = solve.norm
        if self.algorithm is not None and self.algorithm.norm != ErrorNorm():
            return self.algorithm.norm
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


def add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more


_legendre = functools.cache(np.polynomial.legendre.leggauss)


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
        real = not y1.is_complex()
        # In a real state a complex gradient travels as two real ones, in a complex state a real one as a complex one.
        parts = [torch.view_as_real(x) if real and x.is_complex() else x for x in totals]
        layout, dtype = Layout([y1, costate, *parts]), y1.dtype

        def rhs(t: Tensor, flat: Tensor) -> Tensor:
            y, a = layout.unpack(flat, 2)
            dy, (turned, *grads) = back.f.vjp(_real(t), y, a, back.wrt)
            grads = [torch.view_as_real(g.resolve_conj()) if real and g.is_complex() else g for g in grads]
            return layout.pack([dy, turned.neg(), *(g.neg() for g in grads)], dtype)

        norm = self._norm(back.solve, layout, 2 if self.seminorm else len(layout.parts))
        flat = layout.pack([y1, costate, *parts], dtype)
        end = self._integrate(back, layout, rhs, flat, (t1, t0), norm)[-1]
        _, costate, *ends = layout.unpack(end)
        return costate, [_as_total(gradient, total) for gradient, total in zip(ends, totals, strict=True)]


def _as_total(gradient: Tensor, total: Tensor) -> Tensor:
    """A gradient as the augmented state held it, in the dtype of its tensor."""
    if total.is_complex() and not gradient.is_complex():
        gradient = torch.view_as_complex(gradient.contiguous())
    return (gradient if total.is_complex() else gradient.real).to(total.dtype)


class _Moved(NamedTuple):
    """Cotangents at the anchors.

    Attributes:
        kicks: what the costate gains at each.
        gains: what the inputs' gradients gain.
        rate: the largest norm(J^T c) / norm(c) that was seen.
        gap: the largest distance of two anchors.
    """

    kicks: list[Tensor | None]
    gains: list[Tensor]
    rate: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class GaussAdjoint(AbstractContinuousAdjoint):
    """State and costate integrated backwards; the other gradients by Gauss-Legendre quadrature along the way.

    The integrand a^T df/d(args, params) is evaluated at the quadrature nodes of each forward step, so the many
    parameters never enter the step-size control, and rejected steps cost no gradient of theirs. Where there are more
    save times than steps, the costate does not stop at each: their cotangents are moved to a few of them, about a step
    apart, as exactly as rtol asks (`homojl.adjoints.anchors`).

    Attributes:
        nodes: quadrature nodes per forward step; None: enough for the method's order.
    """

    nodes: int | None = None

    def __post_init__(self) -> None:
        if self.nodes is not None and self.nodes < 1:
            raise ConfigError(f"nodes must be at least 1, got {self.nodes}")

    def _rule(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        return _legendre(self.nodes or (order + 2) // 2)

    def _kicks(
        self, back: Backward, saved: Sequence[Tensor], cotangents: Sequence[Tensor | None], totals: list[Tensor]
    ) -> tuple[list[int], list[Tensor | None]]:
        algorithm = self.algorithm or back.solve.algorithm
        rounds, part = back.result.record.rounds, 1.0
        smooth = isinstance(back.solve.algorithm, AbstractAdaptive) and not back.solve.jumps
        if smooth and rounds and isinstance(algorithm, AbstractErrorControlled):
            times = list(back.result.ts)
            starts, sizes = [float(r.t) for r in rounds], [float(r.h) for r in rounds]
            rtol = float(torch.as_tensor(algorithm.rtol).min())
            while len(places := anchors.choose(times, starts, sizes, part)) <= 0.6 * len(times):
                moved = self._moved(back, saved, cotangents, places)
                if moved.rate * moved.gap <= (limit := anchors.farthest(rtol, len(places))):
                    for total, gains in zip(totals, moved.gains, strict=True):
                        total.add_(gains)
                    return places, moved.kicks
                part *= max(0.2, 0.9 * limit / (moved.rate * moved.gap))
        return super()._kicks(back, saved, cotangents, totals)

    def _moved(
        self, back: Backward, saved: Sequence[Tensor], cotangents: Sequence[Tensor | None], places: list[int]
    ) -> _Moved:
        """Every cotangent moved to the anchors at `places`."""
        times = back.result.ts
        nodes, of = [times[i] for i in places], {place: m for m, place in enumerate(places)}
        kicks = [cotangents[i] for i in places]
        slopes: list[Tensor | None] = [None] * len(places)
        for i, c in enumerate(cotangents):
            if c is None or i in of:
                continue
            near = anchors.around(nodes, times[i])
            values, derivatives = anchors.hermite([nodes[m] for m in near], times[i])
            for m, value, derivative in zip(near, values.tolist(), derivatives.tolist(), strict=True):
                kicks[m], slopes[m] = add(kicks[m], c * value), add(slopes[m], c * derivative)
        gains = [dense_zeros(w) for w in back.wrt]
        norms = []
        for m, slope in enumerate(slopes):
            if slope is None:
                continue
            y = saved[places[m]].detach()
            _, (turned, *grads) = back.f.vjp(time_like(nodes[m], y), y, slope, back.wrt)
            kicks[m] = add(kicks[m], turned)
            for total, grad in zip(gains, grads, strict=True):
                total.add_(grad)
            norms.append(torch.stack([torch.linalg.vector_norm(x).to(turned.dtype.to_real()) for x in (turned, slope)]))
        gap = max((abs(a - b) for a, b in itertools.pairwise(nodes)), default=0.0)
        sizes = torch.stack(norms).tolist() if norms else []
        rate = max((a / b for a, b in sizes if b > 0), default=0.0)
        return _Moved(kicks, gains, rate if math.isfinite(rate) else math.inf, gap)

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
        inside = [start for start in starts if low < start < high]
        if high - low <= back.step_at(t1) * (1 + 1e-6):  # no longer than a step, wherever it lies
            inside = []
        edges = sorted({t0, t1, *inside}, reverse=t1 > t0)
        x, w = self._rule(back.solve.algorithm.order)
        points, weights = [], []
        for a, b in itertools.pairwise(edges):
            points += [a + (b - a) * (1 + node) / 2 for node in x.tolist()]
            # The integral runs forward in the solve's own direction, from t0 to t1: hence (a - b).
            weights += [(a - b) / 2 * weight for weight in w.tolist()]
        return points, weights
