"""A run as one HDF5 file: the schema, and conversion from a record to the file and back.

docs/hdf5.md shows how to read such a file without homojl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tomlkit

from homojl.errors import ConfigError, DataError
from homojl.files import parse_json, parse_toml
from homojl.names import did_you_mean
from homojl.results.records import METRICS, RESULTS, Evaluation, RunRecord, Trajectories
from homojl.results.schema import DatasetSpec, Schema

GROUPS: dict[str, str] = {
    "/": "a run of homojl: its settings, its metrics and its model's answers",
    "/train": "losses, accuracies and the optimiser, one number per epoch",
    "/solver": "cost of the solves, one number per epoch",
    "/cost": "time and memory, one number per epoch; they differ when the run is repeated",
    "/test": "the test set: its classes and, once the run has been evaluated, the model's answers",
    "/trajectories": "the states that chosen test images pass through",
}


ENTRIES: dict[str, DatasetSpec] = {
    "/config": DatasetSpec("text", (), "1", "the complete configuration, TOML"),
    "/environment": DatasetSpec("text", (), "1", "versions, device and threads, JSON"),
    **{
        f"/{metric.group}/{name}": DatasetSpec("number", ("epoch",), metric.unit, metric.description)
        for name, metric in METRICS.items()
    },
    **{
        f"/{group}/epoch": DatasetSpec("number", ("epoch",), METRICS["epoch"].unit, METRICS["epoch"].description)
        for group in dict.fromkeys(metric.group for metric in METRICS.values())
    },
    "/test/class_names": DatasetSpec("text", ("class",), "1", "name of each class, in the order of the labels"),
    "/test/index": DatasetSpec("int64", ("image",), "1", "position of each image in the dataset's test array"),
    "/test/labels": DatasetSpec("int64", ("image",), "1", "true class, counted from 0"),
    "/test/predictions": DatasetSpec("int64", ("image",), "1", "predicted class, counted from 0"),
    "/test/logits": DatasetSpec("float32", ("image", "class"), "nat", "log-probabilities up to a constant"),
    "/test/nfe": DatasetSpec(
        "int64",
        ("image",),
        "evaluations",
        "evaluations of the field for the batch that each image was in; where each has its own steps, its own",
    ),
    "/initial_point": DatasetSpec("float32", ("channel",), "1", "the shared start of every solve, z(0)"),
    "/trajectories/s": DatasetSpec("float64", ("s",), "1", "where on the way from 0 to 1 the states are"),
    "/trajectories/z": DatasetSpec("float32", ("sample", "s", "*state"), "1", "states z(s) of each sample"),
    "/trajectories/index": DatasetSpec("int64", ("sample",), "1", "position of each sample in the test array"),
    "/trajectories/labels": DatasetSpec("int64", ("sample",), "1", "true class of each sample, counted from 0"),
    "/images": DatasetSpec("uint8", ("sample", "height", "width", "*rgb"), "1", "the samples' images, 0 to 255"),
}

ATTRIBUTES: dict[str, dict[str, str]] = {
    "/": {
        "model": "name of the model",
        "dataset": "name of the dataset",
        "parameters": "number of trained parameters, the initial point not counted",
    },
    "/test": {
        "accuracy": "fraction classified correctly",
        "loss": "mean cross-entropy, nat",
        "seconds": "wall time of the forward passes, s",
        "checkpoint": "which checkpoint answered",
        "solver.*": "one for each name and setting of the solver: solver.backend, solver.rtol and such",
        "status.*": "how many solves ended so: status.SUCCESS and such",
    },
}

SCHEMA = Schema("homojl-results", 1, GROUPS, ENTRIES, ATTRIBUTES)


def run_names(record: RunRecord) -> tuple[str, str]:
    """Names of the run's model and dataset, "unknown" where its configuration does not say."""
    model = record.config.get("model", {}).get("name", "unknown")
    dataset = record.config.get("data", {}).get("dataset", "unknown")
    return model, Path(dataset).stem if dataset.endswith(".npz") else dataset


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as TOML.

    Raises:
        ConfigError: it holds what TOML cannot, such as None.
    """
    try:
        return tomlkit.dumps(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration cannot be written as TOML: {error}") from error


def write_results(path: str | Path, record: RunRecord) -> None:
    """Write all that is known of a run as one HDF5 file of the schema in docs/hdf5.md, whole or not at all.

    Optional parts of the record are simply absent from the file.

    Raises:
        ConfigError: the record contradicts itself or the schema; nothing is written.
        DataError: the file cannot be written; one that was there is untouched.
    """
    SCHEMA.write(path, _arrays(record), _attributes(record))


def read_results(path: str | Path) -> RunRecord:
    """Read back what `write_results` wrote.

    Raises:
        DataError: no such file, not a whole file of this schema, or one of a later version.
    """
    return SCHEMA.read(path, _record)


def read_run(folder: str | Path) -> RunRecord | None:
    """What a run's results.h5 holds, with its evaluation and trajectories; None if there is none.

    Raises:
        DataError: as `read_results`.
    """
    path = Path(folder) / RESULTS
    return read_results(path) if path.exists() else None


def _attributes(record: RunRecord) -> dict[str, dict[str, object]]:
    """The attributes of each group, without its description."""
    model, dataset = run_names(record)
    root = {
        "model": model,
        "dataset": dataset,
        "parameters": int(record.parameters),
    }
    test = {}
    if (answers := record.evaluation) is not None:
        test = {
            "accuracy": float(answers.accuracy),
            "loss": float(answers.loss),
            "seconds": float(answers.seconds),
            "checkpoint": answers.checkpoint,
        }
        for key, value in answers.solver.items():
            if not isinstance(value, str | bool | int | float | None):
                raise ConfigError(f"solver setting {key!r} is {value!r}; expected a text, a number or None")
            test[f"solver.{key}"] = value
        test |= {f"status.{key}": int(count) for key, count in answers.status.items()}
    return {"/": root, "/test": test}


def _arrays(record: RunRecord) -> dict[str, np.ndarray]:
    """Every dataset of the record by its name, in the schema's types and shapes.

    Raises:
        ConfigError: parts of the record contradict each other or the schema.
    """
    parts = {
        "/config": config_text(record.config),
        "/environment": _json(record.environment),
        **_columns(record.metrics),
        "/test/class_names": list(record.class_names),
        "/initial_point": record.initial_point,
        "/images": record.images,
    }
    if (answers := record.evaluation) is not None:
        if answers.split != "test":
            raise ConfigError(f"results hold the answers on the test set, got those on {answers.split!r}")
        parts |= {f"/test/{key}": getattr(answers, key) for key in _ANSWERS}
    if record.trajectories is not None:
        parts |= {f"/trajectories/{key}": getattr(record.trajectories, key) for key in _TRAJECTORIES}
    arrays, sizes = SCHEMA.arrays(parts)
    for name in ("/test/labels", "/test/predictions", "/trajectories/labels"):
        if name in arrays and not np.isin(arrays[name], np.arange(sizes["class"])).all():
            raise ConfigError(f"{name} has a class outside 0 to {sizes['class'] - 1}")
    return arrays


_ANSWERS = ("index", "labels", "predictions", "logits", "nfe")
_TRAJECTORIES = ("s", "z", "index", "labels")


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """A column for each metric, by dataset name; NaN where a row lacks a value that another row has."""
    names = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; {did_you_mean(name, METRICS)}")
    if rows and "epoch" not in names:
        raise ConfigError("the metrics have no 'epoch', which numbers their rows")
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        columns[f"/{METRICS[name].group}/{name}"] = [float("nan") if v is None else v for v in values]
    for group in {METRICS[name].group for name in names}:
        columns[f"/{group}/epoch"] = columns[_EPOCH]
    return columns


def _json(value: object) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the environment cannot be written as JSON: {error}") from error


def _record(file: h5py.File) -> RunRecord:
    """The record in an open file of this schema; a damaged file may raise any error."""
    found = SCHEMA.datasets(file)
    columns = {name: found[path] for name, metric in METRICS.items() if (path := f"/{metric.group}/{name}") in found}
    epochs = len(columns["epoch"]) if columns else 0
    evaluation = trajectories = None
    if not {"/config", "/environment", "/test/class_names"} <= found.keys():
        raise DataError("it lacks the configuration, the environment or the classes")
    if "/test/predictions" in found:
        attributes = {key: _plain(value) for key, value in file["/test"].attrs.items()}
        evaluation = Evaluation(
            split="test",
            **{key: found[f"/test/{key}"] for key in _ANSWERS},
            **{key: attributes[key] for key in ("loss", "accuracy", "seconds", "checkpoint")},
            solver={k[7:]: value for k, value in attributes.items() if k.startswith("solver.")},
            status={k[7:]: value for k, value in attributes.items() if k.startswith("status.")},
        )
    if "/trajectories" in file:
        trajectories = Trajectories(**{key: found[f"/trajectories/{key}"] for key in _TRAJECTORIES})
    config, environment = parse_toml(found["/config"]), parse_json(found["/environment"])
    if not isinstance(environment, dict) or not all(isinstance(section, dict) for section in config.values()):
        raise DataError("its configuration or its environment are not in the form of homojl's")
    record = RunRecord(
        config=config,
        environment=environment,
        metrics=[{key: column[i].item() for key, column in columns.items()} for i in range(epochs)],
        class_names=tuple(found["/test/class_names"]),
        parameters=int(file.attrs["parameters"]),
        evaluation=evaluation,
        initial_point=found.get("/initial_point"),
        trajectories=trajectories,
        images=found.get("/images"),
    )
    _arrays(record), _attributes(record)  # the same checks as before writing
    return record


_EPOCH = f"/{METRICS['epoch'].group}/epoch"


def _plain(value: object) -> Any:
    """An attribute as the Python value it was written from."""
    if isinstance(value, h5py.Empty):
        return None
    return value.item() if isinstance(value, np.generic) else value
