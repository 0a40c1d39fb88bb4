"""Homotopy continuation of a batch: each sample follows its own zero path, step by step, to its equilibrium.

Only the end of a path is wanted here, so that a step is one along the tangent and a few inexact corrections; where the
path itself is, `homojl.backends.pytorch.path` follows it to a tolerance. A point is w = (z, mu), mu = sqrt(n) lambda:
one unit of lambda weighs as much as a change of z by 1 in every element.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from homojl.algorithms import Homotopy
from homojl.backends.pytorch.gmres import column_of, gmres, host
from homojl.backends.pytorch.history import AbstractMethod, Advance
from homojl.backends.pytorch.samples import Samples
from homojl.solution import Status

Tensor = torch.Tensor

FIRST_STEP = 0.1  # in lambda, or in z's root mean square
SHORTEST = 1e-7  # step before a row gives up
CORRECTIONS, LAST_CORRECTIONS = 4, 20  # of one step; at lambda = 1
NEAR = 1e-3  # how near the path has to be kept, as norm(H) relative to norm(f(z)) and to norm(f(z0) - z0)
FORCING = 0.05  # what a linear system's residual is reduced to
ANGLE, LARGEST_ANGLE = 0.3, 0.6  # that the path should turn by in one step; that it may, in radians
FARTHEST = 0.25  # correction of a step relative to its length: a longer one may lead to another part of the path
CONTRACTION = 0.7  # what a correction reduces norm(H) to at least
KINK = 1e-3  # in steps shorter than this the path may turn by any angle, as where the map has a kink


class HomotopyMethod(AbstractMethod[Homotopy]):
    """One step of each row's path per iteration; from lambda = 1, Newton's corrections of z = f(z) itself.

    References: Allgower, Georg (1990), Numerical Continuation Methods, chapters 4 to 6; Ding et al. (2023), (1), (23).
    """

    rows = ("_lam", "_h", "_size0", "_z0", "_r0", "_tangent")

    # Known from the first step on: start, residual there and its norm, the path's tangents, that of lambda, sqrt(n).
    _z0: Tensor
    _r0: Tensor
    _size0: np.ndarray
    _tangent: Tensor
    _up: Tensor
    _root: float

    def __init__(self, algorithm: Homotopy, samples: Samples) -> None:
        super().__init__(algorithm, samples)
        count = len(samples.index)
        self._started = False
        self._lam, self._h = np.zeros(count), np.full(count, FIRST_STEP)

    def advance(self, z: Tensor, fz: Tensor, r: Tensor, seen: Any, residual: np.ndarray, active: np.ndarray) -> Advance:
        if not self._started:
            self._started = True
            self._z0, self._r0, self._size0 = z, -r, residual
            self._up = z.new_zeros(z.shape[1] + 1)
            self._up[-1] = 1.0
            self._root = math.sqrt(z.shape[1])
            # At lambda = 0 the tangent must point to where lambda grows.
            self._tangent = self._turned(z, fz, self._up.expand(len(z), -1), active)
        slope = host(self._tangent[:, -1])
        with np.errstate(divide="ignore", invalid="ignore"):
            to_end = np.where(self._lam >= 1, 0.0, (1 - self._lam) / slope)
        ends = active & (to_end >= 0) & (to_end <= self._h)
        h = np.where(ends, to_end, self._h)
        before = self._lam
        self._lam = np.where(ends, 1.0, before + h * slope)
        guess = z + column_of(h * self._root, z) * self._tangent[:, :-1]
        border = torch.where(column_of(ends, z), self._up, self._tangent)
        predicted = self._lam
        point, value, good, corrections = self._corrected(guess, border, active, ends)
        moved = np.hypot(host(torch.linalg.vector_norm(point - guess, dim=1)) / self._root, self._lam - predicted)
        with np.errstate(divide="ignore", invalid="ignore"):
            good &= (h < KINK) & ~ends | (moved <= FARTHEST * np.where(ends, 2 * self._h, h)) | (before >= 1)
        # The path turned up sharply and is past its end: a step as long as leads nearly there is taken instead.
        past = good & (self._lam > 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shorter = np.where(past, 0.8 * (1 - before) / (self._lam - before), 0.5)
        good &= ~past
        if self.algorithm.kind == "fixed-point":
            good &= self._lam > 0  # where only z0 solves H = 0 at lambda = 0: another path
        going = active & good & ~ends
        tangent = self._turned(point, value, self._tangent, going)
        angle = np.arccos(np.clip(host((tangent * self._tangent).sum(dim=1)), -1, 1))
        good &= ends | (h < KINK) | (angle <= LARGEST_ANGLE)
        going &= good
        returned = going & (self._lam <= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.clip(np.minimum(ANGLE / angle, 2.0 ** (3 - corrections)), 0.5, 2.0)
        self._h = np.where(good, np.where(ends, self._h, h * growth), h * shorter)
        self._lam = np.where(good, self._lam, before)
        self._tangent = torch.where(column_of(going, z), tangent, self._tangent)
        ended = {Status.RETURNED: returned, Status.STEP_TOO_SMALL: active & ~good & (self._h < SHORTEST)}
        stays = column_of(~good, z)
        return Advance(torch.where(stays, z, point), torch.where(stays, fz, value), ended, joined=not good.all())

    def _corrected(
        self, z: Tensor, border: Tensor, active: np.ndarray, ends: np.ndarray
    ) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
        """Newton's method from z and the present lambdas back to H = 0, orthogonal to the border.

        Returns:
            The points, the map there, which rows have arrived, and how many corrections each took.
        """
        taken = np.zeros(len(active), dtype=int)
        most = np.where(ends, LAST_CORRECTIONS, CORRECTIONS)
        arrived, before = np.zeros(len(active), dtype=bool), np.full(len(active), math.inf)
        failed = ~active
        while True:
            fz = self.samples.evaluate(z)
            h = self._h_at(z, fz)
            size, norm = host(torch.linalg.vector_norm(h, dim=1)), host(torch.linalg.vector_norm(fz, dim=1))
            # At the end the criterion is the caller's, which a hair's breadth of rounding must not miss.
            enough = (size <= NEAR * np.minimum(norm, self._size0)) & ~ends | (self.samples.score(size, norm) <= 0.9)
            arrived |= ~failed & enough
            with np.errstate(invalid="ignore"):
                failed |= ~arrived & (
                    ~(size < np.where(ends, 1.0, CONTRACTION) * before) | ~np.isfinite(size) | (taken >= most)
                )
            need = ~failed & ~arrived
            if not need.any():
                return z, fz, arrived, taken
            taken, before = taken + need, size
            right = torch.cat([-h, h.new_zeros(len(h), 1)], dim=1)
            step = self._solved(z, fz, border, right, need)
            moves = column_of(need, z)
            z = torch.where(moves, z + step[:, :-1], z)
            self._lam = np.where(need & ~ends, self._lam + host(step[:, -1]) / self._root, self._lam)

    def _turned(self, z: Tensor, fz: Tensor, near: Tensor, wanted: np.ndarray) -> Tensor:
        """Unit tangents within a right angle of the vectors `near`; of use in the rows that are wanted."""
        off = self._derivative(z, fz, near)
        right = torch.cat([-off, off.new_zeros(len(off), 1)], dim=1)
        tangent = near + self._solved(z, fz, near, right, wanted)
        return tangent / torch.linalg.vector_norm(tangent, dim=1, keepdim=True)

    def _solved(self, z: Tensor, fz: Tensor, border: Tensor, right: Tensor, wanted: np.ndarray) -> Tensor:
        """The bordered systems [H_w; border] x = right by GMRES; zero in rows that are not wanted."""

        def product(v: Tensor) -> Tensor:
            return torch.cat([self._derivative(z, fz, v), (border * v).sum(dim=1, keepdim=True)], dim=1)

        return gmres(product, right, np.where(wanted, FORCING, np.inf), self.algorithm.krylov_steps)[0]

    def _h_at(self, z: Tensor, fz: Tensor) -> Tensor:
        lam = column_of(self._lam, z)
        if self.algorithm.kind == "newton":
            return z - fz - (1 - lam) * self._r0
        return z - lam * fz - (1 - lam) * self._z0

    def _derivative(self, z: Tensor, fz: Tensor, v: Tensor) -> Tensor:
        """H_z and H_mu times the two parts of v, (b, n + 1) -> (b, n)."""
        newton = self.algorithm.kind == "newton"
        by_lambda = self._r0 if newton else self._z0 - fz
        pushed = self.samples.push(z, v[:, :-1])
        top = v[:, :-1] - (pushed if newton else column_of(self._lam, z) * pushed)
        return torch.addcmul(top, by_lambda, v[:, -1:], value=1 / self._root)
