"""Checks before a run is made: its data are loaded, and its model is built, once."""

from __future__ import annotations

from homojl.data.datasets import ImageDataset
from homojl.models import AbstractImplicitModel
from homojl.training.checkpoint import read_checkpoint
from homojl.training.config import ExperimentConfig
from homojl.training.experiment import backend_name, build_model, load_data, resolve_device, steps_per_epoch
from homojl.training.form import ModelForm
from homojl.training.run import Run
from homojl.training.weights import start_from


def check_start(config: ExperimentConfig) -> tuple[ImageDataset, AbstractImplicitModel]:
    """Load the data and build everything once, so that what cannot work is refused before a run is made.

    Returns:
        The dataset and the model, with which `train` can begin.

    Raises:
        ConfigError, DataError, BackendUnavailable: whatever would stop the run at its start.
    """
    resolve_device(config.train.device)
    backend_name(config)
    data = load_data(config)
    model = build_model(config, ModelForm.of(data))
    steps_per_epoch(data, config)
    if config.train.start is not None:
        path = Run.open(config.train.start).best_checkpoint
        start_from(model, read_checkpoint(path)[0], path)
    return data, model
