"""The monDEQ network: its layer has one equilibrium for every value of its parameters, found by operator splitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from homojl.errors import ConfigError
from homojl.models.base import PublishedModel
from homojl.models.settings import MonDEQSettings
from homojl.nn.mondeq import MonDEQ

Tensor = torch.Tensor


class MonDEQNet(PublishedModel):
    """z = relu(W z + U x + b), W = (1 - m) I - A^T A + B - B^T.

    Args:
        form: "linear": a dense layer on the flat image; "single": a convolutional one; "multi": one on three scales.
        channels: width of each scale, the finest first: three for "multi", else one.
        m: monotonicity, positive.
        tune_alpha: whether `begin_epoch` chooses a splitting method's alpha; else it is the algorithm's own.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Winston, Kolter (2020), arXiv 2006.08591.
    """

    layer: MonDEQ

    settings = MonDEQSettings

    def build(
        self, settings: MonDEQSettings, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]
    ) -> None:
        form, channels = settings.form, settings.channels
        self.tune_alpha = settings.tune_alpha
        widths = channels if form == "multi" else channels[0]
        self.layer = MonDEQ(widths, convolution=form != "linear", m=settings.m, **how)
        in_channels, height, width = input_shape
        if form == "linear":
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, channels[0]))
            self.decoder = nn.Linear(channels[0], n_classes)
            return
        self.encoder = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        if form == "single":
            if min(height, width) < 4:
                raise ConfigError(f"images of {height} x {width} are too small for form 'single'")
            head = nn.Linear(channels[0] * (height // 4) * (width // 4), n_classes)
            self.decoder = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), head)
            return
        for _ in channels[1:]:
            height, width = -(-height // 2), -(-width // 2)
        head = nn.Linear(channels[-1] * (height + 2) * (width + 2), n_classes)
        self.decoder = nn.Sequential(_Coarsest(), nn.Flatten(), head)

    @torch.no_grad()
    def begin_epoch(self, image: Tensor) -> None:
        """Halve alpha from the algorithm's own on for as long as that saves iterations on these images."""
        if self.tune_alpha:
            self.layer.tune_alpha_(self.encode(image))


class _Coarsest(nn.Module):
    """The coarsest of several maps, with a border of zeros, for which the published sizes count head weights."""

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return F.pad(maps[-1], (1, 1, 1, 1))
