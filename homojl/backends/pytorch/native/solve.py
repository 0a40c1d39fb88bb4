"""Whole solves and their gradients: `Integration`s that C++ has found, entered once each way."""

from __future__ import annotations

import ctypes
import logging
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep, ErrorNorm
from homojl.algorithms.step_memory import StepMemory
from homojl.backends.base import Integration, Task
from homojl.backends.pytorch.native import EVALUATIONS, NOTHING, STATES
from homojl.backends.pytorch.native.entry import Opened, entry_of
from homojl.backends.pytorch.native.operations import Postponed, Unsupported
from homojl.backends.pytorch.native.program import NO_ROOM, Job, Memory, Program, pointers, program_for
from homojl.backends.pytorch.record import Record, Replay, Round
from homojl.backends.pytorch.sizes import Planned
from homojl.backends.pytorch.steps import ExplicitStepper, time_like
from homojl.functions import DerivedField, VectorField
from homojl.functions.evaluated import Autocast
from homojl.functions.products import gradients, transformed
from homojl.solution import StackedStates, Status

Tensor = torch.Tensor
Algorithm = AbstractAdaptive | AbstractFixedStep
_log = logging.getLogger(__name__)
refused: weakref.WeakSet[Any] = weakref.WeakSet()  # the codes of fields that are not solved whole


class Call(NamedTuple):
    """One solve to be made.

    Attributes:
        program, opened: what makes it, and the field.
        ts, algorithm: of the problem.
        keep: what to keep of it.
    """

    program: Program
    opened: Opened
    ts: tuple[float, ...]
    algorithm: Algorithm
    keep: int


def refuse(owner: Any, reason: Unsupported) -> None:
    """Have a field's solves made step by step from now on, unless the reason will pass, which is raised."""
    if isinstance(reason, Postponed):
        raise reason
    _log.info("solves of this field are not compiled whole, but step by step: %s", reason)
    refused.add(owner)


def serves(task: Task, y0: Tensor) -> bool:
    """Whether a solve may be made whole, as far as can be seen without tracing the field."""
    f, algorithm = task.f, task.algorithm
    if not isinstance(f, VectorField) or not isinstance(algorithm, Algorithm):
        return False
    if isinstance(algorithm, AbstractAdaptive):
        tensors = isinstance(algorithm.rtol, Tensor) or isinstance(algorithm.atol, Tensor)
        if tensors or task.norm != ErrorNorm():
            return False
    return (
        y0.device.type == "cpu"
        and y0.dtype in (torch.float32, torch.float64)
        and y0.is_contiguous()
        and y0.numel() > 0
        and algorithm.observer is None
        and f.opens
        and not transformed()
        and not isinstance(f.f, Autocast)
        and not torch.is_inference_mode_enabled()
        and not y0.is_inference()
    )


def integrate(owner: Any, task: Task, y0: Tensor, *, keep: int) -> Integration | None:
    """A whole solve, in the present grad mode; None: it is to be made step by step.

    The field's are not made whole, or it does not reach its end, which steps one by one say more of.

    Args:
        owner: of what is compiled for the field.
        task, y0: as in `AbstractBackend.integrate`, which this `serves`.
        keep: what a gradient is to be computed from.
    """
    f, ts, algorithm, keep_states = task.f, task.ts, task.algorithm, task.keep_states
    assert isinstance(f, VectorField), f
    assert isinstance(algorithm, Algorithm), algorithm
    if owner in refused:
        return None
    try:
        t = time_like(ts[0], y0)
        opened, inputs = entry_of(owner)(f.f, f.args, t, y0.detach())
        recording = torch.is_grad_enabled()
        wanted = [i for i, x in enumerate(inputs) if recording and x.requires_grad and x.is_floating_point()]
        derived = bool(wanted) or (recording and y0.requires_grad)
        if derived and keep_states:
            return None
        program = program_for(opened, algorithm.explicit_tableau, t, y0, inputs, wanted)
    except Unsupported as reason:
        refuse(owner, reason)
        return None
    call = Call(program, opened, ts, algorithm, keep if derived else STATES if keep_states else NOTHING)
    found: list[Solved] = []
    if derived:
        ys = _Whole.apply(call, f, found, y0, *inputs)
    else:
        found.append(made(call, y0.detach(), inputs))
        ys = found[0].ys
    (solved,) = found
    if not solved.reached_end:
        return None
    f.calls += solved.job.evaluations
    return Integration(
        ts=ts,
        ys=StackedStates(ys),
        record=solved.record(states=keep_states),
        status=Status.SUCCESS,
        message="",
        nfe=solved.job.evaluations,
        n_rejected=solved.job.rejected,
    )


class Solved:
    """A solve that C++ has made.

    Args:
        call: what was asked for.
        job: where C++ stands.
        memory: what is kept of it.
        work: the memory that it used.
        kept: the arrays that the job points to.
        ys: the states at the save times.
    """

    def __init__(
        self, call: Call, job: Job, memory: list[Memory], work: Tensor, kept: tuple[Any, ...], ys: Tensor
    ) -> None:
        self.call, self.job, self.memory, self.work, self.kept, self.ys = call, job, memory, work, kept, ys

    @property
    def reached_end(self) -> bool:
        """Whether every save time was reached, equal steps with finite states."""
        equal = self.job.planned != 0
        return self.job.status == 0 and (not equal or bool(torch.isfinite(self.ys).all()))

    def record(self, *, states: bool = False) -> Record:
        """Its accepted steps, with the states that they start from where they are asked for."""
        n, last = self.job.accepted, self.job.next
        blocks = [m.steps for m in self.memory]
        steps = (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[:n].tolist()
        ys = [y for m in self.memory if m.states is not None for y in m.states.unbind()][:n] if states else None
        fractions, in_step = (self.kept[i][1:last].tolist() for i in (1, 2))
        rounds, save = [], 0
        for i, (t, h) in enumerate(steps):
            first = save
            while save < len(in_step) and in_step[save] == i:
                save += 1
            rounds.append(Round(t, h, i == 0, fractions[first:save], list(range(first, save))))
        return Record(rounds, ys)


def made(call: Call, y0: Tensor, inputs: Sequence[Tensor]) -> Solved:
    """Have C++ make a solve."""
    program, algorithm, saves = call.program, call.algorithm, len(call.ts) - 1
    job = Job(t0=call.ts[0], t1=call.ts[-1], saves=saves, keep=call.keep)
    times = np.array(call.ts)
    fractions, in_step = np.empty(saves + 1), np.empty(saves + 1, dtype=np.int64)
    ys, work = y0.new_empty((saves + 1, *y0.shape)), y0.new_empty(program.work)
    held = pointers(inputs)
    kept = (times, fractions, in_step, held, _instructed(job, algorithm, call.ts))
    job.ts, job.fractions, job.in_step = times.ctypes.data, fractions.ctypes.data, in_step.ctypes.data
    job.y0, job.inputs, job.work, job.ys = y0.data_ptr(), ctypes.addressof(held), work.data_ptr(), ys.data_ptr()
    memory = [program.grow(job, y0)]
    while program.advance(ctypes.byref(job)) == NO_ROOM:
        memory.append(program.grow(job, y0))
    return Solved(call, job, memory, work, kept, ys)


def _instructed(job: Job, algorithm: Algorithm, ts: tuple[float, ...]) -> Any:
    """Tell a job how to choose its steps; what it points to."""
    if isinstance(algorithm, AbstractFixedStep):
        planned, t, rows = Planned(algorithm, ts), ts[0], []
        while t != ts[-1]:
            move = planned.propose(t, 0)
            rows.append((t, move.h, move.t_next))
            t = move.t_next
        plan = np.array(rows)
        job.planned, job.plan = len(rows), plan.ctypes.data
        return plan
    instruct(job, algorithm)
    return None


def instruct(job: Any, algorithm: AbstractAdaptive) -> None:
    """Tell a job how its steps are controlled."""
    control, order = algorithm.step_control, algorithm.explicit_tableau.order
    first = algorithm.first_step
    assert not isinstance(first, StepMemory), "with_first_step() puts a number in its place"
    job.rtol, job.atol = float(algorithm.rtol), float(algorithm.atol)
    job.first = math.nan if first is None else first
    job.min_step, job.max_step, job.max_steps = algorithm.min_step, algorithm.max_step, algorithm.max_steps
    job.floor, job.safety = control.floor, control.safety
    job.min_factor, job.max_factor = control.min_factor, control.max_factor
    job.beta1, job.beta2, job.beta3 = control.exponents(order)
    job.beta_older = control.older_exponent(order)
    job.order, job.error_order = algorithm.order, order


class _Whole(torch.autograd.Function):
    """The states at the save times as a function of y0 and of all tensors that the field holds."""

    @staticmethod
    def forward(ctx: Any, call: Call, f: VectorField, solved: list[Solved], y0: Tensor, *inputs: Tensor) -> Tensor:
        found = made(call, y0, inputs)
        solved.append(found)
        ys = found.ys
        if not found.reached_end:
            return ys
        ctx.call, ctx.job, ctx.kept, ctx.stats = call, found.job, found.kept, f.stats
        # Nothing but autograd keeps tensors, so that it sees whether they change, and its hooks may pack them.
        ctx.memory = [[x is not None for x in m] for m in found.memory]
        pieces = [x for m in found.memory for x in m if x is not None]
        own = [found.work] if call.keep == EVALUATIONS else []
        ctx.save_for_backward(y0, *inputs, ys[-1].clone(), *pieces, *own)
        ctx.set_materialize_grads(False)
        return ys

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,), call = cotangents, ctx.call
        saved, n = iter(ctx.saved_tensors), len(call.opened.places)
        y0, *inputs = (next(saved) for _ in range(1 + n))
        if cotangent is None:
            return (None,) * (4 + n)
        started = time.perf_counter()
        end = next(saved)
        memory = [Memory(*(next(saved) if there else None for there in pieces)) for pieces in ctx.memory]  # type: ignore[arg-type]
        work = next(saved, None)
        if torch.is_grad_enabled():  # create_graph=True
            solved = Solved(call, ctx.job, memory, end, ctx.kept, end)
            grads = _again(solved, y0, inputs, cotangent)
        else:
            grads = _gradient(ctx, y0, inputs, end, memory, work, cotangent)
        ctx.stats.seconds_backward += time.perf_counter() - started
        return None, None, None, *grads


def _gradient(
    ctx: Any,
    y0: Tensor,
    inputs: Sequence[Tensor],
    end: Tensor,
    memory: Sequence[Memory],
    work: Tensor | None,
    cotangent: Tensor,
) -> list[Tensor | None]:
    """By y0 and each of the inputs."""
    program, job = ctx.call.program, Job.from_buffer_copy(ctx.job)
    held = pointers(inputs)
    work = y0.new_empty(program.work) if work is None else work
    job.y0, job.inputs, job.work, job.evaluations = y0.data_ptr(), ctypes.addressof(held), work.data_ptr(), 0
    for k, piece in enumerate(memory):
        program.put(job, k, piece)
    by_y, cotangent = torch.empty_like(y0), cotangent.contiguous()
    by = [torch.zeros(x.shape, dtype=x.dtype) for x in (inputs[i] for i in program.wanted)]
    out = pointers(by)
    where = [cotangent.data_ptr(), by_y.data_ptr(), ctypes.addressof(out), end.data_ptr()]
    products = program.gradient(ctypes.byref(job), *where)
    ctx.stats.n_vjp += products
    ctx.stats.nfe_backward += job.evaluations
    found = dict(zip(program.wanted, by, strict=True))
    return [by_y, *(found.get(i) for i in range(len(inputs)))]


def _again(solved: Solved, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    """The gradient with a graph of its own: through the accepted steps, taken again in PyTorch."""
    call = solved.call
    field: Any = DerivedField(lambda t, y: call.opened.field(t, y, *views))
    start, views = y0.view_as(y0), [x.view_as(x) if x.requires_grad else x for x in inputs]
    replay = Replay(solved.record(), ExplicitStepper(call.algorithm.explicit_tableau), field, start)
    _, ys = replay.whole(start, len(call.ts) - 1)
    by = [start, *(x for x in views if x.requires_grad)]
    found = iter(gradients([start, *ys], by, list(cotangent.unbind()), again=True))
    return [next(found), *(next(found) if x.requires_grad else None for x in views)]
