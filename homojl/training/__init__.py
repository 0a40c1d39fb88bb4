"""Training: configuration, the loop, runs on disk."""

from homojl.training.config import ExperimentConfig
from homojl.training.loop import train
from homojl.training.run import Run, load_run

__all__ = ["ExperimentConfig", "Run", "load_run", "train"]
