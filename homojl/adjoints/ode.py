"""Gradients of ODE solves with respect to the initial state, the arguments and the parameters.

| adjoint | gradient of | keeps | cost beyond one forward and backward evaluation per stage |
|---|---|---|---|
| `DirectAdjoint` | the computed solution | every evaluation's graph | none |
| `CheckpointAdjoint` | the computed solution, to rounding the same | the accepted states | one forward evaluation |
| `BacksolveAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve |
| `GaussAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve and a quadrature |
"""

from __future__ import annotations

import abc
import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from homojl.adjoints.field import Field, gradients
from homojl.algorithms import AbstractErrorControlled, AbstractODEAlgorithm, ErrorNorm
from homojl.backends.base import AbstractBackend, Integration, RightHandSide
from homojl.backends.pytorch.schemes import scheme_for
from homojl.errors import ConfigError, SolveError
from homojl.layout import Layout
from homojl.names import did_you_mean
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class AbstractODEAdjoint(abc.ABC):
    """Base of every way to differentiate an ODE solve."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def integrate(
        self, problem: ODEProblem, algorithm: AbstractODEAlgorithm, backend: AbstractBackend, stats: Stats
    ) -> Integration:
        """Integrate the problem on the backend; the returned states carry gradients where any are wanted."""


@dataclass(frozen=True, kw_only=True)
class DirectAdjoint(AbstractODEAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed, step sizes held constant.

    Memory grows with the number of evaluations. Gradients reach every tensor the field uses, listed or not, and
    may be differentiated again. Where another backend than PyTorch solves, and a gradient may be wanted, PyTorch takes
    the accepted steps once more to record their operations, and those states are returned.
    """

    def integrate(self, problem, algorithm, backend, stats):
        field = Field(problem, stats)

        def count(_: Tensor) -> None:
            stats.n_vjp += 1

        def rhs(t: Tensor, y: Tensor) -> Tensor:
            dy = field.evaluate(t, y)
            if dy.requires_grad:
                dy.register_hook(count)
            return dy

        if backend.records:
            return field.integrate(backend, algorithm, rhs)
        recording = torch.is_grad_enabled()
        wanted = recording and (problem.y0.requires_grad or bool(field.inputs))

        def evaluate(t: Tensor, y: Tensor) -> Tensor:
            nonlocal wanted, recording
            if not recording or wanted:
                return field.evaluate(t, y)
            recording = False  # the first evaluation shows whether the field uses a tensor that is not listed
            with torch.enable_grad():
                dy = field.evaluate(t, y)
            wanted = dy.requires_grad
            return dy.detach()

        with torch.no_grad():
            result = field.integrate(backend, algorithm, evaluate)
        if not wanted:
            return result
        _require_tableau(self, algorithm)

        def counted(t: Tensor, y: Tensor) -> Tensor:
            stats.nfe_backward += 1
            return rhs(t, y)

        return replace(result, ys=_replay(counted, algorithm, result, problem.y0))


def _require_tableau(adjoint: AbstractODEAdjoint, algorithm: AbstractODEAlgorithm) -> None:
    if algorithm.tableau is None:
        raise ConfigError(
            f"{adjoint.name} takes the steps again in PyTorch, which has no tableau of {algorithm.name}; "
            "use GaussAdjoint() or BacksolveAdjoint()"
        )


def _replay(rhs: RightHandSide, algorithm: AbstractODEAlgorithm, result: Integration, y0: Tensor) -> list[Tensor]:
    """The saved states of a solve, its accepted steps taken again from y0."""
    scheme, steps, y, ys = scheme_for(algorithm), result.steps, y0, [y0]
    saves = iter([*steps.saves, (len(steps), 1.0)])
    index, fraction = next(saves)
    k_first = None
    for i, (t, h) in enumerate(zip(steps.starts, steps.sizes, strict=True)):
        inside = index == i and fraction != 1.0
        y_next, ks = scheme.step(rhs, t, h, y, k_first, last_stage=inside or i + 1 < len(steps))
        fractions = []
        while index == i:
            fractions.append(fraction)
            index, fraction = next(saves)
        ys += scheme.inside(y, y_next, h, ks, fractions)
        y, k_first = y_next, scheme.carried(ks)
    if len(ys) < len(result.ts):  # the solve stopped early: its last accepted state
        ys.append(y)
    return ys


@dataclass(frozen=True, kw_only=True)
class AbstractRecomputingAdjoint(AbstractODEAdjoint):
    """What the adjoints with a backward pass of their own share: solve without a graph, then `backward`."""

    keep_states = False

    def integrate(self, problem, algorithm, backend, stats):
        field = Field(problem, stats)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (problem.y0, *field.inputs))):
            with torch.no_grad():
                return field.integrate(backend, algorithm, field.evaluate_detached)
        self.check(algorithm)
        solve = _Solve(self, field, algorithm, backend, stats)
        saved = _Recomputed.apply(solve, problem.y0, *field.inputs)
        return replace(solve.result, ys=[problem.y0, *saved], states=[])

    def check(self, algorithm: AbstractODEAlgorithm) -> None:
        """Raise a ConfigError if solves by this algorithm cannot be differentiated in this way."""

    @abc.abstractmethod
    def backward(self, solve: _Solve, saved: list[Tensor], cotangents: list[Tensor | None]) -> list[Tensor]:
        """Gradients with respect to y0 and each of `solve.field.inputs`.

        Args:
            solve: what the forward pass knew.
            saved: the states at `solve.result.ts`, the first of them y0.
            cotangents: the loss's gradient with respect to each of them after the first, None for zero.
        """


@dataclass(eq=False)
class _Solve:
    """What the forward pass of a recomputing adjoint hands to its backward pass."""

    adjoint: AbstractRecomputingAdjoint
    field: Field
    algorithm: AbstractODEAlgorithm
    backend: AbstractBackend
    stats: Stats
    result: Integration | None = None


class _Recomputed(torch.autograd.Function):
    """The saved states of a solve as a function of y0 and the field's inputs."""

    @staticmethod
    def forward(ctx, solve: _Solve, y0: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        field = solve.field
        result = field.integrate(
            solve.backend, solve.algorithm, field.evaluate_detached, keep_states=solve.adjoint.keep_states
        )
        # Two saved states may be one tensor or views of one, and a kept state is often a saved one: autograd wants the
        # outputs distinct from each other and from the input, and we want no reference to them outside its care.
        saved, seen = [], {id(y0)}
        for y in result.ys[1:]:
            saved.append(y.clone() if id(y) in seen or y._is_view() else y)
            seen.add(id(y))
        states = [s.detach() for s in result.states]
        solve.result = replace(result, ys=[], states=states)
        ctx.solve = solve
        ctx.save_for_backward(y0, *saved)
        ctx.set_materialize_grads(False)
        return tuple(saved)

    @staticmethod
    def backward(ctx, *cotangents: Tensor | None):
        solve = ctx.solve
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack this solve
            raise ConfigError(f"{solve.adjoint.name} gives first derivatives only; use DirectAdjoint() for second ones")
        if all(c is None for c in cotangents):
            return (None,) * (2 + len(solve.field.inputs))
        started = time.perf_counter()
        grads = solve.adjoint.backward(solve, list(ctx.saved_tensors), list(cotangents))
        solve.stats.seconds_backward += time.perf_counter() - started
        return None, *grads


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more


@dataclass(frozen=True, kw_only=True)
class CheckpointAdjoint(AbstractRecomputingAdjoint):
    """The exact gradient of what was computed, one accepted step at a time.

    Only the state at the start of each accepted step is kept; the backward pass takes each step again, last one
    first, with a graph of its own. Equal to `DirectAdjoint` to rounding at every tolerance, and independent of the
    backend that found the steps.
    """

    keep_states = True

    def check(self, algorithm):
        _require_tableau(self, algorithm)

    def backward(self, solve, saved, cotangents):
        steps, scheme = solve.result.steps, scheme_for(solve.algorithm)
        args, wrt = solve.field.leaves()
        rhs = solve.field.replay(args)
        totals = [torch.zeros_like(w) for w in wrt]
        saves_of_step: dict[int, list[tuple[float, Tensor]]] = {}
        for (index, fraction), cotangent in zip(steps.saves, cotangents, strict=False):
            if cotangent is not None:
                saves_of_step.setdefault(index, []).append((fraction, cotangent))
        # A solve that stopped early also returns its last accepted state, at the end of its last step.
        last = cotangents[len(steps.saves)] if len(cotangents) > len(steps.saves) else None
        costate = last
        for index in reversed(range(len(steps))):
            saves = saves_of_step.get(index, [])
            for fraction, cotangent in saves:
                if fraction == 1.0:
                    costate = _add(costate, cotangent)
            inside = [(fraction, cotangent) for fraction, cotangent in saves if fraction != 1.0]
            if costate is None and not inside:
                continue
            h = steps.sizes[index]
            with torch.enable_grad():
                y = solve.result.states[index].detach().requires_grad_()
                y_next, ks = scheme.step(rhs, steps.starts[index], h, y, last_stage=bool(inside))
                outputs = scheme.inside(y, y_next, h, ks, [fraction for fraction, _ in inside])
            given = [cotangent for _, cotangent in inside]
            if costate is not None:
                outputs, given = [*outputs, y_next], [*given, costate]
            costate, *grads = gradients(outputs, [y, *wrt], given)
            for total, grad in zip(totals, grads, strict=True):
                total.add_(grad)
        return [torch.zeros_like(saved[0]) if costate is None else costate, *totals]


@dataclass(frozen=True, kw_only=True)
class AbstractContinuousAdjoint(AbstractRecomputingAdjoint):
    """Adjoints that integrate the adjoint equation da/dt = -a^T df/dy backwards beside the state.

    Between two save times the state is integrated backwards from the later one, which is known.

    Attributes:
        algorithm: for the backward solve; None: the forward solve's, unobserved. A norm of its own is given state,
            costate and, with `BacksolveAdjoint`, all gradients as one flat vector.
    """

    algorithm: AbstractODEAlgorithm | None = None

    def backward(self, solve, saved, cotangents):
        times = solve.result.ts
        costate = None
        totals = [torch.zeros_like(i) for i in solve.field.inputs]
        for i in reversed(range(1, len(times))):
            costate = _add(costate, cotangents[i - 1])
            if costate is not None:
                costate, totals = self.segment(solve, times[i], times[i - 1], saved[i], costate, totals)
        return [torch.zeros_like(saved[0]) if costate is None else costate, *totals]

    @abc.abstractmethod
    def segment(
        self, solve: _Solve, t1: float, t0: float, y1: Tensor, costate: Tensor, totals: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """From t1 back to t0: the costate at t0, and the inputs' gradients with this segment added."""

    def _integrate(self, solve: _Solve, rhs, y: Tensor, ts: tuple[float, ...], norm: ErrorNorm) -> list[Tensor]:
        algorithm = self.algorithm or replace(solve.algorithm, observer=None)
        jumps = solve.field.discontinuities
        result = solve.backend.integrate(rhs, y, ts, algorithm, error_norm=norm, discontinuities=jumps)
        if not result.status.ok:
            raise SolveError(f"the backward solve of {self.name} failed: {result.message}; or use CheckpointAdjoint()")
        return result.ys

    def _norm(self, solve: _Solve, layout: Layout, watched: int) -> ErrorNorm:
        """Of state, costate and gradients as one flat vector, of which the first `watched` parts count.

        That of the backward algorithm where it has one of its own; else the state and the costate are each measured
        as the forward solve measures the state.
        """
        own, forward = _norm_of(self.algorithm), _norm_of(solve.algorithm)
        if own != ErrorNorm():
            return own
        parts = [part for part in layout.parts[:watched] if part[1] > part[0]]
        if forward.function is not None:

            def largest(flat: Tensor) -> float:
                both = [float(forward.function(x)) for x in layout.unpack(flat, 2)]
                rest = [float(torch.linalg.vector_norm(flat[i:j])) / (j - i) ** 0.5 for i, j in parts[2:]]
                return max(both + rest)

            return ErrorNorm(function=largest)
        if forward.parts is not None:
            within = [(start + i, start + j) for start, _ in layout.parts[:2] for i, j in forward.parts]
            parts = within + parts[2:]
        return ErrorNorm(tuple(parts))


def _norm_of(algorithm: AbstractODEAlgorithm | None) -> ErrorNorm:
    return algorithm.norm if isinstance(algorithm, AbstractErrorControlled) else ErrorNorm()


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

    def segment(self, solve, t1, t0, y1, costate, totals):
        layout = Layout([y1, costate, *totals])
        dtype = y1.dtype

        def rhs(t: Tensor, flat: Tensor) -> Tensor:
            y, a = layout.unpack(flat, 2)
            dy, grads = solve.field.vjp(t, y, a, inputs=True)
            return layout.pack([dy, *(g.neg() for g in grads)], dtype)

        norm = self._norm(solve, layout, 2 if self.seminorm else len(layout.parts))
        flat = layout.pack([y1, costate, *totals], dtype)
        end = self._integrate(solve, rhs, flat, (t1, t0), norm)[-1]
        _, costate, *ends = layout.unpack(end)
        # In a complex state the real gradients of real tensors travel as complex numbers.
        ends = [e if total.is_complex() or not e.is_complex() else e.real for e, total in zip(ends, totals, strict=True)]
        return costate, [e.to(total.dtype) for e, total in zip(ends, totals, strict=True)]


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

    def segment(self, solve, t1, t0, y1, costate, totals):
        points, weights = self._quadrature(solve, t1, t0)
        layout = Layout([y1, costate])

        def rhs(t: Tensor, flat: Tensor) -> Tensor:
            y, a = layout.unpack(flat)
            dy, (grad,) = solve.field.vjp(t, y, a, inputs=False)
            return layout.pack([dy, grad.neg()], y1.dtype)

        flat = layout.pack([y1, costate], y1.dtype)
        states = self._integrate(solve, rhs, flat, (t1, *points, t0), self._norm(solve, layout, 2))
        if totals:
            for t, weight, state in zip(points, weights, states[1:-1], strict=True):
                y, a = layout.unpack(state)
                time_of_node = torch.full((), t, dtype=y.dtype, device=y.device)
                _, (_, *grads) = solve.field.vjp(time_of_node, y, a, inputs=True)
                for total, grad in zip(totals, grads, strict=True):
                    total.add_(grad, alpha=weight)
        return layout.unpack(states[-1])[1], totals

    def _quadrature(self, solve: _Solve, t1: float, t0: float) -> tuple[list[float], list[float]]:
        """Nodes from t1 back to t0 and their weights, those of each forward step's part of that interval."""
        steps = solve.result.steps
        order = solve.algorithm.order
        low, high = min(t0, t1), max(t0, t1)
        inner = {start for start in steps.starts if low < start < high}
        edges = sorted({t0, t1, *inner}, reverse=t1 > t0)
        x, w = np.polynomial.legendre.leggauss(self.nodes or (order + 2) // 2)
        points, weights = [], []
        for a, b in itertools.pairwise(edges):
            points += [a + (b - a) * (1 + node) / 2 for node in x.tolist()]
            # The integral runs forward in the solve's own direction, from t0 to t1: hence (a - b).
            weights += [(a - b) / 2 * weight for weight in w.tolist()]
        return points, weights


ODE_ADJOINTS: dict[str, type[AbstractODEAdjoint]] = {
    "direct": DirectAdjoint,
    "checkpoint": CheckpointAdjoint,
    "backsolve": BacksolveAdjoint,
    "gauss": GaussAdjoint,
}


def ode_adjoint(name: str) -> AbstractODEAdjoint:
    """The adjoint of a name such as "checkpoint".

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in ODE_ADJOINTS:
        raise ConfigError(f"unknown adjoint {name!r}; {did_you_mean(name, ODE_ADJOINTS)}")
    return ODE_ADJOINTS[name]()
