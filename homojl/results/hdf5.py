"""One run as one HDF5 file: the schema in one table, a writer and a reader that both follow it.

docs/hdf5.md shows how to read such a file without homojl.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import tomlkit

import homojl
from homojl.errors import ConfigError, DataError, HomoJLError
from homojl.files import replace_file
from homojl.names import did_you_mean
from homojl.results.records import METRICS, Evaluation, RunRecord, Trajectories

SCHEMA = "homojl-results"
SCHEMA_VERSION = 1

_BLOCK = 512  # bytes of HDF5's user block, which holds one line: the SHA-256 of all that follows
_COMPRESSED_FROM = 1 << 16  # bytes; below, compression saves less than it costs to read

GROUPS: dict[str, str] = {
    "/": "a run of homojl: its settings, its metrics and its model's answers",
    "/train": "losses, accuracies and the optimiser, one number per epoch",
    "/solver": "what the solves took, one number per epoch",
    "/cost": "time and memory, one number per epoch; other numbers each time the run is made",
    "/test": "the test set: its classes and, once the run has been evaluated, the model's answers",
    "/trajectories": "the states that chosen test images pass through",
}


@dataclass(frozen=True)
class Entry:
    """One dataset of the file.

    Attributes:
        dtype: "text", "number" (int64 where every value is whole, else float64) or a numpy type.
        dims: name of each dimension; datasets agree on the size of a name. One that starts with * stands for
            any number of dimensions.
        unit: "1" where it has none.
        description: one sentence.
    """

    dtype: str
    dims: tuple[str, ...]
    unit: str
    description: str


ENTRIES: dict[str, Entry] = {
    "/config": Entry("text", (), "1", "the complete configuration, TOML"),
    "/environment": Entry("text", (), "1", "versions, device and threads, JSON"),
    **{
        f"/{metric.group}/{name}": Entry("number", ("epoch",), metric.unit, metric.description)
        for name, metric in METRICS.items()
    },
    "/test/class_names": Entry("text", ("class",), "1", "name of each class, in the order of the labels"),
    "/test/index": Entry("int64", ("image",), "1", "position of each image in the dataset's test array"),
    "/test/labels": Entry("int64", ("image",), "1", "true class, counted from 0"),
    "/test/predictions": Entry("int64", ("image",), "1", "predicted class, counted from 0"),
    "/test/logits": Entry("float32", ("image", "class"), "nat", "log-probabilities up to a constant"),
    "/test/nfe": Entry(
        "int64", ("image",), "evaluations", "evaluations of the field for the batch that each image was in"
    ),
    "/initial_point": Entry("float32", ("channel",), "1", "the shared start of every solve, z(0)"),
    "/trajectories/s": Entry("float64", ("s",), "1", "where on the way from 0 to 1 the states are"),
    "/trajectories/z": Entry("float32", ("sample", "s", "*state"), "1", "states z(s) of each sample"),
    "/trajectories/index": Entry("int64", ("sample",), "1", "position of each sample in the test array"),
    "/trajectories/labels": Entry("int64", ("sample",), "1", "true class of each sample, counted from 0"),
    "/images": Entry("uint8", ("sample", "height", "width", "*rgb"), "1", "the samples' images, 0 to 255"),
}

ATTRIBUTES: dict[str, dict[str, str]] = {
    "/": {
        "schema": f'always "{SCHEMA}"',
        "schema_version": f"{SCHEMA_VERSION}; grows when a reader of this version would misread the file",
        "homojl_version": "version that wrote the file",
        "created": "when it was written, ISO 8601, UTC",
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


def run_names(record: RunRecord) -> tuple[str, str]:
    """Names of the run's model and dataset, "unknown" where its configuration does not say."""
    model = record.config.get("model", {}).get("name", "unknown")
    dataset = record.config.get("data", {}).get("dataset", "unknown")
    return model, Path(dataset).stem if dataset.endswith(".npz") else dataset


def config_text(config: Mapping) -> str:
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

    The file is made in memory first, so that a full disk is an error like any other: HDF5 itself cannot close
    a file whose last bytes did not fit. Optional parts of the record are simply absent from the file.

    Raises:
        ConfigError: the record contradicts itself or the schema; nothing is written.
        DataError: the file cannot be written; one that was there is untouched.
    """
    arrays, attributes = _arrays(record), _attributes(record)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_BLOCK) as file:
        for name, values in attributes.items():
            group = file.require_group(name)
            for key, value in values.items():
                group.attrs[key] = h5py.Empty("f8") if value is None else value
        for name, array in arrays.items():
            _write_dataset(file, name, array)
        for name, description in GROUPS.items():
            if name in file:
                file[name].attrs["description"] = description
        _attach_scale(file, "/train/epoch", "epoch")
        _attach_scale(file, "/trajectories/s", "s")
    content = buffer.getvalue()
    replace_file(path, _head(content) + content[_BLOCK:])


def read_results(path: str | Path) -> RunRecord:
    """Read back what `write_results` wrote.

    The checksum is verified before HDF5 sees the file: one damaged byte can make HDF5 loop for ever.

    Raises:
        DataError: no such file, not a whole file of this schema, or one of a later version.
    """
    try:
        content = Path(path).read_bytes()
        if not content.startswith(_MARK):
            raise DataError(f"not a results file of homojl, which starts with {_MARK.decode()!r}")
        if content[:_BLOCK] != _head(content):
            raise DataError("damaged or incomplete, or changed since homojl wrote it: its checksum is wrong")
        with h5py.File(io.BytesIO(content), "r") as file:
            schema, version = file.attrs["schema"], int(file.attrs["schema_version"])
            if (schema, version) != (SCHEMA, SCHEMA_VERSION):
                raise DataError(f"schema {schema} {version}; this homojl reads {SCHEMA} {SCHEMA_VERSION}")
            record = _record(file)
        _arrays(record)  # the same checks as before writing
        return record
    except HomoJLError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # HDF5 answers a file of another form with errors of nearly every class
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not in the form of {SCHEMA} {SCHEMA_VERSION}: {why}") from error


_MARK = f"{SCHEMA} sha256:".encode()


def _head(content: bytes) -> bytes:
    """The user block that belongs to the file."""
    return (_MARK + hashlib.sha256(memoryview(content)[_BLOCK:]).hexdigest().encode() + b"\n").ljust(_BLOCK, b"\0")


def escape_markdown(text: str) -> str:
    """A text as it must be written in a Markdown table to be shown as it is, on one line."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def describe_schema() -> str:
    """The schema as the Markdown tables that docs/hdf5.md shows."""
    lines = ["| Group | Holds |", "|---|---|"]
    lines += [f"| `{name}` | {description} |" for name, description in GROUPS.items()]
    lines += ["", "| Dataset | Shape | Type | Unit | Description |", "|---|---|---|---|---|"]
    for name, entry in ENTRIES.items():
        shape = ", ".join(entry.dims) + ("," if len(entry.dims) == 1 else "")
        dtype = {"text": "string", "number": "int64 or float64"}.get(entry.dtype, entry.dtype)
        description = escape_markdown(entry.description)
        lines.append(f"| `{name}` | ({escape_markdown(shape)}) | {dtype} | {entry.unit} | {description} |")
    lines += ["", "| Attribute of | Name | Value |", "|---|---|---|"]
    for group, attributes in ATTRIBUTES.items():
        lines += [f"| `{group}` | `{name}` | {meaning} |" for name, meaning in attributes.items()]
    return "\n".join(lines) + "\n"


def _write_dataset(file: h5py.File, name: str, array: np.ndarray) -> None:
    """One dataset with its unit, its description and the names of its dimensions; compressed if it is big."""
    entry = ENTRIES[name]
    options = {}
    if array.dtype.kind == "S":
        array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
    elif array.nbytes >= _COMPRESSED_FROM:
        options.update(compression="gzip", shuffle=True)
    dataset = file.create_dataset(name, data=array, **options)
    dataset.attrs["unit"] = entry.unit
    dataset.attrs["description"] = entry.description
    for axis, label in enumerate(_dims(entry, array.ndim)):
        dataset.dims[axis].label = label


def _attach_scale(file: h5py.File, name: str, label: str) -> None:
    """Make a dataset the HDF5 dimension scale of every other dimension with this label."""
    if name not in file:
        return
    scale = file[name]
    scale.make_scale(label)
    for other, entry in ENTRIES.items():
        if other != name and label in entry.dims and other in file:
            file[other].dims[entry.dims.index(label)].attach_scale(scale)


def _dims(entry: Entry, ndim: int) -> tuple[str, ...]:
    """The names of the dimensions of a dataset that has `ndim` of them."""
    if not (entry.dims and entry.dims[-1].startswith("*")):
        return entry.dims
    rest = ndim - len(entry.dims) + 1
    if entry.dims[-1] == "*state" and rest == 3:
        return (*entry.dims[:-1], "channel", "height", "width")
    return (*entry.dims[:-1], *[entry.dims[-1][1:]] * rest)


def _attributes(record: RunRecord) -> dict[str, dict[str, object]]:
    """The attributes of each group, its description left out."""
    model, dataset = run_names(record)
    root = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "homojl_version": homojl.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
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
    sizes: dict[str, int] = {}
    arrays = {name: _array(name, part, sizes) for name, part in parts.items() if part is not None}
    for name in ("/test/labels", "/test/predictions", "/trajectories/labels"):
        if name in arrays and not np.isin(arrays[name], np.arange(sizes["class"])).all():
            raise ConfigError(f"{name} has a class outside 0 to {sizes['class'] - 1}")
    return arrays


_ANSWERS = ("index", "labels", "predictions", "logits", "nfe")
_TRAJECTORIES = ("s", "z", "index", "labels")


def _array(name: str, part: object, sizes: dict[str, int]) -> np.ndarray:
    """One part of a record in the schema's type, held against `sizes`, the dimensions seen so far."""
    entry = ENTRIES[name]
    try:
        if entry.dtype == "text":
            texts = [part] if isinstance(part, str) else part
            if any("\0" in text for text in texts):
                raise ValueError("a text holds the character NUL")
            texts = [text.encode() for text in texts]
            array = np.array(texts[0] if isinstance(part, str) else texts, dtype=bytes)
        elif entry.dtype == "number":
            array = np.asarray(part)
            array = array.astype("int64" if array.dtype.kind in "iu" else "float64", casting="safe")
        else:
            array = np.asarray(part).astype(entry.dtype, casting="same_kind")
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{name} is not of type {entry.dtype}: {error}") from error
    dims = _dims(entry, array.ndim)
    if len(dims) != array.ndim:
        raise ConfigError(f"{name} has shape {array.shape}; expected dimensions ({', '.join(entry.dims)})")
    for dim, size in zip(entry.dims, array.shape, strict=False):
        if not dim.startswith("*") and sizes.setdefault(dim, size) != size:
            raise ConfigError(f"{name} has shape {array.shape}, but elsewhere {dim} has size {sizes[dim]}")
    return array


def _columns(rows: list[dict]) -> dict[str, list]:
    """The metrics as one column for each, by dataset name; NaN where a row lacks what another has."""
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
    return columns


def _json(value: object) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the environment cannot be written as JSON: {error}") from error


def _record(file: h5py.File) -> RunRecord:
    """The record in an open file of this schema; errors of every class where the file is damaged."""
    found = {name: _read_dataset(file, name) for name in ENTRIES if name in file}
    columns = {name.rpartition("/")[2]: found[name] for name in found if name.split("/")[1] in _METRIC_GROUPS}
    epochs = len(columns["epoch"]) if columns else 0
    evaluation = trajectories = None
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
    return RunRecord(
        config=tomllib.loads(found["/config"]),
        environment=json.loads(found["/environment"]),
        metrics=[{key: column[i].item() for key, column in columns.items()} for i in range(epochs)],
        class_names=tuple(found["/test/class_names"]),
        parameters=int(file.attrs["parameters"]),
        evaluation=evaluation,
        initial_point=found.get("/initial_point"),
        trajectories=trajectories,
        images=found.get("/images"),
    )


_METRIC_GROUPS = frozenset(metric.group for metric in METRICS.values())


def _plain(value: object) -> object:
    """An attribute as the Python value it was written from."""
    if isinstance(value, h5py.Empty):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _read_dataset(file: h5py.File, name: str) -> np.ndarray | str:
    """One dataset; a text as `str`, several as an array of them."""
    dataset = file[name]
    if ENTRIES[name].dtype == "text":
        return dataset.asstr()[()]
    if dataset.dtype.kind not in "iuf":
        raise DataError(f"{name} is {dataset.dtype}, expected numbers")
    return dataset[()]
