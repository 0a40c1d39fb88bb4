"""The datasets known by name, with their properties, sources and readers, and where datasets are.

To add one, add an entry to datasets.toml; its keys are the attributes of `DatasetInfo`.
"""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.data.download import RemoteFile
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.own import DATASET_GROUP, is_given, is_own, registered, whole

if TYPE_CHECKING:
    import numpy as np


TEST_FRACTION = 0.2
SPLIT_SEED = 0
"""For datasets with no test set of their own, such as the digits: a split that is the same everywhere."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before any of its files is opened.

    Attributes:
        name: the name that `load_dataset` takes.
        title: one line for people.
        input_shape: (C, H, W) of an image.
        n_classes, n_train, n_test: numbers of classes and of images.
        class_names: one for each class, in the order of the labels; empty where they come with the files.
        terms: licence or terms of use, as far as its authors state any.
        source: the page of its authors.
        files: what has to be on disk; empty for a dataset that comes with the installation.
        folders: where files are looked for, relative to the data folder; downloads go to the first.
        reader: module:function, which is called with the paths of the files, in the order of `files`, and returns
            x_train, y_train, x_test, y_test. It is loaded when the dataset is read.
        name_reader: likewise, for the names where `class_names` is empty.
    """

    name: str
    title: str
    input_shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    terms: str
    source: str
    folders: tuple[str, ...]
    reader: str
    class_names: tuple[str, ...] = ()
    name_reader: str = ""
    files: tuple[RemoteFile, ...] = ()

    def read(self, paths: list[Path]) -> tuple[Any, tuple[str, ...]]:
        """The arrays in the files, and the classes' names."""
        return _function(self.reader)(paths), self.class_names or tuple(_function(self.name_reader)(paths))


def _function(name: str) -> Callable[[list[Path]], Any]:
    module, _, function = name.partition(":")
    found: Callable[[list[Path]], Any] = getattr(importlib.import_module(module), function)
    return found


def stratified_choice(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide indices at random so that each class is divided in the same proportion, to within one sample.

    The second part gets `round(fraction * N)` samples, shared out by largest remainders: rounding class by
    class would leave it empty when classes are small. It gets no class's last sample, so it may be smaller.

    Args:
        labels: integers `(N,)`.
        fraction: share of the second part, in [0, 1).
        rng: decides which samples.

    Returns:
        Sorted indices, int64, of the first and of the second part; together they are 0 to N - 1.
    """
    import numpy as np

    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    quotas = np.floor(shares).astype(np.int64)  # below the count of the class, since fraction < 1
    by_remainder = np.argsort(quotas - shares, kind="stable")
    for index in by_remainder[: max(0, round(fraction * len(labels)) - int(quotas.sum()))]:
        quotas[index] = min(quotas[index] + 1, counts[index] - 1)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


_DATASETS = {
    name: DatasetInfo(
        name=name,
        **_with_tuples(values) | {"files": tuple(RemoteFile(**_with_tuples(file)) for file in values.get("files", ()))},
    )
    for name, values in tomllib.loads(Path(__file__).with_name("datasets.toml").read_text(encoding="utf-8")).items()
}


def dataset_names() -> tuple[str, ...]:
    """The names that `load_dataset` takes, besides the path of a user's own file."""
    return tuple(_DATASETS)


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the dataset of that name.

    Raises:
        ConfigError: no such name; the message says the nearest one.
    """
    if name not in _DATASETS:
        raise ConfigError(f"unknown dataset {name!r}; {did_you_mean(name, _DATASETS)}")
    return _DATASETS[name]


def data_root() -> Path:
    """The folder of datasets: $HOMOJL_DATA, else homojl/data in $XDG_CACHE_HOME, else in ~/.cache.

    Raises:
        ConfigError: what the variable says cannot be a path.
    """
    if root := os.environ.get("HOMOJL_DATA"):
        return expanded(root)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "homojl" / "data"


def find_dataset(name_or_path: str | Path) -> DatasetInfo | Path | str:
    """What a name or path means: a known dataset, a user's own file or folder, which is not opened, or code's name.

    Code's name is that of a function of one's own, or the name under which an installed package brings one.

    Raises:
        ConfigError: neither a known name nor a file nor a folder.
    """
    name = os.fspath(name_or_path)
    if name in dataset_names():
        return dataset_info(name)
    if is_given(name):
        raise ConfigError(f"the dataset {name} was given in Python, and comes back only there: give it again")
    if is_own(name):
        return whole(name)
    if name in registered(DATASET_GROUP):
        return name
    path = expanded(name)
    if path.suffix == ".npz" or path.is_file() or path.is_dir():
        return path
    raise ConfigError(
        f"unknown dataset {name!r}, and no such .npz file or folder; {did_you_mean(name, dataset_names())}"
    )


def expanded(path: str | Path) -> Path:
    """A path with its ~ replaced; a ConfigError if it cannot be one, such as a name that is too long."""
    try:
        expanded_path = Path(path).expanduser()
        expanded_path.exists()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{os.fspath(path)!r} is no path that can be looked at: {error}") from None
    if "\0" in os.fspath(path):
        raise ConfigError(f"{os.fspath(path)!r} is no path: it holds the character NUL")
    return expanded_path
