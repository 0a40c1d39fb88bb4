"""What every adjoint of an ODE solve is, and what those with a backward pass of their own share."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from homojl.algorithms import (
    AbstractErrorControlled,
    AbstractODEAlgorithm,
    ErrorNorm,
    with_first_step,
)
from homojl.backends.base import AbstractBackend, EventCondition, Integration, Task, note_first_step
from homojl.backends.pytorch.record import Record, Replay, Round
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import on, time_like
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.functions.products import gradients
from homojl.functions.user import UserFunction
from homojl.solution import Status

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Solve:
    """One ODE solve: what is solved, how and where.

    Attributes:
        f, ts, event, jumps: of the problem.
        algorithm, backend: how and where.
        keep_states: whether the states at which the steps start are asked for.
        each: whether every sample has steps of its own.
        starts: the times from which they go on, (B,); None: all from ts[0].
    """

    f: VectorField
    ts: tuple[float, ...]
    algorithm: AbstractODEAlgorithm
    backend: AbstractBackend
    event: EventCondition | None = None
    jumps: tuple[float, ...] = ()
    keep_states: bool = False
    each: bool = False
    starts: np.ndarray | None = None

    def run(self, y0: Tensor, *, keep_states: bool = False) -> Integration:
        """Integrate, in the present grad mode; the algorithm's `StepMemory` is asked, and told."""
        result = self.backend.integrate(self.task(keep_states=keep_states or self.keep_states), y0)
        note_first_step(self.algorithm, self.ts, result)
        self.f.finish()
        return result

    def whole(self, y0: Tensor) -> Integration | None:
        """`run` with a gradient of the backend's own that evaluates again; None: it has none."""
        if self.event is not None or self.jumps or self.keep_states or self.starts is not None:
            return None
        result = self.backend.integrate_whole(self.task(), y0, recompute=True)
        if result is not None:
            note_first_step(self.algorithm, self.ts, result)
            self.f.finish()
        return result

    def task(self, *, keep_states: bool = False) -> Task:
        """What the backend is given."""
        algorithm = with_first_step(self.algorithm, self.ts)
        norm = algorithm.norm if isinstance(algorithm, AbstractErrorControlled) else ErrorNorm()
        return Task(self.f, self.ts, algorithm, norm, keep_states, self.event, self.jumps, self.each, self.starts)

    def replay(self, f: VectorField, result: Integration, y0: Tensor) -> Replay:
        """The accepted steps, to be taken again from another field."""
        return Replay(result.record, stepper_for(self.algorithm), f, y0)

    def start(self, y0: Tensor) -> tuple[Tensor, Tensor]:
        """The time and the state of the first evaluation."""
        if not self.each:
            return time_like(self.ts[0], y0), y0
        starts = np.full(len(y0), self.ts[0]) if self.starts is None else self.starts
        return on(y0, starts).view(-1, *[1] * (y0.ndim - 1)), y0


@dataclass(frozen=True, kw_only=True)
class AbstractODEAdjoint(abc.ABC):
    """Base of every way to differentiate an ODE solve.

    Attributes:
        through_solve: whether gradients pass through the operations of the solve, where PyTorch does it.
    """

    through_solve: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        """Integrate; the returned states carry gradients where any are wanted."""


@dataclass(frozen=True, kw_only=True)
class AbstractRecomputingAdjoint(AbstractODEAdjoint):
    """What the adjoints with a backward pass of their own share: solve without a graph, then `backward`.

    Attributes:
        keeps_start: whether the backward pass looks at f's value at the start of the solve.
    """

    keeps_start: ClassVar[bool] = False

    def check(self, algorithm: AbstractODEAlgorithm) -> None:
        """Raise a ConfigError if solves by this algorithm cannot be differentiated in this way."""

    @property
    def keeps_states(self) -> bool:
        """Whether the backward pass needs the states at which the steps start."""
        return False

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        if not torch.is_grad_enabled():
            return solve.run(y0)
        f = solve.f
        f.probe(*solve.start(y0), instead="DirectAdjoint()", keep=self.keeps_start)
        if not (y0.requires_grad or f.inputs):
            with torch.no_grad():
                return solve.run(y0)
        self.check(solve.algorithm)
        job = _Job(self, solve)
        saved = _Recomputed.apply(job, y0, *f.tensors)
        result, rounds = dataclasses.replace(job.result, ys=[y0, *saved]), job.kept
        job.kept = None
        if rounds is not None:
            result = dataclasses.replace(result, record=dataclasses.replace(result.record, rounds=rounds))
        return result

    @abc.abstractmethod
    def backward(
        self,
        solve: Solve,
        result: Integration,
        f: VectorField,
        wrt: Sequence[Tensor],
        saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients with respect to y0 and each of `wrt`; None for zero.

        Args:
            solve, result: the forward solve, and its result.
            f, wrt: the field at the tensors of the solve, and those of them that receive gradients.
            saved: the states at `result.ts`, the first of them y0.
            cotangents: the loss's gradient with respect to each of them after the first, None for zero.
        """

    def backward_again(self, solve: Solve, result: Integration, f: VectorField, y0: Tensor) -> list[Tensor]:
        """The saved states after the first with a graph, for gradients that are to be differentiated again."""
        raise ConfigError(f"{self.name} gives first derivatives only; use DirectAdjoint() for second ones")


@dataclass(frozen=True, kw_only=True)
class EmptyAdjoint(AbstractODEAdjoint):
    """Of a state without elements, as of a batch of size zero: nothing is evaluated, and all gradients are zero."""

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        ys = [y0, *(of_nothing(solve.f, y0) for _ in solve.ts[1:])]
        return Integration(solve.ts, ys, Record(), Status.SUCCESS, "", 0, 0)


def of_nothing(f: UserFunction, y0: Tensor) -> Tensor:
    """A state without elements as what f's solve comes to: a function of all that f depends on."""
    wanted = [x for x in f.held() if x.requires_grad]
    if not torch.is_grad_enabled():
        return y0.detach()
    for x in wanted:
        nothing = x.flatten()[:0].sum()
        nothing = nothing.real if x.is_complex() and not y0.is_complex() else nothing
        y0 = y0 + nothing.to(y0.device, y0.dtype)
    return y0


@dataclass(eq=False)
class _Job:
    """What the forward pass hands to the backward pass."""

    adjoint: AbstractRecomputingAdjoint
    solve: Solve
    result: Integration = dataclasses.field(init=False)  # once autograd has run the forward pass
    kept: list[Round] | None = None  # the rounds with their states, for a solution that was asked to keep them


class _Recomputed(torch.autograd.Function):
    """The saved states of a solve as a function of y0 and of all tensors that the field depends on."""

    @staticmethod
    def forward(ctx: Any, job: _Job, y0: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        result = job.solve.run(y0, keep_states=job.adjoint.keeps_states)
        # Two saved states may be one tensor or views of one, and a kept state is often a saved one: autograd wants the
        # outputs distinct from each other and from the input.
        saved, seen = [], {id(y0)}
        for y in result.ys[1:]:
            saved.append(y.clone() if id(y) in seen or y._is_view() else y)
            seen.add(id(y))
        rounds = result.record.rounds
        states = [taken.y for taken in rounds if taken.y is not None]
        # Nothing but autograd keeps tensors, so that it sees whether they change, and its hooks may pack them.
        record = dataclasses.replace(result.record, rounds=[taken._replace(y=None) for taken in rounds])
        job.kept = rounds if job.solve.keep_states else None
        job.result = dataclasses.replace(result, ys=[], record=record)
        # The graph must not hold the module whose field was solved, which may hold the solution.
        job.solve = dataclasses.replace(job.solve, f=job.solve.f.frozen(), event=None)
        ctx.job, ctx.counts = job, (len(tensors), len(saved), len(states))
        ctx.save_for_backward(y0, *job.solve.f.to_save(tensors), *saved, *states)
        ctx.set_materialize_grads(False)
        return tuple(saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        job, (n_tensors, n_saved, n_states) = ctx.job, ctx.counts
        if all(c is None for c in cotangents):
            return (None,) * (2 + n_tensors)
        started = time.perf_counter()
        y0, *rest = ctx.saved_tensors
        solve, adjoint, result = job.solve, job.adjoint, job.result
        states, rest = rest[len(rest) - n_states :], rest[: len(rest) - n_states]
        tensors, saved = solve.f.restored(rest[: len(rest) - n_saved]), rest[len(rest) - n_saved :]
        twice = torch.is_grad_enabled()  # create_graph=True
        f, wrt = solve.f.again(tensors, twice=twice)
        if twice:
            y0 = y0.view_as(y0)
            again = adjoint.backward_again(solve, result, f, y0)
            pairs = [(y, c) for y, c in zip(again, cotangents, strict=True) if c is not None]
            before, *grads = gradients([y for y, _ in pairs], [y0, *wrt], [c for _, c in pairs], again=True)
        else:
            if states:
                rounds = [taken._replace(y=y) for taken, y in zip(result.record.rounds, states, strict=True)]
                result = dataclasses.replace(result, record=dataclasses.replace(result.record, rounds=rounds))
            before, grads = adjoint.backward(solve, result, f, wrt, [y0, *saved], cotangents)
        f.add_counts()
        solve.f.stats.nfe_backward += f.calls
        solve.f.stats.seconds_backward += time.perf_counter() - started
        return None, before, *solve.f.spread(grads, tensors)


def add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
