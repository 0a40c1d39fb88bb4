"""The layout of a model's parameters and states changes no value."""

from __future__ import annotations

import pytest
import torch

from homojl.models import MODELS, create_model
from homojl.models.base import lay_out


@pytest.mark.parametrize("name", list(MODELS))
def test_states_are_laid_out_as_the_parameters(name):
    options = {"filters": 4} if "node" in name else {"channels": (4,) if name in ("mondeq", "pcdeq") else 4}
    torch.manual_seed(0)
    model = create_model(name, input_shape=(3, 8, 8), n_classes=3, **options).double().eval()
    seen = []
    model.encoder.register_forward_hook(lambda _, __, state: seen.append(state))
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    values = []
    for layout in (torch.channels_last, torch.contiguous_format):
        lay_out(model, layout)
        values.append(model(image))
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-3)
    if name not in ("mondeq", "cnn"):  # which work on contiguous images, and without an encoder
        assert [x.is_contiguous(memory_format=torch.channels_last) for x in seen] == [True, False]
        assert seen[1].is_contiguous()


def test_images_of_one_channel_are_laid_out_too():
    """They are in both layouts at once, and convolutions go by the strides."""
    model = create_model("homoode", input_shape=(1, 8, 8), n_classes=3, channels=4)
    lay_out(model, torch.contiguous_format)
    image = torch.randn(2, 1, 8, 8).to(memory_format=torch.channels_last)
    assert not model.encode(image).is_contiguous(memory_format=torch.channels_last)
