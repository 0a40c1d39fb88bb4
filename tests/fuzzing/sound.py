"""A small sound file, or folder, of each kind that homojl reads, and what reads it."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homojl.backends.julia import runtime
from homojl.comparison.experiment import MODELS_ALONE, read_experiment
from homojl.comparison.hdf5 import SCHEMA as COMPARISON, write_comparison
from homojl.comparison.plan import Plan, make_plan
from homojl.comparison.record import collect
from homojl.comparison.report import plain_tables
from homojl.data import load_dataset
from homojl.data.download import RemoteFile, verify_file
from homojl.data.pictures import read_tiny_imagenet, read_tiny_imagenet_names
from homojl.data.readers import read_cifar_binary, read_idx, read_svhn_mat
from homojl.files import replace_file
from homojl.results.hdf5 import read_results, read_run, write_results
from homojl.results.measurements import SCHEMA as BENCH, Measurement
from homojl.results.tuning import SCHEMA as TUNING, Trial, Tuning, write_tuning
from homojl.training import Run, train_run
from homojl.training.checkpoint import read_checkpoint
from homojl.training.config import ExperimentConfig, merge, parse_assignment, read_toml
from homojl.training.experiment import state_form
from homojl.training.form import ModelForm
from tests.data.formats import (
    CIFAR_LAYOUT,
    cifar_files,
    idx_bytes,
    npz_arrays,
    random_images,
    tiny_files,
    write_cifar_archive,
    write_folder,
    write_idx,
    write_svhn,
    write_tiny,
)
from tests.results.conftest import make_record
from tests.training.conftest import TINY

FORM = ModelForm((1, 8, 8), 10, tuple("0123456789"), (0.5,), (0.25,))
EXPERIMENT = """
title = "Two ways"
models = ["homoode", "deq"]
images = 10

[variations.own]
models = ["homoode"]
solver = { algorithm = "tsit5" }

[variations.other]
datasets = ["digits"]
optim = { lr = 0.01 }

[measurements.large.train]
eval_batch_size = 500
"""
MANIFEST = '[[deps.ZeroPaths]]\nversion = "0.1.0"\n\n[[deps.PythonCall]]\nversion = "0.9.37"\n'


@dataclass(frozen=True)
class Kind:
    """A kind of file from outside.

    Attributes:
        name: of the file or folder, which some readers look at.
        write: writes a sound one to a path.
        read: reads one as homojl does, with all that is then done with what it says.
    """

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


# ---- settings


def tiny_config() -> ExperimentConfig:
    return ExperimentConfig.from_dict(merge(TINY, {"solver": {"first_step": "remember"}, "train": {"epochs": 2}}))


def _read_config(path: Path) -> None:
    state_form(ExperimentConfig.from_dict(read_toml(path)), FORM)


def _read_assignment(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")  # as it arrives from a command line
    config = ExperimentConfig.from_dict(merge(TINY, parse_assignment(text)))
    state_form(config, FORM)
    config.to_toml().encode()


def _read_experiment(path: Path) -> None:
    _plan(path.parent, read_experiment(str(path)))


def _plan(folder: Path, experiment: Any = MODELS_ALONE, models: tuple[str, ...] | None = None) -> Plan:
    return make_plan(experiment, folder, dataset="digits", seeds=[0], models=models, epochs=1)


def _read_manifest(path: Path) -> None:
    found = runtime._described("julia", str(path), "1.10.8")
    assert found.problem or found.packages


# ---- datasets


def _npz(save: Callable[..., None], path: Path) -> None:
    with open(path, "wb") as file:
        save(file, **npz_arrays())


def _cifar(n_classes: int) -> dict[str, bytes]:
    return {name: data for name, (_, _, data) in cifar_files(n_classes, per_file=1).items()}


def _cifar_folder(path: Path) -> None:
    path.mkdir()
    for name, data in _cifar(10).items():
        (path / name).write_bytes(data)


def _pictures(path: Path) -> None:
    write_folder(path, {"cat": 3, "dog": 4})


def _tiny(path: Path, *, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.move(write_tiny(Path(folder), tiny_files(), packed=packed), path)


def _read_tiny(path: Path) -> None:
    read_tiny_imagenet([path])
    read_tiny_imagenet_names([path])


def _read_gzip(path: Path) -> None:
    content = hashlib.md5(idx_bytes(random_images(0, 2, 3, 3))).hexdigest()
    verify_file(RemoteFile("x.gz", (), "", content_md5=content), path)


# ---- what homojl has written itself


@functools.cache
def _digits() -> Any:
    return load_dataset("digits")


@functools.cache
def _trained() -> Path:
    """A run that was stopped after its first line of metrics, with results; for all of this process."""
    folder = Path(tempfile.mkdtemp(prefix="homojl-sound-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = Run.create(folder / "run", tiny_config())
    train_run(run, data=_digits(), should_stop=lambda: len(run.metrics) == 1)
    write_results(run.results_path, make_record(images=20, epochs=2))
    return run.path


def _read_run(path: Path) -> None:
    run = Run.open(path)
    _ = run.environment, run.record(), read_run(run.path)
    if run.config == tiny_config():  # another may be right and ask for hours
        train_run(run, data=_digits(), should_stop=lambda: True)


def _compared(path: Path) -> None:
    plan = _plan(path, models=("homoode",))
    (run,) = plan.runs
    measured = {"name": "tsit5", "algorithm": "Tsit5", "batch_size": 5, "images": 10}
    measured |= {"accuracy": 0.5, "nfe": 20.0, "seconds": 0.1, "failed_solves": 0}
    plan.run_path(run).mkdir(parents=True)
    plan.outcome_path(run).parent.mkdir()
    write_results(plan.run_path(run) / "results.h5", make_record(images=20, epochs=2))
    outcome = {"status": "finished", "message": "", "measurements": [measured]}
    replace_file(plan.outcome_path(run), json.dumps(outcome).encode())


def _read_compared(path: Path) -> None:
    comparison = collect(_plan(path, models=("homoode",)))
    plain_tables(comparison)
    write_comparison(path / "comparison.h5", comparison)


def _comparison(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _compared(Path(folder) / "compared")
        write_comparison(path, collect(_plan(Path(folder) / "compared", models=("homoode",))))


def _bench(path: Path) -> None:
    row = Measurement("batch", "vanderpol", "vanderpol", "float32", "torchdiffeq", "", "dopri5", seconds=0.4, steps=9.0)
    BENCH.save(path, {"/measurements": [row]}, parts={"/environment": "{}"}, attributes={"quick": 1, "seed": 0})


def _tuning(path: Path) -> None:
    trial = Trial({"algorithm": "tsit5", "rtol": 0.1}, "Tsit5", 0.9, 1.0, 0.1, 20.0, 1e-3)
    write_tuning(path, Tuning(trial, trial, (trial,), 0.01, images=100, batch_size=10))


KINDS: dict[str, Kind] = {
    "config": Kind("c.toml", lambda p: p.write_text(tiny_config().to_toml()), _read_config),
    "assignment": Kind("set.txt", lambda p: p.write_text("solver.rtol=1e-3"), _read_assignment),
    "experiment": Kind("e.toml", lambda p: p.write_text(EXPERIMENT), _read_experiment),
    "manifest": Kind("m", lambda p: (p.mkdir(), (p / "Manifest.toml").write_text(MANIFEST)), _read_manifest),
    "idx": Kind("images", lambda p: write_idx(p, random_images(0, 5, 4, 3)), read_idx),
    "idx gzipped": Kind("labels.gz", lambda p: write_idx(p, np.arange(9)), read_idx),
    "gzip checksum": Kind("x.gz", lambda p: write_idx(p, random_images(0, 2, 3, 3)), _read_gzip),
    "cifar10 archive": Kind(
        "c10.tar.gz", lambda p: write_cifar_archive(p, 10, _cifar(10)), lambda p: read_cifar_binary(p, 10)
    ),
    "cifar100 archive": Kind(
        "c100.tar.gz", lambda p: write_cifar_archive(p, 100, _cifar(100)), lambda p: read_cifar_binary(p, 100)
    ),
    "cifar10 folder": Kind(CIFAR_LAYOUT[10][0], _cifar_folder, lambda p: read_cifar_binary(p, 10)),
    "svhn": Kind("train.mat", lambda p: write_svhn(p, random_images(1, 2, 3, 32, 32), np.arange(2)), read_svhn_mat),
    "svhn uncompressed": Kind(
        "test.mat",
        lambda p: write_svhn(p, random_images(1, 2, 3, 32, 32), np.arange(2), compress=False),
        read_svhn_mat,
    ),
    "npz": Kind("own.npz", functools.partial(_npz, np.savez), load_dataset),
    "npz compressed": Kind("packed.npz", functools.partial(_npz, np.savez_compressed), load_dataset),
    "pictures": Kind("pictures", _pictures, load_dataset),
    "tiny-imagenet archive": Kind("tiny.zip", functools.partial(_tiny, packed=True), _read_tiny),
    "tiny-imagenet folder": Kind("tiny", functools.partial(_tiny, packed=False), _read_tiny),
    "checkpoint": Kind(
        "last.safetensors",
        lambda p: shutil.copy(_trained() / "checkpoints" / "last.safetensors", p),
        read_checkpoint,
    ),
    "run": Kind("run", lambda p: shutil.copytree(_trained(), p), _read_run),
    "results": Kind("results.h5", lambda p: write_results(p, make_record(images=20, epochs=2)), read_results),
    "compared runs": Kind("compared", _compared, _read_compared),
    "comparison": Kind("comparison.h5", _comparison, COMPARISON.load),
    "benchmark": Kind("bench.h5", _bench, BENCH.load),
    "tuning": Kind("tune.h5", _tuning, TUNING.load),
}
