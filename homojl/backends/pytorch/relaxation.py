"""Relaxation: the ODE dz/ds = f(z) - z followed to rest, each sample with steps of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from homojl.algorithms import Bosh3, Relaxation
from homojl.backends.pytorch.gmres import column_of
from homojl.backends.pytorch.history import AbstractMethod, Advance
from homojl.backends.pytorch.samples import Samples
from homojl.solution import Status

Tensor = torch.Tensor

LARGEST_ERROR = 0.1  # of a step, relative to the step itself
SHORTEST = 1e-10


class RelaxationMethod(AbstractMethod[Relaxation]):
    """Bogacki and Shampine's pair; the last stage of a step is the next residual.

    The error of a step is held to a tenth of the step itself. That follows the flow closely enough to stay in the basin
    the start lies in, and near rest, where it bounds the step by the field's stiffness, it keeps its accuracy
    relative to the shrinking residual, which a fixed tolerance would not.
    """

    rows = ("_h",)

    def __init__(self, algorithm: Relaxation, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        self._h = np.full(len(samples.index), 1.0)
        assert Bosh3.tableau.b_error is not None
        self._error_weights = Bosh3.tableau.b_error

    def advance(self, z: Tensor, fz: Tensor, r: Tensor, seen: Any, residual: np.ndarray, active: np.ndarray) -> Advance:
        tableau = Bosh3.tableau
        h = column_of(self._h, z)
        ks = [r]
        for row in (*tableau.a[1 : tableau.stages - 1], tableau.b):
            trial = z + h * _sum(row, ks)
            value = self.samples.evaluate(trial)
            ks.append(value - trial)
        with torch.no_grad():
            error, change = _sum(self._error_weights, ks), _sum(tableau.b, ks)
            norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in (error, change)])
            size_of_error, size = norms.to("cpu", torch.float64).numpy()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(size_of_error == 0, 0.0, size_of_error / (LARGEST_ERROR * size))
            factor = np.nan_to_num(0.9 * ratio ** (-1 / 2), nan=0.2, posinf=5.0)
        accepted = ratio <= 1.0
        self._h = np.clip(self._h * np.clip(factor, 0.2, np.where(accepted, 5.0, 0.9)), 0.0, 1e6)
        gave_up = active & ~accepted & (self._h < SHORTEST)
        if not accepted.all():
            good = column_of(accepted, z)
            trial, value = torch.where(good, trial, z), torch.where(good, value, fz)
        finite = np.isfinite(size_of_error)
        ended = {Status.DIVERGED: gave_up & ~finite, Status.STEP_TOO_SMALL: gave_up & finite}
        return Advance(trial, value, ended, joined=not accepted.all())


def _sum(weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor:
    first, *others = (weight * k for weight, k in zip(weights, ks, strict=False) if weight)
    return sum(others, start=first)
