"""Training: configuration, the loop, runs on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homojl.training.callbacks import Callback
    from homojl.training.config import ExperimentConfig
    from homojl.training.loggers import Trackio, WandB
    from homojl.training.loop import train_run
    from homojl.training.run import Run, load_run
    from homojl.training.start import train
    from homojl.training.tensorboard import TensorBoard

__all__ = [
    "Callback",
    "ExperimentConfig",
    "Run",
    "TensorBoard",
    "Trackio",
    "WandB",
    "load_run",
    "train",
    "train_run",
]

_MODULES = {
    "Callback": "callbacks",
    "ExperimentConfig": "config",
    "Run": "run",
    "TensorBoard": "tensorboard",
    "Trackio": "loggers",
    "WandB": "loggers",
    "load_run": "run",
    "train": "start",
    "train_run": "loop",
}


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # Each with its module, when it is first asked for: the loop needs torch, a configuration does not.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
