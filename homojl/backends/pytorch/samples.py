"""A batch of samples that converge one by one: the map at those still at work, and how each one ended.

States are flat here, (b, n): one row for each sample still at work, its elements in the order of the caller's memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, Homotopy, NewtonKrylov
from homojl.backends.base import FixedPoint
from homojl.backends.pytorch.gmres import column_of
from homojl.backends.pytorch.rows import COMPACT_AT, Compaction, RowLayout
from homojl.functions import AbstractMap
from homojl.functions.products import Linearisation
from homojl.solution import Status

Tensor = torch.Tensor

PATIENCE = 30  # iterations in which there has to be progress; a tenth of max_steps if more
LEAST = np.finfo(float).tiny
FAR = 5.0  # norm(f(z)) relative to where it began, from which on a residual may be small by growth alone


class Samples:
    """The map, seen from the samples still at work, and what its residuals have to come to; counts its evaluations.

    Attributes:
        layout: of the rows.
        dtype: of the states.
        nfe, n_jvp: evaluations and Jacobian-vector products so far.
        index: the position in the batch of each row, (b,), int64 on the host.
        alone: whether rows are known not to need each other.
        allowed: what each row's residual may come to, (b,), as found last.
    """

    def __init__(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> None:
        self._f, self._algorithm, self._device = f, algorithm, z0.device
        self._rows: Tensor | None = None
        self._point: tuple[Tensor, Linearisation] | None = None  # where the map was linearised last
        self._asked = len(z0) + 1  # rows at work when it was last asked whether they need each other
        self.layout, self.dtype = RowLayout(z0), z0.dtype
        self.index = np.arange(len(z0))
        self.nfe = self.n_jvp = 0
        self.alone = False
        self._far = self.allowed = np.zeros(len(z0))
        self._largest: np.ndarray | None = None  # residual so far; before the first, None
        self._eps = torch.finfo(z0.dtype).eps

    def evaluate(self, z: Tensor) -> Tensor:
        """f at (b, n)."""
        self.nfe += 1
        return self.layout.flatten(self._f(self.layout.unflatten(z), self._rows))

    def evaluate_some(self, z: Tensor, which: np.ndarray) -> Tensor:
        """f at the rows `which` (bool) of (b, n); shape (count of which, n)."""
        chosen = torch.from_numpy(np.flatnonzero(which)).to(self._device, non_blocking=True)
        if which.all() or not self.alone:
            return self.evaluate(z).index_select(0, chosen)
        self.nfe += 1
        rows = torch.from_numpy(self.index[which]).to(self._device, non_blocking=True)
        return self.layout.flatten(self._f(self.layout.unflatten(z.index_select(0, chosen)), rows))

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """(df/dz) v at (b, n); the map is linearised once where z is the same tensor."""
        self.n_jvp += 1
        if self._point is None or self._point[0] is not z:
            self._point = z, self._f.linearised(self.layout.unflatten(z), self._rows)
        return self.layout.flatten(self._point[1].push(self.layout.unflatten(v)))

    def separable(self, z: Tensor, fz: Tensor, active: np.ndarray) -> bool:
        """Whether rows may go on without each other; f(z) = fz, both (b, n), is all that is known of the whole batch.

        What the map does not tell is asked again where fewer rows are at work.

        Raises:
            Mixes: if they need each other.
        """
        if self.alone or (count := int(np.count_nonzero(active))) >= self._asked:
            return self.alone
        self._asked = count
        some = np.flatnonzero(active)[: max(1, len(active) // 2)]  # of all rows nothing would be learnt
        staying = torch.from_numpy(some).to(self._device)
        self.alone = self._f.separable((self.layout.unflatten(z),), self.layout.unflatten(fz), staying)
        return self.alone

    def score(self, residual: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """norm(f(z) - z) = `residual` as a multiple of what it may come to where norm(f(z)) is `norm`, all (b,).

        Far from where it began, f(z) may be large only because nothing holds it: growth makes any residual small
        beside it. There the largest residual so far is what others are compared with, and none is smaller than what
        rounding leaves. The first call is with those at z0.
        """
        if self._largest is None:
            self._far, self._largest = FAR * (residual + norm), residual
        self._largest = np.fmax(self._largest, residual)
        far, size, left = norm > self._far, norm, residual
        if np.count_nonzero(far):
            size = np.where(far, np.minimum(norm, self._largest), norm)
            left = np.where(far, np.maximum(residual, self._eps * norm), residual)
        self.allowed = self._algorithm.atol + self._algorithm.rtol * size
        # Where nothing is left and nothing is allowed, that is enough.
        return left / (self.allowed if self._algorithm.atol > 0 else np.maximum(self.allowed, LEAST))

    def keep(self, compaction: Compaction) -> None:
        order = compaction.order
        for name in ("index", "_far", "_largest", "allowed"):
            setattr(self, name, getattr(self, name)[order])
        self._rows = torch.from_numpy(self.index).to(self._device, non_blocking=True)
        self._point = None


class _Piece(NamedTuple):
    """Rows that have ended at one time: their places in the batch, iterates, norms of the residual and of f(z)."""

    places: np.ndarray
    z: Tensor
    residual: np.ndarray
    norm: np.ndarray
    iteration: int
    status: Status


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
        self.active, self._working = np.ones(count, dtype=bool), count
        self._score = np.full(count, math.inf)  # residual over what is tolerated, at the best iterate
        self._at_best = np.full(count, math.nan), np.full(count, math.nan)  # residual and norm(f(z)) there
        self._mark = np.full(count, math.inf)  # the score that has to be undercut to count as progress
        self._largest = np.zeros(count)  # norm(f(z)) that has to be exceeded to count as progress
        self._marked_at = np.zeros(count, dtype=int)
        self._pieces: list[_Piece] = []

    @property
    def some_rest(self) -> bool:
        """Whether some rows are done and others are not."""
        return 0 < self._working < len(self.active)

    @property
    def ended(self) -> bool:
        """Whether no row is at work."""
        return self._working == 0

    def update(self, iteration: int, z: Tensor, residual: np.ndarray, norm: np.ndarray) -> None:
        """Take note of the iterates z (b, n), where norm(f(z) - z) and norm(f(z)), both (b,), have been found."""
        count, sound, finite = len(residual), math.isfinite(residual.dot(norm)), self.active
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            score = self._samples.score(residual, norm)
            if not sound:  # or the product of the two is too large
                finite = np.isfinite(residual + norm)
        better = score < self._score
        if self._working < count or not sound:
            better &= self.active & finite
        improved = np.count_nonzero(better)
        if iteration == 0 or improved == count:
            self._best, self._score, self._at_best = z, score, (residual, norm)
        elif improved:
            self._best = torch.where(column_of(better, z), z, self._best)
            self._score = np.where(better, score, self._score)
            self._at_best = np.where(better, residual, self._at_best[0]), np.where(better, norm, self._at_best[1])
        self._note(iteration, better & (score < 0.999 * self._mark), score, norm, finite)
        done = self._score <= 1.0
        if np.count_nonzero(done):
            self.stop(done, Status.SUCCESS, iteration)
        if not sound:
            self.stop(~finite, Status.DIVERGED, iteration)
        if iteration >= self._patience:
            self.stop(iteration - self._marked_at >= self._patience, Status.STALLED, iteration)

    def _note(self, iteration: int, fell: np.ndarray, score: np.ndarray, norm: np.ndarray, finite: np.ndarray) -> None:
        """Which rows have made progress, of which the residuals of some `fell`."""
        moved, grew = fell, norm > 1.001 * self._largest
        if np.count_nonzero(grew):
            grew &= self.active & finite
            self._largest, moved = np.where(grew, norm, self._largest), fell | grew
        if np.count_nonzero(fell) == len(fell):
            self._mark = score
        else:
            self._mark = np.where(fell, score, self._mark)
        self._marked_at = np.where(moved, iteration, self._marked_at)

    def stop(self, which: np.ndarray, status: Status, iteration: int) -> None:
        """Those of the rows `which` (bool) that are still at work end here, at their best iterates."""
        which = which & self.active
        count = int(np.count_nonzero(which))
        if count == 0:
            return
        self._working -= count
        self.active = self.active & ~which
        best, index, (residual, norm) = self._best, self._samples.index, self._at_best
        if count < len(which):
            (rows,) = which.nonzero()
            best = best.index_select(0, torch.from_numpy(rows).to(best.device, non_blocking=True))
            index, residual, norm = index[rows], residual[rows], norm[rows]
        self._pieces.append(_Piece(index, best, residual, norm, iteration, status))

    def compaction(self) -> Compaction | None:
        """How the rest moves together, where enough are done for that to pay."""
        if self._working > (1 - COMPACT_AT) * len(self.active):
            return None
        compaction = Compaction(self.active, self._best.device)
        for name in ("active", "_score", "_mark", "_largest", "_marked_at"):
            setattr(self, name, getattr(self, name)[compaction.order])
        residual, norm = self._at_best
        self._at_best = residual[compaction.order], norm[compaction.order]
        self._best = compaction.take(self._best)
        return compaction

    def result(self) -> FixedPoint:
        """The result, once no row is at work."""
        pieces = self._pieces
        index = np.concatenate([piece.places for piece in pieces])
        value = pieces[0].z if len(pieces) == 1 else torch.cat([piece.z for piece in pieces])
        if len(pieces) > 1:
            value = value.index_select(0, torch.from_numpy(np.argsort(index)).to(value.device))
        residuals, iterations = np.empty(len(index)), np.empty(len(index), dtype=int)
        statuses = np.empty(len(index), dtype=object)
        with np.errstate(divide="ignore", invalid="ignore"):
            for piece in pieces:
                residuals[piece.places] = np.where(piece.residual == 0, 0.0, piece.residual / piece.norm)
                iterations[piece.places], statuses[piece.places] = piece.iteration, piece.status
        converged = statuses == Status.SUCCESS
        status, message = verdict(self._algorithm, statuses, residuals, iterations)
        if status in (Status.STALLED, Status.MAX_STEPS):
            message += rough_products(self._best, self._algorithm.rtol)
        return FixedPoint(
            value=self._samples.layout.restore(value),
            residuals=torch.from_numpy(residuals),
            iterations=torch.from_numpy(iterations),
            converged=torch.from_numpy(converged),
            status=status,
            message=message,
            nfe=self._samples.nfe,
            n_jvp=self._samples.n_jvp,
        )


def verdict(
    algorithm: AbstractFixedPointAlgorithm, statuses: np.ndarray, residuals: np.ndarray, iterations: np.ndarray
) -> tuple[Status, str]:
    """The worst status among the samples, and one line on what happened and what to try.

    Args:
        algorithm: what was iterated.
        statuses, residuals, iterations: of each sample, (b,).
    """
    converged = np.array([status is Status.SUCCESS for status in statuses])
    if converged.all():
        return Status.SUCCESS, ""
    worst_first = (Status.DIVERGED, Status.STEP_TOO_SMALL, Status.RETURNED, Status.STALLED, Status.MAX_STEPS)
    status = next(s for s in worst_first if s in statuses)
    missed = np.flatnonzero(~converged)
    if status is Status.DIVERGED:
        worst = int(np.flatnonzero(statuses == status)[0])
        at = "at z0" if iterations[worst] == 0 else f"after {iterations[worst]} iterations"
        where = f"NaN or infinity in z or f(z) of sample {worst}, {at}"
    else:
        worst = int(missed[np.argmax(np.nan_to_num(residuals[missed], nan=math.inf))])
        where = (
            f"sample {worst} is the worst, with residual {residuals[worst]:.2g} "
            f"after {iterations[worst]} iterations, rtol {algorithm.rtol:.2g}"
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


def rough_products(z: Tensor, rtol: float) -> str:
    """What to try where a GPU's float32 products are rounded as TF32, to 5e-4, and more is asked for; else nothing."""
    if z.device.type != "cuda" or z.dtype != torch.float32 or rtol >= 1e-3:
        return ""
    if not (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
        return ""
    return (
        "; products are rounded as TF32, to 5e-4: try torch.backends.cudnn.allow_tf32 = "
        "torch.backends.cuda.matmul.allow_tf32 = False"
    )
