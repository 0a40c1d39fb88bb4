"""Picard's, Anderson's and Broyden's methods: one evaluation an iteration, and a history of earlier ones.

All small systems are solved in float64, on the host unless gradients are recorded: their entries come with the
residuals in one transfer, so that an iteration waits for the device once.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, Anderson, Broyden, Picard
from homojl.backends.pytorch.gmres import hosts
from homojl.backends.pytorch.rows import Compaction
from homojl.backends.pytorch.samples import Samples
from homojl.solution import Status

Tensor = torch.Tensor
Numbers = Any  # a Tensor where gradients are recorded, else an array on the host
TINY = 1e-200  # beside squares of lengths, in float64
TINY_STACK = 2**15  # elements
NUMPY = torch.float32, torch.float64
Algorithm = TypeVar("Algorithm", bound=AbstractFixedPointAlgorithm)


class Advance(NamedTuple):
    """What a method makes of an iterate.

    Attributes:
        z: the next iterates (b, n).
        fz: the map there, where the method has evaluated it already.
        ended: rows that cannot go on, (b,), bool, by why.
        joined: whether rows of fz come from different evaluations.
    """

    z: Tensor
    fz: Tensor | None = None
    ended: Mapping[Status, np.ndarray] = MappingProxyType({})
    joined: bool = False


class Seen(NamedTuple):
    """What an iteration has found at an iterate.

    Attributes:
        r: f(z) - z, (b, n).
        residual, norm: norm(r) and norm(f(z)), (b,), on the host.
        numbers: what else the method has asked for, (b, any) each: float64 on the host, or where gradients are recorded
            as it was.
    """

    r: Tensor
    residual: np.ndarray
    norm: np.ndarray
    numbers: Sequence[Numbers]

    def taken(self, compaction: Compaction) -> Seen:
        """Of the rows that go on."""
        order = compaction.order
        numbers = [compaction.take(x) if isinstance(x, Tensor) else x[order] for x in self.numbers]
        return Seen(compaction.take(self.r), self.residual[order], self.norm[order], numbers)


class AbstractMethod(abc.ABC, Generic[Algorithm]):
    """A method at work on one batch."""

    rows: ClassVar[tuple[str, ...]] = ()  # attributes that have a row for each sample: tensors, arrays or None

    def __init__(self, algorithm: Algorithm, samples: Samples) -> None:
        self.algorithm, self.samples = algorithm, samples

    def measure(self, z: Tensor, fz: Tensor) -> Seen:
        """What is left at z, (b, n), where the map is fz; called once an iteration, before `advance`."""
        r = fz - z
        # Detached: a norm of zero has no derivative, and second ones would be NaN, though nothing depends on it.
        norms = [torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True) for x in (r, fz)]
        observed = self.observe(r, fz)
        residual, norm, *known = hosts([*norms, *observed])
        recorded = any(x.requires_grad for x in observed)
        return Seen(r, residual[:, 0], norm[:, 0], observed if recorded else known)

    def observe(self, r: Tensor, fz: Tensor) -> list[Tensor]:
        """Numbers (b, any) of each row that `advance` wants to see."""
        return []

    @abc.abstractmethod
    def advance(
        self, z: Tensor, fz: Tensor, r: Tensor, seen: Sequence[Numbers], residual: np.ndarray, active: np.ndarray
    ) -> Advance:
        """The next iterates.

        Args:
            z, fz, r: iterates, the map there, and the difference fz - z, each (b, n).
            seen: what `observe` returned: float64 on the host, or where gradients are recorded as it was.
            residual: norm(r), (b,), on the host.
            active: rows that are still at work, (b,), on the host; the others may come to anything.
        """

    def keep(self, compaction: Compaction) -> None:
        """The batch has moved together."""
        for name in self.rows:
            value = getattr(self, name, None)
            if value is not None:
                moved = compaction.take(value) if isinstance(value, Tensor) else value[compaction.order]
                setattr(self, name, moved)


class History:
    """The last `memory` vectors of each row, in a ring.

    A buffer (b, memory, n), or where gradients are recorded a list of tensors that nothing overwrites. A tiny buffer on
    the CPU is NumPy's as well, which takes less time to enter than PyTorch.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self.count = memory, 0
        self._buffer: Tensor | None = None
        self._array: np.ndarray | None = None
        self._gram: np.ndarray | None = None
        self._list: list[Tensor] = []

    def __len__(self) -> int:
        return min(self.count, self.memory)

    @property
    def last(self) -> int:
        """Where in the ring the newest vectors are."""
        return (self.count - 1) % self.memory

    def clear(self) -> None:
        self.count, self._list = 0, []

    def add(self, x: Tensor, minus: Tensor | None = None) -> None:
        """Add x, or x - minus, both (b, n)."""
        slot = self.count % self.memory
        self.count += 1
        if x.requires_grad:
            x = x if minus is None else x - minus
            self._list = [*self._list[:slot], x, *self._list[slot + 1 :]]
            return
        if self._buffer is None:
            self._hold(x.new_empty(x.shape[0], self.memory, x.shape[1]))
            assert self._buffer is not None
        if self._array is not None and minus is not None:
            np.subtract(x.numpy(), minus.numpy(), out=self._array[:, slot])
        elif minus is not None:
            torch.sub(x, minus, out=self._buffer[:, slot])
        else:
            self._buffer[:, slot].copy_(x)

    def _hold(self, buffer: Tensor) -> None:
        tiny = buffer.numel() <= TINY_STACK and buffer.device.type == "cpu" and buffer.dtype in NUMPY
        self._buffer, self._array = buffer, buffer.numpy() if tiny else None

    def stacked(self) -> Tensor:
        """All vectors in ring order, (b, len, n); there must be one."""
        if self._list:
            return torch.stack(self._list, dim=1)
        assert self._buffer is not None
        return self._buffer[:, : len(self)]

    def products(self, r: Tensor) -> list[Tensor]:
        """The inner products of every vector with the newest one, then those with r (b, n): twice (b, len)."""
        if self._array is not None and not self._list:
            matrix = self._array[:, : len(self)].swapaxes(1, 2)
            pair = self._array[:, self.last, None], r.numpy()[:, None]
            return [torch.from_numpy(np.matmul(x, matrix)[:, 0]) for x in pair]
        stacked = self.stacked()
        # As a row times a matrix: the other way round is a dozen times slower on a CPU.
        return [torch.bmm(x[:, None], stacked.mT)[:, 0] for x in (stacked[:, self.last], r)]

    def combine(self, base: Tensor, weights: Numbers) -> Tensor:
        """base + sum_j weights[:, j] x_j, where weights is (b, len) on any device."""
        if self._array is not None and isinstance(weights, np.ndarray):
            rows = weights.astype(self._array.dtype)[:, None]
            return torch.from_numpy(np.matmul(rows, self._array[:, : len(self)])[:, 0]).add_(base)
        w = weights if isinstance(weights, Tensor) else torch.from_numpy(weights)
        w = w.to(base.device, base.dtype, non_blocking=True)
        return torch.baddbmm(base[:, None], w[:, None], self.stacked())[:, 0]

    def gram(self, newest: Numbers) -> Numbers:
        """All inner products, (b, len, len), where those with the newest vector are (b, len)."""
        if isinstance(newest, Tensor):
            stacked = self.stacked()
            return stacked @ stacked.transpose(1, 2)
        if self._gram is None:
            self._gram = np.zeros((len(newest), self.memory, self.memory))
        count, last = len(self), self.last
        self._gram[:, last, :count] = newest
        self._gram[:, :count, last] = newest
        return self._gram[:, :count, :count]

    def keep(self, compaction: Compaction) -> None:
        self._list = [compaction.take(x) for x in self._list]
        if self._gram is not None:
            self._gram = self._gram[compaction.order]
        if self._buffer is not None:
            self._hold(compaction.shrink(self._buffer))


class PicardMethod(AbstractMethod[Picard]):
    """z <- f(z) - damping (f(z) - z)."""

    def advance(
        self, z: Tensor, fz: Tensor, r: Tensor, seen: Sequence[Numbers], residual: np.ndarray, active: np.ndarray
    ) -> Advance:
        damping = self.algorithm.damping
        return Advance(fz if damping == 0.0 else torch.sub(fz, r, alpha=damping))


class AndersonMethod(AbstractMethod[Anderson]):
    """Differences of residuals dR and of iterates; z <- z + mixing r - (dZ + mixing dR) gamma.

    gamma minimises norm(r - dR gamma), each difference scaled to length 1 and the scaled problem's diagonal raised by
    the regularization. In differences the problem stays well posed in float32 where successive residuals are nearly
    parallel, which the equivalent one in residuals with weights that sum to 1 does not.

    References: Walker, Ni (2011), SIAM J. Numer. Anal. 49(4).
    """

    rows = ("_r_before", "_image_before")

    def __init__(self, algorithm: Anderson, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        # One iterate fewer than are combined; a memory of 1 leaves nothing to combine.
        self._memory = algorithm.memory - 1
        self._differences, self._images = History(self._memory), History(self._memory)
        self._r_before: Tensor | None = None
        self._image_before: Tensor | None = None

    def observe(self, r: Tensor, fz: Tensor) -> list[Tensor]:
        if self._r_before is None or self._memory == 0:
            return []
        # z + mixing r is what a step without a history would return.
        self._differences.add(r, minus=self._r_before)
        self._images.add(self._image(fz, r), minus=self._image_before)
        return self._differences.products(r)

    def _image(self, fz: Tensor, r: Tensor) -> Tensor:
        mixing = self.algorithm.mixing
        return fz if mixing == 1.0 else torch.sub(fz, r, alpha=1.0 - mixing)

    def advance(
        self, z: Tensor, fz: Tensor, r: Tensor, seen: Sequence[Numbers], residual: np.ndarray, active: np.ndarray
    ) -> Advance:
        image = self._image(fz, r)
        self._r_before, self._image_before = r, image
        if not seen:
            return Advance(image)
        newest, right = seen
        gram = self._differences.gram(newest)
        floor = max(self.algorithm.regularization, 10 * torch.finfo(r.dtype).eps)
        # On the host, or where it is recorded; below TINY no derivative: a row that rests has differences of length 0.
        if isinstance(right, np.ndarray):
            scale = 1.0 / np.sqrt(np.maximum(gram.diagonal(0, 1, 2), TINY))
            scaled = gram * (scale[:, :, None] * scale[:, None])
            np.einsum("bii->bi", scaled)[:] += floor
            gamma = scale * np.linalg.solve(scaled, (-scale * right)[:, :, None])[:, :, 0]
        else:
            scale = gram.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(right.dtype).tiny).rsqrt()
            scaled = scale[:, :, None] * gram * scale[:, None, :]
            scaled = scaled + floor * torch.eye(len(scale[0]), dtype=right.dtype, device=right.device)
            gamma = scale * torch.linalg.solve_ex(scaled, (-scale * right)[:, :, None])[0][:, :, 0]
        return Advance(self._images.combine(image, gamma))

    def keep(self, compaction: Compaction) -> None:
        super().keep(compaction)
        self._differences.keep(compaction)
        self._images.keep(compaction)


class BroydenMethod(AbstractMethod[Broyden]):
    """Broyden's "good" method from the Jacobian -I of f(z) - z, written in its steps s_0, ..., s_k alone.

    With z_0 = r, c_j = s_j.z_j / s_j.s_j and z_(j+1) = z_j + c_j s_(j+1), the next step is z_k / (1 - c_k). The c solve
    a triangular system in the steps' inner products with each other and with r, so that one pass over the history
    finds them and a second one makes the step. A history that is full is dropped: the method then starts again from
    -I, and so does a row whose denominator vanishes.

    References: Kelley (1995), Iterative Methods for Linear and Nonlinear Equations, 7.3.
    """

    rows = ("_start",)

    def __init__(self, algorithm: Broyden, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        self._steps = History(algorithm.memory)
        self._start = np.zeros(len(samples.index), dtype=int)  # of each row, its first step that counts

    def observe(self, r: Tensor, fz: Tensor) -> list[Tensor]:
        return self._steps.products(r) if len(self._steps) else []

    def advance(
        self, z: Tensor, fz: Tensor, r: Tensor, seen: Sequence[Numbers], residual: np.ndarray, active: np.ndarray
    ) -> Advance:
        if len(self._steps) == 0:
            return self._step(z, r)
        count = len(self._steps)
        newest, right = seen
        gram = self._steps.gram(newest)
        if count == self._steps.memory:
            self._steps.clear()
            self._start[:] = 0
            return self._step(z, r)
        counts = np.arange(count) >= self._start[:, None]
        solved = self._solved if isinstance(right, np.ndarray) else self._solved_recorded
        weights, denominator, restart = solved(gram, right, counts)
        self._start[restart] = count
        return self._step(z, self._steps.combine(r, weights) / denominator.to(r.device, r.dtype)[:, None])

    @staticmethod
    def _solved(gram: np.ndarray, right: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """The steps' weights (b, count), what the next step is divided by (b,), and the rows that start again (b,)."""
        diagonal, system = gram.diagonal(0, 1, 2), np.zeros_like(gram)
        system[:, :, :-1] = np.tril(-gram[:, :, 1:], -1) * counts[:, :, None]
        # A step of length zero has c = 0, by any divisor but zero.
        np.einsum("bii->bi", system)[:] = np.where(diagonal > TINY, diagonal, 1.0)
        c = np.linalg.solve(system, (right * counts)[:, :, None])[:, :, 0]
        denominator = 1.0 - c[:, -1]
        restart = ~(np.abs(denominator) > 1e-3)  # written so that NaN restarts too
        weights = np.zeros_like(c)
        weights[:, 1:] = np.where(restart[:, None], 0.0, c[:, :-1])
        return weights, torch.from_numpy(np.where(restart, 1.0, denominator)), restart

    @staticmethod
    def _solved_recorded(gram: Tensor, right: Tensor, counts: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """The same by operations that can be differentiated."""
        counted = torch.from_numpy(counts).to(right.device)
        below = torch.tril(gram[:, :, 1:], -1) * counted[:, :, None]
        diagonal = gram.diagonal(dim1=1, dim2=2)
        # A tiny divisor would have no finite derivatives.
        diagonal = torch.where(diagonal > torch.finfo(right.dtype).tiny, diagonal, torch.ones_like(diagonal))
        system = torch.diag_embed(diagonal) - torch.nn.functional.pad(below, (0, 1))
        c = torch.linalg.solve_triangular(system, (right * counted)[:, :, None], upper=False)[:, :, 0]
        denominator = 1.0 - c[:, -1]
        restart = ~(denominator.abs() > 1e-3)
        weights = torch.nn.functional.pad(c[:, :-1], (1, 0))
        weights = torch.where(restart[:, None], torch.zeros_like(weights), weights)
        return weights, torch.where(restart, torch.ones_like(denominator), denominator), restart.cpu().numpy()

    def _step(self, z: Tensor, step: Tensor) -> Advance:
        self._steps.add(step)
        return Advance(z + step)

    def keep(self, compaction: Compaction) -> None:
        super().keep(compaction)
        self._steps.keep(compaction)
