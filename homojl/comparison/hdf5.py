"""A comparison as one HDF5 file; docs/hdf5.md has its schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from homojl.comparison.record import QUANTITIES, Comparison, training_seconds
from homojl.results.hdf5 import config_text
from homojl.results.records import METRICS
from homojl.results.schema import Entry, Schema

_RUN, _POINT, _ROW, _MEASUREMENT = ("run",), ("point",), ("row",), ("measurement",)

_TABLE = {name: q for name, q in QUANTITIES.items() if name != "parameters"}

SCHEMA = Schema(
    "homojl-comparison",
    1,
    groups={
        "/": "a comparison of homojl: several models or settings, trained on one dataset with one budget",
        "/runs": "one element for each run; NaN where a run did not finish",
        "/curves": "the metrics of all finished runs, one after the other",
        "/table": "one element for each row of the table: the runs that differ in the seed alone",
        "/measurements": "trained models measured once more with other settings, one element for each run and setting",
    },
    entries={
        "/runs/name": Entry("text", _RUN, "1", "name of the run's folder"),
        "/runs/label": Entry("text", _RUN, "1", "its row in the table"),
        "/runs/model": Entry("text", _RUN, "1", "name of the model"),
        "/runs/variation": Entry("text", _RUN, "1", "name of the variation; empty where there is one"),
        "/runs/seed": Entry("int64", _RUN, "1", "seed of weights, split, order, augmentation and dropout"),
        "/runs/status": Entry("text", _RUN, "1", "finished, failed, or broken off"),
        "/runs/message": Entry("text", _RUN, "1", "why it did not finish; empty if it did"),
        "/runs/config": Entry("text", _RUN, "1", "the complete configuration, TOML"),
        "/runs/environment": Entry("text", _RUN, "1", "versions, device and threads, JSON; empty if unfinished"),
        **{f"/runs/{name}": Entry("float64", _RUN, q.unit, q.description) for name, q in QUANTITIES.items()},
        "/curves/run": Entry("int64", _POINT, "1", "position in /runs, counted from 0"),
        "/curves/train_seconds": Entry("float64", _POINT, "s", "training time so far, validation not counted"),
        **{f"/curves/{name}": Entry("float64", _POINT, m.unit, m.description) for name, m in METRICS.items()},
        "/table/label": Entry("text", _ROW, "1", "what the row's runs have in common"),
        "/table/model": Entry("text", _ROW, "1", "name of the model"),
        "/table/finished": Entry("int64", _ROW, "runs", "how many runs finished, over which means are taken"),
        "/table/planned": Entry("int64", _ROW, "runs", "how many there were to be"),
        "/table/parameters": Entry("float64", _ROW, "1", QUANTITIES["parameters"].description),
        **{
            f"/table/{name}_mean": Entry("float64", _ROW, q.unit, f"mean of: {q.description}")
            for name, q in _TABLE.items()
        },
        **{
            f"/table/{name}_sd": Entry("float64", _ROW, q.unit, f"standard deviation (n - 1) of: {q.description}")
            for name, q in _TABLE.items()
        },
        "/measurements/run": Entry("int64", _MEASUREMENT, "1", "position in /runs, counted from 0"),
        "/measurements/name": Entry("text", _MEASUREMENT, "1", "name of the settings"),
        "/measurements/algorithm": Entry("text", _MEASUREMENT, "1", "the solver's method"),
        "/measurements/batch_size": Entry("int64", _MEASUREMENT, "images", "images per forward pass"),
        "/measurements/images": Entry("int64", _MEASUREMENT, "images", "how many of the first test images"),
        "/measurements/accuracy": Entry("float64", _MEASUREMENT, "1", "fraction of them classified correctly"),
        "/measurements/nfe": Entry("float64", _MEASUREMENT, "evaluations", "mean evaluations per forward pass"),
        "/measurements/seconds": Entry("float64", _MEASUREMENT, "s", "wall time of the forward passes"),
        "/measurements/failed_solves": Entry("int64", _MEASUREMENT, "solves", "solves that did not reach their end"),
    },
    attributes={
        "/": {
            "experiment": "name of the experiment",
            "title": "what is compared",
            "source": "where the experiment comes from",
            "dataset": "name or path of the dataset",
        }
    },
)


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Write a comparison, whole or not at all.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    plan, runs, rows = comparison.plan, comparison.runs, comparison.rows
    planned = [run.planned for run in runs]
    parts: dict[str, object] = {
        "/runs/name": [p.name for p in planned],
        "/runs/label": [p.label for p in planned],
        "/runs/model": [p.model for p in planned],
        "/runs/variation": [p.variation for p in planned],
        "/runs/seed": [p.seed for p in planned],
        "/runs/status": [r.status for r in runs],
        "/runs/message": [r.message.replace("\0", " ") for r in runs],
        "/runs/config": [config_text(p.config.to_dict()) for p in planned],
        "/runs/environment": ["" if r.record is None else json.dumps(r.record.environment) for r in runs],
        "/table/label": [row.label for row in rows],
        "/table/model": [row.model for row in rows],
        "/table/finished": [len(row.finished) for row in rows],
        "/table/planned": [len(row.runs) for row in rows],
        "/table/parameters": [row.mean("parameters") for row in rows],
    }
    for name, quantity in QUANTITIES.items():
        parts[f"/runs/{name}"] = [math.nan if r.record is None else float(quantity.of(r)) for r in runs]
    for name in _TABLE:
        parts[f"/table/{name}_mean"] = [row.mean(name) for row in rows]
        parts[f"/table/{name}_sd"] = [row.sd(name) for row in rows]
    lines = [(i, row) for i, r in enumerate(runs) if r.record is not None for row in r.record.metrics]
    if lines:
        parts["/curves/run"] = [i for i, _ in lines]
        parts["/curves/train_seconds"] = np.concatenate([training_seconds(r) for r in runs if r.record is not None])
        parts |= {f"/curves/{name}": [float(row.get(name, math.nan)) for _, row in lines] for name in METRICS}
    measured = [(i, m) for i, r in enumerate(runs) for m in r.measurements]
    if measured:
        parts["/measurements/run"] = [i for i, _ in measured]
        for key in measured[0][1]:
            parts[f"/measurements/{key}"] = [m[key] for _, m in measured]
    arrays, _ = SCHEMA.arrays(parts)
    experiment = plan.experiment
    root = {"experiment": experiment.name, "title": experiment.title, "source": experiment.source}
    SCHEMA.write(path, arrays, {"/": {**root, "dataset": plan.dataset}})


def read_comparison(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The datasets by name and the attributes of the root of what `write_comparison` wrote.

    Raises:
        DataError: no such file, not a whole file of this schema, or one of a later version.
    """

    def build(file: h5py.File) -> tuple[dict[str, Any], dict[str, str]]:
        return SCHEMA.datasets(file), {key: file.attrs[key] for key in SCHEMA.attributes["/"]}

    return SCHEMA.read(path, build)
