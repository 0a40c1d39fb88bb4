"""pcDEQ: layers whose map is positive and concave, so that Picard's iteration alone finds their only equilibrium."""

from __future__ import annotations

import itertools
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from homojl.adjoints import AbstractFixedPointAdjoint, fixed_point_adjoint
from homojl.algorithms import AbstractFixedPointAlgorithm
from homojl.errors import ConfigError
from homojl.models.base import AbstractImplicitModel, use_channels_last
from homojl.models.settings import PcDEQSettings
from homojl.nn.concave import ConcaveMap, NonnegativeWeight
from homojl.problems import FixedPointProblem
from homojl.solution import EquilibriumSolution

Tensor = torch.Tensor


class PositiveConcaveLayer(nn.Module):
    """An injection, the equilibrium of sigma(W z + x) and what follows it.

    Args:
        injection: from the layer's input to what x is the positive part of.
        shape: of W.
        after: from the equilibrium to the layer's output.
        activation: name of sigma.
        constraint: as of `NonnegativeWeight`.
    """

    def __init__(
        self, injection: nn.Module, shape: tuple[int, ...], after: nn.Module, *, activation: str, constraint: str
    ) -> None:
        super().__init__()
        self.injection, self.after = injection, after
        self.weight = NonnegativeWeight(shape, constraint=constraint)
        self.map = ConcaveMap(activation)
        self._strict = activation != "sigmoid"

    def condition(self, x: Tensor) -> Tensor:
        """x: positive in pcDEQ-1, nonnegative in pcDEQ-2."""
        y = self.injection(x)
        return F.softplus(y, beta=5) if self._strict else F.relu(y)

    def problem(self, x: Tensor) -> FixedPointProblem:
        return FixedPointProblem(self.map, torch.zeros_like(x), args=(x, self.weight()[None]))


class PcDEQ(AbstractImplicitModel):
    """z = sigma(W z + x), W >= 0: pcDEQ-1 with tanh, softsign or relu6 and x > 0; pcDEQ-2 with sigmoid and x >= 0.

    The equilibrium is unique and z <- sigma(W z + x) converges to it geometrically from every z >= 0.

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        form: "linear": a dense layer on the flat image; "single": a convolutional one; "multi": three of these with
            convolutions of stride 2, not padded, between.
        channels: width of each layer: three for "multi", else one.
        activation: sigma: "tanh", "softsign", "relu6" (pcDEQ-1) or "sigmoid" (pcDEQ-2).
        constraint: how W is kept >= 0: "projection" after each step, or "absolute" values for all parameters.
        algorithm, adjoint, backend: how the fixed points are solved for; the default is the paper's plain iteration
            at 1e-4, at most 200 times, forward and backward.

    References: Gabor, Piotrowski, Cavalcante (2024), arXiv 2402.04029.
    """

    head: nn.Module

    default_algorithm: ClassVar[AbstractFixedPointAlgorithm] = PcDEQSettings.algorithm
    default_adjoint: ClassVar[AbstractFixedPointAdjoint] = fixed_point_adjoint(PcDEQSettings.adjoint)

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        form: str = PcDEQSettings.form,
        channels: tuple[int, ...] = PcDEQSettings.channels,
        activation: str = PcDEQSettings.activation,
        constraint: str = PcDEQSettings.constraint,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(algorithm=algorithm, adjoint=adjoint, backend=backend)
        PcDEQSettings(form=form, channels=channels, activation=activation, constraint=constraint)  # refuses others
        options = {"activation": activation, "constraint": constraint}
        in_channels, *size = input_shape
        if form == "linear":
            (width,) = channels
            inputs = nn.Linear(torch.Size(input_shape).numel(), width)
            injection = nn.Sequential(nn.Flatten(), inputs, nn.BatchNorm1d(width))
            self.layers = nn.ModuleList(
                [PositiveConcaveLayer(injection, (width, width), nn.BatchNorm1d(width), **options)]
            )
            self.head = nn.Linear(width, n_classes)
            return
        self.layers = nn.ModuleList()
        for i, width in enumerate(channels):
            # Only without padding do the published sizes leave one pixel for the head.
            conv = nn.Conv2d(in_channels, width, 3, padding=1) if i == 0 else nn.Conv2d(in_channels, width, 3, stride=2)
            if i > 0:
                size = [(length - 3) // 2 + 1 for length in size]
            injection = nn.Sequential(conv, nn.BatchNorm2d(width))
            after = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.BatchNorm2d(width))
            self.layers.append(PositiveConcaveLayer(injection, (width, width, 3, 3), after, **options))
            in_channels = width
        if min(size) < 1:
            raise ConfigError(f"images of {input_shape[1]} x {input_shape[2]} are too small for form {form!r}")
        height, width = (min(8 if form == "single" else 4, length) for length in size)
        left = (size[0] // height) * (size[1] // width)
        self.head = nn.Sequential(nn.AvgPool2d((height, width)), nn.Flatten(), nn.Linear(in_channels * left, n_classes))
        use_channels_last(self)

    def _chain(self) -> list[PositiveConcaveLayer]:
        return cast("list[PositiveConcaveLayer]", list(self.layers))

    def encode(self, image: Tensor) -> Tensor:
        return self._chain()[0].condition(image.contiguous(memory_format=torch.channels_last))

    def problem(self, h: Tensor) -> FixedPointProblem:
        """The first layer's problem."""
        return self._chain()[0].problem(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.head(self._chain()[-1].after(z))

    def solve(self, image: Tensor, *, save_at: tuple[float, ...] | None = None) -> EquilibriumSolution:
        """All layers' equilibria, each the input of the next one's; the last one is the value."""
        solutions = [cast(EquilibriumSolution, super().solve(image, save_at=save_at))]
        for before, layer in itertools.pairwise(self._chain()):
            h = layer.condition(before.after(solutions[-1].value))
            solutions.append(cast(EquilibriumSolution, self._solved(layer.problem(h))))
        return solutions[0] if len(solutions) == 1 else EquilibriumSolution.of_all(solutions)

    def project_(self) -> None:
        for layer in self._chain():
            layer.weight.project_()
