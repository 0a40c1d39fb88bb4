"""A batch of samples that converge one by one: the map at those still at work, and how each one ended.

States are flat here, (b, n): one row for each sample still at work, its elements in the order of the caller's memory.
"""

from __future__ import annotations

import math

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
FAR = 5.0  # norm(f(z)) relative to where it began, from which on a residual may be small by growth alone


class Samples:
    """The map, seen from the samples still at work, and what its residuals have to come to; counts its evaluations.

    Attributes:
        layout: of the rows.
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
        self.layout = RowLayout(z0)
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
        if self.alone or active.sum() >= self._asked:
            return self.alone
        self._asked = int(active.sum())
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
        if far.any():
            size = np.where(far, np.minimum(norm, self._largest), norm)
            left = np.where(far, np.maximum(residual, self._eps * norm), residual)
        self.allowed = self._algorithm.atol + self._algorithm.rtol * size
        score = left / self.allowed
        return score if self._algorithm.atol > 0 else np.where(left == 0, 0.0, score)

    def keep(self, compaction: Compaction) -> None:
        order = compaction.order
        for name in ("index", "_far", "_largest", "allowed"):
            setattr(self, name, getattr(self, name)[order])
        self._rows = torch.from_numpy(self.index).to(self._device, non_blocking=True)
        self._point = None


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
        self._at_best = np.full(count, math.nan), np.full(count, math.nan)  # residual and norm(f(z)) there
        self._mark = np.full(count, math.inf)  # the score that has to be undercut to count as progress
        self._largest = np.zeros(count)  # norm(f(z)) that has to be exceeded to count as progress
        self._marked_at = np.zeros(count, dtype=int)
        self._pieces: list[tuple[np.ndarray, Tensor]] = []
        self._residuals = np.full(count, math.nan)
        self._iterations = np.zeros(count, dtype=int)
        self._statuses = np.full(count, None, dtype=object)

    def update(self, iteration: int, z: Tensor, residual: np.ndarray, norm: np.ndarray) -> None:
        """Take note of the iterates z (b, n), where norm(f(z) - z) and norm(f(z)), both (b,), have been found."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            finite, score = np.isfinite(residual + norm), self._samples.score(residual, norm)
        sound = bool(finite.all())
        better = (score < self._score) & self.active
        better = better if sound else better & finite
        fell = better & (score < 0.999 * self._mark)
        if iteration == 0 or better.all():
            self._best, self._score, self._at_best = z, score, (residual, norm)
        elif better.any():
            self._best = torch.where(column_of(better, z), z, self._best)
            self._score = np.where(better, score, self._score)
            self._at_best = np.where(better, residual, self._at_best[0]), np.where(better, norm, self._at_best[1])
        grew = norm > 1.001 * self._largest
        grew = (grew & self.active & finite) if grew.any() else grew
        self._marked(iteration, fell, grew, score, norm)

        if (done := self._score <= 1.0).any():
            self.stop(done, Status.SUCCESS, iteration)
        if not sound:
            self.stop(~finite, Status.DIVERGED, iteration)
        if iteration >= self._patience:
            self.stop(iteration - self._marked_at >= self._patience, Status.STALLED, iteration)

    def _marked(self, iteration: int, fell: np.ndarray, grew: np.ndarray, score: np.ndarray, norm: np.ndarray) -> None:
        """Note which rows have made progress."""
        if fell.all():
            self._mark, moved = score, fell
        else:
            self._mark, moved = np.where(fell, score, self._mark), fell | grew
        if grew.any():
            self._largest = np.where(grew, norm, self._largest)
        self._marked_at = np.where(moved, iteration, self._marked_at)

    def stop(self, which: np.ndarray, status: Status, iteration: int) -> None:
        """Those of the rows `which` (bool) that are still at work end here, at their best iterates."""
        which = which & self.active
        if not which.any():
            return
        rows = torch.from_numpy(np.flatnonzero(which)).to(self._best.device, non_blocking=True)
        index = self._samples.index[which]
        self._pieces.append((index, self._best if which.all() else self._best.index_select(0, rows)))
        residual, norm = (x[which] for x in self._at_best)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._residuals[index] = np.where(residual == 0, 0.0, residual / norm)
        self._iterations[index] = iteration
        self._statuses[index] = status
        self.active = self.active & ~which

    def compaction(self) -> Compaction | None:
        """How the rest moves together, where enough are done for that to pay."""
        if self.active.sum() > (1 - COMPACT_AT) * len(self.active):
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
        """The worst status among the samples, and one line on what happened and what to try."""
        if converged.all():
            return Status.SUCCESS, ""
        worst_first = (Status.DIVERGED, Status.STEP_TOO_SMALL, Status.RETURNED, Status.STALLED, Status.MAX_STEPS)
        status = next(s for s in worst_first if s in self._statuses)
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
        if status in (Status.STALLED, Status.MAX_STEPS):
            advice += rough_products(self._best, algorithm.rtol)
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
