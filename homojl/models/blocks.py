"""Layers that several models share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from homojl.draws import draw_rows
from homojl.models.settings import groups_of

Tensor = torch.Tensor


class _GroupNorm(nn.GroupNorm):
    """Group normalisation of what needs no gradient too, as the last state of a solve that failed at its start.

    For such an input in channels-last order PyTorch's backward pass on the CPU (seen in 2.13) writes the gradient that
    it was told to leave out, to address 0, and the process is gone.
    """

    def forward(self, input: Tensor) -> Tensor:
        wanted = input.requires_grad or not torch.is_grad_enabled()
        return super().forward(input if wanted else input.contiguous())


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with min(32, channels) groups.

    Raises:
        ConfigError: if the channels cannot be divided into as many groups.
    """
    return _GroupNorm(groups_of(channels), channels)


def channel_dropout_mask(like: Tensor, p: float, part: tuple[int, int] | None = None) -> Tensor:
    """A mask (B, C, 1, 1) that keeps each channel of each sample with probability 1 - p, scaled by 1 / (1 - p).

    Drawn from PyTorch's global generator, for the batch that the samples are `part` of: see `draw_rows`. Variational
    dropout uses one mask for a whole solve.
    """

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)

    return draw_rows(draw, (*like.shape[:2], 1, 1), part)


class Features(nn.Sequential):
    """conv3x3 - BN - ReLU - conv3x3 stride 2 - BN - ReLU: (B, in, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
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


class ConditionedField(nn.Module):
    """HomoODE's vector field F(z; x) = GN(drop(conv2(relu(GN(conv1(z))) + x))), no time input.

    The input enters as a condition at every evaluation; the dropout mask is an argument so that one mask serves a
    whole solve, and its recomputation. Source: math of the HomoODE paper's published architecture, (17).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)

    def forward(self, t: Tensor, z: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """State z and condition x, both (B, C, H, W), mask (B, C, 1, 1) or None -> dz/ds, (B, C, H, W)."""
        # In place where the operation before does not need its result for the gradient.
        y = F.relu_(self.norm1(self.conv1(z)))
        y = self.conv2(y + x)
        if mask is not None:
            y = y.mul_(mask)
        return self.norm2(y)


class InitialPoint(nn.Module):
    """A start shared by all inputs: one number per channel, broadcast over the batch and the map.

    The classification loss never reaches it; its own loss draws it towards the mean equilibrium. A learned point
    starts from standard normal numbers (ours; the paper does not say): at zero, the field's first normalisation
    divides by almost nothing.

    Args:
        channels: C.
        learned: whether `loss` is to be minimised; otherwise the point is zero and stays there.
    """

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        start = torch.zeros(1, 1, channels)
        if learned and not start.is_meta:  # where there are no numbers, drawing them would load PyTorch's compiler
            start.normal_()
        self.value = nn.Parameter(start, requires_grad=learned)

    def expand_like(self, x: Tensor) -> Tensor:
        """The point as a state of x's shape (B, C, H, W) and memory format, without gradient."""
        return torch.empty_like(x).copy_(self._map().detach())

    def loss(self, z_star: Tensor) -> Tensor:
        """E |z* - z0|^2 with z* (B, C, H, W) held constant: squared over channels, mean over batch and map; 0-d.

        One SGD step with learning rate eta moves the point by 2 eta towards the mean of z*.
        Source: HomoODE paper, (18), (32).
        """
        return (z_star.detach() - self._map()).square().sum(dim=1).mean()

    def _map(self) -> Tensor:
        return self.value.permute(0, 2, 1).unsqueeze(-1)  # (1, C, 1, 1)
