"""Encoders and decoders that several models share."""

from __future__ import annotations

import torch
from torch import nn

from homojl.nn.parts import group_norm

Tensor = torch.Tensor


class MemoryFormat(nn.Module):
    """Images in the memory format of the model's parameters, which `homojl.models.base.lay_out` sets."""

    memory_format = torch.channels_last

    def forward(self, image: Tensor) -> Tensor:
        if self.memory_format == torch.contiguous_format:
            # A copy: with one channel an image is in both layouts, and convolutions go by its strides.
            return image.clone(memory_format=self.memory_format)
        return image.contiguous(memory_format=self.memory_format)


class Features(nn.Sequential):
    """conv3x3 - BN - ReLU - conv3x3 stride 2 - BN - ReLU: (B, in, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            MemoryFormat(),
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


class Head(nn.Sequential):
    """GN - ReLU - conv1x1 (C -> 4C) - BN - ReLU - average pool - linear: (B, C, H, W) -> (B, n_classes)."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__(
            group_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.BatchNorm2d(4 * channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * channels, n_classes),
        )
