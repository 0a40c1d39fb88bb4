"""GMRES for a batch of linear systems, each with its own Krylov space, given their products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Tensor = torch.Tensor


def gmres(
    product: Callable[[Tensor], Tensor], right: Tensor, relative: np.ndarray, steps: int, *, guess: Tensor | None = None
) -> tuple[Tensor, np.ndarray]:
    """Solve A x = right for every row, without restarts.

    The iteration of all rows goes on until each has met its tolerance; a row's answer uses only the steps it needed, so
    it does not depend on the others. Each step fetches one column of the Hessenberg matrices; the least-squares
    problems are brought to triangular form on the host, in float64.

    Args:
        product: the matrices times vectors, (b, n) -> (b, n).
        right: right-hand sides (b, n).
        relative: what to reduce norm(right - A x) to, relative to norm(right), (b,); infinity: no answer is needed.
        steps: most products, the one for `guess` not counted.
        guess: where to start (b, n); None: at zero.

    Returns:
        The x with the smallest residual in each row's Krylov space, (b, n), and norm(right - A x) / norm(right) as the
        recursion knows it, (b,): infinite where something was not finite.

    References: Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3).
    """
    b, n = right.shape
    steps = min(steps, n)
    start = right if guess is None else right - product(guess)
    norms = torch.linalg.vector_norm(start, dim=1, keepdim=True)
    beta = host(norms[:, 0])
    goal = beta if guess is None else host(torch.linalg.vector_norm(right, dim=1))
    x = torch.zeros_like(right) if guess is None else guess * (norms.new_tensor(goal)[:, None] > 0)
    with np.errstate(invalid="ignore"):  # infinity times zero, for rows that need no answer
        enough = relative * goal
    working = (beta > enough) & (goal > 0) & np.isfinite(beta)
    broken, left, used = ~np.isfinite(beta), beta.copy(), np.zeros(b, dtype=int)
    tiny, eps = torch.finfo(right.dtype).tiny, torch.finfo(right.dtype).eps
    # Rotations bring the Hessenberg matrices to triangles; their product is kept, whose first column times beta is the
    # right-hand side of the least-squares problems.
    rotations = np.repeat(np.eye(steps + 1)[None], b, axis=0)
    triangles = np.zeros((b, steps, steps))
    if working.any():
        basis = right.new_empty(b, steps + 1, n)
        torch.div(start, norms.clamp_min(tiny), out=basis[:, 0])
    for j in range(steps):
        if not working.any():
            break
        w, known = product(basis[:, j]), basis[:, : j + 1]
        coefficients = torch.zeros_like(known[:, :, 0])
        for _ in range(2):  # so that the basis stays orthonormal to rounding
            h = w[:, None] @ known.transpose(1, 2)
            w = torch.baddbmm(w[:, None], h, known, alpha=-1)[:, 0]
            coefficients = coefficients + h[:, 0]
        length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        torch.div(w, length.clamp_min(tiny), out=basis[:, j + 1])
        column = host(torch.cat([coefficients, length], dim=1))
        finite = np.isfinite(column).all(axis=1)
        broken |= working & ~finite
        column[~finite] = 0.0
        turned, below = (rotations[:, : j + 1, : j + 1] @ column[:, :-1, None])[:, :, 0], column[:, -1]
        size = np.hypot(turned[:, j], below)
        useful = working & (size > 0)
        size = np.where(size > 0, size, 1.0)
        c, s = (turned[:, j] / size)[:, None], (below / size)[:, None]
        triangles[:, :j, j], triangles[:, j, j] = turned[:, :j], size
        last = rotations[:, j, : j + 1].copy()
        rotations[:, j, : j + 1], rotations[:, j + 1, : j + 1] = c * last, -s * last
        rotations[:, j, j + 1], rotations[:, j + 1, j + 1] = s[:, 0], c[:, 0]
        used[useful] = j + 1
        left = np.where(useful, beta * np.abs(rotations[:, j + 1, 0]), left)
        # Where nothing is left of the new vector, the answer lies in the space spanned so far.
        working = useful & (left > enough) & (below > 4 * eps * np.linalg.norm(column, axis=1))
    if (count := int(used.max(initial=0))) > 0:
        unused = np.arange(count)[None] >= used[:, None]
        r = triangles[:, :count, :count]
        r[unused[:, :, None] | unused[:, None, :]] = 0.0
        r[:, range(count), range(count)] += unused
        y = np.linalg.solve(r, np.where(unused, 0.0, beta[:, None] * rotations[:, :count, 0])[:, :, None])
        x = torch.baddbmm(x[:, None], column_of(y[:, :, 0], right).transpose(1, 2), basis[:, :count])[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return x, np.where(broken, np.inf, np.where(goal > 0, left / goal, 0.0))


def host(x: Tensor) -> np.ndarray:
    """On the host, in float64."""
    return x.detach().to("cpu", torch.float64).numpy()


def column_of(x: np.ndarray, like: Tensor) -> Tensor:
    """Numbers or truth values of each row with a dimension of 1 behind, on a state's device."""
    column = torch.from_numpy(x).to(like.device, non_blocking=True)[..., None]
    return column if column.dtype == torch.bool else column.to(like.dtype)
