"""Unrolled solves for `torch.export`: a fixed number of operations, whatever the values.

What is exported is what the layer does in evaluation, to rounding for equal steps, and for equilibria to the tolerance:
all iterations are in the graph, and a sample that has converged keeps its value in those that follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractFixedStep, AbstractODEAlgorithm, Anderson, Picard
from homojl.algorithms.tableaus import ButcherTableau
from homojl.errors import ConfigError
from homojl.marks import PerSample, Shared

Tensor = torch.Tensor


def integrate(
    field: Callable[..., Any], y0: Any, times: Sequence[float], args: tuple[Any, ...], algorithm: AbstractODEAlgorithm
) -> list[Any]:
    """The states at the times, by equal steps of an explicit method.

    Raises:
        ConfigError: for another method.
    """
    if not isinstance(algorithm, AbstractFixedStep) or algorithm.grid is not None:
        raise _unfit(algorithm)
    tableau, step_size = algorithm.tableau, algorithm.step_size
    if not isinstance(tableau, ButcherTableau):
        raise _unfit(algorithm)
    y, states = y0, [y0]
    for t0, t1 in itertools.pairwise(float(t) for t in times):
        n = 1 if step_size is None else max(1, math.ceil(abs(t1 - t0) / step_size - 1e-9))
        h = (t1 - t0) / n
        for i in range(n):
            ks: list[Any] = []
            for row, c in zip(tableau.a, tableau.c, strict=True):
                like = pytree.tree_leaves(y)[0]
                time = torch.full((), t0 + (i + c) * h, dtype=like.dtype, device=like.device)
                ks.append(field(time, _moved(y, h, row, ks), *args))
            y = _moved(y, h, tableau.b, ks)
        states.append(y)
    return states


def _moved(y: Any, h: float, weights: Sequence[float], ks: Sequence[Any]) -> Any:
    """y + h sum_i weights[i] ks[i] of states of one or several tensors."""
    for weight, k in zip(weights, ks, strict=True):
        if weight:
            y = pytree.tree_map(lambda a, b, w=weight: torch.add(a, b, alpha=h * w), y, k)
    return y


def _unfit(algorithm: AbstractODEAlgorithm) -> ConfigError:
    return ConfigError(
        f"{algorithm.name} does not take equal explicit steps, so it cannot be exported: set layer.algorithm to one "
        "that does, such as hj.RK4(step_size=0.25)"
    )


def find(f: Callable[..., Any], z0: Any, args: tuple[Any, ...], algorithm: AbstractFixedPointAlgorithm) -> Any:
    """The equilibrium by `max_steps` iterations of Picard's or Anderson's method.

    Raises:
        ConfigError: for another method.
    """
    args = tuple(a.value if isinstance(a, PerSample | Shared) else a for a in args)
    if not isinstance(algorithm, Picard | Anderson):
        raise ConfigError(
            f"{algorithm.name} cannot be exported: set layer.algorithm to a fixed number of iterations, such as "
            "hj.Picard(max_steps=30) or hj.Anderson(max_steps=15)"
        )
    leaves, spec = pytree.tree_flatten(z0)

    def split(rows: Tensor) -> Any:
        parts = rows.split([leaf[0].numel() for leaf in leaves], dim=1)
        shaped = [part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)]
        return pytree.tree_unflatten(shaped, spec)

    def joined(state: Any) -> Tensor:
        return torch.cat([leaf.flatten(1) for leaf in pytree.tree_leaves(state)], dim=1)

    z = joined(z0)
    zs: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(algorithm.max_steps):
        fz = joined(f(split(z), *args))
        residual = fz - z
        norm, size = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (residual, fz))
        if isinstance(algorithm, Picard):
            after = torch.lerp(fz, z, algorithm.damping)
        else:
            zs, residuals = [*zs, z][-algorithm.memory :], [*residuals, residual][-algorithm.memory :]
            after = _combined(zs, residuals, algorithm)
        z = torch.where(norm <= algorithm.atol + algorithm.rtol * size, z, after)
    return split(z)


def _combined(zs: list[Tensor], residuals: list[Tensor], algorithm: Anderson) -> Tensor:
    """Anderson's next iterate, sample by sample, from (B, n) each."""
    z, residual = torch.stack(zs, 1), torch.stack(residuals, 1)
    gram = residual @ residual.mT
    m = len(zs)
    scale = gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    ridge = max(algorithm.regularization, 10 * torch.finfo(gram.dtype).eps)
    weights = _solved(gram / scale + ridge * eye, torch.ones_like(gram[:, :, :1]))
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * (z + algorithm.mixing * residual)).sum(1)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of positive definite systems (B, m, m) by elimination, in operations that ONNX has too."""
    m = matrix.shape[1]
    rows = torch.cat([matrix, right], 2)
    numbers = torch.arange(m, device=matrix.device)[None, :, None]
    for i in range(m):
        pivot = rows[:, i : i + 1] / rows[:, i : i + 1, i : i + 1]
        rows = torch.where(numbers == i, pivot, rows - rows[:, :, i : i + 1] * pivot)
    return rows[:, :, m:]
