"""The datasets known by name, with their properties, sources and readers.

To add one, add an entry to datasets.toml, and its reader to `_READERS` where none of those here fits.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.data.download import RemoteFile
from homojl.data.guards import reading
from homojl.errors import ConfigError
from homojl.names import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from homojl.data.readers import Arrays

TEST_FRACTION = 0.2
SPLIT_SEED = 0
"""For datasets with no test set of their own, such as the digits: a split that is the same everywhere."""

DIGITS = Path(__file__).with_name("digits.npz")
"""The one dataset that comes along."""


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
        read: paths of the files, in the order of `files` -> x_train, y_train, x_test, y_test.
        read_class_names: the same paths -> the names, where `class_names` is empty.
    """

    name: str
    title: str
    input_shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    class_names: tuple[str, ...]
    terms: str
    source: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]
    read: Callable[[list[Path]], Arrays] = field(repr=False)
    read_class_names: Callable[[list[Path]], tuple[str, ...]] | None = field(default=None, repr=False)


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


# Each loads its reader when it is called: what lists the datasets, or refuses a name, waits for none of them.


def _read_digits(paths: list[Path]) -> Arrays:
    """The digits in `digits.npz`, grey levels 0 to 16 stretched to 0 to 255, with the fixed test set.

    The file has `images`, uint8 (1797, 8, 8), and `labels`, uint8 (1797,); `digits.txt` has its source and licence.
    """
    import numpy as np

    with reading(DIGITS, "npz"), np.load(DIGITS, allow_pickle=False) as file:
        levels, labels = file["images"], file["labels"].astype(np.int64)
    images = np.round(levels * (255 / 16)).astype(np.uint8)[:, None]
    train, test = stratified_choice(labels, TEST_FRACTION, np.random.default_rng(SPLIT_SEED))
    return images[train], labels[train], images[test], labels[test]


def _read_svhn(paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_svhn_mat

    return *read_svhn_mat(paths[0]), *read_svhn_mat(paths[1])


def _read_cifar(n_classes: int, paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_cifar_binary

    return read_cifar_binary(paths[0], n_classes)


def _read_idx(paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_idx_dataset

    return read_idx_dataset(paths)


def _read_tiny_imagenet(paths: list[Path]) -> Arrays:
    from homojl.data.pictures import read_tiny_imagenet

    return read_tiny_imagenet(paths[0])


def _read_tiny_imagenet_names(paths: list[Path]) -> tuple[str, ...]:
    from homojl.data.pictures import read_tiny_imagenet_names

    return read_tiny_imagenet_names(paths[0])


_READERS: dict[str, Callable[[list[Path]], Arrays]] = {
    "digits": _read_digits,
    "idx": _read_idx,
    "svhn": _read_svhn,
    "cifar10": functools.partial(_read_cifar, 10),
    "cifar100": functools.partial(_read_cifar, 100),
    "tiny-imagenet": _read_tiny_imagenet,
}
_NAME_READERS = {"tiny-imagenet": _read_tiny_imagenet_names}


def _info(name: str, values: dict[str, Any]) -> DatasetInfo:
    """An entry of datasets.toml."""
    given = _with_tuples(values)
    reader = given.pop("reader")
    return DatasetInfo(
        name=name,
        **{"class_names": (), **given, "files": tuple(RemoteFile(**_with_tuples(f)) for f in given.get("files", ()))},
        read=_READERS[reader],
        read_class_names=_NAME_READERS.get(reader),
    )


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


_DATASETS = {
    name: _info(name, values)
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
