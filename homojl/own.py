"""A user's own models and datasets: functions and classes in Python files, named as `path/to/file.py:name`, and
those that installed packages bring under a name, as entry points.

Code is loaded only where a user has named it in the same process: on the command line, by `allow`, or in the
environment variable HOMOJL_ALLOW (several names with commas between). A run's folder may name code, and does not have
it run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from homojl.errors import ConfigError
from homojl.names import did_you_mean

_NAME = re.compile(r"(?P<where>.+):(?P<what>[^\W\d]\w*)")
_allowed: set[str] = set()


def is_own(name: object) -> bool:
    """Whether a name is that of code, as `file.py:Class` or `package.module:Class`."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    return match is not None and (match["where"].endswith(".py") or re.fullmatch(r"[\w.]+", match["where"]) is not None)


def name_given(thing: object) -> str:
    """What a run calls a model, a dataset or a function that it was given in Python rather than by name."""
    name = getattr(thing, "__name__", None) or getattr(thing, "name", None) or type(thing).__name__
    name = name if isinstance(name, str) else type(thing).__name__
    return f"<{re.sub(r'[^0-9A-Za-z_]', '', name) or 'function'}>"


def is_given(name: object) -> bool:
    """Whether a name is that of something given in Python, which no name can bring back."""
    return isinstance(name, str) and re.fullmatch(r"<\w+>", name) is not None


MODEL_GROUP, DATASET_GROUP = "homojl.models", "homojl.datasets"
"""Groups of entry points in which installed packages bring models and datasets."""


@functools.cache
def registered(group: str) -> dict[str, str]:
    """What installed packages bring, by name: `package.module:Name`. Nothing of it is loaded.

    Args:
        group: `MODEL_GROUP` or `DATASET_GROUP`.
    """
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in sorted(entry_points(group=group)) if is_own(entry.value)}


def whole(name: str) -> str:
    """The name with the absolute path of its file."""
    where, _, what = name.rpartition(":")
    return f"{Path(where).expanduser().absolute()}:{what}" if where.endswith(".py") else name


def short(name: str) -> str:
    """What follows the colon; other names as they are."""
    return name.rpartition(":")[2] if is_own(name) else name


def allow(name: str) -> str:
    """Allow the code of a name, `path/to/file.py:name` or `package.module:name`, to be loaded in this process.

    Returns:
        The name with the absolute path of its file, as runs have it.

    Raises:
        ConfigError: if it is no such name.
    """
    if not is_own(name):
        raise ConfigError(f"{name!r} names no code of your own: write path/to/file.py:Name or package.module:Name")
    _allowed.add(whole(name))
    return whole(name)


def for_children() -> dict[str, str]:
    """Environment variables for a child process, so that it may load what this one may."""
    names = sorted(_allowed | {x for x in os.environ.get("HOMOJL_ALLOW", "").split(",") if is_own(x)})
    return {"HOMOJL_ALLOW": ",".join(names)} if names else {}


def load(name: str) -> Callable[..., Any]:
    """The class or function of a name, one's own or one that an installed package brings.

    Raises:
        ConfigError: if it was not allowed, or is not there, or its file cannot be run.
    """
    if is_given(name):
        raise ConfigError(f"{name} was given in Python, and comes back only there: give it again")
    if (brought := registered(MODEL_GROUP).get(name) or registered(DATASET_GROUP).get(name)) is not None:
        return _loaded(brought)  # of an installed package, which says itself that homojl may load it
    name = whole(name)
    given = {whole(x) for x in os.environ.get("HOMOJL_ALLOW", "").split(",") if is_own(x)}
    if name not in _allowed | given:
        raise ConfigError(
            f"{name} is code of somebody's own, which runs only where you name it: HOMOJL_ALLOW={name} homojl ..., or "
            f"hj.allow({name!r}) in Python"
        )
    return _loaded(name)


def _loaded(name: str) -> Callable[..., Any]:
    where, _, what = name.rpartition(":")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {where}") from None
    except Exception as error:
        raise ConfigError(f"{where} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, what, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ConfigError(f"{where} has no class or function {what!r}; {did_you_mean(what, known)}")
    return found


def _from_file(path: Path) -> Any:
    """The module of a file, run once in a process."""
    alias = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


_OF_DATA = ("input_shape", "n_classes")  # what a network is given
_RESERVED = ("name", "options", "algorithm", "adjoint", "backend")


def options_of(name: str) -> dict[str, Any]:
    """The settings that a class or function takes beside the form of the data, with their defaults.

    They are its arguments whose defaults are numbers, text or tuples of whole numbers.

    Raises:
        ConfigError: for an argument without a default, or of a name that homojl needs.
    """
    options = {}
    for key, parameter in inspect.signature(load(name)).parameters.items():
        if key in _OF_DATA or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if key in _RESERVED:
            raise ConfigError(f"{name} must have another name for {key}, which is a setting of homojl's")
        if parameter.default is parameter.empty:
            raise ConfigError(
                f"{name} needs {key}: beside {' and '.join(_OF_DATA)}, its arguments must have defaults, which "
                f"--set model.{key}=... then changes"
            )
        if isinstance(parameter.default, bool | int | float | str | tuple):
            options[key] = parameter.default
    return options
