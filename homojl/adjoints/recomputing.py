"""What every adjoint of an ODE solve is, and what those with a backward pass of their own share."""

from __future__ import annotations

import abc
import dataclasses
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from homojl.adjoints.field import Field
from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.base import AbstractBackend, Integration
from homojl.errors import ConfigError
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
        self,
        problem: ODEProblem,
        algorithm: AbstractODEAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
        *,
        keep_states: bool = False,
    ) -> Integration:
        """Integrate the problem on the backend; the returned states carry gradients where any are wanted.

        With `keep_states` those at which the steps start are returned too; with `DirectAdjoint` they carry gradients.
        """


@dataclass(frozen=True, kw_only=True)
class AbstractRecomputingAdjoint(AbstractODEAdjoint):
    """What the adjoints with a backward pass of their own share: solve without a graph, then `backward`."""

    @property
    def keep_states(self) -> bool:
        """Whether the backward pass needs the states at which the steps start."""
        return False

    def integrate(
        self,
        problem: ODEProblem,
        algorithm: AbstractODEAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
        *,
        keep_states: bool = False,
    ) -> Integration:
        f = Field(problem, stats)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (problem.y0, *f.inputs))):
            with torch.no_grad():
                return f.integrate(backend, algorithm, f.evaluate_detached, keep_states=keep_states)
        self.check(algorithm)
        solve = Solve(self, f, algorithm, backend, stats, keep_states or self.keep_states)
        saved = _Recomputed.apply(solve, problem.y0, *f.inputs)
        return replace(solve.result, ys=[problem.y0, *saved], states=solve.result.states if keep_states else [])

    def check(self, algorithm: AbstractODEAlgorithm) -> None:
        """Raise a ConfigError if solves by this algorithm cannot be differentiated in this way."""

    @abc.abstractmethod
    def backward(self, solve: Solve, saved: list[Tensor], cotangents: list[Tensor | None]) -> list[Tensor]:
        """Gradients with respect to y0 and each of `solve.field.inputs`.

        Args:
            solve: what the forward pass knew.
            saved: the states at `solve.result.ts`, the first of them y0.
            cotangents: the loss's gradient with respect to each of them after the first, None for zero.
        """


@dataclass(eq=False)
class Solve:
    """What the forward pass of a recomputing adjoint hands to its backward pass."""

    adjoint: AbstractRecomputingAdjoint
    field: Field
    algorithm: AbstractODEAlgorithm
    backend: AbstractBackend
    stats: Stats
    keep_states: bool
    result: Integration = dataclasses.field(init=False)  # once autograd has run the forward pass


class _Recomputed(torch.autograd.Function):
    """The saved states of a solve as a function of y0 and the field's inputs."""

    @staticmethod
    def forward(ctx: Any, solve: Solve, y0: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        f = solve.field
        result = f.integrate(solve.backend, solve.algorithm, f.evaluate_detached, keep_states=solve.keep_states)
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
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        solve = ctx.solve
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack this solve
            raise ConfigError(f"{solve.adjoint.name} gives first derivatives only; use DirectAdjoint() for second ones")
        if all(c is None for c in cotangents):
            return (None,) * (2 + len(solve.field.inputs))
        started = time.perf_counter()
        grads = solve.adjoint.backward(solve, list(ctx.saved_tensors), list(cotangents))
        solve.stats.seconds_backward += time.perf_counter() - started
        return None, *grads


def add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
