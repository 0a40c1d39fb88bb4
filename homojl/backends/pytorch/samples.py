"""A batch of samples that converge one by one: their memory layout, who is still at work, and how each one ended.

States are flat here, (b, n): one row for each sample still at work, its elements in the order of the caller's memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, Homotopy, NewtonKrylov
from homojl.backends.base import FixedPoint, Map, MapJVP
from homojl.backends.pytorch.evaluations import Untouched
from homojl.errors import ConfigError
from homojl.layout import is_dense
from homojl.solution import Status

Tensor = torch.Tensor

PATIENCE = 30  # iterations in which there has to be progress; a tenth of max_steps if more
COMPACT_AT = 0.125  # the part of the batch that has to be done before the rest moves together


class RowLayout:
    """Rows of a batch as flat vectors and back: views where memory allows, its order kept where it does not.

    Args:
        like: the batch (B, ...) whose order of dimensions to follow.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        strides = like.stride()
        order = sorted(range(1, like.ndim), key=lambda d: (-strides[d], d))
        self._order = (0, *order)
        self._shape = tuple(like.shape[d] for d in order)
        self._inverse = tuple(self._order.index(d) for d in range(like.ndim))

    def flatten(self, batch: Tensor) -> Tensor:
        """(b, ...) as (b, n)."""
        return batch.permute(self._order).reshape(batch.shape[0], -1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """(b, n) as (b, ...), a view."""
        return flat.reshape(flat.shape[0], *self._shape).permute(self._inverse)

    def restore(self, flat: Tensor) -> Tensor:
        """The whole batch, in the strides it came with where they were dense."""
        batch, like = self.unflatten(flat), self._like
        if batch.stride() == like.stride() or not is_dense(like):
            return batch
        return torch.empty_strided(like.shape, like.stride(), dtype=flat.dtype, device=flat.device).copy_(batch)


class Compaction:
    """The samples still at work move into the first rows, those at the back into the places of those that are done.

    Args:
        active: which rows go on, (b,), bool.
        device: of the buffers.
    """

    def __init__(self, active: np.ndarray, device: torch.device) -> None:
        self.size = int(active.sum())
        holes = np.flatnonzero(~active[: self.size])
        movers = self.size + np.flatnonzero(active[self.size :])
        self.order = np.arange(self.size)
        self.order[holes] = movers
        indices = torch.from_numpy(np.concatenate([holes, movers, self.order])).to(device, non_blocking=True)
        self._holes, self._movers, self._rows = indices.split([len(holes), len(movers), self.size])

    def take(self, buffer: Tensor) -> Tensor:
        """The remaining rows of a (b, ...) buffer, as a new tensor."""
        return buffer.index_select(0, self._rows)

    def shrink(self, buffer: Tensor) -> Tensor:
        """The same in place, so that only rows at the back are copied; for buffers that nothing else refers to."""
        if len(self._holes):
            buffer.index_copy_(0, self._holes, buffer.index_select(0, self._movers))
        return buffer[: self.size]


class Samples:
    """The map, seen from the samples still at work; counts its evaluations.

    Attributes:
        layout: of the rows.
        nfe, n_jvp: evaluations and Jacobian-vector products so far.
        index: the position in the batch of each row, (b,), int64 on the host.
    """

    def __init__(self, f: Map, z0: Tensor, jvp: MapJVP | None) -> None:
        self._f, self._jvp = f, jvp
        self._rows: Tensor | None = None
        self._device, self._untouched = z0.device, Untouched()
        self.layout = RowLayout(z0)
        self.index = np.arange(z0.shape[0])
        self.nfe = self.n_jvp = 0

    def evaluate(self, z: Tensor) -> Tensor:
        """f at (b, n)."""
        self.nfe += 1
        return self._untouched(self.layout.flatten(self._f(self.layout.unflatten(z), self._rows)))

    def evaluate_some(self, z: Tensor, which: np.ndarray) -> Tensor:
        """f at the rows `which` (bool) of (b, n); shape (count of which, n)."""
        if which.all():
            return self.evaluate(z)
        self.nfe += 1
        rows = torch.from_numpy(self.index[which]).to(self._device, non_blocking=True)
        chosen = torch.from_numpy(np.flatnonzero(which)).to(self._device, non_blocking=True)
        return self.layout.flatten(self._f(self.layout.unflatten(z.index_select(0, chosen)), rows))

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """(df/dz) v at (b, n)."""
        if self._jvp is None:
            raise ConfigError("this method needs the map's Jacobian-vector product: pass jvp")
        self.n_jvp += 1
        return self.layout.flatten(self._jvp(self.layout.unflatten(z), self.layout.unflatten(v), self._rows))

    def keep(self, compaction: Compaction) -> None:
        self.index = self.index[compaction.order]
        self._rows = torch.from_numpy(self.index).to(self._device, non_blocking=True)


class Progress:
    """Residuals, best iterates and ends of all samples, kept on the host.

    A sample makes progress when its best residual falls by a thousandth, and also when norm(f(z)) grows by as much
    beyond all that it has been: a small start may have a long way to go, as in a positive concave map, on which the
    relative residual stays the same for a while.

    Attributes:
        active: which rows are still at work, (b,), bool.
    """

    _best: Tensor  # iterates (b, n); from the first update on

    def __init__(self, algorithm: AbstractFixedPointAlgorithm, samples: Samples) -> None:
        self._algorithm, self._samples = algorithm, samples
        # The way along a path says nothing of how far off its end is.
        self._patience = (
            algorithm.max_steps if isinstance(algorithm, Homotopy) else max(PATIENCE, algorithm.max_steps // 10)
        )
        count = len(samples.index)
        self.active = np.ones(count, dtype=bool)
        self._score = np.full(count, math.inf)  # residual over what is tolerated, at the best iterate
        self._ratio = np.full(count, math.nan)  # residual over norm(f(z)), there
        self._mark = np.full(count, math.inf)  # the score that has to be undercut to count as progress
        self._largest = np.zeros(count)  # norm(f(z)) that has to be exceeded to count as progress
        self._marked_at = np.zeros(count, dtype=int)
        self._pieces: list[tuple[np.ndarray, Tensor]] = []
        self._residuals = np.full(count, math.nan)
        self._iterations = np.zeros(count, dtype=int)
        self._statuses = np.full(count, None, dtype=object)

    def update(self, iteration: int, z: Tensor, residual: np.ndarray, norm: np.ndarray) -> None:
        """Take note of the iterates z (b, n), where norm(f(z) - z) and norm(f(z)), both (b,), have been found."""
        algorithm = self._algorithm
        finite = np.isfinite(residual) & np.isfinite(norm)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(residual == 0, 0.0, residual / (algorithm.atol + algorithm.rtol * norm))
            ratio = np.where(residual == 0, 0.0, residual / norm)
        better = self.active & finite & (score < self._score)
        if iteration == 0 or better.all():
            self._best = z
        elif better.any():
            chosen = torch.from_numpy(better).to(z.device, non_blocking=True)
            self._best = torch.where(chosen[:, None], z, self._best)
        self._score[better], self._ratio[better] = score[better], ratio[better]
        fell = better & (score < 0.999 * self._mark)
        grew = self.active & finite & (norm > 1.001 * self._largest)
        self._mark[fell], self._largest[grew] = score[fell], norm[grew]
        self._marked_at[fell | grew] = iteration

        converged = self.active & (self._score <= 1.0)
        self._end(converged, Status.SUCCESS, iteration)
        self._end(self.active & ~finite, Status.DIVERGED, iteration)
        self._end(self.active & (iteration - self._marked_at >= self._patience), Status.STALLED, iteration)

    def stop(self, which: np.ndarray, status: Status, iteration: int) -> None:
        """Those of the rows `which` (bool) that are still at work end here, at their best iterates."""
        self._end(which & self.active, status, iteration)

    def _end(self, which: np.ndarray, status: Status, iteration: int) -> None:
        if not which.any():
            return
        rows = torch.from_numpy(np.flatnonzero(which)).to(self._best.device, non_blocking=True)
        index = self._samples.index[which]
        self._pieces.append((index, self._best if which.all() else self._best.index_select(0, rows)))
        self._residuals[index], self._iterations[index] = self._ratio[which], iteration
        self._statuses[index] = status
        self.active = self.active & ~which

    def compaction(self) -> Compaction | None:
        """How the rest moves together, where enough are done for that to pay."""
        if self.active.sum() > (1 - COMPACT_AT) * len(self.active):
            return None
        compaction = Compaction(self.active, self._best.device)
        for name in ("active", "_score", "_ratio", "_mark", "_largest", "_marked_at"):
            setattr(self, name, getattr(self, name)[compaction.order])
        self._best = compaction.take(self._best)
        return compaction

    def result(self) -> FixedPoint:
        """What came of it, once no row is at work."""
        index = np.concatenate([index for index, _ in self._pieces])
        value = self._pieces[0][1] if len(self._pieces) == 1 else torch.cat([piece for _, piece in self._pieces])
        if not np.array_equal(index, np.arange(len(index))):
            value = value.index_select(0, torch.from_numpy(np.argsort(index)).to(value.device))
        converged = np.array([status is Status.SUCCESS for status in self._statuses])
        status, message = self._verdict(converged)
        return FixedPoint(
            value=self._samples.layout.restore(value),
            residuals=torch.from_numpy(self._residuals),
            iterations=torch.from_numpy(self._iterations),
            converged=torch.from_numpy(converged),
            status=status,
            message=message,
            nfe=self._samples.nfe,
            n_jvp=self._samples.n_jvp,
        )

    def _verdict(self, converged: np.ndarray) -> tuple[Status, str]:
        """The gravest end of any sample, and one line on what happened and what to try."""
        if converged.all():
            return Status.SUCCESS, ""
        grave = (Status.DIVERGED, Status.STEP_TOO_SMALL, Status.RETURNED, Status.STALLED, Status.MAX_STEPS)
        status = next(s for s in grave if s in self._statuses)
        missed, algorithm = np.flatnonzero(~converged), self._algorithm
        if status is Status.DIVERGED:
            worst = int(np.flatnonzero(self._statuses == status)[0])
            at = "at z0" if self._iterations[worst] == 0 else f"after {self._iterations[worst]} iterations"
            where = f"NaN or infinity in z or f(z) of sample {worst}, {at}"
        else:
            worst = int(missed[np.argmax(np.nan_to_num(self._residuals[missed], nan=math.inf))])
            where = (
                f"sample {worst} is the worst, with residual {self._residuals[worst]:.2g} "
                f"after {self._iterations[worst]} iterations, rtol {algorithm.rtol:.2g}"
            )
        other = "Relaxation()" if isinstance(algorithm, NewtonKrylov) else "NewtonKrylov()"
        advice = {
            Status.DIVERGED: "look at the map there, or try Anderson(), more damping or another z0",
            Status.RETURNED: "try Homotopy() with the other kind, or another z0",
            Status.STEP_TOO_SMALL: "loosen rtol and atol, use float64, or suspect a map that is not smooth",
            Status.STALLED: f"loosen rtol and atol, use float64, or try another algorithm such as {other}",
            Status.MAX_STEPS: f"raise max_steps (now {algorithm.max_steps}), loosen rtol and atol, or try another "
            "algorithm",
        }[status]
        count = f"{len(missed)} of {len(converged)} samples"
        return status, f"{algorithm.name}: {status.value} ({count}; {where}); {advice}"
