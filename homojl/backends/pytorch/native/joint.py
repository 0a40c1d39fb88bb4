"""Whole solves of one state."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep
from homojl.backends.base import Integration
from homojl.backends.pytorch.native import EVALUATIONS, NOTHING, STATES
from homojl.backends.pytorch.native.entry import Opened, entry_of
from homojl.backends.pytorch.native.program import NO_ROOM, Job, pointers
from homojl.backends.pytorch.native.whole import AbstractSolver, Made, instruct
from homojl.backends.pytorch.record import Record, Replay, Round
from homojl.backends.pytorch.sizes import Planned
from homojl.backends.pytorch.steps import time_like
from homojl.functions import DerivedField, VectorField
from homojl.functions.products import gradients
from homojl.solution import StackedStates, Stats, Status

Tensor = torch.Tensor


class JointSolver(AbstractSolver):
    """Solves of one state.

    Their facts are where C++ stands and the arrays that it has pointers to. Their pieces are the last state, the memory
    that C++ worked in, and what was kept of the steps, in chunks.
    """

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
        memory = program.grow(job, y0)
        while program.advance(ctypes.addressof(job)) == NO_ROOM:
            memory += program.grow(job, y0)
        if job.failed or (job.planned and not torch.isfinite(ys).all()):
            return Made(ys, (job, kept), None)
        if self.keep == NOTHING:
            return Made(ys, (job, kept), [ys, work, *memory])
        return Made(ys, (job, kept), [ys[-1].clone(), work if self.keep == EVALUATIONS else work[:0], *memory])

    def integration(self, f: VectorField, y0: Tensor, ys: Tensor, made: Made) -> Integration:
        job, _ = made.facts
        f.calls += job.evaluations
        return Integration(
            ts=self.ts,
            ys=StackedStates(ys),
            record=self._record(made, states=self.keep == STATES and not ys.requires_grad),
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
        program, job = self.program, Job.from_buffer_copy(made.facts[0])
        end, work, *memory = made.pieces or ()
        held, work = pointers(inputs), work if len(work) else y0.new_empty(program.work)
        job.y0, job.inputs, job.work, job.evaluations = y0.data_ptr(), ctypes.addressof(held), work.data_ptr(), 0
        program.regain(job, memory)
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
        replay = Replay(self._record(made, states=False), self.algorithm, field, start)
        _, ys = replay.whole(start, len(self.ts) - 1)
        by = [start, *(x for x in views if x.requires_grad)]
        found = iter(gradients([start, *ys], by, list(cotangent.unbind()), again=True))
        return [next(found), *(next(found) if x.requires_grad else None for x in views)]

    def _record(self, made: Made, *, states: bool) -> Record:
        """The accepted steps, with the states that they start from if asked for, and kept."""
        job, (_, fractions, in_step, *_) = made.facts
        _, _, *memory = made.pieces or ()
        n, last, parts = job.accepted, job.next, len(memory) // job.n_chunks
        blocks = memory[::parts]
        steps = (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[:n].tolist()
        ys = [y for block in memory[1::2] for y in block.unbind()][:n] if states else None
        fractions, in_step = fractions[1:last].tolist(), in_step[1:last].tolist()
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
