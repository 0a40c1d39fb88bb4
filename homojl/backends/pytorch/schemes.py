"""What one step of a method is: the arithmetic that the loops over steps and the adjoints share.

A step has one arithmetic, whether gradients are recorded or not, so that a replay takes the very steps of the solve.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from homojl.algorithms import (
    AbstractFixedStep,
    AbstractImplicit,
    AbstractImplicitFixedStep,
    AbstractODEAlgorithm,
    AdamsBashforth,
    Grid,
)
from homojl.backends.base import AbstractRightHandSideJVP, RightHandSide
from homojl.backends.pytorch.runge_kutta import combine, step, time_like
from homojl.implicit_tableaus import ImplicitTableau
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor
Stages = Sequence[Tensor]  # the derivatives at a step's stages, each of the state's shape


# Up to this many elements an operation costs what it takes to start it, beyond it what it moves in memory.
SMALL = 16_384


class Part(NamedTuple):
    """A step and the fractions of it at which states are wanted."""

    y: Tensor
    y_next: Tensor
    h: float
    ks: Stages
    fractions: Sequence[float]


class AbstractScheme(abc.ABC):
    """A one-step method for one algorithm.

    Attributes:
        order: of the solution that is carried on; one more than that of its error estimate.
        interpolates: whether a step can be evaluated inside; else steps have to end on the save times.
        last_resort: what to try where the steps have become too small.
    """

    order: int
    interpolates: bool
    last_resort = "loosen rtol and atol, use float64, or take a method for stiff fields such as KenCarp4()"

    @abc.abstractmethod
    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, Stages]:
        """The state at t + h and the stages of the step from (t, y); not finite where the step cannot be taken.

        Args:
            rhs, t, h, y: field, time, signed size, state.
            k_first: the derivative at (t, y) where it is known.
            last_stage: whether a stage is evaluated that only the error, the interpolant and the next step need.
        """

    @abc.abstractmethod
    def error(self, y: Tensor, h: float, ks: Stages) -> Tensor:
        """The estimate of the step's error, of y's shape; called where no gradient is recorded."""

    @property
    def error_order(self) -> int:
        """The power of the step size with which that estimate falls."""
        return self.order

    @property
    def trouble(self) -> str:
        """What else than a field that is not finite kept the last step from being taken; empty: nothing."""
        return ""

    @property
    def finite(self) -> bool:
        """Whether the field was finite in the last step, as far as the scheme has looked."""
        return True

    def known_ratio(self, ks: Stages) -> float | None:
        """The error as a multiple of what is tolerated, where the step has computed it itself."""
        return None

    @abc.abstractmethod
    def inside(self, y: Tensor, y_next: Tensor, h: float, ks: Stages, fractions: Sequence[float]) -> list[Tensor]:
        """The states at fractions in (0, 1] of a step; at 1 y_next itself."""

    def inside_steps(self, parts: Sequence[Part]) -> list[list[Tensor]]:
        """What `inside` gives for each of several steps; a scheme may compute them together."""
        return [self.inside(p.y, p.y_next, p.h, p.ks, p.fractions) for p in parts]

    @abc.abstractmethod
    def carried(self, ks: Stages) -> Tensor | None:
        """The derivative at the end of the step where the stages hold it: the next step's `k_first`."""


class ExplicitScheme(AbstractScheme):
    """An explicit Runge-Kutta method.

    A stage's argument is built by one addition per weight: a product of the weights with the stages in one buffer takes
    fewer operations, but copying the stages there costs more than that saves, for small states and for large ones.
    """

    def __init__(self, tableau: ButcherTableau) -> None:
        self.tableau = tableau
        self.order = tableau.order
        self.interpolates = tableau.dense is not None
        if tableau.dense is not None:
            self._dense = np.array(tableau.dense).T
            self._powers = np.arange(1, len(self._dense) + 1)

    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, Stages]:
        return step(rhs, self.tableau, t, h, y, k_first, last_stage=last_stage)

    def error(self, y: Tensor, h: float, ks: Stages) -> Tensor:
        assert self.tableau.b_error is not None, self.tableau
        return combine(None, h, self.tableau.b_error, ks)

    def inside(self, y: Tensor, y_next: Tensor, h: float, ks: Stages, fractions: Sequence[float]) -> list[Tensor]:
        return [y_next if f == 1.0 else combine(y, h, self._weights([f])[0].tolist(), ks) for f in fractions]

    def _weights(self, fractions: Sequence[float]) -> np.ndarray:
        return (np.array(fractions)[:, None] ** self._powers) @ self._dense

    def inside_steps(self, parts: Sequence[Part]) -> list[list[Tensor]]:
        within = [[f for f in part.fractions if f != 1.0] for part in parts]
        counts = [len(fractions) for fractions in within]
        wanted, most = sum(counts), max(counts, default=0)
        # The steps are filled up to as many states as the fullest of them has, for one batched product.
        if wanted < 4 or parts[0].y.numel() > SMALL or len(parts) * most > 4 * wanted:
            return super().inside_steps(parts)
        together = self.side_by_side(parts)
        if together is None:
            return super().inside_steps(parts)
        starts, stages = together
        weights = np.zeros((len(parts), most, len(parts[0].ks)))
        filled = np.arange(most) < np.array(counts)[:, None]
        weights[filled] = self._weights([f for fs in within for f in fs])
        weights *= np.array([part.h for part in parts])[:, None, None]
        weights_like = torch.from_numpy(weights).to(starts.device, starts.dtype)
        block = torch.baddbmm(starts.view(len(parts), 1, -1), weights_like, stages.view(*weights.shape[::2], -1))
        rows = block.view(-1, *parts[0].y.shape)
        inner = iter(rows.index_select(0, torch.from_numpy(np.flatnonzero(filled)).to(rows.device)).unbind())
        return [[part.y_next if f == 1.0 else next(inner) for f in part.fractions] for part in parts]

    def side_by_side(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor] | None:
        """The states at the starts of steps (N, ...) and the stages (N, S, ...); None: their memory format is kept."""
        if not all(x.is_contiguous() for x in (parts[0].y, *parts[0].ks)):
            return None
        stages = torch.stack([k for part in parts for k in part.ks])
        return torch.stack([part.y for part in parts]), stages.unflatten(0, (len(parts), -1))

    def carried(self, ks: Stages) -> Tensor | None:
        return ks[-1] if self.tableau.fsal else None


class GridScheme(AbstractScheme):
    """The steps of another scheme, interpolated from their ends alone; see `Grid`.

    With cubic interpolation the stages are followed by the derivatives at the start and at the end of the step.
    """

    interpolates = True

    def __init__(self, scheme: AbstractScheme, grid: Grid) -> None:
        self._scheme, self._grid = scheme, grid
        self._cubic = grid.interpolation == "cubic"
        self.order = scheme.order

    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, Stages]:
        if self._grid.apart:
            rhs, t = _within(rhs, t, h, y.dtype.to_real())
        if not self._cubic:
            return self._scheme.step(rhs, t, h, y, k_first, last_stage=last_stage)
        first = rhs(time_like(t, y), y) if k_first is None else k_first
        y_next, ks = self._scheme.step(rhs, t, h, y, first, last_stage=last_stage)
        last = [rhs(time_like(t + h, y), y_next)] if last_stage else []
        return y_next, [*ks, first, *last]

    def error(self, y: Tensor, h: float, ks: Stages) -> Tensor:
        return self._scheme.error(y, h, ks)

    def inside(self, y: Tensor, y_next: Tensor, h: float, ks: Stages, fractions: Sequence[float]) -> list[Tensor]:
        states, rise = [], y_next - y
        for x in fractions:
            if x == 1.0:
                states.append(y_next)
            elif self._cubic:
                weights = (x * (1 - x) ** 2, x * x * (x - 1))
                states.append(combine(torch.add(y, rise, alpha=x * x * (3 - 2 * x)), h, weights, ks[-2:]))
            else:
                states.append(torch.add(y, rise, alpha=x))
        return states

    @property
    def trouble(self) -> str:
        return self._scheme.trouble

    @property
    def finite(self) -> bool:
        return self._scheme.finite

    def carried(self, ks: Stages) -> Tensor | None:
        return ks[-1] if self._cubic and not self._grid.apart else None


def _within(rhs: RightHandSide, t: float, h: float, dtype: torch.dtype) -> tuple[RightHandSide, float]:
    """The field at times of that dtype strictly inside a step from t, and the first of them."""
    ends = torch.tensor([t, t + h], dtype=dtype)
    first, last = torch.nextafter(ends, ends.flip(0)).tolist()
    low, high = min(first, last), max(first, last)
    return lambda s, y: rhs(s.clamp(low, high), y), first


def scheme_for(algorithm: AbstractODEAlgorithm, jvp: AbstractRightHandSideJVP | None = None) -> AbstractScheme:
    """The scheme of an algorithm that has a tableau; an implicit one needs the products of the field's Jacobian."""
    scheme: AbstractScheme
    if isinstance(algorithm.tableau, ImplicitTableau):
        from homojl.backends.pytorch.implicit import ImplicitScheme  # which is a scheme, and imports this module

        assert isinstance(algorithm, AbstractImplicit | AbstractImplicitFixedStep), algorithm
        assert jvp is not None, algorithm
        scheme = ImplicitScheme(algorithm, jvp)
    elif isinstance(algorithm, AdamsBashforth):
        from homojl.backends.pytorch.adams import AdamsScheme

        scheme = AdamsScheme(algorithm)
    else:
        scheme = ExplicitScheme(algorithm.explicit_tableau)
    if isinstance(algorithm, AbstractFixedStep) and algorithm.grid is not None:
        return GridScheme(scheme, algorithm.grid)
    return scheme
