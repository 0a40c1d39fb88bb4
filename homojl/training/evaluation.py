"""A model's answers on a split, and the paths that chosen samples take."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from homojl.data.augment import normalise
from homojl.models import AbstractImplicitModel
from homojl.results.records import Evaluation, Trajectories
from homojl.solution import Solution
from homojl.training.form import ModelForm
from homojl.training.ranks import ALONE, Ranks
from homojl.training.solver import SolverConfig

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
    started = time.perf_counter()
    batches = ranks.deal(torch.arange(len(images)).split(batch_size))
    answers = gathered(model, ((prepare(images[i], form, model), labels[i]) for i in batches), ranks)
    return classified(
        model,
        answers,
        split=split,
        solver=solver,
        checkpoint=checkpoint,
        seconds=time.perf_counter() - started,
        batch_size=batch_size,
        index=index,
    )


class Answers(NamedTuple):
    """A model's answers to a batch, on the CPU.

    Attributes:
        outputs, targets: as the model gave and the batch had them.
        nfe: evaluations for each sample: those of the batch, or where each has its own steps its own.
        status, backend: of the solve.
    """

    outputs: Any
    targets: Tensor
    nfe: list[int]
    status: str
    backend: str


@torch.no_grad()
def gathered(model: AbstractImplicitModel, batches: Iterable[tuple[Any, Tensor]], ranks: Ranks) -> list[Answers]:
    """The answers to batches of inputs and targets in evaluation mode; the model's mode is put back afterwards.

    Args:
        batches: this process's, as `ranks.deal` deals them; the answers are those of all.
    """
    was_training = model.training
    model.eval()
    mine = []
    for inputs, targets in batches:
        out, solution = model(inputs, return_solution=True)
        samples = getattr(solution, "samples", None)
        nfe = [solution.stats.nfe] * len(targets) if samples is None else samples.nfe.tolist()
        outputs = pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, out)
        mine.append(Answers(outputs, targets.cpu(), nfe, solution.status.name, solution.stats.backend))
    model.train(was_training)
    return ranks.collect(mine)


def classified(
    model: AbstractImplicitModel,
    answers: Sequence[Answers],
    *,
    split: str,
    solver: SolverConfig,
    checkpoint: str,
    seconds: float,
    batch_size: int,
    index: Tensor | None = None,
) -> Evaluation:
    """The record of an evaluation, from answers that are logits; arguments as of `evaluate`."""
    scores = torch.cat([answer.outputs.float() for answer in answers])
    labels = torch.cat([answer.targets for answer in answers])
    predictions = scores.argmax(dim=1)
    settings = {
        "backend": answers[-1].backend,
        "algorithm": model.algorithm.name,
        **{name: solver.algorithm.get(name) for name in ("rtol", "atol", "step_size")},
        "adjoint": model.adjoint.name,
        "batch": None if model.batch == "joint" else model.batch,
        "precision": None if model.precision == "full" else model.precision,
        "batch_size": batch_size,
    }
    return Evaluation(
        split=split,
        index=(torch.arange(len(labels)) if index is None else index).numpy(),
        labels=labels.numpy(),
        predictions=predictions.numpy(),
        logits=scores.numpy(),
        loss=torch.nn.functional.cross_entropy(scores.double(), labels).item(),
        accuracy=(predictions == labels).double().mean().item(),
        nfe=np.asarray(list(itertools.chain(*(answer.nfe for answer in answers))), dtype=np.int64),
        seconds=seconds,
        solver={key: value for key, value in settings.items() if value is not None},
        checkpoint=checkpoint,
        status=dict(Counter(answer.status for answer in answers)),
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
