"""A trained model from a folder of two files, config.json and model.safetensors, apart from its run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from homojl.errors import CheckpointError, ConfigError
from homojl.files import parse_json, read_text
from homojl.models.base import AbstractImplicitModel
from homojl.models.creation import create_model
from homojl.models.saving import CONFIG, HOW, SCHEMA, WEIGHTS, rebuilt


def from_pretrained(folder: Path | str) -> AbstractImplicitModel:
    """The model that `model.save_pretrained(folder)` wrote, in evaluation mode, on the CPU.

    Its `origin.trained_on` has the names of the classes, and the mean and deviation to normalise images with.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another schema.
        ConfigError: if the model is a network of somebody's own, and its code was not allowed (`homojl.allow`).
    """
    folder = Path(folder)
    try:
        config = parse_json(read_text(folder / CONFIG))
        weights = load((folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder} has no saved model: {error.filename}: {error.strerror}") from None
    except Exception as error:  # safetensors answers arbitrary bytes with errors of many classes
        raise CheckpointError(f"the model in {folder} is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        found = config.get("schema") if isinstance(config, dict) else None
        raise CheckpointError(f"{folder / CONFIG} has schema {found}; this version of homojl reads schema {SCHEMA}")
    try:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in config["options"].items()}
        how = {} if config["solver"] is None else {key: rebuilt(config["solver"][key]) for key in HOW}
        extra = {key: how.pop(key) for key in ("batch", "precision") if key in how}
        shape = tuple(config["input_shape"])
        model = create_model(config["name"], input_shape=shape, n_classes=config["n_classes"], **options, **how)
        model.to(getattr(torch, config["dtype"])).load_state_dict(weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"the model in {folder} is damaged: {str(error).splitlines()[-1].strip()}") from None
    for key, value in extra.items():
        setattr(model, key, value)
    model.set_origin(trained_on=config["trained_on"])
    return model.eval()
