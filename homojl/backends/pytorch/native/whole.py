"""Whole solves and their gradients: `Integration`s that C++ has found, entered once each way."""

from __future__ import annotations

import abc
import logging
import math
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from homojl.algorithms import AbstractAdaptive, ErrorNorm
from homojl.algorithms.step_memory import StepMemory
from homojl.backends.base import Integration, Task
from homojl.backends.pytorch.native import NOTHING, STATES
from homojl.backends.pytorch.native.entry import Opened
from homojl.backends.pytorch.native.operations import Postponed, Unsupported
from homojl.backends.pytorch.native.program import Program, program_for
from homojl.functions import VectorField
from homojl.functions.evaluated import Autocast
from homojl.functions.products import transformed
from homojl.solution import Stats

Tensor = torch.Tensor
_log = logging.getLogger(__name__)
refused: weakref.WeakSet[Any] = weakref.WeakSet()  # the codes of fields that are not solved whole


class Made(NamedTuple):
    """A solve that C++ has made.

    Attributes:
        ys: the states at the save times, from the first on; None: they are not needed any more.
        facts: what else is known of it, without tensors.
        pieces: what its gradient needs beside y0 and the inputs; None: it did not reach its end.
    """

    ys: Any
    facts: Any
    pieces: Sequence[Tensor] | None


class AbstractSolver(abc.ABC):
    """Solves of one kind.

    Args:
        program, opened: what makes them, and the field.
        ts, algorithm: of the problem.
        keep: what to keep of a solve.
    """

    def __init__(self, program: Program, opened: Opened, ts: tuple[float, ...], algorithm: Any, keep: int) -> None:
        self.program, self.opened, self.ts, self.algorithm, self.keep = program, opened, ts, algorithm, keep

    @staticmethod
    @abc.abstractmethod
    def opened_for(
        owner: Any, f: VectorField, y0: Tensor, ts: tuple[float, ...]
    ) -> tuple[Opened, list[Tensor], tuple[Any, ...]]:
        """The field opened; its inputs; and time, state, inputs and rows that it is compiled with."""

    @abc.abstractmethod
    def made(self, y0: Tensor, inputs: Sequence[Tensor]) -> Made:
        """Have C++ make a solve."""

    @abc.abstractmethod
    def integration(self, f: VectorField, y0: Tensor, ys: Tensor, made: Made) -> Integration:
        """What it is to the caller, with the states `ys` as autograd has them."""

    @abc.abstractmethod
    def gradient(
        self, made: Made, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, stats: Stats
    ) -> list[Tensor | None]:
        """By y0 and each of the inputs, from what autograd has kept; with a graph where one is recorded."""


def serves(task: Task, y0: Tensor) -> bool:
    """Whether an explicit method's solve may be made whole, as far as can be seen without tracing the field."""
    f: Any = task.f
    algorithm: Any = task.algorithm
    if isinstance(algorithm, AbstractAdaptive):
        tensors = isinstance(algorithm.rtol, Tensor) or isinstance(algorithm.atol, Tensor)
        if tensors or task.norm != ErrorNorm():
            return False
    return (
        y0.device.type == "cpu"
        and y0.dtype in (torch.float32, torch.float64)
        and y0.is_contiguous()
        and y0.numel() > 0
        and y0.ndim >= task.each
        and algorithm.observer is None
        and f.opens
        and not transformed()
        and not isinstance(f.f, Autocast)
        and not torch.is_inference_mode_enabled()
        and not y0.is_inference()
    )


def integrate(kind: type[AbstractSolver], owner: Any, task: Task, y0: Tensor, keep: int) -> Integration | None:
    """A whole solve, in the present grad mode; None: it is to be made step by step.

    The field's are not made whole, or it does not reach its end, which steps one by one say more of.

    Args:
        kind: of solve.
        owner: of what is compiled for the field.
        task, y0: as in `AbstractBackend.integrate`.
        keep: what a gradient is to be computed from.
    """
    f: Any = task.f
    algorithm: Any = task.algorithm
    if owner in refused or not serves(task, y0):
        return None
    recording = torch.is_grad_enabled()
    try:
        opened, inputs, like = kind.opened_for(owner, f, y0, task.ts)
        wanted = [i for i, x in enumerate(inputs) if recording and x.requires_grad and x.is_floating_point()]
        derived = bool(wanted) or (recording and y0.requires_grad)
        if derived and task.keep_states:
            return None
        program = program_for(opened, algorithm.explicit_tableau, wanted, *like)
    except Unsupported as reason:
        refuse(owner, reason)
        return None
    solver = kind(program, opened, task.ts, algorithm, keep if derived else STATES if task.keep_states else NOTHING)
    found: list[Made] = []
    if derived:
        ys = _Whole.apply(solver, f.stats, found, y0, *inputs)
    else:
        found.append(solver.made(y0.detach(), inputs))
        ys = found[0].ys
    return None if found[0].pieces is None else solver.integration(f, y0, ys, found[0])


def refuse(owner: Any, reason: Unsupported) -> None:
    """Have a field's solves made step by step from now on, unless the reason will pass, which is raised."""
    if isinstance(reason, Postponed):
        raise reason
    _log.info("solves of this field are not compiled whole, but step by step: %s", reason)
    refused.add(owner)


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
    def forward(
        ctx: Any, solver: AbstractSolver, stats: Stats, found: list[Made], y0: Tensor, *inputs: Tensor
    ) -> Tensor:
        made = solver.made(y0, inputs)
        found.append(made)
        if made.pieces is not None:
            # Nothing but autograd keeps tensors, so that it sees whether they change, and its hooks may pack them.
            ctx.solver, ctx.stats, ctx.facts = solver, stats, made.facts
            ctx.save_for_backward(y0, *inputs, *made.pieces)
            ctx.set_materialize_grads(False)
        return made.ys

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,), (y0, *saved), n = cotangents, ctx.saved_tensors, len(ctx.solver.opened.places)
        if cotangent is None:
            return (None,) * (4 + n)
        started = time.perf_counter()
        cotangent = cotangent.contiguous()
        grads = ctx.solver.gradient(Made(None, ctx.facts, saved[n:]), y0, saved[:n], cotangent, ctx.stats)
        ctx.stats.seconds_backward += time.perf_counter() - started
        return None, None, None, *grads
