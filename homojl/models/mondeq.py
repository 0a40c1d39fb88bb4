"""monDEQ: layers that have one equilibrium for every value of their parameters, found by operator splitting."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from homojl.adjoints import AbstractFixedPointAdjoint, fixed_point_adjoint
from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractSplitting
from homojl.errors import ConfigError
from homojl.models.base import AbstractImplicitModel, Algorithm
from homojl.models.settings import MonDEQSettings
from homojl.nn.monotone import MonotoneConvolution, MonotoneLinear
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, Solution

Tensor = torch.Tensor

HALVINGS = 10  # of alpha, at most


class MonDEQ(AbstractImplicitModel):
    """z = relu(W z + U x + b), W = (1 - m) I - A^T A + B - B^T.

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        form: "linear": a dense layer on the flat image; "single": a convolutional one; "multi": one on three scales.
        channels: width of each scale, the finest first: three for "multi", else one.
        m: monotonicity, positive.
        tune_alpha: whether `begin_epoch` chooses a splitting method's alpha; else it is the algorithm's own.
        algorithm, adjoint, backend: how the equilibrium is found; the default is the paper's Peaceman-Rachford
            splitting at 1e-2, at most 300 times, forward and backward.

    References: Winston, Kolter (2020), arXiv 2006.08591.
    """

    algorithm: AbstractFixedPointAlgorithm
    adjoint: AbstractFixedPointAdjoint
    alpha: Tensor
    operator: MonotoneLinear | MonotoneConvolution
    injection: nn.Module

    default_algorithm: ClassVar[AbstractFixedPointAlgorithm] = MonDEQSettings.algorithm
    default_adjoint: ClassVar[AbstractFixedPointAdjoint] = fixed_point_adjoint(MonDEQSettings.adjoint)

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        form: str = MonDEQSettings.form,
        channels: tuple[int, ...] = MonDEQSettings.channels,
        m: float = MonDEQSettings.m,
        tune_alpha: bool = MonDEQSettings.tune_alpha,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(algorithm=algorithm, adjoint=adjoint, backend=backend)
        MonDEQSettings(form=form, channels=channels, m=m)  # refuses what cannot be
        self.form, self.tune_alpha = form, tune_alpha
        # In the state that is saved, so that a resumed run goes on with the same iterations; NaN: the algorithm's own.
        self.register_buffer("alpha", torch.tensor(math.nan))
        in_channels, height, width = input_shape
        if form == "linear":
            self.operator = MonotoneLinear(channels[0], m=m)
            self.injection = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, channels[0]))
            self.head = nn.Linear(channels[0], n_classes)
            return
        self.operator = operator = MonotoneConvolution(channels, (height, width), m=m)
        self.injection = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        height, width = operator.map.maps[-1]
        if form == "single":
            if min(height, width) < 4:
                raise ConfigError(f"images of {height} x {width} are too small for form 'single'")
            inputs = channels[0] * (height // 4) * (width // 4)
        else:
            inputs = channels[-1] * (height + 2) * (width + 2)
        self.head = nn.Linear(inputs, n_classes)

    def encode(self, image: Tensor) -> Tensor:
        """U x + b in the form of the state."""
        h = self.injection(image)
        return h if isinstance(self.operator, MonotoneLinear) else self.operator.map.place(h)

    def problem(self, h: Tensor) -> FixedPointProblem:
        return FixedPointProblem(self.operator.map, torch.zeros_like(h), args=(h, *self.operator()))

    def decode(self, z: Tensor) -> Tensor:
        if isinstance(self.operator, MonotoneLinear):
            return self.head(z)
        z = self.operator.map.crop(z, -1)
        # The published sizes count head weights for a border of zeros round the coarsest map.
        z = F.avg_pool2d(z, 4) if self.form == "single" else F.pad(z, (1, 1, 1, 1))
        return self.head(z.flatten(1))

    @torch.no_grad()
    def begin_epoch(self, image: Tensor) -> None:
        """Halve alpha from the algorithm's own on for as long as that saves iterations on these images."""
        if not (self.tune_alpha and isinstance(self.algorithm, AbstractSplitting)):
            return
        problem = self.problem(self.encode(image))
        best, alpha = math.inf, self.algorithm.alpha
        for _ in range(HALVINGS + 1):
            solution = self._solved_by(problem, replace(self.algorithm, alpha=alpha), throw=False)
            assert isinstance(solution, EquilibriumSolution), solution
            count = int(solution.iterations.max()) if solution.status.ok else math.inf
            if count < best:
                best = count
                self.alpha.fill_(alpha)
            elif best < math.inf:
                return
            alpha /= 2

    def _algorithm_now(self) -> Algorithm:
        algorithm, alpha = super()._algorithm_now(), self.alpha.item()
        if self.tune_alpha and isinstance(algorithm, AbstractSplitting) and not math.isnan(alpha):
            algorithm = replace(algorithm, alpha=alpha)
        return algorithm

    def _solved_by(
        self, problem: ODEProblem | FixedPointProblem, algorithm: Algorithm, *, throw: bool
    ) -> Solution | EquilibriumSolution:
        if self.precision != "full" and self.form != "linear" and not isinstance(algorithm, AbstractSplitting):
            raise ConfigError(
                f"precision={self.precision!r} changes nothing for MonDEQ with form={self.form!r}, which multiplies "
                "Fourier coefficients; use precision='full'"
            )
        return super()._solved_by(problem, algorithm, throw=throw)
