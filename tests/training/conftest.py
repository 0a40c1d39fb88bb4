"""A run small enough to be trained many times."""

from __future__ import annotations

import pytest

from homojl.training.config import ExperimentConfig

TINY = {
    "model": {"channels": 8},
    "solver": {"algorithm": "bosh3", "rtol": 1e-2, "atol": 1e-2, "adjoint": "checkpoint"},
    "data": {"dataset": "digits", "val_fraction": 0.2, "pad": 1},
    "optim": {"lr": 0.02},
    "initial_point": {"every": 3},
    "train": {"epochs": 3, "batch_size": 64, "threads": 1, "device": "cpu"},
}


@pytest.fixture
def tiny() -> ExperimentConfig:
    return ExperimentConfig.from_dict(TINY)
