"""What hostile files are made with: code that would run, compressed zeros, files that have no end."""

from __future__ import annotations

import functools
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Spoil = Callable[[Path, Path], object]
"""Takes a sound file or folder, and where the canary would appear."""

GIB = 2**30

GZIP, ZLIB = 31, 15
"""What zlib calls the two containers of compressed data."""


class Payload:
    """Something whose unpickling creates a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._canary), "w")


def pickled(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(canary)))


def torch_pickled(path: Path, canary: Path) -> None:
    torch.save({"model": Payload(canary)}, path)


def text(content: str) -> Spoil:
    return lambda path, _: path.write_bytes(content.encode("utf-8", "surrogatepass"))


def replaced(name: str, content: bytes) -> Spoil:
    """A file in the folder with other content."""
    return lambda path, _: (path / name).write_bytes(content)


def linked(name: str, target: str) -> Spoil:
    """A symbolic link in the place of a file in the folder, or of the file itself."""

    def spoil(path: Path, _: Path) -> None:
        place = path / name if name else path
        place.unlink()
        place.symlink_to(target)

    return spoil


def pipe(name: str) -> Spoil:
    """A named pipe, which nobody writes to, in the place of a file."""

    def spoil(path: Path, _: Path) -> None:
        place = path / name if name else path
        place.unlink()
        os.mkfifo(place)

    return spoil


@functools.cache
def zeros(size: int, wbits: int) -> bytes:
    """Zeros, compressed in no time: one compressed piece of them, again and again, and no end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    head = packer.compress(bytes(2**16)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + piece * (size >> 20)
