"""Whole solves of one state."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep
from homojl.backends.base import Integration
from homojl.backends.pytorch.native import EVALUATIONS, STATES
from homojl.backends.pytorch.native.entry import Opened, entry_of
from homojl.backends.pytorch.native.program import NO_ROOM, Job, Memory, pointers
from homojl.backends.pytorch.native.whole import AbstractSolver, Made, instruct
from homojl.backends.pytorch.record import Record, Replay, Round
from homojl.backends.pytorch.sizes import Planned
from homojl.backends.pytorch.steps import ExplicitStepper, time_like
from homojl.functions import DerivedField, VectorField
from homojl.functions.products import gradients
from homojl.solution import StackedStates, Stats, Status

Tensor = torch.Tensor


class Facts(NamedTuple):
    """What is known of a solve.

    Attributes:
        job: where C++ stands.
        kept: the arrays that the job points to.
        held: which parts of its memory there are, for each chunk.
    """

    job: Job
    kept: tuple[Any, ...]
    held: list[list[bool]]


class JointSolver(AbstractSolver):
    """Solves of one state."""

    @staticmethod
    def opened_for(
        owner: Any, f: VectorField, y0: Tensor, ts: tuple[float, ...]
    ) -> tuple[Opened, list[Tensor], tuple[Any, ...]]:
        t = time_like(ts[0], y0)
        opened, inputs = entry_of(owner)(f.f, f.args, t, y0.detach())
        return opened, inputs, (t, y0, inputs)

    def made(self, y0: Tensor, inputs: Sequence[Tensor]) -> Made:
        program, saves = self.program, len(self.ts) - 1
        job = Job(t0=self.ts[0], t1=self.ts[-1], saves=saves, keep=self.keep)
        times = np.array(self.ts)
        fractions, in_step = np.empty(saves + 1), np.empty(saves + 1, dtype=np.int64)
        ys, work = y0.new_empty((saves + 1, *y0.shape)), y0.new_empty(program.work)
        held = pointers(inputs)
        kept = (times, fractions, in_step, held, _instructed(job, self.algorithm, self.ts))
        job.ts, job.fractions, job.in_step = times.ctypes.data, fractions.ctypes.data, in_step.ctypes.data
        job.y0, job.inputs, job.work, job.ys = y0.data_ptr(), ctypes.addressof(held), work.data_ptr(), ys.data_ptr()
        memory = [program.grow(job, y0)]
        while program.advance(ctypes.addressof(job)) == NO_ROOM:
            memory.append(program.grow(job, y0))
        facts = Facts(job, kept, [[x is not None for x in m] for m in memory])
        if job.status != 0 or (job.planned and not torch.isfinite(ys).all()):
            return Made(ys, facts, None)
        own = [work] if self.keep == EVALUATIONS else []
        end = ys[-1].clone() if self.keep in (STATES, EVALUATIONS) else ys[-1]
        return Made(ys, facts, [end, *(x for m in memory for x in m if x is not None), *own])

    def integration(self, f: VectorField, y0: Tensor, ys: Tensor, made: Made) -> Integration:
        job = made.facts.job
        f.calls += job.evaluations
        return Integration(
            ts=self.ts,
            ys=StackedStates(ys),
            record=_record(made, states=self.keep == STATES),
            status=Status.SUCCESS,
            message="",
            nfe=job.evaluations,
            n_rejected=job.rejected,
        )

    def gradient(
        self, made: Made, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, stats: Stats
    ) -> list[Tensor | None]:
        if torch.is_grad_enabled():  # create_graph=True
            return self._again(made, y0, inputs, cotangent)
        program, job = self.program, Job.from_buffer_copy(made.facts.job)
        end, memory, work = _memory(made)
        held, work = pointers(inputs), y0.new_empty(program.work) if work is None else work
        job.y0, job.inputs, job.work, job.evaluations = y0.data_ptr(), ctypes.addressof(held), work.data_ptr(), 0
        for k, piece in enumerate(memory):
            piece.serve(job, k)
        by_y = torch.empty_like(y0)
        by = [torch.zeros(x.shape, dtype=x.dtype) for x in (inputs[i] for i in program.wanted)]
        out = pointers(by)
        where = [cotangent.data_ptr(), by_y.data_ptr(), ctypes.addressof(out), end.data_ptr()]
        stats.n_vjp += program.gradient(ctypes.addressof(job), *where)
        stats.nfe_backward += job.evaluations
        found = dict(zip(program.wanted, by, strict=True))
        return [by_y, *(found.get(i) for i in range(len(inputs)))]

    def _again(self, made: Made, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
        """The gradient with a graph of its own: through the accepted steps, taken again in PyTorch."""
        field: Any = DerivedField(lambda t, y: self.opened.field(t, y, *views))
        start, views = y0.view_as(y0), [x.view_as(x) if x.requires_grad else x for x in inputs]
        replay = Replay(_record(made), ExplicitStepper(self.algorithm.explicit_tableau), field, start)
        _, ys = replay.whole(start, len(self.ts) - 1)
        by = [start, *(x for x in views if x.requires_grad)]
        found = iter(gradients([start, *ys], by, list(cotangent.unbind()), again=True))
        return [next(found), *(next(found) if x.requires_grad else None for x in views)]


def _memory(made: Made) -> tuple[Tensor, list[Memory], Tensor | None]:
    """The last state, what was kept of the steps, and the memory that C++ worked in, if that was kept."""
    pieces = iter(made.pieces or ())
    end = next(pieces)
    memory = [Memory(*(next(pieces) if there else None for there in parts)) for parts in made.facts.held]  # type: ignore[arg-type]
    return end, memory, next(pieces, None)


def _record(made: Made, *, states: bool = False) -> Record:
    """The accepted steps, with the states that they start from where they are asked for."""
    job, (_, fractions, in_step, *_) = made.facts.job, made.facts.kept
    memory = _memory(made)[1]
    blocks = [m.steps for m in memory]
    n = job.accepted
    steps = (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[:n].tolist()
    ys = [y for m in memory if m.states is not None for y in m.states.unbind()][:n] if states else None
    fractions, in_step = (x[1 : job.next].tolist() for x in (fractions, in_step))
    rounds, save = [], 0
    for i, (t, h) in enumerate(steps):
        first = save
        while save < len(in_step) and in_step[save] == i:
            save += 1
        rounds.append(Round(t, h, i == 0, fractions[first:save], list(range(first, save))))
    return Record(rounds, ys)


def _instructed(job: Job, algorithm: AbstractAdaptive | AbstractFixedStep, ts: tuple[float, ...]) -> Any:
    """Tell a job how to choose its steps; what it points to."""
    if not isinstance(algorithm, AbstractFixedStep):
        instruct(job, algorithm)
        return None
    planned, t, rows = Planned(algorithm, ts), ts[0], []
    while t != ts[-1]:
        move = planned.propose(t, 0)
        rows.append((t, move.h, move.t_next))
        t = move.t_next
    plan = np.array(rows)
    job.planned, job.plan = len(rows), plan.ctypes.data
    return plan
