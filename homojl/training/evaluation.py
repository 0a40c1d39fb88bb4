"""A model's answers on a split, and the paths that chosen samples take."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import torch

from homojl.data.augment import normalise
from homojl.models import AbstractImplicitModel
from homojl.results.records import Evaluation, Trajectories
from homojl.solution import Solution
from homojl.training.config import SolverConfig
from homojl.training.experiment import ModelForm
from homojl.training.ranks import ALONE, Ranks

Tensor = torch.Tensor


def prepare(images: Tensor, form: ModelForm, model: AbstractImplicitModel) -> Tensor:
    """uint8 images (B, C, H, W) -> the model's input on its device, normalised, of its dtype, channels last."""
    like = next(model.parameters())
    mean = torch.tensor(form.mean, dtype=torch.float32)
    std = torch.tensor(form.std, dtype=torch.float32)
    return normalise(images.to(like.device), mean, std, dtype=like.dtype, memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(
    model: AbstractImplicitModel,
    form: ModelForm,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    split: str,
    solver: SolverConfig,
    checkpoint: str,
    index: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Answer every image of a split in evaluation mode; the model's mode is put back afterwards.

    Of several processes each answers some of the batches, and all return the whole.

    Args:
        images, labels: uint8 (N, C, H, W) and int64 (N,).
        solver: what the model solves with, to be named in the result.
        index: positions of the images in the dataset's array; None: 0 .. N - 1.

    Raises:
        SolveError: if a solve fails and the model's `throw` is set.
    """
    was_training = model.training
    model.eval()
    answers = []
    started = time.perf_counter()
    for batch in ranks.deal(torch.arange(len(images)).split(batch_size)):
        out, solution = model(prepare(images[batch], form, model), return_solution=True)
        samples = getattr(solution, "samples", None)
        nfe = [solution.stats.nfe] * len(batch) if samples is None else samples.nfe.tolist()
        answers.append((out.float().cpu(), nfe, solution.status.name, solution.stats.backend))
    logits, counts, status, backends = zip(*ranks.collect(answers), strict=True)
    seconds = time.perf_counter() - started
    model.train(was_training)
    scores = torch.cat(logits)
    predictions = scores.argmax(dim=1)
    settings = {
        "backend": backends[-1],
        "algorithm": model.algorithm.name,
        "rtol": solver.rtol,
        "atol": solver.atol,
        "adjoint": model.adjoint.name,
        "batch": None if model.batch == "joint" else model.batch,
        "precision": None if model.precision == "full" else model.precision,
        "batch_size": batch_size,
    }
    return Evaluation(
        split=split,
        index=(torch.arange(len(images)) if index is None else index).numpy(),
        labels=labels.numpy(),
        predictions=predictions.numpy(),
        logits=scores.numpy(),
        loss=torch.nn.functional.cross_entropy(scores.double(), labels).item(),
        accuracy=(predictions == labels).double().mean().item(),
        nfe=np.asarray(list(itertools.chain(*counts)), dtype=np.int64),
        seconds=seconds,
        solver={key: value for key, value in settings.items() if value is not None},
        checkpoint=checkpoint,
        status=dict(Counter(status)),
    )


@torch.no_grad()
def trace(
    model: AbstractImplicitModel,
    form: ModelForm,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    *,
    points: int = 51,
) -> Trajectories:
    """The states z(s) of the images at `index`, at equidistant s from 0 to 1."""
    model.eval()
    s = np.linspace(0.0, 1.0, points)
    solution = model.solve(prepare(images[index], form, model), save_at=tuple(s.tolist()))
    assert isinstance(solution, Solution), model
    z = solution.ys.transpose(0, 1).float().cpu().contiguous()
    return Trajectories(s=s, z=z.numpy(), index=index.numpy(), labels=labels[index].numpy())
