"""GMRES for one system of linear equations on a flat vector, given its products."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Tensor = torch.Tensor


def gmres(
    product: Callable[[Tensor], Tensor], rhs: Tensor, *, steps: int, rtol: float, guess: Tensor | None = None
) -> tuple[Tensor, float]:
    """Solve A x = rhs without restarts.

    Args:
        product: x -> A x, on vectors (n,).
        rhs: right-hand side (n,).
        steps: most products, the one for `guess` not counted.
        rtol: stop where norm(rhs - A x) <= rtol * norm(rhs).
        guess: where to start (n,); None: at zero.

    Returns:
        x (n,), and norm(rhs - A x) / norm(rhs) as the recursion knows it: infinite if something was not finite.

    References: Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3).
    """
    x = torch.zeros_like(rhs) if guess is None else guess
    goal = torch.linalg.vector_norm(rhs).item()
    start = rhs if guess is None else rhs - product(x)
    size = torch.linalg.vector_norm(start).item()
    if goal == 0.0 or not math.isfinite(size):
        return torch.zeros_like(rhs), 0.0 if goal == 0.0 else math.inf
    if size <= rtol * goal:
        return x, size / goal
    basis = [start / size]
    columns: list[list[float]] = []  # of the triangular factor of the Hessenberg matrix
    rotations: list[tuple[float, float]] = []
    reduced = [size]  # the right-hand side of the least-squares problem, rotated along
    for _ in range(min(steps, rhs.numel())):
        column, new = _orthogonalized(product(basis[-1]), basis)
        if not all(map(math.isfinite, column)):
            return x, math.inf
        happy = column[-1] <= 1e-14 * math.hypot(*column)  # the solution lies in the space spanned so far
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        length = math.hypot(column[-2], column[-1])
        if length == 0.0:
            break
        c, s = column[-2] / length, column[-1] / length
        rotations.append((c, s))
        columns.append([*column[:-2], length])
        reduced[-1:] = [c * reduced[-1], -s * reduced[-1]]
        if abs(reduced[-1]) <= rtol * goal or happy:
            break
        basis.append(new)
    weights = [0.0] * len(columns)
    for i in reversed(range(len(columns))):
        known = sum(columns[j][i] * weights[j] for j in range(i + 1, len(columns)))
        weights[i] = (reduced[i] - known) / columns[i][i]
    for weight, vector in zip(weights, basis, strict=False):
        x = torch.add(x, vector, alpha=weight)
    return x, abs(reduced[-1]) / goal


def _orthogonalized(vector: Tensor, basis: list[Tensor]) -> tuple[list[float], Tensor]:
    """The vector's products with an orthonormal basis, then what is left of it: its norm, and it at length one.

    Gram-Schmidt twice over, so that the basis stays orthonormal to rounding.
    """
    rows = torch.stack(basis)
    first = rows @ vector
    vector = vector - first @ rows
    again = rows @ vector
    vector = vector - again @ rows
    norm = torch.linalg.vector_norm(vector)
    return [*(first + again).tolist(), norm.item()], vector / norm
