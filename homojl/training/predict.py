"""Predictions of a run's model, for pictures or for any inputs that it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from homojl.data.pictures import read_pictures
from homojl.errors import ConfigError
from homojl.models import AbstractImplicitModel
from homojl.training.config import TrainConfig
from homojl.training.evaluation import prepare
from homojl.training.experiment import resolve_device
from homojl.training.form import ModelForm

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's answers.

    Attributes:
        outputs: as the model gives them, on the CPU: logits (N, K) of one that classifies.
        class_names: of the K classes; empty for a model that does not classify.
    """

    outputs: Tensor
    class_names: tuple[str, ...]

    @property
    def probabilities(self) -> Tensor:
        """Of each class, (N, K), float32: the softmax of the logits.

        Raises:
            ConfigError: the model does not classify.
        """
        if not self.class_names:
            raise ConfigError("this model does not classify: its answers are `outputs`")
        return torch.softmax(self.outputs.float(), dim=1)

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class for each input."""
        return [self.class_names[i] for i in self.probabilities.argmax(dim=1).tolist()]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """For each input its `count` most probable classes, each with its probability, the highest first."""
        best = self.probabilities.topk(min(count, len(self.class_names)), dim=1)
        return [
            [(self.class_names[i], p) for i, p in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def __repr__(self) -> str:
        shown = ", ".join(f"{row[0][0]} ({row[0][1]:.2f})" for row in self.top(1)[:4]) if self.class_names else ""
        more = ", ..." if len(self.outputs) > 4 and shown else ""
        return f"<Predictions of {len(self.outputs)}{': ' * bool(shown)}{shown}{more}>"


@torch.no_grad()
def predict(
    model: AbstractImplicitModel,
    form: ModelForm,
    train: TrainConfig,
    names: Sequence[str],
    inputs: Any,
    *,
    batch_size: int | None = None,
) -> Predictions:
    """See `Run.predict`; the model is that of the run's best epoch, and `names` are those of its classes, if any."""
    device = resolve_device(train.device)
    model.to(device)
    size = batch_size or train.eval_batch_size
    outputs = []
    for part in _parts(_images(inputs, form) if form.images else inputs, size):
        ready = prepare(part, form, model) if form.images else _moved(part, device)
        outputs.append(model(ready).cpu())
    answers = torch.cat(outputs)
    if train.metric != "accuracy":
        return Predictions(answers, ())
    return Predictions(answers, tuple(names) or tuple(str(i) for i in range(answers.shape[1])))


def _images(inputs: Any, form: ModelForm) -> Tensor:
    """Pictures or arrays as uint8 (N, C, H, W) of the model's shape.

    Raises:
        ConfigError: arrays of another type or shape.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if isinstance(inputs, Sequence) and inputs and all(isinstance(x, str | os.PathLike) for x in inputs):
        return torch.from_numpy(read_pictures([Path(x) for x in inputs], form.input_shape))
    images = torch.as_tensor(np.asarray(inputs) if not isinstance(inputs, Tensor) else inputs)
    images = images[None] if images.ndim == 3 else images
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != form.input_shape:
        raise ConfigError(
            f"expected paths of pictures, or images uint8 (N, {', '.join(map(str, form.input_shape))}), got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    return images


def _parts(inputs: Any, size: int) -> Iterator[Any]:
    """Batches of inputs, cut along the first dimension of every tensor.

    Raises:
        ConfigError: there is no input.
    """
    rows = [len(x) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim]
    if not rows or rows[0] == 0:
        raise ConfigError(
            "there is nothing to predict for: expected a tensor, or a nest of tensors, with a row for each"
        )
    for first in range(0, rows[0], size):
        yield pytree.tree_map(lambda x: x[first : first + size] if isinstance(x, Tensor) else x, inputs)  # noqa: B023


def _moved(inputs: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, inputs)
