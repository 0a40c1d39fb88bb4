"""A plain residual CNN of HomoODE's size: the baseline of comparisons, without an implicit layer."""

from __future__ import annotations

import torch
from torch import nn

from homojl.models.base import lay_out
from homojl.models.blocks import Features, Head
from homojl.models.own import OwnModel
from homojl.models.settings import CNNSettings
from homojl.nn.parts import group_norm

Tensor = torch.Tensor


class Residual(nn.Module):
    """x + GN(drop(conv2(relu(GN(conv1(x)))))): the layers of HomoODE's field, gone through once; (B, C, H, W)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.drop = nn.Dropout2d(dropout)
        self.norm2 = group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.drop(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class CNN(OwnModel):
    """logits = head(x + F(x)), x = features(image): a plain residual CNN of HomoODE's size, for comparison.

    It has as many parameters as HomoODE and DEQ of the same channels.

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        channels: width C; at most 32 or a multiple of 32.
        blocks: residual blocks, one after the other; with one the model has HomoODE's size.
        dropout: probability in [0, 1) of dropping a channel inside a block, in training.
    """

    settings = CNNSettings

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = CNNSettings.channels,
        blocks: int = CNNSettings.blocks,
        dropout: float = CNNSettings.dropout,
    ) -> None:
        CNNSettings(channels=channels, blocks=blocks, dropout=dropout)  # refuses what cannot be
        network = nn.Sequential(
            Features(input_shape[0], channels),
            *(Residual(channels, dropout) for _ in range(blocks)),
            Head(channels, n_classes),
        )
        super().__init__(network, "cnn")
        lay_out(self)
