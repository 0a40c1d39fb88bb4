"""The results of a comparison: its runs, read from disk, and their numbers as rows of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from homojl.comparison.plan import Plan, PlannedRun
from homojl.comparison.runner import last_line
from homojl.errors import DataError
from homojl.files import parse_json, read_text
from homojl.results.facts import highest
from homojl.results.hdf5 import read_results
from homojl.results.records import Evaluation, RunRecord, metrics_row
from homojl.results.schema import Column


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run.

    Attributes:
        planned: what it was to be.
        status: "finished"; "failed": the loss was no longer finite, and would be so again; "broken off": by something
            temporary, such as a full disk.
        message: why it failed.
        record: all that is known of a finished run; None for others.
        measurements: of the trained model with other settings, as `homojl.comparison.worker` writes them.
    """

    planned: PlannedRun
    status: str
    message: str
    record: RunRecord | None
    measurements: list[dict[str, Any]]

    @property
    def known(self) -> RunRecord:
        """The record of a run that has finished."""
        assert self.record is not None, self.planned
        return self.record

    @property
    def answers(self) -> Evaluation:
        """Those of a run that has finished, on the test set."""
        assert self.known.evaluation is not None, self.planned
        return self.known.evaluation


MEASURED = {
    **{"name": str, "algorithm": str, "batch_size": int, "images": int},
    **{"accuracy": float, "nfe": float, "seconds": float, "failed_solves": int, "memory": float},
}
"""What `homojl.comparison.measure` says of a measurement; outcomes of earlier versions have no memory."""


def _last(key: str) -> Callable[[RunResult], float]:
    return lambda run: run.known.metrics[-1][key] if run.known.metrics else math.nan


QUANTITIES: dict[str, Column] = {
    "parameters": Column("1", "trained parameters, the initial point not counted", of=lambda r: r.known.parameters),
    "test_accuracy": Column("1", "fraction of the test set classified correctly", of=lambda r: r.answers.accuracy),
    "test_loss": Column("nat", "mean cross-entropy on the test set", of=lambda r: r.answers.loss),
    "test_nfe": Column(
        "evaluations",
        "mean evaluations of the field per forward pass on the test set",
        of=lambda r: float(r.answers.nfe.mean()),
    ),
    "inference_seconds": Column(
        "s",
        "wall time of the forward passes on the test set, per image",
        of=lambda r: r.answers.seconds / len(r.answers.labels),
    ),
    "failed_solves": Column(
        "solves",
        "solves on the test set that did not reach their end",
        of=lambda r: float(sum(n for status, n in r.answers.status.items() if status != "SUCCESS")),
    ),
    "nfe_forward": Column(
        "evaluations", "mean evaluations of the field per training forward pass at the end", of=_last("nfe_forward")
    ),
    "nfe_backward": Column(
        "evaluations",
        "mean vector-Jacobian products of the field per training backward pass at the end",
        of=_last("nfe_backward"),
    ),
    "nfe_recomputed": Column(
        "evaluations",
        "mean evaluations of the field that a backward pass repeats or adds, at the end",
        of=_last("nfe_recomputed"),
    ),
    "val_accuracy": Column(
        "1",
        "highest fraction of the validation split classified correctly",
        of=lambda r: highest(r.known.metrics, "val_accuracy"),
    ),
    "peak_memory": Column(
        "MiB",
        "largest resident memory of the run's process in training and validation, on a GPU allocated memory",
        of=_last("peak_memory"),
    ),
    "train_seconds": Column("s", "training time", of=lambda r: (training_seconds(r) or [math.nan])[-1]),
    "epochs": Column("1", "passes over the training images", of=_last("epoch")),
}
"""Numbers of a run: each takes a run that has finished."""


def quantity(run: RunResult, name: str) -> float:
    """One of `QUANTITIES`; NaN where the run has not finished."""
    take = QUANTITIES[name].of
    assert take is not None, name
    return math.nan if run.record is None else float(take(run))


def training_seconds(run: RunResult) -> list[float]:
    """Training time up to each line of the run's metrics, validation not counted."""
    batch_size = run.planned.config.train.batch_size
    seconds, step, total = [], 0, 0.0
    for row in run.known.metrics:
        total += (row["step"] - step) * batch_size / row["images_per_second"]
        step = row["step"]
        seconds.append(total)
    return seconds


@dataclass(frozen=True, eq=False)
class Row:
    """One label's runs with all seeds."""

    label: str
    model: str
    runs: tuple[RunResult, ...]

    @property
    def finished(self) -> list[RunResult]:
        return [run for run in self.runs if run.record is not None]

    def values(self, name: str) -> list[float]:
        """Of the finished runs."""
        return [quantity(run, name) for run in self.finished]

    def mean(self, name: str) -> float:
        """Over the finished runs; NaN without any."""
        values = self.values(name)
        return statistics.fmean(values) if values else math.nan

    def sd(self, name: str) -> float:
        """The standard deviation over seeds, with n - 1; NaN for fewer than two runs."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Comparison:
    """A whole comparison."""

    plan: Plan
    runs: tuple[RunResult, ...]

    @property
    def rows(self) -> list[Row]:
        """In the order of the plan."""
        rows = []
        for label in self.plan.labels:
            runs = tuple(run for run in self.runs if run.planned.label == label)
            rows.append(Row(label, runs[0].planned.model, runs))
        return rows

    @property
    def first(self) -> Row | None:
        """The row of the highest mean test accuracy; None where nothing has finished."""
        rows = [row for row in self.rows if row.finished]
        return max(rows, key=lambda row: row.mean("test_accuracy"), default=None)


def collect(plan: Plan) -> Comparison:
    """What lies on disk of every run.

    Raises:
        DataError: for damaged files.
    """
    return Comparison(plan, tuple(_result(plan, run) for run in plan.runs))


def _result(plan: Plan, run: PlannedRun) -> RunResult:
    path = plan.outcome_path(run)
    if not path.exists():
        return RunResult(run, "broken off", last_line(plan, run), None, [])
    try:
        status, message, measurements = _outcome(parse_json(read_text(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if status != "finished":
        return RunResult(run, status, message, None, measurements)
    results = plan.run_path(run) / "results.h5"
    record = read_results(results)
    try:
        record = replace(record, metrics=[metrics_row(row) for row in record.metrics])
    except ValueError as error:
        raise DataError(f"{results}: a line of its metrics is damaged: {error}") from None
    if record.evaluation is None:
        raise DataError(f"{results}: has no answers on the test set, though the run has finished")
    return RunResult(run, status, message, record, measurements)


def _outcome(values: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """Status, message and measurements of a run; a ValueError, KeyError or TypeError for what is none."""
    status, message, measurements = (values[key] for key in ("status", "message", "measurements"))
    if status not in ("finished", "failed") or not isinstance(message, str) or not isinstance(measurements, list):
        raise ValueError("it is not in the form of a run's outcome")
    measurements = [{"memory": math.nan} | m if isinstance(m, dict) else m for m in measurements]
    for measured in measurements:
        if not isinstance(measured, dict) or {key: type(value) for key, value in measured.items()} != MEASURED:
            raise ValueError(f"a measurement must have {', '.join(MEASURED)}")
    return status, message, measurements
