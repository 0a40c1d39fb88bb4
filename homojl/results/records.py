"""The metrics of a run, with their names, units and meanings in one table, and the arrays of an evaluation.

The loop writes these names, HDF5 and the report describe them, plots label axes with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESULTS = "results.h5"
"""What an evaluation leaves in a run's folder."""


@dataclass(frozen=True)
class Metric:
    """One number per epoch, or per part of a time budget.

    Attributes:
        group: HDF5 group it is filed under.
        unit: unit; "1" where it has none.
        description: one sentence.
        repeatable: whether the same run gives the same number again, bit for bit, on the same machine.
        optional: whether runs from before it was measured lack it; it is NaN there.
    """

    group: str
    unit: str
    description: str
    repeatable: bool = True
    optional: bool = False


def _phase(description: str) -> Metric:
    """Wall time of a part of an epoch."""
    return Metric("cost", "s", f"wall time of the epoch's {description}", repeatable=False, optional=True)


METRICS: dict[str, Metric] = {
    "epoch": Metric("train", "1", "epochs completed; a time budget has fractions"),
    "step": Metric("train", "1", "optimiser steps completed"),
    "lr": Metric("train", "1", "learning rate of the epoch's last step"),
    "train_loss": Metric(
        "train",
        "nat",
        "mean loss over the epoch's training images, in training mode: cross-entropy, or what train.loss names",
    ),
    "train_accuracy": Metric("train", "1", "fraction of the epoch's training images classified correctly"),
    "val_loss": Metric(
        "train", "nat", "mean loss on the validation split after the epoch: cross-entropy, or what train.loss names"
    ),
    "val_accuracy": Metric("train", "1", "fraction of the validation split classified correctly after the epoch"),
    "train_metric": Metric(
        "train", "1", "mean of the run's own metric over the epoch's training samples, in training mode", optional=True
    ),
    "val_metric": Metric("train", "1", "mean of the run's own metric on the validation split", optional=True),
    "initial_point_loss": Metric(
        "train", "1", "mean over the epoch's updates of E |z* - z0|^2, squared over channels; 0 if none"
    ),
    "initial_point_norm": Metric("train", "1", "Euclidean norm of the shared initial point after the epoch"),
    "nfe_forward": Metric("solver", "evaluations", "mean evaluations of the field per training forward pass"),
    "nfe_backward": Metric(
        "solver", "evaluations", "mean vector-Jacobian products of the field per training backward pass"
    ),
    "nfe_recomputed": Metric(
        "solver", "evaluations", "mean evaluations of the field that a backward pass repeats or adds"
    ),
    "nfe_val": Metric(
        "solver", "evaluations", "mean evaluations of the field per forward pass on the validation split"
    ),
    "accepted_steps": Metric("solver", "steps", "mean accepted steps per training forward pass"),
    "rejected_steps": Metric("solver", "steps", "mean rejected steps per training forward pass"),
    "failed_solves": Metric("solver", "solves", "training solves of the epoch that did not reach their end"),
    "images_per_second": Metric("cost", "1/s", "training images per second of training time", repeatable=False),
    "seconds": Metric("cost", "s", "wall time of the epoch's training and validation", repeatable=False),
    "peak_memory": Metric(
        "cost",
        "MiB",
        "largest resident memory of the process so far, on a GPU allocated memory",
        repeatable=False,
    ),
    "start_memory": Metric(
        "cost",
        "MiB",
        "largest resident memory of the process before its first step, on a GPU allocated memory",
        repeatable=False,
        optional=True,
    ),
    "data_seconds": _phase("choosing, moving and augmenting of training images"),
    "forward_seconds": _phase("training forward passes, with the loss"),
    "solve_seconds": _phase("solves in the training forward passes, a part of forward_seconds"),
    "backward_seconds": _phase("training backward passes"),
    "optimizer_seconds": _phase("updates of parameters and initial point, with the counting of right answers"),
    "validation_seconds": _phase("validation"),
}


def metrics_row(values: Any) -> dict[str, float]:
    """Check a line of metrics read from a file, and complete it: every name of `METRICS`, NaN for missing numbers.

    Raises:
        ValueError: it is not a line of metrics.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no table of metrics")
    required = {name for name, metric in METRICS.items() if not metric.optional}
    if not required <= values.keys() <= METRICS.keys():
        raise ValueError("it has other names than the metrics'")
    row = {name: math.nan if values.get(name) is None else values[name] for name in METRICS}
    for name, value in row.items():
        if type(value) not in (int, float):
            raise ValueError(f"{name} is {value!r}, expected a number")
    if not (row["epoch"] >= 0 and row["step"] >= 0 and row["images_per_second"] > 0):
        raise ValueError("epoch, step and images_per_second must be positive")
    return row


SELECTORS: dict[str, tuple[str, int]] = {
    "highest accuracy": ("val_accuracy", 1),
    "lowest loss": ("val_loss", -1),
    "highest metric": ("val_metric", 1),
    "lowest metric": ("val_metric", -1),
}
"""What may choose the best epoch: the metric, and its sign where larger is to be better."""


def best_line(metrics: Sequence[Mapping[str, float]], select: str = "highest accuracy") -> Mapping[str, float] | None:
    """The line with the best validation result, the last of equal ones, as training chooses its checkpoint; or None.

    Args:
        select: of `SELECTORS`.
    """
    name, sign = SELECTORS[select]
    measured = [row for row in metrics if math.isfinite(row.get(name, math.nan))]
    return max(measured, key=lambda row: (sign * row[name], row["epoch"]), default=None)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's answers on one split.

    Attributes:
        split: "test", "val" or "train".
        index: position of each image in the dataset's split array, (N,), int64.
        labels, predictions: true and predicted class, (N,), int64.
        logits: (N, K), float32.
        loss: mean cross-entropy, nat.
        accuracy: fraction correct.
        nfe: evaluations of the field for the batch that each image was in, (N,), int64; where each
            has its own steps, its own.
        seconds: wall time of the forward passes.
        solver: names and settings: backend, algorithm, rtol, atol and such.
        checkpoint: which checkpoint answered, e.g. "best, epoch 2".
        status: counts of how the solves ended, by `Status` name.
    """

    split: str
    index: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray
    loss: float
    accuracy: float
    nfe: np.ndarray
    seconds: float
    solver: dict[str, object]
    checkpoint: str
    status: dict[str, int]

    @property
    def failed(self) -> str:
        """A sentence on the solves that did not reach their end; empty where all did."""
        bad = {name: count for name, count in self.status.items() if name not in ("SUCCESS", "EVENT") and count}
        if not bad:
            return ""
        counts = ", ".join(f"{count} {name}" for name, count in bad.items())
        return f"{sum(bad.values())} of {sum(self.status.values())} solves did not reach their end ({counts})"


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The states that chosen samples pass through.

    Attributes:
        s: arc positions, (T,), float64, from 0 to 1.
        z: states, (n, T, *state shape), float32.
        index: positions of the samples in the test array, (n,), int64.
        labels: their classes, (n,), int64.
    """

    s: np.ndarray
    z: np.ndarray
    index: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that is known of a run, ready to be written, drawn or reported.

    Attributes:
        config: the resolved configuration, nested plain values.
        environment: versions, device, threads, commit.
        metrics: one dict per epoch with the keys of `METRICS`.
        class_names: name of each class.
        parameters: trained parameters, the initial point not counted.
        evaluation: answers on the test set; None before the run has been evaluated.
        initial_point: the shared start, (C,), float32; None for a model without one.
        trajectories: on request.
        test: loss, metric and checkpoint on test data without classes; None: not measured.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    class_names: tuple[str, ...]
    parameters: int
    evaluation: Evaluation | None = None
    initial_point: np.ndarray | None = None
    trajectories: Trajectories | None = None
    test: dict[str, Any] | None = None
    images: np.ndarray | None = field(default=None)
    """Test images to show in the report's figures, (n, H, W) or (n, H, W, 3), uint8, beside `trajectories.index`."""
