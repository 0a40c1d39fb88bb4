"""Implicit models by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homojl.models.creation import create_model
from homojl.models.settings import MODELS, model_settings

if TYPE_CHECKING:
    from homojl.models.base import AbstractImplicitModel, count_parameters
    from homojl.models.cnn import CNN
    from homojl.models.deq import DEQ
    from homojl.models.homoode import HomoODE
    from homojl.models.mondeq import MonDEQ
    from homojl.models.node import ANODE, NeuralODE
    from homojl.models.pcdeq import PcDEQ
    from homojl.models.pretrained import from_pretrained

__all__ = [
    "ANODE",
    "CNN",
    "DEQ",
    "MODELS",
    "AbstractImplicitModel",
    "HomoODE",
    "MonDEQ",
    "NeuralODE",
    "PcDEQ",
    "count_parameters",
    "create_model",
    "from_pretrained",
    "model_class",
    "model_names",
    "model_settings",
]


def model_names() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(MODELS)


def model_class(name: str) -> type[AbstractImplicitModel]:
    """The class of a model's name.

    Raises:
        ConfigError: for an unknown name.
    """
    return model_settings(name).model()


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # The classes need torch; listing the models, or refusing an option, does not.
        if name in ("AbstractImplicitModel", "count_parameters"):
            from homojl.models import base

            return getattr(base, name)
        if name == "from_pretrained":
            from homojl.models.pretrained import from_pretrained

            return from_pretrained
        for settings in MODELS.values():
            if name == settings.implementation[1]:
                return settings.model()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
