"""The HomoODE network, and the DEQ of the same block: the image is a condition, the start does not depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homojl.models.base import PublishedModel, lay_out
from homojl.models.blocks import Features, Head
from homojl.models.settings import DEQSettings, HomoODESettings
from homojl.nn.homoode import DEQ, HomoODE


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


class DEQNet(PublishedModel):
    """z = F(z; x), x = features(image), logits = head(z), with HomoODE's F, features and head.

    Args:
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout, init, gain, jacobian_weight: as of `homojl.nn.DEQ`, the layer.
        input_shape, n_classes, algorithm, adjoint, backend: as of `PublishedModel`.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377; for the Jacobian's weight Bai, Koltun, Kolter (2021),
    arXiv 2106.14342.
    """

    settings = DEQSettings

    def build(
        self, settings: DEQSettings, input_shape: tuple[int, int, int], n_classes: int, how: Mapping[str, Any]
    ) -> None:
        s = settings
        self.encoder = Features(input_shape[0], s.channels)
        self.layer = DEQ(
            s.channels, dropout=s.dropout, init=s.init, gain=s.gain, jacobian_weight=s.jacobian_weight, **how
        )
        self.decoder = Head(s.channels, n_classes)
        lay_out(self)
