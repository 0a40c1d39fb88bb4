"""Newton's method and pseudo-transient continuation, on Jacobian-vector products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from homojl.algorithms import NewtonKrylov, PseudoTransient
from homojl.backends.pytorch.gmres import Deflation, column_of, gmres, host
from homojl.backends.pytorch.history import AbstractMethod, Advance
from homojl.backends.pytorch.rows import Compaction
from homojl.backends.pytorch.samples import Samples
from homojl.errors import ConfigError
from homojl.solution import Status

Tensor = torch.Tensor
Algorithm = TypeVar("Algorithm", bound=NewtonKrylov | PseudoTransient)

HALVINGS = 12  # of a Newton step before a row gives up
SHORTEST = 1e-8  # pseudo-time step before a row gives up


def _norms(x: Tensor) -> np.ndarray:
    return host(torch.linalg.vector_norm(x, dim=1))


class _AbstractNewton(AbstractMethod[Algorithm]):
    """A method whose linear systems, much alike from one to the next, go to GMRES."""

    def __init__(self, algorithm: Algorithm, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        self._deflation = Deflation()

    def _solved(self, product: Callable[[Tensor], Tensor], right: Tensor, relative: np.ndarray) -> Tensor:
        return gmres(product, right, relative, self.algorithm.krylov_steps, deflation=self._deflation)[0]

    def keep(self, compaction: Compaction) -> None:
        super().keep(compaction)
        self._deflation.keep(compaction)


class NewtonKrylovMethod(_AbstractNewton[NewtonKrylov]):
    """(I - J) step = f(z) - z by GMRES, as exactly as the last step's progress deserves; halved until norm(r) falls.

    References: Eisenstat, Walker (1996), SIAM J. Sci. Comput. 17(1), choice 2; Armijo's rule for the line search.
    """

    rows = ("_before", "_forcing")

    def __init__(self, algorithm: NewtonKrylov, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        if algorithm.differences and samples.dtype != torch.float64:
            raise ConfigError(
                f"NewtonKrylov with differences needs states in float64, got {samples.dtype}: rounding would spoil them"
            )
        self._before: np.ndarray | None = None
        self._forcing = np.full(len(samples.index), 0.3)

    def advance(self, z: Tensor, fz: Tensor, r: Tensor, seen: Any, residual: np.ndarray, active: np.ndarray) -> Advance:
        if self._before is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                wanted = 0.9 * np.nan_to_num(residual / self._before, nan=1.0) ** 2
                kept = 0.9 * self._forcing**2
            # The last forcing term holds a sudden drop back, so that a lucky step does not cost many products.
            wanted = np.where(kept > 0.1, np.maximum(wanted, kept), wanted)
            self._forcing = np.clip(wanted, 1e-6, 0.5)
        self._before = residual
        with np.errstate(divide="ignore", invalid="ignore"):  # nor better than what ends the solve
            forcing = np.fmax(self._forcing, np.minimum(0.5 * self.samples.allowed / residual, 0.5))
        relative = np.where(active, forcing, np.inf)
        return self._search(z, fz, residual, self._step(z, fz, r, relative), active)

    def _step(self, z: Tensor, fz: Tensor, r: Tensor, relative: np.ndarray) -> Tensor:
        push = self._differences(z, fz) if self.algorithm.differences else functools.partial(self.samples.push, z)

        def product(v: Tensor) -> Tensor:
            return v - push(v)

        if (preconditioner := self.algorithm.preconditioner) is None:
            return self._solved(product, r, relative)
        layout = self.samples.layout
        at = layout.unflatten(z)

        def nearly(v: Tensor) -> Tensor:
            return layout.flatten(preconditioner(layout.unflatten(v), at))

        return nearly(self._solved(lambda v: product(nearly(v)), r, relative))

    def _differences(self, z: Tensor, fz: Tensor) -> Callable[[Tensor], Tensor]:
        """About v -> (df/dz) v, where rounding and curvature weigh the same for a map of the state's own size."""
        size = torch.finfo(z.dtype).eps ** 0.5 * (1 + torch.linalg.vector_norm(z, dim=1, keepdim=True))
        least = torch.finfo(z.dtype).tiny

        def push(v: Tensor) -> Tensor:
            h = size / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(least)
            return (self.samples.evaluate(torch.addcmul(z, v, h)) - fz) / h

        return push

    def _search(self, z: Tensor, fz: Tensor, residual: np.ndarray, step: Tensor, active: np.ndarray) -> Advance:
        """Along the step, each row by itself; rows that are done, or find nothing, stay where they are."""
        trial = z + step
        value = self.samples.evaluate(trial)
        left = _norms(value - trial)
        good = ~active | (left <= (1 - 1e-4) * residual)
        t = 1.0
        for _ in range(HALVINGS):
            if good.all():
                break
            t, trying = t / 2, ~good
            candidate = torch.add(z, step, alpha=t)
            found = self.samples.evaluate_some(candidate, trying)
            rows = torch.from_numpy(np.flatnonzero(trying)).to(z.device)
            trial, value = trial.index_copy(0, rows, candidate[rows]), value.index_copy(0, rows, found)
            left[trying] = _norms(found - candidate[rows])
            good[trying] = left[trying] <= (1 - 1e-4 * t) * residual[trying]
        if good.all():
            return Advance(trial, value, joined=t < 1.0)
        keep = column_of(~good, z)
        ended = {Status.DIVERGED: ~good & ~np.isfinite(left), Status.STALLED: ~good & np.isfinite(left)}
        return Advance(torch.where(keep, z, trial), torch.where(keep, fz, value), ended, joined=True)


class PseudoTransientMethod(_AbstractNewton[PseudoTransient]):
    """((1 + 1/h) I - J) step = f(z) - z by GMRES; h grows as the residual falls (switched evolution relaxation).

    A step to where the map is not finite is taken back, and h becomes a tenth.

    References: Kelley, Keyes (1998), SIAM J. Numer. Anal. 35(2).
    """

    rows = ("_before", "_h")

    def __init__(self, algorithm: PseudoTransient, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        self._h = np.full(len(samples.index), algorithm.first_step)
        self._before: np.ndarray | None = None

    def advance(self, z: Tensor, fz: Tensor, r: Tensor, seen: Any, residual: np.ndarray, active: np.ndarray) -> Advance:
        if self._before is not None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                self._h = np.clip(self._h * np.nan_to_num(self._before / residual, nan=1.0), SHORTEST, 1e12)
        self._before = residual
        # Nearly a Newton step where h is long, so nearly as exact a solve as its convergence needs.
        relative = np.where(active, np.clip(1 / (1 + self._h), 1e-3, 0.1), np.inf)
        while True:
            shift = column_of(1 + 1 / self._h, z)

            def apply(v: Tensor, shift: Tensor = shift) -> Tensor:
                return shift * v - self.samples.push(z, v)

            step = self._solved(apply, r, relative)
            trial = z + step
            value = self.samples.evaluate(trial)
            bad = active & ~np.isfinite(_norms(value - trial))
            if not bad.any():
                return Advance(trial, value)
            self._h[bad] /= 10
            if (gave_up := bad & (self._h < SHORTEST)).any():
                keep, ended = column_of(bad, z), {Status.DIVERGED: gave_up}
                return Advance(torch.where(keep, z, trial), torch.where(keep, fz, value), ended, joined=True)
