"""Settings as fields of dataclasses, and checks of plain values against them."""

from __future__ import annotations

import sys
import types
import typing
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any

from homojl.errors import ConfigError
from homojl.names import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_WHOLE = 2**31 - 1
"""The largest whole number of a setting: it fits wherever it is used, and a seed twice into PyTorch's."""

_EXPECTED = {
    "float": "a finite number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a string of characters",
    "dict": "a table of settings",
}


def setting(
    default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with its one-line description, which also goes into every config.toml."""
    kept = {"help": help, "choices": choices, "low": low, "high": high}
    if default is dict:
        return field(default_factory=dict, metadata=kept)
    return field(default=default, metadata=kept)


def is_default(config: DataclassInstance, name: str) -> bool:
    """Whether a setting has its default value."""
    (f,) = (f for f in fields(config) if f.name == name)
    return bool(getattr(config, name) == ({} if f.default is MISSING else f.default))


def checked(cls: type[DataclassInstance], section: str, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a section as arguments of its class.

    Raises:
        ConfigError: for an unknown key, naming the nearest one, or a value of another type or outside its bounds.
    """
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    result = {}
    for key, value in content.items():
        where = f"{section}.{key}"
        if key not in known:
            raise ConfigError(f"unknown key {where}; {did_you_mean(key, known)}")
        bounds = {name: known[key].metadata.get(name) for name in ("choices", "low", "high")}
        result[key] = in_bounds(converted(value, hints[key], where), where, **bounds)
    return result


def in_bounds(
    value: Any,
    where: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """The value, checked against the choices and bounds."""
    if choices and value is not None and value not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(choices)}, got {value!r}")
    if low is not None and value is not None and not value >= low:
        raise ConfigError(f"{where} must be at least {low:g}, got {value}")
    if high is not None and value is not None and not value <= high:
        raise ConfigError(f"{where} must be at most {high:g}, got {value}")
    return value


def converted(value: Any, hint: Any, where: str) -> Any:
    """A plain value converted to the type of a setting.

    Raises:
        ConfigError: it has another type.
    """
    if isinstance(hint, types.UnionType):
        hints = [h for h in typing.get_args(hint) if h is not types.NoneType]
        hint = str if str in hints and isinstance(value, str) else hints[0]
    hint = dict if typing.get_origin(hint) is dict else hint
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(converted(v, typing.get_args(hint)[0], where) for v in value)
    elif hint is float and type(value) in (int, float):
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif type(value) is hint is int:
        if abs(value) <= MAX_WHOLE:
            return value
        raise ConfigError(f"{where} must lie between -{MAX_WHOLE} and {MAX_WHOLE}, got {value}")
    elif type(value) is hint is str:
        if "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value):  # TOML and paths cannot hold those
            return value
    elif type(value) is hint:
        return value
    expected = "a list" if typing.get_origin(hint) is tuple else _EXPECTED[hint.__name__]
    raise ConfigError(f"{where} must be {expected}, got {value!r}")
