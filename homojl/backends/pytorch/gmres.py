"""GMRES for a batch of linear systems, each with its own Krylov space, given their products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from homojl.backends.pytorch.rows import Compaction

Tensor = torch.Tensor

# Products between two looks at whether they are enough, over those that seem to be missing: on a CPU, but not more than
# the next number over those so far; and where looking means to wait.
LOOKS, MOST_LOOKS, WAITS = 0.8, 0.7, 1.3
FIRST_WAIT = 4


class Deflation:
    """The directions that a batch of matrices shrinks most, kept from one solve to the next of matrices much alike.

    They are what GMRES finds last. A solve that begins with their products, one each, needs far fewer others.

    Args:
        count: how many directions for each row.

    Attributes:
        expected: products beside those directions that a solve will need.

    References: Morgan (2002), SIAM J. Sci. Comput. 24(1); Parks et al. (2006), SIAM J. Sci. Comput. 28(5).
    """

    def __init__(self, count: int = 6) -> None:
        self._count = count
        self.expected = FIRST_WAIT
        self._vectors: Tensor | None = None
        self._last: tuple[_Space, np.ndarray] | None = None

    def note(self, space: _Space, hessenberg: np.ndarray) -> None:
        """A solve has ended; what it says is looked at when there is another one."""
        self.expected = max(hessenberg.shape[2] - space.held, 1)
        self._last = (space, hessenberg) if hessenberg.shape[2] >= 3 * self._count else None

    def vectors(self) -> Tensor | None:
        """(b, count, n), of length 1, or 0 where a row has none; None: there are none."""
        if self._last is not None:
            self._vectors, self._last = self._learnt(*self._last), None
        return self._vectors

    def keep(self, compaction: Compaction) -> None:
        """The batch has moved together."""
        vectors = self.vectors()
        self._vectors = None if vectors is None else compaction.take(vectors)

    def _learnt(self, space: _Space, hessenberg: np.ndarray) -> Tensor:
        """Those z = Z y of a space, where A Z = V H, with the largest norm(z) for their norm(A z)."""
        r: np.ndarray = np.linalg.qr(hessenberg, mode="r")  # type: ignore[assignment]  # NumPy says it is all of QR
        diagonal = np.abs(np.diagonal(r, axis1=1, axis2=2))
        sound = (diagonal > 1e-12 * diagonal.max(axis=1, keepdims=True)).all(axis=1)
        r[~sound] = np.eye(r.shape[1])
        inverse = np.linalg.inv(r)
        _, found = np.linalg.eigh(inverse.transpose(0, 2, 1) @ space.gram(r.shape[1]) @ inverse)
        weights = (inverse @ found[:, :, : -self._count - 1 : -1]).transpose(0, 2, 1)
        weights[~sound] = 0.0
        vectors = space.combined(weights)
        length = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
        return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)


class _Space:
    """What was multiplied, Z, and an orthonormal basis V of the right-hand side and the products, A Z = V H.

    Z are the vectors of the deflation and then the right-hand side and what each product adds to the basis. In memory
    the basis begins with what the deflation has added, so that both are neighbours.

    Args:
        start: the right-hand side (b, n).
        norms: its norms (b, 1).
        steps: most products, those of the deflation not counted.
        first: the deflation's vectors (b, held, n).
    """

    def __init__(self, start: Tensor, norms: Tensor, steps: int, first: Tensor | None) -> None:
        b, n = start.shape
        self._first, self.held = first, 0 if first is None else first.shape[1]
        self.size = self.held + steps
        self._basis = start.new_empty(b, self.size + 1, n)
        self._tiny = torch.finfo(start.dtype).tiny
        torch.div(start, norms.clamp_min(self._tiny), out=self._basis[:, self.held])

    def vector(self, j: int) -> Tensor:
        """z_j."""
        return self._basis[:, j] if self._first is None or j >= self.held else self._first[:, j]

    def _place(self, j: int) -> Tensor:
        """Where V_(j + 1) is, (b, 1, n)."""
        return self._basis.narrow(1, j if j < self.held else j + 1, 1)

    def add(self, j: int, product: Tensor, *, twice: bool) -> tuple[list[Tensor], Tensor]:
        """Take A z_j, (b, n), into the basis.

        Args:
            twice: orthogonalise once more, so that the basis is orthonormal to rounding.

        Returns:
            Its column of H: what V_0 ... V_j have of it, together (b, j + 1), and the length that is left, (b, 1, 1).
        """
        place, held = self._place(j), self.held
        # V_0 lies behind what the deflation has added.
        parts = [(held, 1), (0, j)] if 0 < j < held else [(held, 1)] if j < held else [(0, j + 1)]
        known = [self._basis.narrow(1, *part) for part in parts]
        total: list[Tensor] = []
        w = product[:, None]
        for _ in range(2 if twice else 1):
            hs = [torch.bmm(w, v.mT) for v in known]
            for h, v in zip(hs, known, strict=True):
                w = torch.baddbmm(w, h, v, alpha=-1, out=place if v is known[-1] else None)
            total = [a + b for a, b in zip(total, hs, strict=True)] if total else hs
        length = torch.linalg.vector_norm(place, dim=2, keepdim=True)
        place.div_(length.clamp_min(self._tiny))
        column = [x[:, 0] for x in total]
        if 0 < held <= j:
            (h,) = column
            column = [h[:, held : held + 1], h[:, :held], h[:, held + 1 :]]
        return column, length

    def combined(self, weights: np.ndarray) -> Tensor:
        """sum_j weights[:, :, j] z_j, (b, count, n), of weights (b, count, columns) on the host."""
        w = torch.from_numpy(weights).to(self._basis.device, non_blocking=True).to(self._basis.dtype)
        columns, held = w.shape[2], self.held
        if self._first is None:
            return torch.bmm(w, self._basis[:, :columns])
        if columns <= held:
            return torch.bmm(w, self._first[:, :columns])
        found = torch.bmm(w[:, :, :held], self._first)
        return torch.baddbmm(found, w[:, :, held:], self._basis[:, held:columns])

    def gram(self, columns: int) -> np.ndarray:
        """The inner products of z_0 ... z_(columns-1), (b, columns, columns)."""
        gram = np.repeat(np.eye(columns)[None], len(self._basis), axis=0)
        if (first := self._first) is not None:
            both = torch.bmm(first, first.mT), torch.bmm(first, self._basis[:, self.held : columns].mT)
            rows = host(torch.cat(both, dim=2))
            gram[:, : self.held], gram[:, :, : self.held] = rows, rows.transpose(0, 2, 1)
        return gram


def gmres(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    relative: np.ndarray,
    steps: int,
    *,
    guess: Tensor | None = None,
    deflation: Deflation | None = None,
    absolute: float = 0.0,
) -> tuple[Tensor, np.ndarray]:
    """Solve A x = right for every row, without restarts.

    The iteration of all rows goes on until each has met its tolerance; a row's answer uses only the steps it needed, so
    it does not depend on the others. Whether that is so is looked at every few steps on a CPU, less often the further
    off the goal is at the rate so far; on other devices, where looking means to wait, after as many as the last system
    with this deflation took, or few, and then once they should be enough. The small least-squares problems are solved
    on the host, in float64.

    Args:
        product: the matrices times vectors, (b, n) -> (b, n).
        right: right-hand sides (b, n).
        relative: what to reduce norm(right - A x) to, relative to norm(right), (b,); infinity: no answer is needed.
        steps: most products, those for `guess` and `deflation` not counted.
        guess: where to start (b, n); None: at zero.
        deflation: directions to begin with, which are learnt anew.
        absolute: what to reduce norm(right - A x) to, where that is more than `relative` asks, but a tenth at least.

    Returns:
        The x with the smallest residual in each row's Krylov space, (b, n), and norm(right - A x) / norm(right) as the
        recursion knows it, (b,): infinite where something was not finite.

    References: Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3); Ayachour (2003), J. Comput. Appl. Math. 159(2).
    """
    start = right if guess is None else right - product(guess)
    norms = torch.linalg.vector_norm(start, dim=1, keepdim=True)
    goals = norms if guess is None else torch.linalg.vector_norm(right, dim=1, keepdim=True)
    if (n := right.shape[1]) <= steps:
        steps, deflation = n, None
    space = _Space(start, norms, steps, None if deflation is None else deflation.vectors())
    search = _Search(relative, absolute, space.held, space.size)
    # A rough answer needs no basis that is orthonormal to rounding: A Z = V H holds all the same.
    twice = bool((relative < (100 * torch.finfo(right.dtype).eps) ** 0.5).any())
    seen, waits = [norms, goals], right.device.type != "cpu"
    look = FIRST_WAIT if deflation is None else space.held + deflation.expected
    look = min(look if waits else 1 + space.held, space.size)
    for j in range(space.size):
        h, length = space.add(j, product(space.vector(j)), twice=twice)
        seen += [*h, length[:, 0]]
        if j + 1 >= look:
            search.take(host(torch.cat(seen, dim=1)))
            seen.clear()
            if not search.working.any():
                break
            further = WAITS * search.missing() if waits else min(LOOKS * search.missing(), MOST_LOOKS * j)
            look = j + 2 + int(min(further, space.size - j - 2))
    weights, left = search.answer()
    if deflation is not None:
        deflation.note(space, search.hessenberg)
    x = space.combined(weights[:, None])[:, 0]
    return x if guess is None else x + guess * (goals > 0), left


class _Search:
    """The least-squares problems min norm(beta e_0 - H y) of all rows, a few columns of H at a time.

    The vector u with u_0 = 1 and u^T H = 0 gives what is left, beta / norm(u), without solving them.

    Args:
        relative, absolute: as in `gmres`.
        held: columns that belong to the deflation.
        size: most columns.

    Attributes:
        working: the rows that need further columns, (b,), bool.
    """

    working: np.ndarray
    _beta: np.ndarray  # norm(right - A guess)
    _goal: np.ndarray  # norm(right)
    _needed: np.ndarray  # what a row's norm(u)^2 has to come to

    def __init__(self, relative: np.ndarray, absolute: float, held: int, size: int) -> None:
        b = len(relative)
        self._relative, self._absolute, self._held, self._count = relative, absolute, held, 0
        self._h = np.zeros((b, size + 1, size))
        self._u = np.ones((b, size + 1))
        self._squares = np.ones((b, 1))
        self._growth = np.zeros(b)  # of their logarithms, by a column
        self._used = np.zeros(b, dtype=int)

    @property
    def hessenberg(self) -> np.ndarray:
        """H, (b, columns + 1, columns)."""
        return self._h[:, : self._count + 1, : self._count]

    def take(self, known: np.ndarray) -> None:
        """Numbers of each row, (b, count): first its two norms; columns of H one after the other, as far as filled."""
        start = self._count
        if start == 0:
            self._begin(known[:, 0], known[:, 1])
            known = known[:, 2:]
        while known.shape[1]:
            rows = self._count + 2
            self._h[:, :rows, self._count] = known[:, :rows]
            self._count, known = self._count + 1, known[:, rows:]
        self._look(start)

    def _begin(self, beta: np.ndarray, goal: np.ndarray) -> None:
        self._beta, self._goal = beta, goal
        self._broken = ~np.isfinite(beta)
        self._needed = np.full(len(beta), np.inf)
        with np.errstate(invalid="ignore"):  # infinity times zero, for rows that need no answer
            enough = np.maximum(self._relative * goal, np.minimum(self._absolute, 0.1 * goal))
            self.working = (beta > enough) & (goal > 0) & ~self._broken
        some = self.working
        self._needed[some] = (beta[some] / np.maximum(enough[some], np.finfo(float).tiny)) ** 2

    def _look(self, start: int) -> None:
        """At the columns from `start` on."""
        h, end = self._h, self._count
        lengths = np.diagonal(h, -1, 1, 2)[:, :end]
        # Where nothing but rounding is left of a new vector, the answer lies in the space spanned so far.
        sound = lengths[:, start:] > 1e-14 * lengths.max(axis=1, keepdims=True)
        ends = None if sound.all() else self._mended(start, sound)
        new = h[:, : end + 1, start:end]
        right = self._u[:, None, : start + 1] @ new[:, : start + 1]
        u = -np.linalg.solve(new[:, start + 1 :].swapaxes(1, 2), right.swapaxes(1, 2))[:, :, 0]
        self._u[:, start + 1 : end + 1] = u
        squares = self._squares + np.cumsum(u * u, axis=1)
        self._growth = np.log(squares[:, -1] / self._squares[:, 0]) / (end - start)
        self._squares = squares[:, -1:]
        enough = squares >= self._needed[:, None]
        if ends is not None:
            enough |= ends
        some = enough.any(axis=1)
        self._used[self.working] = np.where(some, start + 1 + enough.argmax(axis=1), end)[self.working]
        self.working = self.working & ~some

    def missing(self) -> float:
        """About how many further columns the slowest row needs, at the rate of the last ones."""
        some = self.working
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            left = np.log(self._needed[some] / self._squares[some, 0]) / self._growth[some]
        return float(np.nan_to_num(left, nan=np.inf).max())

    def _mended(self, start: int, sound: np.ndarray) -> np.ndarray:
        """Columns that divide in the place of those that are not `sound`; which of the new ones are the last of a row.

        A vector of the deflation that comes to nothing says nothing of the others.
        """
        ends = ~sound
        for i in np.flatnonzero(~sound.all(axis=0)):
            j, bad = start + i, ~sound[:, i]
            column = self._h[:, : j + 2, j]
            finite = np.isfinite(column).all(axis=1)
            self._broken |= bad & ~finite & self.working
            if j < self._held:
                ends[:, i] = ~finite
                column[bad] = 0.0
            column[~finite] = 0.0
            column[bad, -1] = np.maximum(1e-15 * np.abs(column[bad]).max(axis=1), np.finfo(float).tiny)
            column[(column[:, :-1] == 0).all(axis=1) & bad, -1] = 1.0
        return ends

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """y of each row, (b, columns), and what is left, relative to norm(right)."""
        h, count = self.hessenberg, self._count
        unused = np.arange(count)[None] >= self._used[:, None]
        if unused.any():
            h = np.where(unused[:, None], 0.0, h)
            h[:, range(1, count + 1), range(count)] += unused
        q, r = np.linalg.qr(h)
        beta = np.where(self._broken, 0.0, self._beta)
        y = np.linalg.solve(r, (beta[:, None] * q[:, 0])[:, :, None])[:, :, 0]
        y[unused] = 0.0
        residual = (h @ y[:, :, None])[:, :, 0]
        residual[:, 0] -= beta
        left = np.where(self._used > 0, np.sqrt((residual * residual).sum(axis=1)), beta)
        with np.errstate(divide="ignore", invalid="ignore"):
            return y, np.where(self._broken, np.inf, np.where(self._goal > 0, left / self._goal, 0.0))


def host(x: Tensor) -> np.ndarray:
    """On the host, in float64."""
    x = x.detach().cpu()  # before the type: not every device has float64
    return x.numpy().astype(np.float64) if x.dtype == torch.float32 else x.double().numpy()


def hosts(xs: Sequence[Tensor]) -> list[np.ndarray]:
    """Several (b, any) on the host, in float64, with one wait for their device."""
    if xs[0].device.type == "cpu":
        return [host(x) for x in xs]
    return np.split(host(torch.cat(tuple(xs), dim=1)), np.cumsum([x.shape[1] for x in xs])[:-1], axis=1)


def column_of(x: np.ndarray, like: Tensor) -> Tensor:
    """Numbers or truth values of each row with a dimension of 1 behind, on a state's device."""
    column = torch.from_numpy(x).to(like.device, non_blocking=True)[..., None]
    return column if column.dtype == torch.bool else column.to(like.dtype)
