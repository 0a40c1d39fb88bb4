"""Samples with steps of their own, solved whole: each goes through C++ once, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from homojl.backends.base import Integration
from homojl.backends.monitor import Told
from homojl.backends.pytorch.native.build import in_parts
from homojl.backends.pytorch.native.entry import Opened, entry_of
from homojl.backends.pytorch.native.operations import Unsupported
from homojl.backends.pytorch.native.program import Lanes, pointers
from homojl.backends.pytorch.native.whole import AbstractSolver, Made, instruct
from homojl.backends.pytorch.record import Record
from homojl.backends.pytorch.rows import RowLayout
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.solution import Samples, StackedStates, Stats, Status

Tensor = torch.Tensor

WIDEST = 256  # lanes
_AT_A_TIME = 2**22  # elements of states, of those whose steps are kept together: 64 steps of each are expected


class EnsembleSolver(AbstractSolver):
    """Solves of samples; their facts are of each its end and first step, and its status and counts."""

    @staticmethod
    def opened_for(
        owner: Any, f: VectorField, y0: Tensor, ts: tuple[float, ...]
    ) -> tuple[Opened, list[Tensor], tuple[Any, ...]]:
        """The field is opened for as many samples as there are lanes."""
        count, y = len(y0), y0.detach()
        lanes = torch.arange(WIDEST if count >= WIDEST else -(-count // 16) * 16) % count
        with torch.no_grad():
            times = y0.new_full((count, *[1] * (y0.ndim - 1)), ts[0])
            if f.separates is None and not f.separable((times, y), f(times, y), torch.arange(count)):
                raise Unsupported("a field that cannot be evaluated for some samples alone")
        args = f.args_at(lanes)
        opened, inputs = entry_of(owner)(f.f, args, times[lanes], y[lanes])
        leaves = zip(pytree.tree_leaves(args), pytree.tree_leaves(f.args), strict=True)
        whole = {id(a): b for a, b in leaves if isinstance(a, Tensor) and a is not b}
        rows = tuple(i for i, x in enumerate(inputs) if id(x) in whole)
        like = [x.detach() for x in inputs]
        return opened, [whole.get(id(x), x) for x in inputs], (times[lanes], y[lanes], like, rows)

    def made(self, y0: Tensor, inputs: Sequence[Tensor]) -> Made:
        inputs = self._contiguous(inputs)
        ys = y0.new_empty((len(self.ts), *y0.shape))
        times, counts = np.empty((len(y0), 2)), np.empty((len(y0), 3), dtype=np.int64)
        job, held = self._job(y0, inputs, ys, times, counts)
        told, at = Told("solve", len(y0)), ctypes.addressof(job)

        def work(start: int, stop: int) -> None:
            told.in_slices(start, stop, WIDEST, lambda a, b: self.program.advance(at, a, b))

        in_parts(len(y0), _parts(len(y0)), work)
        del held
        return Made(ys, (times, counts), None if counts[:, 0].any() else [])

    def integration(self, f: VectorField, y0: Tensor, ys: Tensor, made: Made) -> Integration:
        times, counts = made.facts
        _, accepted, rejected = torch.from_numpy(counts).unbind(1)
        tableau = self.algorithm.explicit_tableau
        first = 1 + (self.algorithm.first_step is None)
        nfe = first + (accepted + rejected) * (tableau.stages - tableau.fsal)
        most = int((accepted + rejected).argmax())
        f.calls += int(nfe.max())
        return Integration(
            ts=self.ts,
            ys=StackedStates(ys),
            record=Record(layout=RowLayout(y0.detach())),
            status=Status.SUCCESS,
            message="",
            nfe=int(nfe.max()),
            n_rejected=int(rejected[most]),
            samples=Samples(
                statuses=(Status.SUCCESS,) * len(y0),
                times=torch.from_numpy(times[:, 0].copy()),
                n_accepted=accepted,
                n_rejected=rejected,
                nfe=nfe,
                events=torch.full((len(y0),), -1),
            ),
            first_step=float(np.median(times[:, 1])),
        )

    def gradient(
        self, made: Made, y0: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, stats: Stats
    ) -> list[Tensor | None]:
        """The steps are taken again, of some samples at a time."""
        if torch.is_grad_enabled():  # create_graph=True
            raise ConfigError(
                "compiled solves with steps of each sample's own have first derivatives only: use backend='pytorch'"
            )
        program, inputs, by_y = self.program, self._contiguous(inputs), torch.empty_like(y0)
        at_a_time = max(_AT_A_TIME // (64 * (y0.numel() // len(y0))), WIDEST)
        ys, parts = y0.new_empty((len(self.ts), *y0.shape)), list[Any]()
        told = Told("gradient", len(y0))
        rows = {i: torch.zeros_like(inputs[i], memory_format=torch.contiguous_format) for i in program.rows}

        def work(start: int, stop: int) -> None:
            times, counts = np.empty((len(y0), 2)), np.empty((len(y0), 3), dtype=np.int64)
            job, held = self._job(y0, inputs, ys, times, counts)
            by = [rows.get(i, torch.zeros(inputs[i].shape, dtype=inputs[i].dtype)) for i in program.wanted]
            out, at = pointers(by), ctypes.addressof(job)
            job.cotangents, job.by_y, job.by = cotangent.data_ptr(), by_y.data_ptr(), ctypes.addressof(out)
            told.in_slices(start, stop, at_a_time, lambda a, b: program.gradient(at, a, b, at_a_time))
            parts.append((by, job.products, job.evaluations, held))

        in_parts(len(y0), _parts(len(y0)), work)
        # As many as of a batch in which every sample takes part in all of them.
        stats.n_vjp += -(-sum(p[1] for p in parts) // len(y0))
        stats.nfe_backward += -(-sum(p[2] for p in parts) // len(y0))
        found: dict[int, Tensor] = {}
        for k, i in enumerate(program.wanted):
            found[i] = rows[i] if i in rows else torch.stack([p[0][k] for p in parts]).sum(0)
        return [by_y, *(found.get(i) for i in range(len(inputs)))]

    def _contiguous(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [x.contiguous() if i in self.program.rows else x for i, x in enumerate(inputs)]

    def _job(
        self, y0: Tensor, inputs: Sequence[Tensor], ys: Tensor, times: np.ndarray, counts: np.ndarray
    ) -> tuple[Lanes, Any]:
        """What C++ is given, and what that points to."""
        job = Lanes(t0=self.ts[0], t1=self.ts[-1], saves=len(self.ts) - 1)
        instruct(job, self.algorithm)
        save, held = np.array(self.ts), pointers(inputs)
        job.ts, job.samples, job.inputs_count = save.ctypes.data, len(y0), len(inputs)
        job.y0, job.inputs, job.ys = y0.data_ptr(), ctypes.addressof(held), ys.data_ptr()
        job.times, job.counts = times.ctypes.data, counts.ctypes.data
        return job, (save, held)


def _parts(samples: int) -> int:
    return max(min(torch.get_num_threads(), samples // (4 * WIDEST)), 1)
