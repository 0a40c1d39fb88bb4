"""The pcDEQ network: its layers have positive and concave maps, whose only equilibrium Picard iterations find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from homojl.errors import ConfigError
from homojl.models.base import PublishedModel, lay_out
from homojl.models.blocks import MemoryFormat
from homojl.models.settings import PcDEQSettings
from homojl.nn.pcdeq import PcDEQ


class PcDEQNet(PublishedModel):
    """z = sigma(W z + x), W >= 0: pcDEQ-1 with tanh, softsign or relu6 and x > 0; pcDEQ-2 with sigmoid and x >= 0.

    The equilibrium is unique and z <- sigma(W z + x) converges to it geometrically from every z >= 0.

    Args:
        form: "linear": a dense layer on the flat image; "single": a convolutional one; "multi": three of these with
            convolutions of stride 2, not padded, between.
        channels: width of each layer: three for "multi", else one.
        activation: sigma: "tanh", "softsign", "relu6" (pcDEQ-1) or "sigmoid" (pcDEQ-2).
        constraint: how W is kept >= 0: "projection" after each step, or "absolute" values for all parameters.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Gabor, Piotrowski, Cavalcante (2024), arXiv 2402.04029.
    """

    settings = PcDEQSettings

    def build(
        self, settings: PcDEQSettings, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]
    ) -> None:
        form, channels = settings.form, settings.channels
        options = {"activation": settings.activation, "constraint": settings.constraint, **how}

        def layer(width: int) -> PcDEQ:
            return PcDEQ(width, convolution=form != "linear", norm=False, **options)

        in_channels, *size = input_shape
        if form == "linear":
            (width,) = channels
            inputs = nn.Linear(torch.Size(input_shape).numel(), width)
            self.encoder = nn.Sequential(nn.Flatten(), inputs, nn.BatchNorm1d(width))
            self.layer = layer(width)
            self.decoder = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, n_classes))
            return
        parts: list[nn.Module] = []
        for i, width in enumerate(channels):
            # Only without padding do the published sizes leave one pixel for the head.
            conv = nn.Conv2d(in_channels, width, 3, padding=1) if i == 0 else nn.Conv2d(in_channels, width, 3, stride=2)
            if i > 0:
                size = [(length - 3) // 2 + 1 for length in size]
            pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.BatchNorm2d(width))
            parts += [nn.Sequential(conv, nn.BatchNorm2d(width)), layer(width), pooled]
            in_channels = width
        if min(size) < 1:
            raise ConfigError(f"images of {input_shape[1]} x {input_shape[2]} are too small for form {form!r}")
        height, width = (min(8 if form == "single" else 4, length) for length in size)
        left = (size[0] // height) * (size[1] // width)
        injection, *between, after = parts
        self.encoder = nn.Sequential(MemoryFormat(), injection)
        self.layer = between[0] if len(between) == 1 else nn.Sequential(*between)
        self.decoder = nn.Sequential(
            after, nn.AvgPool2d((height, width)), nn.Flatten(), nn.Linear(in_channels * left, n_classes)
        )
        lay_out(self)
