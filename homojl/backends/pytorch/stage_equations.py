"""The equations of a step's implicit stages: Newton's method, and the derivative of what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from homojl.algorithms import AbstractImplicit, AbstractImplicitFixedStep
from homojl.backends.pytorch.gmres import gmres
from homojl.backends.pytorch.steps import time_like
from homojl.errors import ConfigError, SolveError
from homojl.functions import AbstractField
from homojl.functions.products import Linearisation

Tensor = torch.Tensor

ITERATIONS = 12  # of Newton's method for one block of stages
ACCURACY = 0.01  # of the tolerance: the error that Newton's method may leave
KRYLOV_STEPS = 50  # products before GMRES starts again from where it is
RESTARTS = 4
PATIENCE = 3  # iterations that may be left before a new Jacobian is made


class _Form:
    """States as flat vectors of real numbers, in the order of their elements, and back."""

    def __init__(self, like: Tensor) -> None:
        self._like = like.detach()
        self.n = like.numel() * (2 if like.is_complex() else 1)

    def flat(self, x: Tensor) -> Tensor:
        return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)

    def spread(self, sizes: Tensor) -> Tensor:
        """One real number per element of a state as a flat vector."""
        return sizes.reshape(-1).repeat_interleave(self.n // self._like.numel())

    def state(self, v: Tensor) -> Tensor:
        if self._like.is_complex():
            v = torch.view_as_complex(v.reshape(-1, 2))
        v = v.reshape(self._like.shape)
        return v if self._like.is_contiguous() else torch.empty_like(self._like).copy_(v)

    def all_flat(self, states: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.flat(x) for x in states])

    def all_states(self, vectors: Tensor) -> list[Tensor]:
        return [self.state(v) for v in vectors]


class StageEquations:
    """Z = h A F(base + Z), in blocks of stages, for one step.

    Dense: simplified Newton iterations with the Jacobian at the step's start, which is replaced by one at the current
    iterate where they contract slowly. Krylov: Newton's method, its systems by GMRES. Both measure in units of the
    tolerance, element by element, and stop where the error that is left, estimated from the contraction, is below
    `ACCURACY` or what rounding allows.

    Attributes:
        finite: whether the field has been finite at every iterate.
        values: the field's, at the last iterate.

    References: Hairer, Wanner (1996), IV.8; Hindmarsh et al. (2005), ACM Trans. Math. Softw. 31(3).
    """

    def __init__(
        self,
        f: AbstractField,
        algorithm: AbstractImplicit | AbstractImplicitFixedStep,
        t: float,
        h: float,
        y: Tensor,
    ) -> None:
        self._f, self._t, self._h, self._y = f, t, h, y.detach()
        self._form = _Form(y)
        self._dense = algorithm.solves_densely(self._form.n)
        self.finite = True
        self.values: list[Tensor] = []
        self._scale = self._form.spread(self._tolerance(algorithm))
        self._jacobians: Tensor | None = None  # (1 or m, n, n)
        self._factors: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._contraction = 1.0  # of the last block: what is left of an error after one iteration

    def solve(
        self, weights: np.ndarray, times: list[float], bases: Sequence[Tensor], guesses: Sequence[Tensor | None]
    ) -> list[Tensor] | None:
        """The changes Z of a block's stages, with gradients where they are recorded; None: not found.

        Args:
            weights: the block's A, (m, m).
            times: of its m stages.
            bases: their states without what they get from the block itself.
            guesses: of their changes; None: zero.
        """
        with torch.no_grad():
            z = self._newton(weights, times, bases, guesses)
        if z is None:
            return None
        changes = self._form.all_states(z)
        if not torch.is_grad_enabled():
            return changes
        return self._attached(weights, times, bases, changes)

    def _tolerance(self, algorithm: AbstractImplicit | AbstractImplicitFixedStep) -> Tensor:
        size = self._y.abs()
        eps = torch.finfo(size.dtype).eps
        # Below 8 eps no correction of Newton's can be told from rounding.
        scale = torch.maximum(size * algorithm.rtol + algorithm.atol, size * (8 * eps / ACCURACY))
        return scale.clamp(min=torch.finfo(size.dtype).tiny / eps)

    # Newton's method

    def _newton(
        self, weights: np.ndarray, times: list[float], bases: Sequence[Tensor], guesses: Sequence[Tensor | None]
    ) -> Tensor | None:
        form = self._form
        a = torch.from_numpy(weights * self._h).to(self._scale)
        base = form.all_flat([b.detach() for b in bases])
        z = torch.zeros_like(base)
        for row, guess in zip(z, guesses, strict=True):
            if guess is not None:
                row.copy_(form.flat(guess.detach()))
        before, fresh = math.nan, False
        for iteration in range(ITERATIONS):
            states = form.all_states(base + z)
            self.values = [self._f(time_like(t, self._y), x).detach() for t, x in zip(times, states, strict=True)]
            residual = a @ form.all_flat(self.values) - z
            correction = self._correction(weights, a, times, states, residual)
            z = z + correction
            size = (correction / self._scale).abs().max().item()
            if not math.isfinite(size):
                self.finite = bool(torch.isfinite(residual).all())
                return None
            if iteration > 0:
                contraction = size / before if before > 0 else 0.0
                if contraction >= 1:
                    # Rounding in the field moves the iterates about: nothing better will come.
                    if correction.abs().max() <= 64 * torch.finfo(z.dtype).eps * (base + z).abs().max():
                        return z
                    if fresh or (not self._dense and contraction > 2):
                        return None
                self._contraction = min(max(contraction / (1 - contraction), 1e-2), 1e3) if contraction < 1 else 1e3
                fresh = self._dense and size * contraction**PATIENCE > ACCURACY
                if fresh:
                    self._linearise(times, form.all_states(base + z))
            if self._contraction * size <= ACCURACY:
                return z
            before = size
        return None

    def _correction(
        self, weights: np.ndarray, a: Tensor, times: list[float], states: list[Tensor], residual: Tensor
    ) -> Tensor:
        """The solution of (I - h A J) x = residual; (m, n)."""
        m, n = residual.shape
        if self._dense:
            return torch.linalg.lu_solve(*self._factorised(weights, a), residual.reshape(-1, 1)).reshape(m, n)

        points = self._linearisations(times, states)

        def product(v: Tensor) -> Tensor:
            v = v.view(m, n) * self._scale
            pushed = [p.push(w) for p, w in zip(points, self._form.all_states(v), strict=True)]
            return ((v - a @ self._form.all_flat(pushed)) / self._scale).view(-1)

        scaled = (residual / self._scale).view(-1)
        # As exactly as the last iteration needs it, within what pays.
        enough = 0.3 * ACCURACY * math.sqrt(m * n)
        return _restarted(product, scaled, 1e-4, enough)[0].view(m, n) * self._scale

    def _linearisations(self, times: list[float], states: Sequence[Tensor]) -> list[Linearisation]:
        return [self._f.linearised(time_like(t, self._y), x) for t, x in zip(times, states, strict=True)]

    def _linearise(self, times: list[float], states: list[Tensor]) -> Tensor:
        self._jacobians = torch.stack([point.matrix() for point in self._linearisations(times, states)])
        self._factors.clear()
        return self._jacobians

    def _factorised(self, weights: np.ndarray, a: Tensor) -> tuple[Tensor, Tensor]:
        key = weights.tobytes()
        if key not in self._factors:
            jacobians = self._jacobians
            if jacobians is None or len(jacobians) not in (1, len(a)):
                jacobians = self._linearise([self._t], [self._y])
            factors, pivots, _ = torch.linalg.lu_factor_ex(_matrix(a, jacobians))
            self._factors[key] = factors, pivots
        return self._factors[key]

    @torch.no_grad()
    def filtered(self, weight: float, x: Tensor) -> Tensor:
        """(I - h weight J)^-1 x, with the Jacobian at the step's start; of the state's shape."""
        weights = np.array([[weight]])
        a, flat = torch.from_numpy(weights * self._h).to(self._scale), self._form.flat(x)[None]
        return self._form.state(self._correction(weights, a, [self._t], [self._y], flat)[0])

    # The implicit function theorem

    def _attached(
        self, weights: np.ndarray, times: list[float], bases: Sequence[Tensor], changes: list[Tensor]
    ) -> list[Tensor]:
        """The changes as functions of the bases and of whatever else the field depends on."""
        states = [(base + change).detach() for base, change in zip(bases, changes, strict=True)]
        if not any(base.requires_grad for base in bases):
            found = [self._f(time_like(t, self._y), x) for t, x in zip(times, states, strict=True)]
            if not any(value.requires_grad for value in found):
                return changes
        points = self._linearisations(times, states)
        self._f.calls += len(points)
        values = [self._f.counted(point.value) for point in points]
        self._check(weights, times, states, changes, values)
        return list(_Implicit.apply(self, weights, times[0], points, *bases, *values, *changes))

    @torch.no_grad()
    def _check(
        self, weights: np.ndarray, times: list[float], states: list[Tensor], changes: list[Tensor], values: list[Tensor]
    ) -> None:
        """Raise a ConfigError where the field's values, which gradients go through, are not those of the solve."""
        a, z = torch.from_numpy(weights * self._h).to(self._scale), self._form.all_flat(changes)
        residual = a @ self._form.all_flat([v.detach() for v in values]) - z
        # A stiff field makes much of little: what counts is how far the solution is off.
        for off in (lambda: residual, lambda: self._correction(weights, a, times, states, residual)):
            if (off() / self._scale).abs().max() <= 1:
                return
        raise ConfigError(
            "f gives another value to the gradient than in the solve, so this gradient would be wrong: draw random "
            "numbers, as of dropout, outside of it and pass them in args"
        )

    def transposed(self, weights: np.ndarray, t: float, points: Sequence[Linearisation], cotangents: Tensor) -> Tensor:
        """The solution of (I - h A J)^T x = cotangents, with the Jacobians at the stages; (m, n).

        Raises:
            SolveError: if GMRES does not find it.
        """
        m, n = cotangents.shape
        a = torch.from_numpy(weights * self._h).to(self._scale)
        if self._dense:
            matrix = _matrix(a, torch.stack([point.matrix() for point in points]))
            return torch.linalg.solve(matrix.mT, cotangents.reshape(-1, 1)).reshape(m, n)

        def product(v: Tensor) -> Tensor:
            v = v.view(m, n) / self._scale
            pulled = [p.pull(w) for p, w in zip(points, self._form.all_states(a.mT @ v), strict=True)]
            return ((v - self._form.all_flat(pulled)) * self._scale).view(-1)

        scaled = (cotangents * self._scale).view(-1)
        rtol = torch.finfo(scaled.dtype).eps ** 0.75
        solution, left = _restarted(product, scaled, rtol)
        if not left <= 1e3 * rtol:
            raise SolveError(
                f"GMRES left a relative residual of {left:.1g} in the gradient of an implicit stage at "
                f"t = {t:.6g}; use linear_solver='dense', float64, or smaller steps"
            )
        return solution.view(m, n) / self._scale


class _Implicit(torch.autograd.Function):
    """Solved changes Z of m stages as a function of their bases and of the field's values at their states."""

    @staticmethod
    def forward(
        ctx: Any,
        equations: StageEquations,
        weights: np.ndarray,
        t: float,
        points: list[Linearisation],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        m = len(points)
        ctx.equations, ctx.weights, ctx.t, ctx.points = equations, weights, t, points
        return tuple(z.view_as(z) for z in tensors[2 * m :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack how the Jacobian changes
            raise ConfigError("implicit methods have first derivatives only; take an explicit one for second ones")
        equations, weights, m = ctx.equations, ctx.weights, len(ctx.points)
        form = equations._form
        nu = form.all_flat(cotangents)
        mu = equations.transposed(weights, ctx.t, ctx.points, nu)
        a = torch.from_numpy(weights * equations._h).to(mu)
        bases, values = form.all_states(mu - nu), form.all_states(a.mT @ mu)
        return None, None, None, None, *bases, *values, *(None,) * m


def _matrix(a: Tensor, jacobians: Tensor) -> Tensor:
    """I - a J of m stages with n elements each, J the stages' own or one for all; (m n, m n)."""
    m, n = len(a), jacobians.shape[-1]
    blocks = a[:, :, None, None] * jacobians[None]  # (m, m, n, n)
    return torch.eye(m * n, dtype=a.dtype, device=a.device) - blocks.transpose(1, 2).reshape(m * n, m * n)


def _restarted(
    product: Callable[[Tensor], Tensor], rhs: Tensor, rtol: float, enough: float = 0.0
) -> tuple[Tensor, float]:
    """GMRES for one system, started again from where it is; the solution, and its relative residual.

    Args:
        rtol: what the residual may come to, relative to rhs.
        enough: its norm where that is more, but a tenth of rhs's at most.
    """
    guess, left, products = None, math.inf, [0]
    relative, most = np.array([rtol]), min(KRYLOV_STEPS, len(rhs))

    def counted(v: Tensor) -> Tensor:
        products[0] += 1
        return product(v[0])[None]

    for _ in range(RESTARTS):
        products[0] = 0 if guess is None else -1
        x, lefts = gmres(counted, rhs[None], relative, KRYLOV_STEPS, guess=guess, absolute=enough)
        guess, left = x, float(lefts[0])
        if left <= rtol or not math.isfinite(left) or products[0] < most:
            break
    assert guess is not None
    return guess[0], left
