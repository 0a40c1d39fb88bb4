"""monDEQ's layer: one equilibrium for every value of its parameters, found by operator splitting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from homojl.adjoints import AbstractFixedPointAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractSplitting, PeacemanRachford
from homojl.errors import ConfigError
from homojl.nn.equilibrium import Equilibrium
from homojl.nn.layer import Algorithm
from homojl.nn.monotone import MonotoneConvolution, MonotoneLinear, TorusMap
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, Solution
from homojl.solving import solve

Tensor = torch.Tensor
HALVINGS = 10  # of alpha, at most


class MonDEQ(Equilibrium):
    """z* = relu(W z* + x), W = (1 - m) I - A^T A + B - B^T.

    `layer(x)` of (B, channels) or of feature maps (B, channels, H, W), of any size, has their shape. The injection
    U x + b of the paper is a layer before it. With several widths the state has as many scales, each half as high and
    wide as the one before; x enters the finest, and the value is a tuple of all scales' maps.

    Args:
        channels: width, or that of each scale, the finest first.
        algorithm: how, with its tolerances; None: the paper's Peaceman-Rachford splitting at 1e-2, at most 300 times.
        convolution: whether A and B are 3 x 3 convolutions.
        m: monotonicity, positive.
        backward, adjoint, backend, strict: as of `Equilibrium`.

    Attributes:
        alpha: what `tune_alpha_` has found for a splitting method; None: the algorithm's own.

    References: Winston, Kolter (2020), arXiv 2006.08591.
    """

    block: Callable[..., Any]
    operator: MonotoneLinear | MonotoneConvolution

    def __init__(
        self,
        channels: int | Sequence[int],
        algorithm: AbstractFixedPointAlgorithm | None = None,
        *,
        convolution: bool = True,
        m: float = 1.0,
        backward: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "pytorch",
        strict: bool = False,
    ) -> None:
        if not m > 0:
            raise ConfigError(f"m must be positive, got {m}")
        self._single = isinstance(channels, int)
        widths = [channels] if isinstance(channels, int) else list(channels)
        if not convolution and len(widths) > 1:
            raise ConfigError(f"a dense layer has one width, got {widths}")
        operator = MonotoneConvolution(widths, (1, 1), m=m) if convolution else MonotoneLinear(widths[0], m=m)
        super().__init__(
            operator.map,
            PeacemanRachford(rtol=1e-2, max_steps=300) if algorithm is None else algorithm,
            backward=backward,
            adjoint=adjoint,
            init=None,
            backend=backend,
            strict=strict,
        )
        self.operator = operator
        self.alpha: float | None = None

    def problem(self, x: Tensor) -> FixedPointProblem:  # type: ignore[override]  # nothing further
        """The problem of `layer(x)`; a convolution's state holds its maps in a row."""
        operator = self.operator
        if isinstance(operator, MonotoneLinear):
            return super().problem(x, *operator())
        height, width = x.shape[2:]
        if operator.map.maps[0] != (height, width):
            operator.resize_((height, width))
        self.block = operator.map
        return super().problem(operator.map.place(x), *operator())

    def _value(self, solved: Tensor) -> Any:
        f = self.operator.map
        if not isinstance(f, TorusMap):
            return solved
        return f.crop(solved, 0) if self._single else tuple(f.crop(solved, i) for i in range(len(f.shapes)))

    def _solve(self, problem: ODEProblem | FixedPointProblem) -> Solution | EquilibriumSolution:
        splits = isinstance(self.algorithm, AbstractSplitting)
        if self.precision != "full" and not splits and isinstance(problem.f, TorusMap):
            raise ConfigError(
                f"precision={self.precision!r} changes nothing for a MonDEQ of convolutions, which multiplies "
                "Fourier coefficients; use precision='full'"
            )
        return super()._solve(problem)

    def _algorithm_now(self) -> Algorithm:
        algorithm = super()._algorithm_now()
        if isinstance(algorithm, AbstractSplitting) and self.alpha is not None:
            algorithm = replace(algorithm, alpha=self.alpha)
        return algorithm

    def get_extra_state(self) -> Tensor:
        # In the state that is saved, so that resumed training goes on with the same iterations.
        return torch.tensor(math.nan if self.alpha is None else self.alpha)

    def set_extra_state(self, state: Tensor) -> None:
        alpha = float(state)
        if not (alpha > 0 or math.isnan(alpha)):
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = None if math.isnan(alpha) else alpha

    @torch.no_grad()
    def tune_alpha_(self, x: Tensor) -> None:
        """Halve a splitting method's alpha, from the algorithm's own on, for as long as that saves iterations on x."""
        algorithm = self.algorithm
        if not isinstance(algorithm, AbstractSplitting):
            return
        problem, best, alpha = self.problem(x), math.inf, algorithm.alpha
        for _ in range(HALVINGS + 1):
            tried = replace(algorithm, alpha=alpha)
            how: Any = {"backend": self.backend, "precision": self.precision, "batch": self.batch, "throw": False}
            solution = solve(problem, tried, **how)
            count = int(solution.iterations.max()) if solution.status.ok else math.inf
            if count < best:
                best = count
                self.alpha = alpha
            elif best < math.inf:
                return
            alpha /= 2
