"""Gradients of ODE solves with respect to the initial state, the arguments and the parameters.

| adjoint | gradient of | keeps | cost beyond one forward and backward evaluation per stage |
|---|---|---|---|
| `DirectAdjoint` | the computed solution | every evaluation's graph | none |
| `CheckpointAdjoint` | the computed solution, to rounding the same | the accepted states | one forward evaluation |
| `BacksolveAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve |
| `GaussAdjoint` | the exact solution, to the tolerance | the saved states | a backward solve and a quadrature |

The last two are in `continuous`.
"""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from homojl.adjoints.checkpoints import states_backwards
from homojl.algorithms import memory_of, with_first_step
from homojl.backends.base import AbstractBackend, Integration, Task, note_first_step
from homojl.backends.pytorch.record import Record, Replay
from homojl.backends.pytorch.steps import on, time_like
from homojl.errors import ConfigError
from homojl.functions import UserFunction, VectorField
from homojl.functions.products import gradients
from homojl.solution import Status

Tensor = torch.Tensor
Grads = list[Tensor | None]


@dataclass(frozen=True, eq=False)
class Solve(Task):
    """A task, and who integrates it.

    Attributes:
        backend: that.
    """

    f: VectorField
    backend: AbstractBackend = field(kw_only=True)

    def run(self, y0: Tensor) -> Integration:
        """Integrate, in the present grad mode."""
        result = self._remembering(self.backend.integrate, y0)
        assert result is not None, self.backend
        return result

    def whole(self, y0: Tensor) -> Integration | None:
        """The same with the backend's own gradient, which evaluates again; None: it has none."""
        if self.event is not None or self.jumps or self.keep_states or self.starts is not None:
            return None
        return self._remembering(self.backend.integrate_whole, y0)

    def _remembering(self, integrate: Callable[[Task, Tensor], Integration | None], y0: Tensor) -> Integration | None:
        """Integrate; the algorithm's `StepMemory` is asked, and told."""
        task, memory = self, memory_of(self.algorithm)
        if memory is not None:
            task = self.but(algorithm=with_first_step(self.algorithm, self.ts))
        result = integrate(task, y0)
        if result is not None:
            if memory is not None:
                note_first_step(memory, self.ts, result)
            self.f.finish()
        return result

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
        name: for messages and statistics.
        through_solve: whether gradients pass through the operations of the solve, where PyTorch does it.
        retakes: whether PyTorch takes the accepted steps again.
    """

    name: ClassVar[str]
    through_solve: ClassVar[bool] = False
    retakes: ClassVar[bool] = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__name__

    @abc.abstractmethod
    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        """Integrate; the returned states carry gradients where any are wanted."""

    def check(self, solve: Solve) -> None:
        """Raise a ConfigError if solves by this algorithm cannot be differentiated in this way."""
        if self.retakes and solve.algorithm.tableau is None:
            raise ConfigError(
                f"{self.name} takes the steps again in PyTorch, which has no tableau of {solve.algorithm.name}; "
                "use GaussAdjoint() or BacksolveAdjoint()"
            )


@dataclass(frozen=True, kw_only=True)
class NoAdjoint(AbstractODEAdjoint):
    """Values alone, of samples that are solved in Julia."""

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (y0, *solve.f.arguments.tensors)):
            raise ConfigError(
                f"batch='per-sample' with a {type(solve.f.f).__name__} gives values, and no gradients: solve under "
                "torch.no_grad()"
            )
        return solve.run(y0)


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


@dataclass(frozen=True, kw_only=True)
class DirectAdjoint(AbstractODEAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed, step sizes held constant.

    Memory grows with the number of evaluations. Gradients reach every tensor the field uses, listed or not, and
    may be differentiated again. Where another backend than PyTorch solves, or every sample has steps of its own, and a
    gradient may be wanted, PyTorch takes the accepted steps once more to record their operations, and those states are
    returned.
    """

    through_solve: ClassVar[bool] = True
    retakes: ClassVar[bool] = True

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        recording = torch.is_grad_enabled()
        if not recording or (solve.backend.records and not solve.each):
            solve.f.counting = recording
            return solve.run(y0)
        if solve.each and (whole := solve.whole(y0)) is not None:
            return whole
        recorded = solve.f.depends(*solve.start(y0)) or y0.requires_grad
        if recorded:
            self.check(solve)
        with torch.no_grad():
            result = solve.run(y0)
        return self.recorded(solve, result, y0) if recorded else result

    @staticmethod
    def recorded(solve: Solve, result: Integration, y0: Tensor) -> Integration:
        """The same solve with the graph of its accepted steps, in the present grad mode."""
        f = solve.f
        f.counting, calls = True, f.calls
        starts, ys = Replay(result.record, solve.algorithm, f, y0).whole(y0, len(result.ys) - 1)
        f.stats.nfe_backward += f.calls - calls
        result.ys = [y0, *ys]
        result.record.states = starts if solve.keep_states else None
        return result


@dataclass(frozen=True, kw_only=True)
class AbstractRecomputingAdjoint(AbstractODEAdjoint):
    """What the adjoints with a backward pass of their own share: solve without a graph, then `backward`.

    Attributes:
        keeps_start: whether the backward pass looks at f's value at the start of the solve.
    """

    keeps_start: ClassVar[bool] = False

    @property
    def keeps_states(self) -> bool:
        """Whether the backward pass needs the states at which the steps start."""
        return False

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        if not torch.is_grad_enabled():
            return solve.run(y0)
        f, keeps_states = solve.f, self.keeps_states
        if keeps_states and (whole := solve.whole(y0)) is not None:
            return whole
        f.probe(*solve.start(y0), instead="DirectAdjoint()", keep=self.keeps_start)
        if not (y0.requires_grad or f.inputs):
            with torch.no_grad():
                return solve.run(y0)
        self.check(solve)
        found: list[Integration] = []
        saved = _Recomputed.apply(self, solve.but(keep_states=solve.keep_states or keeps_states), found, y0, *f.tensors)
        (result,) = found
        result.ys = [y0, *saved]
        if not solve.keep_states:
            result.record.states = None
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
    ) -> tuple[Tensor | None, Grads]:
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


class _Recomputed(torch.autograd.Function):
    """The saved states of a solve as a function of y0 and of all tensors that the field depends on.

    Nothing but autograd keeps tensors, so that it sees whether they change, and its hooks may pack them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: AbstractRecomputingAdjoint,
        solve: Solve,
        found: list[Integration],
        y0: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        result = solve.run(y0)
        found.append(result)
        # Two saved states may be one tensor or views of one, and a kept state is often a saved one: autograd wants the
        # outputs distinct from each other and from the input.
        saved, seen = [], {id(y0)}
        for y in result.ys[1:]:
            saved.append(y.clone() if id(y) in seen or y._is_view() else y)
            seen.add(id(y))
        states, record = result.record.states or [], copy.copy(result.record)
        record.states = None
        ctx.result = replace(result, ys=[], record=record)
        # The graph must not hold the module whose field was solved, which may hold the solution.
        ctx.adjoint, ctx.solve = adjoint, solve.but(f=solve.f.frozen(), event=None)
        ctx.counts = len(tensors), len(saved), len(states)
        ctx.save_for_backward(y0, *solve.f.to_save(tensors), *saved, *states)
        ctx.set_materialize_grads(False)
        return tuple(saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        n_tensors, n_saved, n_states = ctx.counts
        if all(c is None for c in cotangents):
            return (None,) * (4 + n_tensors)
        started = time.perf_counter()
        adjoint, solve, (y0, *rest) = ctx.adjoint, ctx.solve, ctx.saved_tensors
        last = len(rest) - n_states
        tensors, saved, states = solve.f.restored(rest[: last - n_saved]), rest[last - n_saved : last], rest[last:]
        twice = torch.is_grad_enabled()  # create_graph=True
        f, wrt = solve.f.again(tensors, twice=twice)
        if twice:
            y0 = y0.view_as(y0)
            again = adjoint.backward_again(solve, ctx.result, f, y0)
            pairs = [(y, c) for y, c in zip(again, cotangents, strict=True) if c is not None]
            before, *grads = gradients([y for y, _ in pairs], [y0, *wrt], [c for _, c in pairs], again=True)
        else:
            record = copy.copy(ctx.result.record)
            record.states = states or None
            result = replace(ctx.result, record=record)
            before, grads = adjoint.backward(solve, result, f, wrt, [y0, *saved], cotangents)
        f.add_counts()
        solve.f.stats.nfe_backward += f.calls
        solve.f.stats.seconds_backward += time.perf_counter() - started
        return None, None, None, before, *solve.f.spread(grads, tensors)


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

    retakes: ClassVar[bool] = True

    max_states: int | None = None

    def __post_init__(self) -> None:
        if self.max_states is not None and self.max_states < 1:
            raise ConfigError(f"max_states must be at least 1, got {self.max_states}")

    @property
    def keeps_states(self) -> bool:
        return self.max_states is None

    def backward(
        self,
        solve: Solve,
        result: Integration,
        f: VectorField,
        wrt: Sequence[Tensor],
        saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Grads]:
        record = result.record
        replay = Replay(record, solve.algorithm, f, saved[0])
        count = len(record.rounds)
        if record.layout is None and record.held is None:  # no further than to the last state that matters
            wanted = {i for i, c in enumerate(cotangents) if c is not None}
            count = 1 + max((i for i, taken in enumerate(record.rounds) if wanted & set(taken.saves)), default=-1)
        starts: Iterator[tuple[int, Tensor]]
        if record.states is not None:
            starts = ((i, record.states[i]) for i in reversed(range(count)))
        else:
            again, most = torch.no_grad()(replay.states_from), self.max_states or count or 1
            starts = states_backwards(again, saved[0].detach(), count, most)
        return replay.backwards(starts, wrt, saved[1:], cotangents)

    def backward_again(self, solve: Solve, result: Integration, f: VectorField, y0: Tensor) -> list[Tensor]:
        return Replay(result.record, solve.algorithm, f, y0).whole(y0, len(result.ts) - 1)[1]
