"""What the methods' constructors share: checks, and the look-up by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from homojl.errors import ConfigError
from homojl.names import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Algorithm = TypeVar("Algorithm", bound="DataclassInstance")
Method = TypeVar("Method")


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with that message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def methods_of(module: Mapping[str, object], base: type[Method]) -> dict[str, type[Method]]:
    """The methods below `base` among a module's names, by their own in small letters; not the abstract ones."""
    classes = [x for x in module.values() if isinstance(x, type) and issubclass(x, base)]
    return {cls.__name__.lower(): cls for cls in classes if not cls.__name__.startswith("Abstract")}


def by_name(table: dict[str, type[Algorithm]], kind: str, name: str, options: dict[str, Any]) -> Algorithm:
    """The algorithm of that name in a table, with those options that are not None; `kind` is for the message."""
    cls = table.get(name.lower())
    if cls is None:
        raise ConfigError(f"unknown {kind} {name!r}; {did_you_mean(name.lower(), table)}")
    options = {key: value for key, value in options.items() if value is not None}
    known = {field.name for field in fields(cls)}
    for key in options:
        require(key in known, f"{cls.__name__} has no option {key!r}; {did_you_mean(key, known)}")
    return cls(**options)
