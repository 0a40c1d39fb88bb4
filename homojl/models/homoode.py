"""The HomoODE network: the image is a condition, the output the end of an ODE from a shared, learnable start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homojl.models.base import PublishedModel, lay_out
from homojl.models.blocks import Features, Head
from homojl.models.settings import HomoODESettings
from homojl.nn.homoode import HomoODE


class HomoODENet(PublishedModel):
    """dz/ds = F(z; x) for s in [0, 1] from z(0) = z0, x = features(image), logits = head(z(1)).

    Args:
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout, init, gain: as of `homojl.nn.HomoODE`, the layer.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Ding et al. (2023), arXiv 2310.09583, (17), (18), Algorithm 1.
    """

    settings = HomoODESettings

    def build(
        self, settings: HomoODESettings, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]
    ) -> None:
        s = settings
        self.encoder = Features(input_shape[0], s.channels)
        self.layer = HomoODE(s.channels, dropout=s.dropout, init=s.init, gain=s.gain, **how)
        self.decoder = Head(s.channels, n_classes)
        lay_out(self)
