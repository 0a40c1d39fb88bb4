"""Path tracking in eager PyTorch: predictor, corrector, step control and the event at lambda = 1.

A point of the path is one vector w = (z, lambda) of the state's dtype; lengths, angles and step sizes are plain
numbers. Both algorithms are one loop. Their linear systems are bordered,

    [ H_z      H_lambda  ]        [ right-hand side ]
    [ border, a row      ]  dw  = [ one number      ]

with the last tangent as border where the path is followed by its length, and the unit vector of lambda where it is
followed by lambda: that alone makes the one regular at folds and the other not.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from homojl.algorithms import AbstractErrorControlled, AbstractPathAlgorithm, ArcLength
from homojl.backends.base import Path
from homojl.backends.pytorch.gmres import gmres
from homojl.backends.pytorch.rows import RowLayout
from homojl.backends.pytorch.steps import ExplicitStepper
from homojl.functions import AbstractMap
from homojl.functions.products import Linearisation
from homojl.solution import Status

Tensor = torch.Tensor
Ends = tuple[float, float, float, float]  # value, slope times the step's size, and both at its end

# What a step should cost: the angle that the path turns by, the distance corrected relative to the step's length, and
# the factor that one correction reduces the residual by. A step where any is so large that it should have been less
# than half as long is taken again.
_ANGLE, _DISTANCE, _CONTRACTION = 0.3, 0.05, 0.05
# The sign of the bordered determinant changes only where the path branches: in a longer step than this, relative to
# 1 + norm(w), a change means that the step has jumped to another part of the path.
_BRANCH_STEP = 1e-3
_KRYLOV_RTOL = 1e-4  # of one linear system; the corrections themselves bring the residual down to the tolerance
_LAST_CORRECTIONS = 30  # at lambda = 1, where a root may be multiple and Newton's method slow
_VERTICAL = 0.05  # a tangent's part in lambda below which a path that could not be followed is said to turn back
_TOUCH = 1e-3  # how near to lambda = 1 a path has to turn back for a root to be looked for there


def trace_path(r: AbstractMap, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str) -> Path:
    """Follow the zero path; see `AbstractBackend.trace_path`."""
    with torch.no_grad():
        return _Tracker(_Homotopy(r, z0.detach(), kind), algorithm).run()


class _Point:
    """A point w = (z, lambda) with what is known there: z in its form, r(z) and H, flat (n,), and norm(H), a number."""

    def __init__(self, homotopy: _Homotopy, w: Tensor) -> None:
        self.w, self.lam = w, w[-1].item()
        self.z = homotopy.state(w)
        self.r = homotopy.residual(self.z)
        self.h = homotopy.value(self)
        self.size = _rms(self.h)
        self.linearised: Linearisation | None = None


class _Homotopy:
    """H on flat vectors w = (z, lambda), and its derivative; counts evaluations."""

    def __init__(self, r: AbstractMap, z0: Tensor, kind: str) -> None:
        self._r, self._newton = r, kind == "newton"
        self._layout = RowLayout(z0[None])
        self.nfe = self.n_jvp = 0
        self.u0 = self._layout.flatten(z0[None])[0]
        self.n = self.u0.numel()
        # Where each element of the flat vector stands in the order of the state's dimensions.
        self._order = self._layout.flatten(torch.arange(self.n, device=z0.device).view(1, *z0.shape))[0]
        self.start = torch.cat([self.u0, self.u0.new_zeros(1)])
        self._r0 = self.residual(self.state(self.start)) if self._newton else None

    def jumped(self, p: _Point) -> bool:
        """Whether p lies on another path for certain: a fixed-point homotopy has no zero but z0 at lambda = 0."""
        return not self._newton and p.lam <= 0

    def state(self, w: Tensor) -> Tensor:
        """z, a view of w in the form that it came in."""
        return self._layout.unflatten(w[None, :-1])[0]

    def residual(self, z: Tensor) -> Tensor:
        self.nfe += 1
        return self._layout.flatten(self._r(z)[None])[0]

    def value(self, p: _Point) -> Tensor:
        if self._r0 is not None:
            return p.r - (1 - p.lam) * self._r0
        return p.lam * p.r + (1 - p.lam) * (p.w[:-1] - self.u0)

    def _by_lambda(self, p: _Point) -> Tensor:
        return p.r - (p.w[:-1] - self.u0) if self._r0 is None else self._r0

    def _linearised(self, p: _Point) -> Linearisation:
        if p.linearised is None:
            p.linearised = self._r.linearised(p.z)
        return p.linearised

    def solve_densely(self, p: _Point, border: Tensor, rhs: Tensor) -> tuple[Tensor | None, float]:
        """The solution (n + 1,) of the bordered system at a point, None if there is none; its determinant's sign."""
        matrix = torch.empty(self.n + 1, self.n + 1, dtype=rhs.dtype, device=rhs.device)
        self.n_jvp += self.n
        by_state = self._linearised(p).matrix()[self._order][:, self._order]
        matrix[:-1, :-1] = by_state if self._newton else p.lam * by_state
        if not self._newton:
            matrix[:-1, :-1].diagonal().add_(1 - p.lam)
        matrix[:-1, -1] = self._by_lambda(p)
        matrix[-1] = border
        factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
        if info.item() != 0:
            return None, 0.0
        x = torch.linalg.lu_solve(factors, pivots, rhs[:, None])[:, 0]
        swaps = (pivots != torch.arange(1, self.n + 2, device=pivots.device)).sum()
        sign = (factors.diagonal().sign().prod() * (1 - 2 * (swaps % 2))).item()
        return (x if torch.isfinite(x).all().item() else None), sign

    def solve_by_krylov(self, p: _Point, border: Tensor, rhs: Tensor, steps: int) -> tuple[Tensor | None, float]:
        """The same by GMRES, which does not know the determinant: its sign comes as 0."""
        by_lambda, at = self._by_lambda(p), self._linearised(p)

        def product(v: Tensor) -> Tensor:
            self.n_jvp += 1
            by_state = self._layout.flatten(at.push(self._layout.unflatten(v[:, :-1])[0])[None])
            top = by_state if self._newton else p.lam * by_state + (1 - p.lam) * v[:, :-1]
            return torch.cat([top + v[:, -1:] * by_lambda, (v @ border)[:, None]], dim=1)

        x, left = gmres(product, rhs[None], np.full(1, _KRYLOV_RTOL), steps)
        return (x[0] if left[0] < 0.1 else None), 0.0


class _StepFailed(Exception):
    """This step cannot be taken; the argument is the status to end with if no shorter one can be either."""


class _Tracker:
    """One solve: where the path has come to, and what is written down of it."""

    def __init__(self, homotopy: _Homotopy, algorithm: AbstractPathAlgorithm) -> None:
        self.homotopy, self.algorithm = homotopy, algorithm
        self.arc_length = algorithm if isinstance(algorithm, ArcLength) else None
        self.by_length = self.arc_length is not None
        self.dense = algorithm.solves_densely(homotopy.n)
        self.stepper = ExplicitStepper(algorithm.predictor.explicit_tableau)
        self.eps = torch.finfo(homotopy.start.dtype).eps
        self.along_lambda = torch.zeros_like(homotopy.start)
        self.along_lambda[-1] = 1.0
        self.s, self.h = 0.0, algorithm.first_step
        self.points: list[_Point] = []
        self.lengths: list[float] = []
        self.folds = self.rejected = 0
        self.sign = 0.0  # of the bordered determinant at the last point

    def run(self) -> Path:
        algorithm = self.algorithm
        self._accept(_Point(self.homotopy, self.homotopy.start), 0.0)
        try:
            tangent, self.sign = self._tangent(self.points[-1], self.along_lambda)
        except _StepFailed as failure:
            return self._end(failure.args[0], "the Jacobian at z0 is singular or not finite: start elsewhere")
        failed = None
        while True:
            point = self.points[-1]
            if len(self.points) - 1 + self.rejected >= algorithm.max_steps:
                return self._end(
                    Status.MAX_STEPS,
                    f"raise max_steps (now {algorithm.max_steps}), loosen rtol and atol, or start elsewhere",
                )
            if failed is not None and self.h <= self._smallest_step(point):
                return self._end(*self._why_stuck(failed, tangent))
            h = min(self.h, algorithm.max_step)
            lands = not self.by_length and h >= (1 - point.lam) * (1 - 1e-12)
            h = 1 - point.lam if lands else h
            try:
                new, turned, sign, length, quotient = self._step(point, tangent, h, lands)
                root = self._root_within(point, tangent, new, turned, length) if self.by_length else None
            except _StepFailed as failure:
                failed = failure.args[0]
                self.rejected += 1
                self.h = h / 2
                continue
            failed = None
            if root is not None:
                self._accept(root[0], length * root[1])
                return self._end(Status.SUCCESS, "")
            self._accept(new, length)
            if lands:
                return self._finish(new)
            self.folds += tangent[-1].item() * turned[-1].item() < 0
            tangent, self.sign = turned, sign
            self.h = h / max(0.5, quotient)
            ended = self._outside(new)
            if ended is not None:
                return self._end(*ended)

    def _step(
        self, point: _Point, tangent: Tensor, h: float, lands: bool
    ) -> tuple[_Point, Tensor, float, float, float]:
        """One step of size h.

        Returns:
            The next point, its tangent, the sign of the determinant there, the length of the path up to it, and the
            quotient that the step's size should be divided by, at most 2.

        Raises:
            _StepFailed: if that is more than 2, or something failed.
        """
        algorithm, predictor = self.algorithm, self.algorithm.predictor

        def field(_: Tensor, w: Tensor) -> Tensor:
            return self._tangent(_Point(self.homotopy, w), tangent)[0]

        predicted = self.stepper.step(field, 0.0, h, point.w, tangent)
        w, quotient = predicted.y_next, 0.0
        if lands:
            w[-1] = 1.0
        new = guess = _Point(self.homotopy, w)
        if isinstance(predictor, AbstractErrorControlled):
            scale = torch.maximum(point.w.abs(), w.abs()).mul_(predictor.rtol).add_(predictor.atol)
            quotient = _rms(self.stepper.error(predicted) / scale) ** (1 / self.stepper.order)
        if algorithm.max_corrections > 0:
            new, contraction = self._corrected(guess, self._border(tangent), algorithm.max_corrections)
            quotient = max(quotient, math.sqrt(contraction / _CONTRACTION))
        turned, sign = self._tangent(new, tangent)
        chord = new.w - point.w
        length = torch.linalg.vector_norm(chord).item()
        if algorithm.max_corrections == 0:
            return new, turned, sign, length, quotient if isinstance(predictor, AbstractErrorControlled) else 1.0
        angle = _angle(tangent, chord) + _angle(chord, turned)
        distance = torch.linalg.vector_norm(new.w - guess.w).item() / (h * torch.linalg.vector_norm(tangent).item())
        quotient = max(quotient, angle / _ANGLE, (distance / _DISTANCE) ** (1 / self.stepper.order))
        if self.homotopy.jumped(new):
            raise _StepFailed(Status.STEP_TOO_SMALL)
        if sign != self.sign and length > _BRANCH_STEP * (1 + torch.linalg.vector_norm(point.w).item()):
            raise _StepFailed(Status.STEP_TOO_SMALL)
        if not quotient <= 2:
            raise _StepFailed(Status.STEP_TOO_SMALL)
        # The chord of a circular arc that turns by this angle.
        return new, turned, sign, length * (angle / 2 / math.sin(angle / 2) if angle > 0 else 1.0), quotient

    def _border(self, tangent: Tensor) -> Tensor:
        return tangent if self.by_length else self.along_lambda

    def _tangent(self, point: _Point, near: Tensor) -> tuple[Tensor, float]:
        """The path's derivative at a point: by its length, within a right angle of the tangent `near`; or by lambda.

        With it, the sign of the bordered determinant.
        """
        tangent, sign = self._solve(point, self._border(near), torch.zeros_like(point.h), 1.0)
        return tangent / torch.linalg.vector_norm(tangent) if self.by_length else tangent, sign

    def _corrected(self, point: _Point, border: Tensor, most: int) -> tuple[_Point, float]:
        """Newton's method from a point back to H = 0 in the hyperplane orthogonal to the border.

        Returns:
            The point where the residual meets the tolerance, and the largest factor that one correction, of those
            that had some way to go, reduced the residual by.

        Raises:
            _StepFailed: if the residual does not fall at every correction, or is too large after the last.
        """
        contraction = 0.0
        for _ in range(most):
            if point.size <= self._tolerance(point):
                return point, contraction
            new = _Point(self.homotopy, point.w + self._solve(point, border, -point.h, 0.0)[0])
            if not new.size < point.size:
                raise _StepFailed(Status.STALLED if math.isfinite(new.size) else Status.DIVERGED)
            # Near the tolerance rounding decides how far the residual falls, which says nothing of the step.
            if point.size > 10 * self._tolerance(point):
                contraction = max(contraction, new.size / point.size)
            point = new
        if point.size <= self._tolerance(point):
            return point, contraction
        raise _StepFailed(Status.STALLED if math.isfinite(point.size) else Status.DIVERGED)

    def _root_within(
        self, point: _Point, tangent: Tensor, new: _Point, turned: Tensor, h: float
    ) -> tuple[_Point, float] | None:
        """The root at lambda = 1 within a step between two points, and at which fraction of it; None: not reached.

        Raises:
            _StepFailed: if Newton's method finds none where the step crosses lambda = 1.
        """
        ends = point.lam, tangent[-1].item() * h, new.lam, turned[-1].item() * h
        fraction = _crossing(ends)
        if fraction is not None:
            return self._root(point, tangent, new, turned, h, fraction), fraction
        top = max(range(65), key=lambda k: _cubic(k / 64, ends)) / 64
        if not (ends[1] > 0 > ends[3] and _cubic(top, ends) > 1 - _TOUCH):
            return None
        try:  # a path that only touches lambda = 1 has a double root there
            return self._root(point, tangent, new, turned, h, top), top
        except _StepFailed:
            return None

    def _root(self, point: _Point, tangent: Tensor, new: _Point, turned: Tensor, h: float, fraction: float) -> _Point:
        """The root at lambda = 1 near that fraction of a step.

        Raises:
            _StepFailed: if Newton's method does not find one near by.
        """
        a, b, c, d = _hermite(fraction)
        w = a * point.w + b * h * tangent + c * new.w + d * h * turned
        w[-1] = 1.0
        guess = _Point(self.homotopy, w)
        root, _ = self._corrected(guess, self.along_lambda, _LAST_CORRECTIONS)
        if not torch.linalg.vector_norm(root.w - guess.w).item() <= 0.5 * h:
            raise _StepFailed(Status.STALLED)
        return root

    def _solve(self, point: _Point, border: Tensor, rhs: Tensor, last: float) -> tuple[Tensor, float]:
        if not math.isfinite(point.size):
            raise _StepFailed(Status.DIVERGED)
        rhs = torch.cat([rhs, rhs.new_full((1,), last)])
        if self.dense:
            x, sign = self.homotopy.solve_densely(point, border, rhs)
        else:
            x, sign = self.homotopy.solve_by_krylov(point, border, rhs, self.algorithm.krylov_steps)
        if x is None:
            raise _StepFailed(Status.STEP_TOO_SMALL)
        return x, sign

    def _tolerance(self, point: _Point) -> float:
        return self.algorithm.atol + self.algorithm.rtol * _rms(point.w[:-1])

    def _smallest_step(self, point: _Point) -> float:
        # By lambda the way to a fold is taken in ever smaller steps: the root of eps is where it is known to be one.
        if not self.by_length:
            return math.sqrt(self.eps)
        return 16 * self.eps * (1 + torch.linalg.vector_norm(point.w).item())

    def _accept(self, point: _Point, length: float) -> None:
        """Write down a point that lies that far along the path; s grows by the integral of 1/v over the length."""
        if self.arc_length is not None and length > 0:
            velocity, s = self.arc_length.velocity_at, self.s
            k1 = 1 / velocity(s)
            k2 = 1 / velocity(s + length / 2 * k1)
            k3 = 1 / velocity(s + length / 2 * k2)
            length *= (k1 + 2 * k2 + 2 * k3 + 1 / velocity(s + length * k3)) / 6
        self.s += length
        point.linearised = None
        self.points.append(point)
        self.lengths.append(self.s)

    def _outside(self, point: _Point) -> tuple[Status, str] | None:
        if self.arc_length is None:
            return None
        if _rms(point.w[:-1]) > self.arc_length.bound:
            return (
                Status.LEFT_BOUNDS,
                f"raise bound (now {self.arc_length.bound:g}), start elsewhere, or try the other kind",
            )
        if point.lam <= 0:
            return Status.RETURNED, "this path has no root: start elsewhere, or try the other kind"
        return None

    def _why_stuck(self, failed: Status, tangent: Tensor) -> tuple[Status, str]:
        if failed is Status.DIVERGED:
            return failed, "the residual or its derivative is NaN or infinite near this point; look at it there"
        if not self.by_length and 1 / torch.linalg.vector_norm(tangent).item() < _VERTICAL:
            return Status.FOLD, "ArcLength() follows the path round it"
        if failed is Status.STALLED:
            return failed, "loosen rtol and atol, use float64, or look for a singular Jacobian near this point"
        return failed, "the path may branch or end near this point: start elsewhere, or try the other kind"

    def _finish(self, last: _Point) -> Path:
        if last.size <= self._tolerance(last):
            return self._end(Status.SUCCESS, "")
        if not math.isfinite(last.size):
            return self._end(Status.DIVERGED, "take a smaller first_step")
        return self._end(
            Status.STALLED,
            f"norm(r) is {last.size:.2g} at lambda = 1: allow max_corrections, or take a smaller first_step",
        )

    def _end(self, status: Status, advice: str) -> Path:
        last, accepted = self.points[-1], len(self.points) - 1
        where = f"at lambda = {last.lam:.6g}, s = {self.s:.6g}, norm(z) = {_rms(last.w[:-1]):.3g}"
        counts = f"{accepted} accepted and {self.rejected} rejected steps, step {self.h:.2g}"
        message = f"{self.algorithm.name}: {status.value} ({where} after {counts}); {advice}"
        return Path(
            s=torch.tensor(self.lengths, dtype=torch.float64),
            lambdas=torch.tensor([p.lam for p in self.points], dtype=torch.float64),
            states=[p.z for p in self.points],
            residuals=torch.tensor([p.size for p in self.points], dtype=torch.float64),
            folds=self.folds,
            status=status,
            message="" if status.ok else message,
            nfe=self.homotopy.nfe,
            n_jvp=self.homotopy.n_jvp,
            n_rejected=self.rejected,
        )


def _rms(x: Tensor) -> float:
    return torch.linalg.vector_norm(x).item() / math.sqrt(x.numel())


def _angle(a: Tensor, b: Tensor) -> float:
    """Between two directions, in radians; from their difference, which keeps small angles."""
    gap = torch.linalg.vector_norm(a / torch.linalg.vector_norm(a) - b / torch.linalg.vector_norm(b)).item()
    return 2 * math.asin(min(1.0, gap / 2))


def _hermite(x: float) -> tuple[float, float, float, float]:
    """Weights of value and slope at 0 and of value and slope at 1 in the cubic Hermite polynomial at x in [0, 1]."""
    return (1 + 2 * x) * (1 - x) ** 2, x * (1 - x) ** 2, x**2 * (3 - 2 * x), x**2 * (x - 1)


def _cubic(x: float, ends: Ends) -> float:
    return sum(weight * end for weight, end in zip(_hermite(x), ends, strict=True))


def _crossing(ends: Ends) -> float | None:
    """The first fraction of a step at which the cubic through both ends reaches 1; None: nowhere."""
    first = next((k for k in range(1, 9) if (ends[2] if k == 8 else _cubic(k / 8, ends)) >= 1), None)
    if first is None:
        return None
    low, high = (first - 1) / 8, first / 8
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _cubic(middle, ends) >= 1 else (middle, high)
    return high
