"""A comparison as one HDF5 file; docs/hdf5.md has its schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

from homojl.comparison.record import QUANTITIES, Comparison, Row, quantity, training_seconds
from homojl.results.hdf5 import config_text
from homojl.results.records import METRICS
from homojl.results.schema import Column, Records, Schema, count, text

_MEANS = {name: column for name, column in QUANTITIES.items() if name != "parameters"}


def _mean(name: str) -> Callable[[Row], float]:
    return lambda row: row.mean(name)


def _sd(name: str) -> Callable[[Row], float]:
    return lambda row: row.sd(name)


def _of_dict(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of records that are dictionaries."""
    return {name: replace(column, of=itemgetter(name)) for name, column in columns.items()}


_RUNS: dict[str, Column] = {
    "name": text("name of the run's folder", lambda r: r.planned.name),
    "label": text("its row in the table", lambda r: r.planned.label),
    "model": text("name of the model", lambda r: r.planned.model),
    "variation": text("name of the variation; empty where there is one", lambda r: r.planned.variation),
    "seed": count("1", "seed of weights, split, order, augmentation and dropout", lambda r: r.planned.seed),
    "status": text("finished, failed, or broken off"),
    "message": text("why it did not finish; empty if it did", lambda r: r.message.replace("\0", " ")),
    "config": text("the complete configuration, TOML", lambda r: config_text(r.planned.config.to_dict())),
    "environment": text(
        "versions, device and threads, JSON; empty if unfinished",
        lambda r: "" if r.record is None else json.dumps(r.record.environment),
    ),
    **{name: replace(column, of=partial(quantity, name=name)) for name, column in QUANTITIES.items()},
}
_CURVES: dict[str, Column] = {
    "run": count("1", "position in /runs, counted from 0"),
    "train_seconds": Column("s", "training time so far, validation not counted"),
    **{name: Column(metric.unit, metric.description) for name, metric in METRICS.items()},
}
_TABLE: dict[str, Column] = {
    "label": text("what the row's runs have in common"),
    "model": text("name of the model"),
    "finished": count("runs", "how many runs finished, over which means are taken", lambda row: len(row.finished)),
    "planned": count("runs", "how many there were to be", lambda row: len(row.runs)),
    "parameters": replace(QUANTITIES["parameters"], of=lambda row: row.mean("parameters")),
    **{f"{name}_mean": Column(c.unit, f"mean of: {c.description}", of=_mean(name)) for name, c in _MEANS.items()},
    **{
        f"{name}_sd": Column(c.unit, f"standard deviation (n - 1) of: {c.description}", of=_sd(name))
        for name, c in _MEANS.items()
    },
}
_MEASUREMENTS: dict[str, Column] = {
    "run": count("1", "position in /runs, counted from 0"),
    "name": text("name of the settings"),
    "algorithm": text("the solver's method"),
    "batch_size": count("images", "images per forward pass"),
    "images": count("images", "how many of the first test images, or training images of a training step"),
    "accuracy": Column("1", "fraction of them classified correctly"),
    "nfe": Column("evaluations", "mean evaluations per forward pass"),
    "seconds": Column("s", "wall time of the forward passes, in a training step with the backward one"),
    "failed_solves": count("solves", "solves that did not reach their end"),
    "memory": Column("MiB", "memory at the peak, beside what was taken before; NaN where it cannot be measured"),
}

SCHEMA = Schema.of_records(
    "homojl-comparison",
    1,
    "a comparison of homojl: several models or settings, trained on one dataset with one budget",
    {
        "/runs": Records("run", _RUNS, "one element for each run; NaN where a run did not finish"),
        "/curves": Records("point", _of_dict(_CURVES), "the metrics of all finished runs, one after the other"),
        "/table": Records(
            "row", _TABLE, "one element for each row of the table: the runs that differ in the seed alone"
        ),
        "/measurements": Records(
            "measurement",
            _of_dict(_MEASUREMENTS),
            "trained models measured once more with other settings, one element for each run and setting",
        ),
    },
    attributes={
        "experiment": "name of the experiment",
        "title": "what is compared",
        "source": "where the experiment comes from",
        "dataset": "name or path of the dataset",
    },
)


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison, whole or not at all; `SCHEMA.load` reads it.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    points = [
        {name: float(row.get(name, math.nan)) for name in METRICS} | {"run": i, "train_seconds": seconds}
        for i, run in enumerate(comparison.runs)
        if run.record is not None
        for row, seconds in zip(run.record.metrics, training_seconds(run), strict=True)
    ]
    measured = [{**m, "run": i} for i, run in enumerate(comparison.runs) for m in run.measurements]
    records = {"/runs": comparison.runs, "/curves": points, "/table": comparison.rows, "/measurements": measured}
    experiment = comparison.plan.experiment
    about = {name: getattr(experiment, name) for name in ("title", "source")}
    SCHEMA.save(path, records, attributes={**about, "experiment": experiment.name, "dataset": comparison.plan.dataset})
