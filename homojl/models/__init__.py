"""Implicit models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from homojl.errors import ConfigError
from homojl.models.base import AbstractImplicitModel, count_parameters
from homojl.models.deq import DEQ
from homojl.models.homoode import HomoODE
from homojl.models.mondeq import MonDEQ
from homojl.models.node import ANODE, NeuralODE
from homojl.models.pcdeq import PcDEQ
from homojl.names import did_you_mean

MODELS: dict[str, type[AbstractImplicitModel]] = {
    "homoode": HomoODE,
    "deq": DEQ,
    "mondeq": MonDEQ,
    "node": NeuralODE,
    "anode": ANODE,
    "pcdeq": PcDEQ,
}

__all__ = [
    "ANODE",
    "DEQ",
    "MODELS",
    "AbstractImplicitModel",
    "HomoODE",
    "MonDEQ",
    "NeuralODE",
    "PcDEQ",
    "count_parameters",
    "create_model",
    "model_class",
    "model_names",
]


def model_names() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(MODELS)


def model_class(name: str) -> type[AbstractImplicitModel]:
    """The class of a model's name.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return MODELS[name]


def create_model(
    name: str, *, input_shape: tuple[int, int, int], n_classes: int, **options: Any
) -> AbstractImplicitModel:
    """Build a model.

    Args:
        name: one of `model_names()`.
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        options: the model's own settings, such as `channels` or `dropout`, and `algorithm`, `adjoint`, `backend`.

    Raises:
        ConfigError: for an unknown name or option, or sizes that do not fit.
    """
    cls: Callable[..., AbstractImplicitModel] = model_class(name)
    known = inspect.signature(cls).parameters
    for key in options:
        if key not in known:
            raise ConfigError(f"model {name!r} has no option {key!r}; {did_you_mean(key, known)}")
    return cls(input_shape=input_shape, n_classes=n_classes, **options)
