"""Gradients of ODE solves with respect to the initial state, the arguments and the parameters.

| adjoint | gradient of | keeps | cost beyond one forward and backward evaluation per stage |
|---|---|---|---|
| `DirectAdjoint` | the computed solution | every evaluation's graph | none |
| `CheckpointAdjoint` | the computed solution, to rounding the same | the accepted states | one forward evaluation |
| `BacksolveAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve |
| `GaussAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve and a quadrature |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from homojl.adjoints.base import AbstractODEAdjoint, AbstractRecomputingAdjoint, Solve
from homojl.adjoints.checkpoints import states_backwards
from homojl.adjoints.continuous import BacksolveAdjoint, GaussAdjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.base import Integration
from homojl.backends.pytorch.record import Replay
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.names import did_you_mean

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class DirectAdjoint(AbstractODEAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed, step sizes held constant.

    Memory grows with the number of evaluations. Gradients reach every tensor the field uses, listed or not, and
    may be differentiated again. Where another backend than PyTorch solves, or every sample has steps of its own, and a
    gradient may be wanted, PyTorch takes the accepted steps once more to record their operations, and those states are
    returned.
    """

    through_solve: ClassVar[bool] = True

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        f = solve.f
        if solve.backend.records and not solve.each:
            f.counting = torch.is_grad_enabled()
            return solve.run(y0)
        if not torch.is_grad_enabled():
            return solve.run(y0)
        if solve.each and (whole := solve.whole(y0)) is not None:
            return whole
        recorded = f.depends(*solve.start(y0)) or y0.requires_grad
        if recorded:
            _require_tableau(self, solve.algorithm)
        with torch.no_grad():
            result = solve.run(y0)
        if not recorded:
            return result
        return self.recorded(solve, result, y0)

    @staticmethod
    def recorded(solve: Solve, result: Integration, y0: Tensor) -> Integration:
        """The same solve with the graph of its accepted steps, in the present grad mode."""
        f = solve.f
        f.counting, calls = True, f.calls
        starts, ys = solve.replay(f, result, y0).whole(y0, len(result.ys) - 1)
        f.stats.nfe_backward += f.calls - calls
        rounds = result.record.rounds
        if solve.keep_states:
            rounds = [taken._replace(y=y) for taken, y in zip(rounds, starts, strict=True)]
        return replace(result, ys=[y0, *ys], record=replace(result.record, rounds=rounds))


def _require_tableau(adjoint: AbstractODEAdjoint, algorithm: AbstractODEAlgorithm) -> None:
    if algorithm.tableau is None:
        raise ConfigError(
            f"{adjoint.name} takes the steps again in PyTorch, which has no tableau of {algorithm.name}; "
            "use GaussAdjoint() or BacksolveAdjoint()"
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointAdjoint(AbstractRecomputingAdjoint):
    """The exact gradient of what was computed, one accepted step at a time.

    Only the state at the start of each accepted step is kept; the backward pass takes each step again, last one
    first, with a graph of its own. Equal to `DirectAdjoint` to rounding at every tolerance, and independent of the
    backend that found the steps. With `create_graph=True` all steps are taken again in one graph.

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
    def keeps_states(self) -> bool:
        return self.max_states is None

    def check(self, algorithm: AbstractODEAlgorithm) -> None:
        _require_tableau(self, algorithm)

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        if torch.is_grad_enabled() and self.keeps_states and (whole := solve.whole(y0)) is not None:
            return whole
        return super().integrate(solve, y0)

    def backward(
        self,
        solve: Solve,
        result: Integration,
        f: VectorField,
        wrt: Sequence[Tensor],
        saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        replay = solve.replay(f, result, saved[0])
        return replay.backwards(self._starts(result, replay, saved[0], cotangents), wrt, saved[1:], cotangents)

    def _starts(
        self, result: Integration, replay: Replay, y0: Tensor, cotangents: Sequence[Tensor | None]
    ) -> Iterator[tuple[int, Tensor]]:
        """The numbers of the rounds that the gradient goes through and the states they start from, last one first."""
        rounds = result.record.rounds
        wanted = {i for i, c in enumerate(cotangents) if c is not None}
        count = len(rounds)
        if result.record.layout is None and result.record.held is None:
            count = 1 + max((i for i, taken in enumerate(rounds) if wanted & set(taken.saves)), default=-1)
        if count and rounds[0].y is not None:
            return ((i, y) for i in reversed(range(count)) if (y := rounds[i].y) is not None)
        return states_backwards(torch.no_grad()(replay.states_from), y0.detach(), count, self.max_states or count or 1)

    def backward_again(self, solve: Solve, result: Integration, f: VectorField, y0: Tensor) -> list[Tensor]:
        return solve.replay(f, result, y0).whole(y0, len(result.ts) - 1)[1]


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
