"""The folder of a trained model: config.json, model.safetensors, and how a solver's parts are written there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from homojl import adjoints, algorithms
from homojl.algorithms import CONTROLLERS, FIXED_POINT_ALGORITHMS, ODE_ALGORITHMS, StepMemory
from homojl.errors import ConfigError
from homojl.files import make_folder, replace_file
from homojl.version import __version__

SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
HOW = ("algorithm", "adjoint", "backend", "batch", "precision")


def write_pretrained(
    folder: Path, origin: Mapping[str, Any], solver: Mapping[str, Any] | None, weights: Mapping[str, torch.Tensor]
) -> None:
    """Write the two files.

    Args:
        origin: what the model was made of.
        solver: how it solves, by `HOW`; None: a network whose layers were made with it.
        weights: by name.

    Raises:
        ConfigError: for a method with parts that no file can hold.
        DataError: if the files cannot be written.
    """
    config = {
        "homojl": __version__,
        "schema": SCHEMA,
        **origin,
        "solver": None if solver is None else {key: described(value) for key, value in solver.items()},
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    make_folder(folder)
    replace_file(folder / WEIGHTS, save(tensors))
    replace_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())  # last: the folder is whole with it


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
