"""The form of a model's inputs and outputs, as checkpoints keep it: image shape, classes, normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from homojl.data.datasets import ImageDataset


@dataclass(frozen=True)
class ModelForm:
    """What a model and its inputs look like; enough to build it again without the dataset.

    Attributes:
        input_shape: channels, height, width.
        n_classes, class_names: the classes.
        mean, std: normalisation per channel, pixels in [0, 1].
    """

    input_shape: tuple[int, int, int]
    n_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(data: ImageDataset) -> ModelForm:
        return ModelForm(
            data.input_shape,
            data.n_classes,
            tuple(data.class_names),
            tuple(data.mean.tolist()),
            tuple(data.std.tolist()),
        )

    @property
    def images(self) -> bool:
        """Whether the inputs are images; else they are batches, of which nothing is known."""
        return self != BATCHES

    @staticmethod
    def stored(values: dict[str, Any]) -> ModelForm:
        """From the plain values of a checkpoint's header.

        Raises:
            KeyError, TypeError, ValueError: they are not those of a form.
        """
        shape, names, mean, std = (tuple(values[key]) for key in ("input_shape", "class_names", "mean", "std"))
        if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**15 for n in shape):
            raise ValueError(f"images of shape {shape}")
        if len(names) != values["n_classes"] or not all(type(name) is str and name.isprintable() for name in names):
            raise ValueError(f"{values['n_classes']} classes with names {names}")
        if not len(mean) == len(std) == shape[0] or not all(math.isfinite(x) for x in mean + std) or min(std) <= 0:
            raise ValueError(f"normalisation by {mean} and {std}")
        return ModelForm(shape, values["n_classes"], names, mean, std)


BATCHES = ModelForm((0, 0, 0), 0, (), (), ())
"""The form of what is given as batches rather than as images."""
