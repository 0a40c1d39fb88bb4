"""A root by one of SciML's methods, without a path to it: z - r(z) as a fixed-point problem of one sample."""

from __future__ import annotations

from typing import Any

import torch

from homojl.algorithms import SciML
from homojl.backends.base import AbstractBackend, Path
from homojl.functions.base import AbstractMap
from homojl.functions.products import Linearisation

Tensor = torch.Tensor


class _Shifted(AbstractMap):
    """z - r(z) on states (1, ...), whose first dimension counts the one sample."""

    def __init__(self, r: AbstractMap) -> None:
        self._r = r

    @property
    def calls(self) -> int:  # type: ignore[override]
        return self._r.calls

    def __call__(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        return z - self._r(z[0])[None]

    def linearised(self, z: Tensor, rows: Tensor | None = None) -> Linearisation:
        products: Any = _Products(self._r.linearised(z[0]))
        return products


class _Products:
    """Of the identity minus a Jacobian."""

    def __init__(self, of: Linearisation) -> None:
        self._of = of

    def push(self, v: Tensor) -> Tensor:
        return v - self._of.push(v[0])[None]


def path_to_root(r: AbstractMap, z0: Tensor, algorithm: SciML, backend: AbstractBackend) -> Path:
    """The start and the root, as a path of two points."""
    found = backend.find_fixed_point(_Shifted(r), z0[None], algorithm)
    root = found.value[0]
    residuals = torch.stack([r(z).abs().square().mean().sqrt().to("cpu", torch.float64) for z in (z0, root)])
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Path(
        s=ends,
        lambdas=ends,
        states=[z0, root],
        residuals=residuals,
        folds=0,
        status=found.status,
        message=found.message,
        nfe=found.nfe,
        n_jvp=found.n_jvp,
        n_rejected=0,
    )
