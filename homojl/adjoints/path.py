"""The gradient of a path's root by the implicit function theorem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from homojl.adjoints.implicit_function import AbstractRelation, differentiable
from homojl.backends.pytorch.gmres import gmres
from homojl.errors import SolveError
from homojl.functions import AbstractMap, MapFunction
from homojl.functions.products import Linearisation

Tensor = torch.Tensor


def differentiable_root(r: MapFunction, root: Tensor, *, dense: bool, krylov_steps: int) -> Tensor:
    """The root z of r(z) = 0 as a function of everything else that r depends on.

    The derivative dr/dz must be regular at the root; where the path started from has no influence on it.

    Args:
        r: residual, the problem's.
        root: detached, z0's form.
        dense: whether linear systems are solved by a factorisation, else by GMRES on products.
        krylov_steps: most of those products.

    Returns:
        The root's value; without a graph where r depends on nothing that requires a gradient.

    Raises:
        SolveError: in the backward pass, if the linear system cannot be solved.
    """
    if not torch.is_grad_enabled():
        return root
    r.stats.nfe_backward += 1
    r.probe(root, instead="a FixedPointProblem with UnrolledAdjoint()")
    r.forget()
    return differentiable(_Root(r, dense, krylov_steps), root) if r.inputs else root


class _Root(AbstractRelation):
    """-r(z) = 0"""

    sign: ClassVar[float] = -1.0

    def __init__(self, r: MapFunction, dense: bool, krylov_steps: int) -> None:
        super().__init__(r, transformed=False)
        self._dense, self._krylov_steps = dense, krylov_steps

    def find(self, z0: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        return z0.clone()

    def solve(self, f: AbstractMap, at: Linearisation, right: Tensor, *, transposed: bool) -> Tensor:
        if not torch.isfinite(right).all():  # which a scaler of the loss looks for
            return torch.full_like(right, torch.nan)
        if self._dense:
            matrix = at.matrix()
            x, info = torch.linalg.solve_ex(matrix.T if transposed else matrix, right.reshape(-1, 1))
            if info.item() != 0 or not torch.isfinite(x).all():
                raise SolveError("the derivative of r is singular or not finite at the root, which has no gradient")
            return x.view(right.shape)
        rtol, times = math.sqrt(torch.finfo(right.dtype).eps), at.pull if transposed else at.push
        x, (left,) = gmres(
            lambda v: times(v.view(right.shape)).reshape(1, -1),
            right.reshape(1, -1),
            np.full(1, rtol),
            self._krylov_steps,
        )
        if not left <= rtol:
            raise SolveError(
                f"GMRES left {left:.1e} of the gradient's linear system after {self._krylov_steps} products; raise "
                "krylov_steps"
            )
        return x.view(right.shape)
