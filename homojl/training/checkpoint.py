"""Checkpoints: tensors and a JSON header in one safetensors file; no code, whole or not at all, verified on reading."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from homojl.errors import CheckpointError
from homojl.files import atomic_write, parse_json
from homojl.models.earlier import renamed
from homojl.training.optimizers import AbstractOptimizer

SCHEMA = 2  # 1: of models that were not yet made of layers; their weights are read

Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors by name, and the header


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write tensors by name and a JSON-able header.

    Raises:
        CheckpointError: if the file cannot be written; an older one at that path is then untouched.
    """
    # One set of bytes serves the digest and the file; the memory format is not kept.
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(header)
    metadata = {"schema": str(SCHEMA), "header": text, "digest": _digest(tensors, text)}
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(save(tensors, metadata=metadata))
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error.strerror}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Returns:
        CPU tensors by name, and the header, in which "schema" is the file's; weights of schema 1 have today's names.

    Raises:
        CheckpointError: if it is missing, damaged, or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors and torch answer arbitrary bytes with errors of many classes
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from None
    if "schema" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file but not a checkpoint of homojl")
    if metadata["schema"] not in ("1", str(SCHEMA)):
        raise CheckpointError(
            f"{path} has checkpoint schema {metadata['schema']}; this version of homojl reads schemas 1 and {SCHEMA}"
        )
    text = metadata.get("header", "")
    if metadata.get("digest") != _digest(tensors, text):
        raise CheckpointError(f"{path} is damaged: its contents do not match their checksum")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not a table")
    header["schema"] = int(metadata["schema"])
    if header["schema"] == 1:
        tensors = _from_schema_1(tensors, header)
    return tensors, header


def _from_schema_1(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights alone, under the names of today."""
    model = header.get("model")
    if not isinstance(model, dict):
        return {}
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    weights = renamed(str(model.get("name")), model, weights)
    return {f"model.{name}": t for name, t in weights.items()}


def _digest(tensors: dict[str, torch.Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: AbstractOptimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors; its settings come from the configuration."""
    return {f"{prefix}.{index}.{key}": value for index, kept in optimizer.state.items() for key, value in kept.items()}


def load_optimizer(optimizer: AbstractOptimizer, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, in the memory format of the parameters.

    Raises:
        ValueError: the tensors are not those of this optimiser.
    """
    parameters = optimizer.parameters
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            if not index.isdecimal() or int(index) >= len(parameters):
                raise ValueError(f"it has {name}, but the optimiser moves {len(parameters)} parameters")
            like = parameters[int(index)]
            if key == "step":
                if value.ndim or not 0 <= value.item() < math.inf:
                    raise ValueError(f"{name} is no number of steps")
            elif (value.shape, value.dtype) == (like.shape, like.dtype):
                value = torch.empty_like(like).copy_(value)
            else:
                raise ValueError(
                    f"{name} is {value.dtype} {tuple(value.shape)}, the parameter {like.dtype} {tuple(like.shape)}"
                )
            state.setdefault(int(index), {})[key] = value
    for place, values in state.items():
        if values.keys() != optimizer.keeps:
            expected = ", ".join(sorted(optimizer.keeps))
            raise ValueError(f"{prefix}.{place} has {', '.join(sorted(values))}, expected {expected}")
    optimizer.state = state
