"""Neural ODE and its augmented form: the image is the initial state, and a linear head reads the final one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from homojl.models.base import PublishedModel, lay_out
from homojl.models.blocks import MemoryFormat
from homojl.models.settings import ANODESettings, NeuralODESettings
from homojl.nn.ode import ODE

Tensor = torch.Tensor


class ImageField(nn.Module):
    """conv1x1 - ReLU - conv3x3 - ReLU - conv1x1, each with the time as a further input channel or not.

    Args:
        channels: of the state.
        filters: of the convolutions between.
        time: whether dz/dt may depend on t itself.
    """

    def __init__(self, channels: int, filters: int, *, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv1 = nn.Conv2d(channels + time, filters, 1)
        self.conv2 = nn.Conv2d(filters + time, filters, 3, padding=1)
        self.conv3 = nn.Conv2d(filters + time, channels, 1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Time, 0-d, and state (B, C, H, W) -> dz/dt, (B, C, H, W)."""
        y = F.relu_(self.conv1(self._with_time(t, z)))
        y = F.relu_(self.conv2(self._with_time(t, y)))
        return self.conv3(self._with_time(t, y))

    def _with_time(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([t.expand_as(z[:, :1]), z], dim=1) if self.time else z


class AppendZeros(MemoryFormat):
    """Images (B, C, H, W) with zero channels appended, in the layout of the parameters."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(F.pad(image, (0, 0, 0, 0, 0, self.count)))


class ANODE(PublishedModel):
    """dz/dt = F(z, t) for t in [0, 1] from z(0) = the image with zero channels appended, logits = linear(z(1)).

    Args:
        filters: of the field's convolutions.
        augment: how many zero channels are appended; 0 is a Neural ODE.
        time: whether the field sees the time.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Dupont, Doucet, Teh (2019), arXiv 1904.01681.
    """

    settings: ClassVar[type[ANODESettings | NeuralODESettings]] = ANODESettings

    def build(self, settings: Any, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]) -> None:
        channels, height, width = input_shape
        self.augment = getattr(settings, "augment", 0)
        channels += self.augment
        self.encoder = AppendZeros(self.augment)
        self.layer = ODE(ImageField(channels, settings.filters, time=settings.time), **how)
        self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, n_classes))
        lay_out(self)


class NeuralODE(ANODE):
    """dz/dt = F(z, t) for t in [0, 1] from z(0) = the image, logits = linear(z(1)).

    Args:
        filters, time: as of `ANODE`, of which this has no `augment`.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Chen, Rubanova, Bettencourt, Duvenaud (2018), arXiv 1806.07366.
    """

    settings = NeuralODESettings
