"""Every published size, to the parameter."""

from __future__ import annotations

import pytest

import homojl as hj
from homojl.models import count_parameters

MNIST, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "input_shape", "options", "parameters"),
    [
        ("deq", COLOUR, {"channels": 64}, 132_938),
        ("deq", MNIST, {"channels": 32}, 34_154),
        ("node", MNIST, {"filters": 92}, 84_395),
        ("node", COLOUR, {"filters": 125}, 172_358),
        ("anode", MNIST, {"filters": 64, "augment": 5}, 84_816),
        ("anode", COLOUR, {"filters": 64, "augment": 10}, 171_799),
        ("mondeq", MNIST, {"form": "linear", "channels": (87,)}, 84_313),
        ("mondeq", MNIST, {"form": "single", "channels": (56,)}, 84_460),
        ("mondeq", MNIST, {"form": "multi", "channels": (16, 32, 32)}, 81_394),
        ("mondeq", COLOUR, {"form": "single", "channels": (81,)}, 172_218),
        ("mondeq", COLOUR, {"form": "multi", "channels": (16, 32, 60)}, 170_194),
        ("pcdeq", MNIST, {"form": "linear", "channels": (80,)}, 70_410),
        ("pcdeq", MNIST, {"form": "single", "channels": (82,)}, 69_136),
        ("pcdeq", MNIST, {"form": "multi", "channels": (12, 24, 48)}, 41_278),
        ("pcdeq", COLOUR, {"form": "single", "channels": (125,)}, 164_760),
        ("pcdeq", COLOUR, {"form": "multi", "channels": (20, 50, 80)}, 130_950),
        ("pcdeq", COLOUR, {"form": "multi", "channels": (100, 120, 140)}, 661_470),
    ],
)
def test_published_parameter_counts(name, input_shape, options, parameters):
    model = hj.create_model(name, input_shape=input_shape, n_classes=10, **options)
    assert count_parameters(model) == parameters


def test_the_defaults_are_the_mnist_sizes_of_the_single_layers():
    sizes = {"mondeq": 84_460, "node": 84_395, "anode": 84_816, "pcdeq": 69_136}
    for name, parameters in sizes.items():
        assert count_parameters(hj.create_model(name, input_shape=MNIST, n_classes=10)) == parameters
