"""Iterations for equilibria in C++: what is left and the next iterates in one pass over each sample's history.

What is compiled knows nothing of the map, which stays the user's function, and is found again by every later process.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, Anderson, Broyden
from homojl.backends.pytorch.history import AbstractMethod, Advance, Seen
from homojl.backends.pytorch.native.build import HERE, compile_source, in_parts, key_of, known
from homojl.backends.pytorch.native.operations import Unsupported
from homojl.backends.pytorch.rows import Compaction
from homojl.backends.pytorch.samples import Samples

Tensor = torch.Tensor
_log = logging.getLogger(__name__)

_ANDERSON, _BROYDEN = range(2)
_SHARED = 2**16  # elements of the iterates, from which on PyTorch's threads share the rows


class _Iteration(ctypes.Structure):
    """What C++ is given; equilibrium.hpp says what the fields are."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "fz", "z_before", "fz_before", "next", "residuals", "images")),
        *((name, ctypes.c_void_p) for name in ("gram", "norms", "starts")),
        *((name, ctypes.c_int64) for name in ("n", "memory", "count", "slot")),
        *((name, ctypes.c_double) for name in ("weight", "floor")),
    ]


@functools.cache
def _entries() -> dict[torch.dtype, Callable[..., None]]:
    """What is compiled, for states of each dtype; empty: it cannot be here."""
    try:
        key = key_of("equilibrium")
        found = known(key)
        if found is None:
            found = compile_source(key, (HERE / "equilibrium.hpp").read_text(encoding="utf-8"), {})
    except Unsupported as reason:
        _log.info("iterations for equilibria are not compiled: %s", reason)
        return {}
    library, _ = found
    entries: dict[torch.dtype, Any] = {torch.float32: library.iterate32, torch.float64: library.iterate64}
    for entry in entries.values():
        entry.argtypes, entry.restype = [ctypes.c_void_p, *[ctypes.c_int64] * 3], None
    return entries


def methods_for(z0: Tensor) -> dict[type[AbstractFixedPointAlgorithm], type[AbstractMethod[Any]]]:
    """Compiled methods for iterates like z0, where no gradient is recorded; none where they are elsewhere."""
    if z0.device.type != "cpu" or torch.is_grad_enabled() or z0.dtype not in _entries():
        return {}
    return {Anderson: CompiledAnderson, Broyden: CompiledBroyden}


class _Compiled(AbstractMethod[Any]):
    """A method whose iteration is one call, which also finds the residuals."""

    rows = ("_next", "_gram", "_starts")
    kind: int

    def __init__(self, algorithm: AbstractFixedPointAlgorithm, samples: Samples, memory: int, rings: int) -> None:
        super().__init__(algorithm, samples)
        self._memory, self._rings, self._count = memory, rings, 0
        self._before: tuple[Tensor, Tensor] | None = None  # where the map was evaluated last, and its value there
        self._next: Tensor | None = None
        self._job: _Iteration | None = None
        self._residuals: Tensor | None = None
        self._images: Tensor | None = None
        self._gram = np.zeros((len(samples.index), memory, memory))
        self._starts = np.zeros(len(samples.index), dtype=np.int64)

    def _prepared(self, z: Tensor) -> _Iteration:
        """What C++ is given of memory and numbers that stay as long as the rows do."""
        shape = len(z), self._memory, z.shape[1]
        if self._memory and self._residuals is None:
            self._residuals = z.new_empty(shape)
            self._images = z.new_empty(shape) if self._rings > 1 else None
        job = _Iteration(n=z.shape[1], memory=self._memory)
        job.weight, job.floor = self._numbers(z.dtype)
        job.residuals, job.images = (None if x is None else x.data_ptr() for x in (self._residuals, self._images))
        job.gram, job.starts = self._gram.ctypes.data, self._starts.ctypes.data
        return job

    def measure(self, z: Tensor, fz: Tensor) -> Seen:
        z, fz = z.contiguous(), fz.contiguous()
        if self._job is None:
            self._job = self._prepared(z)
        job, self._next, norms = self._job, torch.empty_like(z), z.new_empty(len(z), 2, dtype=torch.float64)
        job.z, job.fz, job.next, job.norms = z.data_ptr(), fz.data_ptr(), self._next.data_ptr(), norms.data_ptr()
        before = self._before or (z, fz)
        job.z_before, job.fz_before = before[0].data_ptr(), before[1].data_ptr()
        job.count, job.slot = self._position()
        entry, place = _entries()[z.dtype], ctypes.addressof(job)
        parts = min(torch.get_num_threads(), len(z)) if z.numel() >= _SHARED else 1
        in_parts(len(z), parts, lambda start, stop: entry(place, self.kind, start, stop))
        self._before = z, fz
        residual, norm = norms.numpy().T
        return Seen(z[:, :0], residual, norm, ())

    def _position(self) -> tuple[int, int]:
        """How many vectors the history has, and the newest one's slot."""
        return 0, 0

    def _numbers(self, dtype: torch.dtype) -> tuple[float, float]:
        """The weight of f(z), and what the scaled diagonal is raised by."""
        return 1.0, 0.0

    def advance(
        self, z: Tensor, fz: Tensor, r: Tensor, seen: Sequence[Any], residual: np.ndarray, active: np.ndarray
    ) -> Advance:
        assert self._next is not None
        return Advance(self._next)

    def keep(self, compaction: Compaction) -> None:
        super().keep(compaction)
        rings = self._residuals, self._images
        self._residuals, self._images = (None if x is None else compaction.shrink(x) for x in rings)
        assert self._before is not None
        self._before, self._job = (compaction.take(self._before[0]), compaction.take(self._before[1])), None


class CompiledAnderson(_Compiled):
    """See `homojl.backends.pytorch.history.AndersonMethod`."""

    kind = _ANDERSON

    def __init__(self, algorithm: Anderson, samples: Samples) -> None:
        super().__init__(algorithm, samples, algorithm.memory - 1, 2)

    def _position(self) -> tuple[int, int]:
        if self._before is None or self._memory == 0:
            return 0, 0
        self._count += 1
        return min(self._count, self._memory), (self._count - 1) % self._memory

    def _numbers(self, dtype: torch.dtype) -> tuple[float, float]:
        return self.algorithm.mixing, max(self.algorithm.regularization, 10 * torch.finfo(dtype).eps)


class CompiledBroyden(_Compiled):
    """See `homojl.backends.pytorch.history.BroydenMethod`."""

    kind = _BROYDEN

    def __init__(self, algorithm: Broyden, samples: Samples) -> None:
        super().__init__(algorithm, samples, algorithm.memory, 1)

    def _position(self) -> tuple[int, int]:
        count = self._count
        self._count = 1 if count == self._memory else count + 1
        return count, count - 1
