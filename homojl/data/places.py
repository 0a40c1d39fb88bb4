"""Where datasets are: known ones by their name, a user's own by its path."""

from __future__ import annotations

import os
from pathlib import Path

from homojl.data.registry import DatasetInfo, dataset_info, dataset_names
from homojl.errors import ConfigError
from homojl.names import did_you_mean
from homojl.own import DATASET_GROUP, is_given, is_own, registered, whole


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
        whole = Path(path).expanduser()
        whole.exists()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{os.fspath(path)!r} is no path that can be looked at: {error}") from None
    if "\0" in os.fspath(path):
        raise ConfigError(f"{os.fspath(path)!r} is no path: it holds the character NUL")
    return whole
