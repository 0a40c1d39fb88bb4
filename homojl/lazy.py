"""Packages that load their names on first use. Each name is listed once, in the stub beside the `__init__.py`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def attach(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        file: its `__file__`; beside it lies `__init__.pyi`, every line of which is `from MODULE import NAME as NAME`.
            Type checkers and editors read the stub as well.
    """
    lines = Path(file).with_name("__init__.pyi").read_text(encoding="utf-8").splitlines()
    names = {line.split()[3]: line.split()[1] for line in lines if line.startswith("from ")}

    def load(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if names[name] == package:  # a package within
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(names[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(names), sorted(names)
