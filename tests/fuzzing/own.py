"""Hostile files in the forms that homojl writes itself: checkpoints, runs, HDF5, outcomes; with right checksums."""

from __future__ import annotations

import functools
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from homojl.comparison.hdf5 import SCHEMA as COMPARISON
from homojl.results.hdf5 import SCHEMA as RESULTS
from homojl.results.measurements import SCHEMA as BENCH
from homojl.results.schema import Schema
from homojl.results.tuning import SCHEMA as TUNING
from homojl.training.checkpoint import read_checkpoint, write_checkpoint
from tests.fuzzing.payloads import Payload, Spoil, linked, pickled, pipe, replaced, torch_pickled
from tests.fuzzing.settings import DEEP

SCHEMAS: dict[str, Schema] = {"results": RESULTS, "comparison": COMPARISON, "benchmark": BENCH, "tuning": TUNING}
"""Of the kinds that are HDF5 files."""


def sealed(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """A checkpoint whose contents are changed, and its checksum with them."""
    tensors, header = read_checkpoint(path)
    change(tensors, header)
    write_checkpoint(path, tensors, header)


def _sealed(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object], *, where: str = "last") -> Spoil:
    return lambda path, _: sealed(path / "checkpoints" / f"{where}.safetensors", change)


def _in_header(*keys: str, value: Any, where: str = "last") -> Spoil:
    def change(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return _sealed(change, where=where)


def _safetensors(header: bytes, size: int | None = None) -> Spoil:
    return lambda path, _: path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header)


def _claims(entry: dict[str, Any]) -> Spoil:
    return _safetensors(json.dumps({"__metadata__": {"schema": "2"}, "a": entry}).encode())


CHECKPOINT: dict[str, Spoil] = {
    "pickle": pickled,
    "torch's pickle": torch_pickled,
    "long header": _safetensors(b"{}", 2**63),
    "deep header": _safetensors(b'{"a":' * 30_000),
    "huge": _claims({"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}),
    "overflow": _claims({"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}),
    "negative": _claims({"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}),
    "unknown type": _claims({"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}),
    "empty": _claims({"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}),
    "endless": linked("", "/dev/zero"),
    "pipe": pipe(""),
}


def _metrics(change: Callable[[str], str]) -> Spoil:
    def spoil(path: Path, _: Path) -> None:
        file = path / "metrics.jsonl"
        file.write_text(change(file.read_text()))

    return spoil


def _metric(name: str, value: str) -> Spoil:
    def change(line: str) -> str:
        return json.dumps(json.loads(line) | {name: "VALUE"}).replace('"VALUE"', value) + "\n"

    return _metrics(change)


NODES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 2**63, 2**64, 10**30, "", "a\0b", "\udcff"),
    *("\x1b[2J", "9" * 5000, [], {}, [[[[]]]], ["x"] * 3, {"x": {"y": 1}}, 0.5, "1"),
)
"""JSON values that nobody expects."""

RUN: dict[str, Spoil] = {
    **{f"checkpoint: {name}": functools.partial(lambda spoil, path, canary: spoil(
        path / "checkpoints/last.safetensors", canary), spoil) for name, spoil in CHECKPOINT.items()},
    **{f"best: {name}": functools.partial(lambda spoil, path, canary: spoil(
        path / "checkpoints/best.safetensors", canary), spoil) for name, spoil in CHECKPOINT.items()},
    "header that is a list": lambda path, _: write_checkpoint(path / "checkpoints/best.safetensors", {}, [1]),
    "header without anything": lambda path, _: write_checkpoint(path / "checkpoints/best.safetensors", {}, {}),
    "wide model": lambda path, _: _wide(path),
    "many classes": _in_header("form", "n_classes", value=10**9, where="best"),
    "large images": _in_header("form", "input_shape", value=[10**9, 10**9, 10**9], where="best"),
    "negative images": _in_header("form", "input_shape", value=[-1, 8, 8], where="best"),
    "names that are numbers": _in_header("form", "class_names", value=list(range(10)), where="best"),
    "normalisation by nothing": _in_header("form", "std", value=[0.0], where="best"),
    "position": _in_header("position", value=3),
    "step": _in_header("position", "step", value="9"),
    "step back": _in_header("position", "step", value=-1),
    "seconds": _in_header("position", "seconds", value=float("nan")),
    "lines": _in_header("position", "lines", value=10**18),
    "totals": _in_header("position", "totals", "loss", value=None),
    "strange totals": _in_header("position", "totals", "strange", value=1),
    "remembered steps": _sealed(lambda t, _: t.update({"model.layer.remembered._extra_state": torch.tensor([-1.0, 0.0],
                                                                                     dtype=torch.float64)})),
    "three remembered steps": _sealed(lambda t, _: t.update({"model.layer.remembered._extra_state": torch.zeros(
        3, dtype=torch.float64)})),
    "optimiser of another shape": _sealed(lambda t, _: t.update({"optimizer.0.exp_avg": torch.zeros(1)})),
    "optimiser of one more": _sealed(lambda t, _: t.update({"optimizer.999.exp_avg": torch.zeros(1)})),
    "optimiser of no number": _sealed(lambda t, _: t.update({"optimizer.x.y": torch.zeros(1)})),
    "optimiser without a step": _sealed(lambda t, _: t.pop("optimizer.0.step")),
    "optimiser with steps back": _sealed(lambda t, _: t.update({"optimizer.0.step": torch.tensor(-1.0)})),
    "complex weights": _sealed(lambda t, _: t.update({k: v.to(torch.complex64) for k, v in t.items()
                                                      if k.startswith("model.")})),
    "weights that are no numbers": _sealed(lambda t, _: t.update({k: v * float("nan") for k, v in t.items()
                                                                  if v.is_floating_point()})),
    "environment: pickle": lambda path, canary: pickled(path / "environment.json", canary),
    "environment: deep": replaced("environment.json", b"[" * 100_000),
    "environment: list": replaced("environment.json", b"[]"),
    "environment: not UTF-8": replaced("environment.json", b'{"a": "\xff"}'),
    "environment: endless": linked("environment.json", "/dev/zero"),
    "environment: pipe": pipe("environment.json"),
    "configuration: endless": linked("config.toml", "/dev/zero"),
    "configuration: pipe": pipe("config.toml"),
    "configuration: cut": lambda path, _: os.truncate(path / "config.toml", 700),
    "metrics: deep": replaced("metrics.jsonl", b"[" * 100_000 + b"\n"),
    "metrics: number": replaced("metrics.jsonl", b"3\n"),
    "metrics: list": replaced("metrics.jsonl", b'["epoch"]\n'),
    "metrics: zeros": replaced("metrics.jsonl", bytes(1000) + b"\n"),
    "metrics: text for a number": _metric("val_loss", '"low"'),
    "metrics: long number": _metric("step", "9" * 5000),
    "metrics: no time": _metric("images_per_second", "0"),
    "metrics: no epoch": _metric("epoch", "null"),
    "metrics: truth": _metric("train_loss", "true"),
    "metrics: endless": linked("metrics.jsonl", "/dev/zero"),
    "metrics: pipe": pipe("metrics.jsonl"),
    "metrics: many empty lines": replaced("metrics.jsonl", b"\n" * 2**22),
    "results: pickle": lambda path, canary: pickled(path / "results.h5", canary),
    "results: pipe": pipe("results.h5"),
}  # fmt: skip


def _wide(path: Path) -> None:
    """A model of a hundred thousand channels, in its configuration and its checkpoint's header, not in its tensors."""
    config = path / "config.toml"
    config.write_text(config.read_text().replace("channels = 8", "channels = 100000"))
    sealed(path / "checkpoints/best.safetensors", lambda _, header: header["model"].update(channels=100_000))


def hdf5_sealed(path: Path, schema: Schema, change: Callable[[h5py.File], object]) -> None:
    """An HDF5 file of homojl whose contents are changed, and its checksum with them."""
    with h5py.File(path, "r+") as file:
        change(file)
    seal(path, schema, path.read_bytes())


def seal(path: Path, schema: Schema, content: bytes) -> None:
    path.write_bytes(schema._head(content) + content[512:])


def _put(name: str, value: Any, **options: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is None:
            file.create_dataset(name, **options)
        else:
            file.create_dataset(name, data=value, **options)

    return change


def _link(name: str, link: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def _virtual(name: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        layout = h5py.VirtualLayout(shape=(20,), dtype="f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(20,))
        file.create_virtual_dataset(name, layout)

    return change


def hdf5_cases(schema: Schema, number: str, words: str) -> dict[str, Spoil]:
    """For a file of that schema with those datasets, one of numbers and one of texts."""
    changes: dict[str, Callable[[h5py.File], object]] = {
        "huge": _put(number, None, shape=(2**40,), dtype="f8", chunks=(1024,)),
        "claim": _put(number, None, shape=(2**28,), dtype="f8", chunks=(2**20,), fillvalue=1.0),
        "many pieces": _put(number, None, shape=(2**20,), dtype="i8", chunks=(1,)),
        "zeros": _put(number, np.zeros(2**24), chunks=(2**20,), compression="gzip"),
        "other shape": _put(number, np.zeros((3, 3, 3))),
        "texts for numbers": _put(number, np.array([b"a", b"b"])),
        "numbers for texts": _put(words, np.zeros(3)),
        "objects": _put(number, np.array([b"abc"], dtype=h5py.opaque_dtype(np.dtype("V3")))),
        "compound": _put(number, np.zeros(3, dtype=[("a", "f8"), ("b", "i4")])),
        "complex": _put(number, np.zeros(3, dtype="c16")),
        "texts of any length": _put(words, ["x" * 10], dtype=h5py.string_dtype()),
        "long texts": _put(words, None, shape=(10_000,), dtype=h5py.string_dtype("utf-8", 2**20), chunks=(1,)),
        "not UTF-8": _put(words, np.array(b"\xff\xfe", dtype=h5py.string_dtype("utf-8", 2))),
        "toml": _put(words, np.array(DEEP["lists"].encode())),
        "group for a dataset": lambda file: (file.pop(number), file.create_group(number)),
        "external file": _put(number, None, shape=(20,), dtype="f8", external=[("/etc/passwd", 0, 160)]),
        "external link": _link(number, h5py.ExternalLink("/etc/passwd", "/x")),
        "link to nothing": _link(number, h5py.SoftLink("/nothing")),
        "link to itself": _link(number, h5py.SoftLink(number)),
        "virtual": _virtual(number),
        "attribute": lambda file: file.attrs.update({"schema_version": "x", "parameters": [1, 2], "seed": "y"}),
        "later": lambda file: file.attrs.update({"schema_version": 99}),
        "no attributes": lambda file: [file.attrs.pop(key) for key in list(file.attrs)],
        "another filter": _put(number, np.zeros(2**12), chunks=(2**12,), compression="lzf"),
        "nothing": lambda file: [file.pop(key) for key in list(file)],
    }
    cases: dict[str, Spoil] = {
        name: functools.partial(lambda change, path, _: hdf5_sealed(path, schema, change), change)
        for name, change in changes.items()
    }
    return cases | {
        "pickle": pickled,
        "sealed pickle": lambda path, c: seal(path, schema, bytes(512) + pickle.dumps(Payload(c))),
        "sealed zeros": lambda path, _: seal(path, schema, bytes(4096)),
        "pipe": pipe(""),
        "endless": linked("", "/dev/zero"),
    }


def _outcome(content: Callable[[Any], Any]) -> Spoil:
    def spoil(path: Path, _: Path) -> None:
        (file,) = (path / "outcomes").iterdir()
        changed = content(json.loads(file.read_text()))
        file.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())

    return spoil


def _measured(**values: Any) -> Spoil:
    return _outcome(lambda outcome: outcome | {"measurements": [outcome["measurements"][0] | values]})


COMPARED: dict[str, Spoil] = {
    "outcome: list": _outcome(lambda _: []),
    "outcome: deep": _outcome(lambda _: b"[" * 100_000),
    "outcome: pickle": _outcome(lambda _: pickle.dumps(3)),
    "outcome: status": _outcome(lambda outcome: outcome | {"status": ["finished"]}),
    "outcome: message": _outcome(lambda outcome: outcome | {"message": {"a": 1}}),
    "outcome: measurements": _outcome(lambda outcome: outcome | {"measurements": {"a": 1}}),
    "outcome: measurement": _outcome(lambda outcome: outcome | {"measurements": [3]}),
    "outcome: accuracy": _measured(accuracy="high"),
    "outcome: name": _measured(name=None),
    "outcome: failed without a word": _outcome(lambda _: {"status": "failed"}),
    "no results": lambda path, _: next(path.rglob("results.h5")).unlink(),
    "results without answers": lambda path, _: hdf5_sealed(
        next(path.rglob("results.h5")), RESULTS, lambda file: file.pop("test/predictions")
    ),
    "results without metrics": lambda path, _: hdf5_sealed(
        next(path.rglob("results.h5")), RESULTS, lambda file: [file.pop(key) for key in ("train", "solver", "cost")]
    ),
    "results without a time": lambda path, _: hdf5_sealed(
        next(path.rglob("results.h5")), RESULTS, _put("cost/images_per_second", np.zeros(2))
    ),
}
