"""Text from outside: files, TOML and JSON, each read to plain values or refused with an OSError or a ValueError.

The standard parsers are safe from code, not from size: a file may have no end, a nest be deeper than the recursion
limit, a key have so many parts that tomllib takes hours. What is refused here is far from anything that homojl writes.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_TEXT = 2**24
"""Bytes of a text file; a run's longest, its metrics, has half a kilobyte for each epoch."""

MAX_DEPTH = 32
"""Of tables and lists in each other; a configuration has three."""

_MAX_DOTS = 200  # on a line of TOML: tomllib's time grows with the square of the parts of a key


def read_bytes(path: Path | str, *, limit: int, pipe: bool = False) -> bytes:
    """A whole file.

    Args:
        limit: bytes that it may have.
        pipe: whether it may be a pipe, such as a shell's <(command).

    Raises:
        OSError: it cannot be read, has more than `limit` bytes, or is a device or a pipe, which may never end.
    """
    mode = os.stat(path).st_mode  # before it is opened: opening a pipe waits for its other end
    if not (stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode))):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "Is a directory" if stat.S_ISDIR(mode) else "not a regular file")
    content = bytearray()
    with open(path, "rb") as file:
        while part := file.read(2**20):  # not all at once: room for as many bytes as are asked for is taken at once
            content += part
            if len(content) > limit:
                raise OSError(errno.EFBIG, f"has more than {limit} bytes")
    return bytes(content)


def read_text(path: Path | str, *, limit: int = MAX_TEXT, pipe: bool = False) -> str:
    """A whole text file, UTF-8; raises as `read_bytes`, and UnicodeDecodeError, which is a ValueError."""
    return read_bytes(path, limit=limit, pipe=pipe).decode("utf-8")


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as nested plain values.

    Raises:
        ValueError: it is not TOML, nested too deeply, or has a whole number of more than 64 bits.
    """
    if any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"a line has more than {_MAX_DOTS} dots")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(values)
    return values


def parse_json(text: str) -> Any:
    """JSON as plain values.

    Raises:
        ValueError: as `parse_toml`.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(values)
    return values


def _check(values: Any) -> None:
    """Refuse what no message could show: Python raises where it writes very deep values and very long numbers."""
    level = [values]
    for _ in range(MAX_DEPTH):
        if any(isinstance(value, int) and abs(value) >= 2**64 for value in level):
            raise ValueError("a whole number has more than 64 bits")
        nests = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = list(itertools.chain.from_iterable(nests))
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
