"""What all readers of files from outside share: limits of size, and errors of one line.

Files come from anywhere, so nothing in them is trusted: the sizes that a header promises are held against the
size of the file before memory is taken, unpacking stops at the size that was promised, nothing is unpickled,
and whatever goes wrong becomes one `DataError` line that names the file.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from homojl.errors import DataError

if TYPE_CHECKING:
    import numpy as np

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot do better (https://zlib.net/zlib_tech.html): a header that promises more is a lie."""

MAX_UNPACKED = 2**28
"""Bytes that a packed file may have unpacked, whatever its size; the largest published one has 225 million."""

_MAX_RATIO = 100


def unpacked_limit(on_disk: int) -> int:
    """Bytes that a user's own files of so many bytes may unpack to.

    A small file can truthfully ask for any amount of memory. Photographs shrink to a tenth, drawings to a hundredth;
    what shrinks further and is large can be saved uncompressed.
    """
    return max(MAX_UNPACKED, _MAX_RATIO * on_disk)


class RefusedError(Exception):
    """What is wrong with a file, in words; `reading` puts the file's name in front."""


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn everything that goes wrong while reading `path` as a `form` file into one `DataError` line.

    Parsers that meet arbitrary bytes raise whatever they happen to (struct.error, zlib.error, KeyError,
    UnicodeDecodeError, NotImplementedError ...), hence the broad clause. The original stays as the cause.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # such as a pipe, which may never end
            raise RefusedError("neither a file nor a folder")
        yield
    except DataError:
        raise
    except RefusedError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except MemoryError as error:
        raise DataError(f"{path}: there is not memory enough to read it") from error
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a readable {form} file ({type(error).__name__}: {detail})") from error


class Stream(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


class BoundedReader:
    """A stream that gives at most `limit` bytes, so that a small hostile archive cannot fill the memory.

    Attributes:
        count: bytes read so far.
    """

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream, self._limit, self.count = stream, limit, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; all that are left, up to the limit, for a negative size."""
        room = self._limit - self.count + 1
        data = self._stream.read(room if size < 0 else min(size, room))
        self.count += len(data)
        if self.count > self._limit:
            raise RefusedError(f"unpacks to more than {self._limit} bytes")
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_unpacked(path: Path) -> Iterator[tuple[Stream, bool]]:
    """Open a file that may be gzipped, and whether it is; its first two bytes tell, not its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield BoundedReader(unpacked, MAX_UNPACKED), True
        else:
            yield file, False


def read_exactly(stream: Stream, size: int) -> np.ndarray:
    """The next bytes of a stream, uint8 `(size,)`.

    Raises:
        RefusedError: there are fewer.
    """
    import numpy as np

    data = np.empty(size, dtype=np.uint8)
    filled = 0
    while filled < size:
        part = stream.read(min(size - filled, 2**20))
        if not part:
            raise RefusedError(f"truncated: {size} bytes of data are promised, {filled} are there")
        data[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
        filled += len(part)
    return data
