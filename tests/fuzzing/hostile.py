"""Hostile files of every kind, each made from a sound one."""

from __future__ import annotations

from tests.fuzzing.datasets import CIFAR_FOLDER, IDX, MAT, NPZ, TAR
from tests.fuzzing.own import CHECKPOINT, COMPARED, RUN, SCHEMAS, hdf5_cases
from tests.fuzzing.payloads import Spoil
from tests.fuzzing.pictures import PICTURES, TINY_FOLDER, TINY_ZIP
from tests.fuzzing.settings import ASSIGNMENT, CONFIG, EXPERIMENT, MANIFEST

HOSTILE: dict[str, dict[str, Spoil]] = {
    "config": CONFIG,
    "assignment": ASSIGNMENT,
    "experiment": EXPERIMENT,
    "manifest": MANIFEST,
    "idx": IDX,
    "idx gzipped": IDX,
    "gzip checksum": IDX,
    "cifar10 archive": TAR,
    "cifar100 archive": TAR,
    "cifar10 folder": CIFAR_FOLDER,
    "svhn": MAT,
    "svhn uncompressed": MAT,
    "npz": NPZ,
    "npz compressed": NPZ,
    "pictures": PICTURES,
    "tiny-imagenet archive": TINY_ZIP,
    "tiny-imagenet folder": TINY_FOLDER,
    "checkpoint": CHECKPOINT,
    "run": RUN,
    "results": hdf5_cases(SCHEMAS["results"], "train/val_loss", "config"),
    "compared runs": COMPARED,
    "comparison": hdf5_cases(SCHEMAS["comparison"], "runs/seed", "runs/label"),
    "benchmark": hdf5_cases(SCHEMAS["benchmark"], "measurements/seconds", "measurements/solver"),
    "tuning": hdf5_cases(SCHEMAS["tuning"], "accuracy", "settings"),
}
"""By kind, see `tests.fuzzing.sound`, and name."""
