"""HomoODE: the input as a condition, as in a DEQ; the output by an ODE solve from a shared, learnable start."""

from __future__ import annotations

from homojl import nn
from homojl.adjoints import AbstractODEAdjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.models.base import AbstractImplicitModel, lay_out
from homojl.models.blocks import Features, Head
from homojl.models.settings import HomoODESettings


class HomoODE(AbstractImplicitModel):
    """dz/ds = F(z; x) for s in [0, 1] from z(0) = z0, x = features(image), logits = head(z(1)).

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout, init, gain: as of `homojl.nn.HomoODE`, the layer.
        algorithm, adjoint, backend: how the ODE is solved; the default is the paper's dopri5 at 1e-3.

    References: Ding et al. (2023), arXiv 2310.09583, (17), (18), Algorithm 1.
    """

    settings = HomoODESettings

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int = HomoODESettings.channels,
        dropout: float = HomoODESettings.dropout,
        init: str = HomoODESettings.init,
        gain: float = HomoODESettings.gain,
        algorithm: AbstractODEAlgorithm | None = None,
        adjoint: AbstractODEAdjoint | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        HomoODESettings(channels=channels, dropout=dropout, init=init, gain=gain)  # refuses what cannot be
        self.encoder = Features(input_shape[0], channels)
        self.layer = nn.HomoODE(
            channels,
            algorithm or self.default_algorithm,
            dropout=dropout,
            init=init,
            gain=gain,
            adjoint=adjoint or self.default_adjoint,
            backend=backend,
            strict=True,
        )
        self.decoder = Head(channels, n_classes)
        lay_out(self)
