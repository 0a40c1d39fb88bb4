"""What every reader of a file from outside is built with.

Files come from anywhere, so nothing in them is trusted: the sizes that a header promises are held against the
size of the file before memory is taken, unpacking stops at the size that was promised, nothing is unpickled,
and whatever goes wrong becomes one `DataError` line that names the file.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from homojl.errors import DataError

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot do better (https://zlib.net/zlib_tech.html): a header that promises more is a lie."""

MAX_UNPACKED = 2**31
"""Bytes, where a small packed file could truthfully ask for any amount of memory."""


class RefusedError(Exception):
    """What is wrong with a file, in words; `reading` puts the file's name in front."""


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn everything that goes wrong while reading `path` as a `form` file into one `DataError` line.

    Parsers that meet arbitrary bytes raise whatever they happen to (struct.error, zlib.error, KeyError,
    UnicodeDecodeError, NotImplementedError ...), hence the broad clause. The original stays as the cause.
    """
    try:
        yield
    except DataError:
        raise
    except RefusedError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable {form} file ({type(error).__name__}: {detail})") from error


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file that may be gzipped; its first two bytes tell, not its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


class BoundedReader:
    """A stream that gives at most `limit` bytes, so that a small hostile archive cannot fill the memory."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit, self._left = stream, limit, limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise RefusedError(f"unpacks to more than {self._limit} bytes")
        return data
