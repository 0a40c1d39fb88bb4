"""Neural ODE and ANODE compute what their definitions say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import homojl as hj

TIGHT = hj.Tsit5(rtol=1e-9, atol=1e-9)


def small(name: str, **options):
    torch.manual_seed(0)
    return hj.create_model(name, input_shape=(2, 5, 4), n_classes=3, filters=6, **options).double()


def test_anode_without_channels_is_a_neural_ode():
    one, other = small("node"), small("anode", augment=0)
    other.load_state_dict(one.state_dict())
    image = torch.randn(3, 2, 5, 4).double()
    assert torch.equal(one(image), other(image))


@pytest.mark.parametrize("time", [False, True])
def test_field_is_its_formula(time):
    f = small("anode", augment=3, time=time).layer.field
    z, t = torch.randn(2, 5, 5, 4).double(), torch.tensor(0.3).double()

    def conv(layer, y, **options):
        if time:
            y = torch.cat([torch.full_like(y[:, :1], 0.3), y], 1)
        return F.conv2d(y, layer.weight, layer.bias, **options)

    y = conv(f.conv3, torch.relu(conv(f.conv2, torch.relu(conv(f.conv1, z)), padding=1)))
    torch.testing.assert_close(f(t, z), y)


def test_forward_is_the_flow_of_the_image_with_zeros_appended(backend):
    model = small("anode", augment=3, time=True, algorithm=TIGHT, backend=backend)
    image = torch.randn(2, 2, 5, 4).double()
    z = torch.cat([image, torch.zeros(2, 3, 5, 4).double()], 1)
    assert torch.equal(model.encode(image), z)
    n = 500
    with torch.no_grad():
        for i in range(n):  # the midpoint rule by hand
            t = torch.tensor(i / n).double()
            k = model.layer.field(t, z)
            z = z + model.layer.field(t + 1 / (2 * n), z + k / (2 * n)) / n
        torch.testing.assert_close(model(image), model.decoder(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["node", "anode"])
def test_every_weight_receives_a_gradient(name, backend):
    model = small(name, time=True, backend=backend)
    F.cross_entropy(model(torch.randn(3, 2, 5, 4).double()), torch.tensor([0, 1, 2])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"), [({"filters": 0}, "filters must be positive"), ({"augment": -1}, "must not be negative")]
)
def test_refused(options, message):
    with pytest.raises(hj.ConfigError, match=message):
        hj.create_model("anode", input_shape=(1, 8, 8), n_classes=3, **options)
