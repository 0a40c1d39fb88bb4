"""Samples with steps of their own, solved whole: each goes through C++ once, forward and backward."""

from __future__ import annotations

import ctypes
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from homojl.algorithms import AbstractAdaptive
from homojl.backends.base import Integration, Task
from homojl.backends.monitor import Told
from homojl.backends.pytorch.native.entry import Opened, entry_of
from homojl.backends.pytorch.native.operations import Unsupported
from homojl.backends.pytorch.native.program import (
    LaneProgram,
    Lanes,
    lane_program_for,
    pointers,
)
from homojl.backends.pytorch.native.solve import instruct, refuse, refused, serves
from homojl.backends.pytorch.record import Record
from homojl.backends.pytorch.rows import RowLayout
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.solution import Samples, StackedStates, Status

Tensor = torch.Tensor
_log = logging.getLogger(__name__)

WIDEST = 256  # lanes
_AT_A_TIME = 2**22  # elements of states, of those whose steps are kept together: 64 steps of each are expected


class Call(NamedTuple):
    """One solve to be made.

    Attributes:
        program: what makes it.
        ts, algorithm: of the problem.
    """

    program: LaneProgram
    ts: tuple[float, ...]
    algorithm: AbstractAdaptive


class Found(NamedTuple):
    """What C++ has found: states at the save times, of each sample its end, first step, status and counts."""

    ys: Tensor
    times: np.ndarray
    counts: np.ndarray


def integrate(owner: Any, task: Task, y0: Tensor) -> Integration | None:
    """A whole solve, in the present grad mode; None: it is to be made step by step.

    Args:
        owner: of what is compiled for the field.
        task, y0: as in `AbstractBackend.integrate`.
    """
    f, ts, algorithm = task.f, task.ts, task.algorithm
    if owner in refused or not serves(task, y0) or y0.ndim == 0:
        return None
    assert isinstance(f, VectorField), f
    assert isinstance(algorithm, AbstractAdaptive), algorithm
    try:
        opened, inputs, rows, t = _opened(owner, f, y0, ts)
        recording = torch.is_grad_enabled()
        wanted = [i for i, x in enumerate(inputs) if recording and x.requires_grad and x.is_floating_point()]
        derived = bool(wanted) or (recording and y0.requires_grad)
        place = y0.detach()[torch.arange(_lanes(len(y0))) % len(y0)]
        like = [x.detach()[: len(place)] if i in rows else x.detach() for i, x in enumerate(inputs)]
        like = [x[torch.arange(len(place)) % len(x)] if i in rows else x for i, x in enumerate(like)]
        program = lane_program_for(opened, algorithm.explicit_tableau, t, place, like, wanted, rows)
    except Unsupported as reason:
        refuse(owner, reason)
        return None
    call, out = Call(program, ts, algorithm), list[Found]()
    if derived:
        ys = _Lanes.apply(call, f, out, y0, *inputs)
    else:
        out.append(_made(call, y0.detach(), inputs))
        ys = out[0].ys
    return _integration(f, y0, ys, call, out[0])


def _lanes(samples: int) -> int:
    return WIDEST if samples >= WIDEST else -(-samples // 16) * 16


def _opened(
    owner: Any, f: VectorField, y0: Tensor, ts: tuple[float, ...]
) -> tuple[Opened, list[Tensor], tuple[int, ...], Tensor]:
    """The field opened for as many samples as there are lanes; its inputs, which of them have rows, and a time."""
    with torch.no_grad():
        times = y0.new_full((len(y0), *[1] * (y0.ndim - 1)), ts[0])
        if f.separates is None:
            value = f(times, y0.detach())
            if not f.separable((times, y0.detach()), value, torch.arange(len(y0))):
                raise Unsupported("a field that cannot be evaluated for some samples alone")
    lanes = torch.arange(_lanes(len(y0))) % len(y0)
    args = f.args_at(lanes)
    t = times[lanes]
    opened, inputs = entry_of(owner)(f.f, args, t, y0.detach()[lanes])
    whole = {
        id(a): b
        for a, b in zip(pytree.tree_leaves(args), pytree.tree_leaves(f.args), strict=True)
        if isinstance(a, Tensor) and a is not b
    }
    rows = tuple(i for i, x in enumerate(inputs) if id(x) in whole)
    return opened, [whole.get(id(x), x) for x in inputs], rows, t


def _integration(f: VectorField, y0: Tensor, ys: Tensor, call: Call, found: Found) -> Integration | None:
    status, accepted, rejected = torch.from_numpy(found.counts).unbind(1)
    if status.any():
        return None
    tableau = call.algorithm.explicit_tableau
    first = 1 + (call.algorithm.first_step is None)
    nfe = first + (accepted + rejected) * (tableau.stages - tableau.fsal)
    most = int((accepted + rejected).argmax())
    f.calls += int(nfe.max())
    return Integration(
        ts=call.ts,
        ys=StackedStates(ys),
        record=Record(layout=RowLayout(y0.detach())),
        status=Status.SUCCESS,
        message="",
        nfe=int(nfe.max()),
        n_rejected=int(rejected[most]),
        samples=Samples(
            statuses=(Status.SUCCESS,) * len(y0),
            times=torch.from_numpy(found.times[:, 0].copy()),
            n_accepted=accepted,
            n_rejected=rejected,
            nfe=nfe,
            events=torch.full((len(y0),), -1),
        ),
        first_step=float(np.median(found.times[:, 1])),
    )


def _job(call: Call, y0: Tensor, inputs: Sequence[Tensor], ys: Tensor, times: np.ndarray, counts: np.ndarray) -> Any:
    """What C++ is given, and what that points to."""
    job = Lanes(t0=call.ts[0], t1=call.ts[-1], saves=len(call.ts) - 1)
    instruct(job, call.algorithm)
    save, held = np.array(call.ts), pointers(inputs)
    job.ts, job.samples, job.inputs_count = save.ctypes.data, len(y0), len(inputs)
    job.y0, job.inputs, job.ys = y0.data_ptr(), ctypes.addressof(held), ys.data_ptr()
    job.times, job.counts = times.ctypes.data, counts.ctypes.data
    return job, (save, held)


def _in_parts(samples: int, work: Callable[[int, int, int], Any]) -> None:
    """Work on ranges of the samples, one for each of PyTorch's threads: (part, from, to)."""
    parts = max(min(torch.get_num_threads(), samples // (4 * WIDEST)), 1)
    bounds = [samples * i // parts for i in range(parts + 1)]
    if parts == 1:
        work(0, 0, samples)
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(lambda x: work(*x), [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(bounds))]))


def _made(call: Call, y0: Tensor, inputs: Sequence[Tensor]) -> Found:
    inputs = [x.contiguous() if i in call.program.rows else x for i, x in enumerate(inputs)]
    ys = y0.new_empty((len(call.ts), *y0.shape))
    times, counts = np.empty((len(y0), 2)), np.empty((len(y0), 3), dtype=np.int64)
    job, held = _job(call, y0, inputs, ys, times, counts)
    told, at = Told("solve", len(y0)), ctypes.byref(job)

    def work(_: int, start: int, stop: int) -> None:
        told.in_slices(start, stop, WIDEST, lambda a, b: call.program.solve(at, a, b))

    _in_parts(len(y0), work)
    del held
    return Found(ys, times, counts)


class _Lanes(torch.autograd.Function):
    """The states at the save times as a function of y0 and of all tensors that the field holds."""

    @staticmethod
    def forward(ctx: Any, call: Call, f: VectorField, out: list[Found], y0: Tensor, *inputs: Tensor) -> Tensor:
        found = _made(call, y0, inputs)
        out.append(found)
        ctx.call, ctx.stats = call, f.stats
        ctx.save_for_backward(y0, *inputs)
        ctx.set_materialize_grads(False)
        return found.ys

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (cotangent,), (y0, *inputs) = cotangents, ctx.saved_tensors
        if cotangent is None:
            return (None,) * (4 + len(inputs))
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigError(
                "compiled solves with steps of each sample's own have first derivatives only: use backend='pytorch'"
            )
        started = time.perf_counter()
        grads = _gradient(ctx, y0, inputs, cotangent.contiguous())
        ctx.stats.seconds_backward += time.perf_counter() - started
        return None, None, None, *grads


def _gradient(ctx: Any, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    """By y0 and each of the inputs. The steps are taken again, of some samples at a time."""
    call, program = ctx.call, ctx.call.program
    inputs = [x.contiguous() if i in program.rows else x for i, x in enumerate(inputs)]
    by_y = torch.empty_like(y0)
    at_a_time = max(_AT_A_TIME // (64 * (y0.numel() // len(y0))), WIDEST)
    ys, parts = y0.new_empty((len(call.ts), *y0.shape)), list[Any]()
    told = Told("gradient", len(y0))
    rows = {i: torch.zeros_like(inputs[i], memory_format=torch.contiguous_format) for i in program.rows}

    def work(_: int, start: int, stop: int) -> None:
        times, counts = np.empty((len(y0), 2)), np.empty((len(y0), 3), dtype=np.int64)
        job, held = _job(call, y0, inputs, ys, times, counts)
        by = [rows.get(i, torch.zeros(inputs[i].shape, dtype=inputs[i].dtype)) for i in program.wanted]
        out = pointers(by)
        job.cotangents, job.by_y, job.by = cotangent.data_ptr(), by_y.data_ptr(), ctypes.addressof(out)
        told.in_slices(start, stop, at_a_time, lambda a, b: program.pull(ctypes.byref(job), a, b, at_a_time))
        parts.append((by, job.products, job.evaluations, held))

    _in_parts(len(y0), work)
    # As many as of a batch in which every sample takes part in all of them.
    ctx.stats.n_vjp += -(-sum(p[1] for p in parts) // len(y0))
    ctx.stats.nfe_backward += -(-sum(p[2] for p in parts) // len(y0))
    found: dict[int, Tensor] = {}
    for k, i in enumerate(program.wanted):
        found[i] = rows[i] if i in rows else torch.stack([p[0][k] for p in parts]).sum(0)
    return [by_y, *(found.get(i) for i in range(len(inputs)))]
