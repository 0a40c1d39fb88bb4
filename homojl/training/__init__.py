"""Training: configuration, the loop, runs on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homojl.training.config import ExperimentConfig
from homojl.training.run import Run, load_run

if TYPE_CHECKING:
    from homojl.training.loop import train

__all__ = ["ExperimentConfig", "Run", "load_run", "train"]


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # It needs torch; a configuration, or what lies in a run's folder, does not.
        if name == "train":
            from homojl.training.loop import train

            return train
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
