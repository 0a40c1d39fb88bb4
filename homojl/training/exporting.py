"""A trained model as one file that PyTorch alone runs, by `torch.export`."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import torch

import homojl
from homojl.errors import ConfigError, SolveError
from homojl.files import replace_file
from homojl.models import AbstractImplicitModel
from homojl.nn.mondeq import MonDEQ
from homojl.training.form import ModelForm

Tensor = torch.Tensor
ALLOWED = 0.02  # difference of the exported program's logits from the model's, over the largest logit


def export_model(model: AbstractImplicitModel, form: ModelForm, path: Path | str) -> float:
    """Write a model in evaluation mode as a program of `torch.export`, and hold it against the model.

    The program takes normalised images (B, C, H, W), of any B of at least 2, or with a monDEQ of 2 alone, and returns
    logits. What lies beside it in the file, `homojl.json`, has the classes' names and the mean and deviation to
    normalise with.

    Returns:
        The largest difference between its logits and the model's, over the largest logit.

    Raises:
        ConfigError: if the solver's steps depend on numbers; `export_model(..., algorithm=...)` takes another.
        SolveError: if the program's logits are not the model's; nothing is written then.
        DataError: if the file cannot be written.
    """
    # Channels last is not for files: saving would take each such weight for a part of a larger one.
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # left out there
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *form.input_shape, generator=generator).to(like)
    fixed = any(isinstance(layer, MonDEQ) for layer in model.layers)
    batches = None if fixed else {0: torch.export.Dim("batch", min=2)}
    with torch.no_grad():
        program = _program(model, images, batches)
        expected, got = model(images), program.module()(images)
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= ALLOWED:
        raise SolveError(
            f"the exported program's logits differ from the model's by {difference:.2g} of the largest: give it "
            "more iterations or shorter steps"
        )
    beside = {
        "homojl": homojl.__version__,
        "input_shape": form.input_shape,
        "class_names": form.class_names,
        "mean": form.mean,
        "std": form.std,
        "algorithm": repr(model.algorithm),
    }
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"homojl.json": json.dumps(beside)})
    replace_file(path, file.getvalue())
    return difference


def _program(model: AbstractImplicitModel, images: Tensor, batches: Any) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, (images,), dynamic_shapes=(batches,))
    except Exception as error:  # what is raised within arrives as another class
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        said = str(cause).replace("set layer.algorithm to", "give export_model algorithm=")
        raise ConfigError(said) from None
