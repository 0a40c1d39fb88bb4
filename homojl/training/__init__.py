"""Training: configuration, the loop, runs on disk."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homojl.training.config import ExperimentConfig
    from homojl.training.loop import train
    from homojl.training.run import Run, load_run

__all__ = ["ExperimentConfig", "Run", "load_run", "train"]

_MODULES = {"ExperimentConfig": "config", "Run": "run", "load_run": "run", "train": "loop"}


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # Each with its module, when it is first asked for: the loop needs torch, a configuration does not.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
