"""What HomoODE and DEQ share: all but the problem, so that a comparison is one of the implicit layers alone."""

from __future__ import annotations

import torch

from homojl.models.base import AbstractImplicitModel, Adjoint, Algorithm, use_channels_last
from homojl.models.blocks import Features, Head
from homojl.models.settings import ConditionedSettings
from homojl.nn.parts import ConditionedField, InitialPoint, channel_dropout_mask

Tensor = torch.Tensor


class AbstractConditionedModel(AbstractImplicitModel):
    """x = features(image) conditions F(z; x), and logits = head(z).

    Args:
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        channels: width C of the state; at most 32 or a multiple of 32.
        dropout: probability in [0, 1) of the variational dropout inside F; one mask per solve, none at evaluation.
        init: "learned": the shared initial point follows the mean equilibrium; "zero": it stays at zero.
        gain: of F's first normalisation to begin with, that is, how much z counts in F beside x. At 1, PyTorch's own
            value, F may expand differences in z; at 0.1 (ours) it contracts them.
        algorithm, adjoint, backend: how the problem is solved.

    Attributes:
        initial_point: the shared start. Train it with its own optimiser, never with the other parameters.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        n_classes: int,
        channels: int,
        dropout: float,
        init: str,
        gain: float,
        algorithm: Algorithm | None,
        adjoint: Adjoint | None,
        backend: str,
    ) -> None:
        super().__init__(algorithm=algorithm, adjoint=adjoint, backend=backend)
        ConditionedSettings(channels=channels, dropout=dropout, init=init, gain=gain)  # refuses what cannot be
        self.dropout = dropout
        self.features = Features(input_shape[0], channels)
        self.field = ConditionedField(channels)
        torch.nn.init.constant_(self.field.norm1.weight, gain)
        self.initial_point = InitialPoint(channels, learned=init == "learned")
        self.head = Head(channels, n_classes)
        use_channels_last(self)

    def encode(self, image: Tensor) -> Tensor:
        return self.features(image.contiguous(memory_format=torch.channels_last))

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z)

    def dropout_mask(self, h: Tensor) -> Tensor | None:
        """The mask of one solve; None where there is none."""
        return channel_dropout_mask(h, self.dropout, self.part) if self.training and self.dropout > 0 else None
