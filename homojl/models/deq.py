"""DEQ: the equilibrium of the block that HomoODE follows as an ODE."""

from __future__ import annotations

from homojl import nn
from homojl.adjoints import AbstractFixedPointAdjoint
from homojl.algorithms import AbstractFixedPointAlgorithm
from homojl.models.base import AbstractImplicitModel, lay_out
from homojl.models.blocks import Features, Head
from homojl.models.settings import DEQSettings


class DEQ(AbstractImplicitModel):
    """z = F(z; x), x = features(image), logits = head(z), with HomoODE's F, features and head.

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout, init, gain, jacobian_weight: as of `homojl.nn.DEQ`, the layer.
        algorithm, adjoint, backend: how the equilibrium is found.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377; for the Jacobian's weight Bai, Koltun, Kolter (2021),
    arXiv 2106.14342.
    """

    settings = DEQSettings

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = DEQSettings.channels,
        dropout: float = DEQSettings.dropout,
        init: str = DEQSettings.init,
        gain: float = DEQSettings.gain,
        jacobian_weight: float = DEQSettings.jacobian_weight,
        algorithm: AbstractFixedPointAlgorithm | None = None,
        adjoint: AbstractFixedPointAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        DEQSettings(channels=channels, dropout=dropout, init=init, gain=gain, jacobian_weight=jacobian_weight)
        self.encoder = Features(input_shape[0], channels)
        self.layer = nn.DEQ(
            channels,
            algorithm or self.default_algorithm,
            dropout=dropout,
            init=init,
            gain=gain,
            jacobian_weight=jacobian_weight,
            adjoint=adjoint or self.default_adjoint,
            backend=backend,
            strict=True,
        )
        self.decoder = Head(channels, n_classes)
        lay_out(self)
