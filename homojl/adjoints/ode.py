"""Gradients of ODE solves with respect to the initial state, the arguments and the parameters.

| adjoint | gradient of | keeps | cost beyond one forward and backward evaluation per stage |
|---|---|---|---|
| `DirectAdjoint` | the computed solution | every evaluation's graph | none |
| `CheckpointAdjoint` | the computed solution, to rounding the same | the accepted states | one forward evaluation |
| `BacksolveAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve |
| `GaussAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve and a quadrature |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from homojl.adjoints.checkpoints import states_backwards
from homojl.adjoints.continuous import BacksolveAdjoint, GaussAdjoint
from homojl.adjoints.field import Field
from homojl.adjoints.inputs import gradients
from homojl.adjoints.recomputing import AbstractODEAdjoint, AbstractRecomputingAdjoint, Solve, add
from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.base import AbstractBackend, Integration, RightHandSide
from homojl.backends.pytorch.schemes import AbstractScheme, scheme_for
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DirectAdjoint(AbstractODEAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed, step sizes held constant.

    Memory grows with the number of evaluations. Gradients reach every tensor the field uses, listed or not, and
    may be differentiated again. Where another backend than PyTorch solves, and a gradient may be wanted, PyTorch takes
    the accepted steps once more to record their operations, and those states are returned.
    """

    def integrate(
        self,
        problem: ODEProblem,
        algorithm: AbstractODEAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
        *,
        keep_states: bool = False,
    ) -> Integration:
        field = Field(problem, stats)

        def count(_: Tensor) -> None:
            stats.n_vjp += 1

        def rhs(t: Tensor, y: Tensor) -> Tensor:
            dy = field.evaluate(t, y)
            if dy.requires_grad:
                dy.register_hook(count)
            return dy

        if backend.records:
            return field.integrate(backend, algorithm, rhs, keep_states=keep_states)
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
            result = field.integrate(backend, algorithm, evaluate, keep_states=keep_states)
        if not wanted:
            return result
        _require_tableau(self, algorithm)

        def counted(t: Tensor, y: Tensor) -> Tensor:
            stats.nfe_backward += 1
            return rhs(t, y)

        states, ys = _replay(counted, scheme_for(algorithm, field.jvp), result, problem.y0)
        return replace(result, ys=ys, states=states if keep_states else [])


def _require_tableau(adjoint: AbstractODEAdjoint, algorithm: AbstractODEAlgorithm) -> None:
    if algorithm.tableau is None:
        raise ConfigError(
            f"{adjoint.name} takes the steps again in PyTorch, which has no tableau of {algorithm.name}; "
            "use GaussAdjoint() or BacksolveAdjoint()"
        )


def _replay(
    rhs: RightHandSide, scheme: AbstractScheme, result: Integration, y0: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The states at which a solve's accepted steps start and the saved ones, the steps taken again from y0."""
    steps, y, ys, states = result.steps, y0, [y0], []
    saves = iter([*steps.saves, (len(steps), 1.0)])
    index, fraction = next(saves)
    k_first = None
    for i, (t, h) in enumerate(zip(steps.starts, steps.sizes, strict=True)):
        inside = index == i and fraction != 1.0
        y_next, ks = scheme.step(rhs, t, h, y, k_first, last_stage=inside or i + 1 < len(steps))
        states.append(y)
        fractions = []
        while index == i:
            fractions.append(fraction)
            index, fraction = next(saves)
        ys += scheme.inside(y, y_next, h, ks, fractions)
        y, k_first = y_next, scheme.carried(ks)
    if len(ys) < len(result.ts):  # the solve stopped early: its last accepted state
        ys.append(y)
    return states, ys


@dataclass(frozen=True, kw_only=True)
class CheckpointAdjoint(AbstractRecomputingAdjoint):
    """The exact gradient of what was computed, one accepted step at a time.

    Only the state at the start of each accepted step is kept; the backward pass takes each step again, last one
    first, with a graph of its own. Equal to `DirectAdjoint` to rounding at every tolerance, and independent of the
    backend that found the steps.

    With `max_states` the solve keeps none of them, and the backward pass takes the n steps again from y0 as often as
    it must, in the order that needs the fewest: less than r times each beside the once with a graph, where r is the
    first number for which C(max_states + 1 + r, r) is at least n. With 30 states that is r = 2 up to 528 steps, 3 up
    to 5,984 and 4 up to 52,360. The gradient is the same, bit for bit where PyTorch found the steps.

    Attributes:
        max_states: most states to keep beside y0 and the one at work; None: all.
    """

    max_states: int | None = None

    def __post_init__(self) -> None:
        if self.max_states is not None and self.max_states < 1:
            raise ConfigError(f"max_states must be at least 1, got {self.max_states}")

    @property
    def keep_states(self) -> bool:
        return self.max_states is None

    def check(self, algorithm: AbstractODEAlgorithm) -> None:
        _require_tableau(self, algorithm)

    def _states(
        self, solve: Solve, scheme: AbstractScheme, rhs: RightHandSide, y0: Tensor, count: int
    ) -> Iterator[tuple[int, Tensor]]:
        """The first `count` steps' numbers and states at their start, last one first."""
        if self.max_states is None or solve.keep_states:
            return ((index, solve.result.states[index]) for index in reversed(range(count)))
        steps, jumps = solve.result.steps, solve.field.discontinuities

        @torch.no_grad()
        def advance(y: Tensor, start: int, stop: int) -> Tensor:
            k_first = None
            for i in range(start, stop):
                y, ks = scheme.step(rhs, steps.starts[i], steps.sizes[i], y, k_first, last_stage=i + 1 < stop)
                if i + 1 < stop:
                    low, high = sorted(steps.starts[i : i + 2])
                    jumped = any(low <= t <= high for t in jumps)  # the solve evaluated the field anew there
                    k_first = None if jumped else scheme.carried(ks)
            return y

        return states_backwards(advance, y0.detach(), count, self.max_states)

    def backward(self, solve: Solve, saved: list[Tensor], cotangents: list[Tensor | None]) -> list[Tensor]:
        steps, scheme = solve.result.steps, scheme_for(solve.algorithm, solve.field.jvp)
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
        count = len(steps) if last is not None else max(saves_of_step, default=-1) + 1
        for index, y in self._states(solve, scheme, rhs, saved[0], count):
            saves = saves_of_step.get(index, [])
            for fraction, cotangent in saves:
                if fraction == 1.0:
                    costate = add(costate, cotangent)
            inside = [(fraction, cotangent) for fraction, cotangent in saves if fraction != 1.0]
            h = steps.sizes[index]
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                y_next, ks = scheme.step(rhs, steps.starts[index], h, y, last_stage=bool(inside))
                outputs = scheme.inside(y, y_next, h, ks, [fraction for fraction, _ in inside])
            given = [cotangent for _, cotangent in inside]
            if costate is not None:
                outputs, given = [*outputs, y_next], [*given, costate]
            costate, *grads = gradients(outputs, [y, *wrt], given)
            for total, grad in zip(totals, grads, strict=True):
                total.add_(grad)
        return [torch.zeros_like(saved[0]) if costate is None else costate, *totals]


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
