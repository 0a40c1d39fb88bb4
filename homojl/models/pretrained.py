"""A trained model as a folder of two files, config.json and model.safetensors, apart from its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

import homojl
from homojl import adjoints, algorithms
from homojl.algorithms import CONTROLLERS, FIXED_POINT_ALGORITHMS, ODE_ALGORITHMS, StepMemory
from homojl.errors import CheckpointError, ConfigError
from homojl.files import make_folder, replace_file
from homojl.models.settings import model_settings
from homojl.parsing import parse_json, read_text

if TYPE_CHECKING:
    from homojl.models.base import AbstractImplicitModel

SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
HOW = ("algorithm", "adjoint", "backend", "batch", "precision")


def save_pretrained(model: AbstractImplicitModel, folder: Path | str) -> None:
    """Write a model that `homojl.create_model` has made, with its weights and how it solves.

    Raises:
        ConfigError: for another model, or a method with parts that no file can hold.
        DataError: if the files cannot be written.
    """
    origin, folder = model.origin, Path(folder)
    if origin is None:
        raise ConfigError(
            f"only what homojl.create_model has made can be saved, got a {type(model).__name__} of its own"
        )
    own = model_settings(origin.name).own
    config = {
        "homojl": homojl.__version__,
        "schema": SCHEMA,
        **{f.name: getattr(origin, f.name) for f in fields(origin)},
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "solver": None if own else {key: described(getattr(model, key)) for key in HOW},
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    make_folder(folder)
    replace_file(folder / WEIGHTS, save(tensors))
    replace_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())  # last: the folder is whole with it


def from_pretrained(folder: Path | str) -> AbstractImplicitModel:
    """The model that `model.save_pretrained(folder)` wrote, in evaluation mode, on the CPU.

    Its `origin.trained_on` has the names of the classes, and the mean and deviation to normalise images with.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another schema.
        ConfigError: if the model is a network of somebody's own, and its code was not allowed (`homojl.allow`).
    """
    from homojl.models import create_model

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


def described(value: Any) -> Any:
    """A number or text as it is; a method, an adjoint or a controller by its name and what is not its default.

    Raises:
        ConfigError: for parts that no file can hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, StepMemory):
        return {"name": "StepMemory"}
    name = type(value).__name__
    if name not in _known():
        raise ConfigError(f"{value!r} cannot be written into a file")
    changed = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return {"name": name} | {key: described(x) for key, x in changed.items()}


def rebuilt(description: Any) -> Any:
    """What `described` has described.

    Raises:
        KeyError, TypeError, ValueError: it is no such description.
    """
    if not isinstance(description, Mapping):
        return description
    settings = {key: rebuilt(value) for key, value in description.items() if key != "name"}
    return _known()[description["name"]](**settings)


def _known() -> dict[str, Any]:
    methods = (*ODE_ALGORITHMS.values(), *FIXED_POINT_ALGORITHMS.values(), *CONTROLLERS.values(), algorithms.StepMemory)
    ways = [getattr(adjoints, name) for name in adjoints.__all__ if name.endswith("Adjoint")]
    return {kind.__name__: kind for kind in (*methods, *ways)}
