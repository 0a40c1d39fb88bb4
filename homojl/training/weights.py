"""A checkpoint's form and weights, checked against the model that they are for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.errors import CheckpointError
from homojl.own import is_given
from homojl.training.config import ExperimentConfig

if TYPE_CHECKING:
    import torch

    from homojl.training.form import ModelForm


def form_header(form: ModelForm) -> dict[str, Any] | None:
    """A model's form as a checkpoint's header holds it; None for batches."""
    return asdict(form) if form.images else None


def checked_form(path: Path, header: dict[str, Any], config: ExperimentConfig) -> ModelForm:
    """The form in a checkpoint's header, once that header is known to be of the configured model.

    Raises:
        CheckpointError: if it is of another model.
    """
    from homojl.training.form import BATCHES, ModelForm

    wanted = config.to_dict()["model"]
    if header.get("model") != wanted:
        raise CheckpointError(f"{path} is of another model: {header.get('model')}, the run's is {wanted}")
    try:
        if type(header["position"]["step"]) is not int:
            raise TypeError
        if header["form"] is None and is_given(config.model.name):
            return BATCHES
        return ModelForm.stored(header["form"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: its header lacks the model's form or position") from None


def check_weights(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path) -> None:
    """Check a checkpoint's weights against the model's, of which only the shapes and types are needed.

    Raises:
        CheckpointError: if names, shapes or types differ.
    """
    weights = _weights(tensors)
    for name in sorted(weights.keys() ^ wanted.keys()):
        raise CheckpointError(f"{path} does not fit the model: only one of them has {name}")
    for name, like in wanted.items():
        given = weights[name]
        if (given.shape, given.dtype) != (like.shape, like.dtype):
            raise CheckpointError(
                f"{path} does not fit the model: {name} is {given.dtype} {tuple(given.shape)}, the model's "
                f"{like.dtype} {tuple(like.shape)}"
            )


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        CheckpointError: if they are not this model's.
    """
    check_weights(tensors, model.state_dict(), path)
    try:
        model.load_state_dict(_weights(tensors))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the model: {str(error).splitlines()[-1].strip()}") from None


def start_from(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Put those of a checkpoint's weights into the model that have the same names, shapes and types.

    Returns:
        Names of the model's weights that stay as they were drawn, such as a head for another number of classes.

    Raises:
        CheckpointError: none fits.
    """
    own, given = model.state_dict(), _weights(tensors)
    fitting = {
        name: given[name]
        for name, like in own.items()
        if name in given and (given[name].shape, given[name].dtype) == (like.shape, like.dtype)
    }
    if not any(name in fitting for name, _ in model.named_parameters()):
        raise CheckpointError(f"none of the weights in {path} fits the model")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def _weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
