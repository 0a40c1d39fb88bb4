"""How long the runs of a plan would take, by counting the operations of one step of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from homojl.comparison.plan import Plan, PlannedRun
from homojl.results.tables import Table
from homojl.training.experiment import answered, build_model, load_data, solve_as
from homojl.training.form import ModelForm

IMAGES = 4  # of the step whose operations are counted


@dataclass(frozen=True)
class Estimate:
    """What a row of the plan takes.

    Attributes:
        label: of the row.
        runs: how many of it there are, one for each seed.
        nfe: evaluations of the field in the forward pass that was counted.
        training, inference: operations per image, of a training step and of an answer; a multiplication with an
            addition counts as two. Those of convolutions and matrix products alone are counted.
        operations: of one run: its epochs with their validation, and the test.
    """

    label: str
    runs: int
    nfe: int
    training: float
    inference: float
    operations: float


class _Operations(TorchDispatchMode):
    """As `torch.utils.flop_counter.FlopCounterMode`, which refuses gradients that are taken within a backward pass."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def estimate(plan: Plan) -> list[Estimate]:
    """An estimate for each row of a plan with a budget of epochs, by its untrained model.

    Evaluations change while a model learns, and operations with them.
    """
    data = load_data(plan.runs[0].config)
    result = []
    for run in {run.label: run for run in plan.runs}.values():
        nfe, training = _counted(run, ModelForm.of(data), training=True)
        _, inference = _counted(run, ModelForm.of(data), training=False)
        train, val = (len(part) for part in data.split(run.config.data.val_fraction, run.seed))
        epochs = run.config.train.epochs
        operations = epochs * (train * training + val * inference) + len(data.x_test) * inference
        count = sum(other.label == run.label for other in plan.runs)
        result.append(Estimate(run.label, count, nfe, training, inference, operations))
    return result


def estimate_table(estimates: Iterable[Estimate], rate: float) -> Table:
    """The estimates, with the hours at `rate` operations per second, and their sum."""
    head = ("", "evaluations", "training [Mflop/image]", "inference [Mflop/image]", "runs", "hours each", "hours")
    rows, hours = [], 0.0
    for row in estimates:
        each = row.operations / rate / 3600
        hours += row.runs * each
        numbers = (f"{row.training / 1e6:,.2f}", f"{row.inference / 1e6:,.2f}", str(row.runs), f"{each:.2f}")
        rows.append((row.label, str(row.nfe), *numbers, f"{row.runs * each:.2f}"))
    rows.append(("all", "", "", "", "", "", f"{hours:.2f}"))
    return Table(head, rows)


def _counted(run: PlannedRun, form: ModelForm, *, training: bool) -> tuple[int, float]:
    """Evaluations of a forward pass, and operations per image with the backward pass where it is training."""
    config = run.config
    model = build_model(config, form)
    model.throw = False
    solve_as(model, config.training_solver if training else config.solver)
    model.train(training)
    images = torch.randn(IMAGES, *form.input_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).dtype)
    with _Operations() as counter, torch.set_grad_enabled(training):
        outputs, solution = answered(model, images, config.train.precision if training else "full")
        if training:
            (outputs.logsumexp(1).sum() + model.regularization()).backward()
    return solution.stats.nfe, counter.total / IMAGES
