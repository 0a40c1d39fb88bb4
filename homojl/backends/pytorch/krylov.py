"""GMRES for a batch of linear systems, each with its own Krylov space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Tensor = torch.Tensor


def gmres(apply: Callable[[Tensor], Tensor], right: Tensor, relative: np.ndarray, steps: int) -> Tensor:
    """Solve A x = right for every row, from x = 0.

    The iteration of all rows goes on until each has met its tolerance; a row's answer uses only the steps it needed, so
    it does not depend on the others. Each step fetches one column of the Hessenberg matrices; the least-squares
    problems are solved on the host in float64.

    Args:
        apply: the matrices times vectors, (b, n) -> (b, n).
        right: right-hand sides (b, n).
        relative: what to reduce the residual to, relative to norm(right), (b,); infinity for rows that need no answer.
        steps: most products per row.

    Returns:
        The x with the smallest residual in each row's Krylov space, (b, n).

    References: Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3).
    """
    b, n = right.shape
    steps = min(steps, n)
    norms = torch.linalg.vector_norm(right, dim=1, keepdim=True)
    tiny = torch.finfo(right.dtype).tiny
    basis = right.new_empty(b, steps + 1, n)
    torch.div(right, norms.clamp_min(tiny), out=basis[:, 0])
    beta = norms[:, 0].to("cpu", torch.float64).numpy()
    triangle = _Triangle(beta, steps)
    working = (relative < 1.0) & (beta > 0) & np.isfinite(beta)
    for j in range(steps):
        if not working.any():
            break
        w = apply(basis[:, j])
        known = basis[:, : j + 1]
        coefficients = torch.zeros_like(known[:, :, 0])
        for _ in range(2):  # once is not enough in float32
            h = w[:, None] @ known.transpose(1, 2)
            w = torch.baddbmm(w[:, None], h, known, alpha=-1)[:, 0]
            coefficients = coefficients + h[:, 0]
        length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        torch.div(w, length.clamp_min(tiny), out=basis[:, j + 1])
        column = torch.cat([coefficients, length], dim=1).to("cpu", torch.float64).numpy()
        working = triangle.add(column, working) & (triangle.residual > relative * beta)
    y = torch.from_numpy(triangle.solve()).to(right.device, right.dtype)
    return (y[:, None] @ basis[:, : y.shape[1]])[:, 0]


class _Triangle:
    """The least-squares problems of all rows, brought to triangular form by rotations, column by column.

    Attributes:
        residual: of each row, (b,).
    """

    def __init__(self, beta: np.ndarray, steps: int) -> None:
        b = len(beta)
        self._r = np.zeros((b, steps, steps))
        self._g = np.zeros((b, steps + 1))
        self._g[:, 0] = beta
        self._rotations: list[tuple[np.ndarray, np.ndarray]] = []
        self._used = np.zeros(b, dtype=int)
        self.residual = beta.copy()

    def add(self, column: np.ndarray, working: np.ndarray) -> np.ndarray:
        """Take column j of every Hessenberg matrix, (b, j + 2); which of the `working` rows it was of use to, (b,)."""
        h, j = column.copy(), column.shape[1] - 2
        finite = np.isfinite(h).all(axis=1)
        h[~finite] = 0.0
        for i, (c, s) in enumerate(self._rotations):
            h[:, i], h[:, i + 1] = c * h[:, i] + s * h[:, i + 1], c * h[:, i + 1] - s * h[:, i]
        length = np.hypot(h[:, j], h[:, j + 1])
        safe = np.where(length > 0, length, 1.0)
        c, s = np.where(length > 0, h[:, j] / safe, 1.0), h[:, j + 1] / safe
        self._rotations.append((c, s))
        self._r[:, :j, j], self._r[:, j, j] = h[:, :j], length
        self._g[:, j + 1] = -s * self._g[:, j]
        self._g[:, j] = c * self._g[:, j]
        useful = working & finite & (length > 0)
        self._used[useful] = j + 1
        self.residual = np.where(useful, np.abs(self._g[:, j + 1]), self.residual)
        return useful

    def solve(self) -> np.ndarray:
        """The coefficients of the basis vectors, (b, most columns used)."""
        count = int(self._used.max(initial=0)) or 1
        unused = np.arange(count)[None] >= self._used[:, None]
        r = self._r[:, :count, :count].copy()
        r[unused] = 0.0
        r.swapaxes(1, 2)[unused] = 0.0
        r[:, range(count), range(count)] += unused
        g = np.where(unused, 0.0, self._g[:, :count])
        return np.linalg.solve(r, g[:, :, None])[:, :, 0]
