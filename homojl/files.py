"""Files: read with bounds, written whole or not at all, and folders in which one process works at a time.

The standard parsers are safe from code, not from size: a file may have no end, a nest be deeper than the recursion
limit, a key have so many parts that tomllib takes hours. What is refused here is far from anything that homojl writes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import platform
import re
import stat
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homojl.errors import BusyError, DataError

if sys.platform != "win32":
    import fcntl

MAX_TEXT = 2**24
"""Bytes of a text file; a run's longest, its metrics, has half a kilobyte for each epoch."""

MAX_DEPTH = 32
"""Of tables and lists in each other; a configuration has three."""

_MAX_DOTS = 200  # on a line of TOML: tomllib's time grows with the square of the parts of a key

LOCK = "lock"
"""Name of the file in a folder that holds who is at work there."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp")  # as `atomic_write` names them


# ---- reading


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
    _check_size(values)
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
    _check_size(values)
    return values


def _check_size(values: Any) -> None:
    """Refuse values too deep and numbers too long for Python to print, as in an error message."""
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


# ---- writing


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it replaces `path` once it is written, synced and closed.

    If the body fails, the temporary file is removed and what was at `path` stays as it was.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def file_meant(path: Path) -> str:
    """The name of the file that a path is or was to become: a kill leaves `atomic_write`'s temporary files behind."""
    match = _TEMPORARY.fullmatch(path.name)
    return match["name"] if match else path.name


def remove_leftovers(folder: Path) -> None:
    """Remove what kills left of files half-written into a folder. For who has it `locked` only.

    Raises:
        DataError: one cannot be removed.
    """
    try:
        for path in folder.iterdir():
            if file_meant(path) != path.name:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot clear {folder} of what a kill left there: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, where they do not exist.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {path}: {error.strerror}") from error


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        DataError: if it cannot be written; nothing is left of it then, and a file that was there is as it was.
    """
    try:
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        DataError: if it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot remove {path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- one process at a time


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder.

    The lock is the operating system's (flock) on a file that says whose it is. It ends with its process, however that
    ends: what a killed one leaves of the file means nothing. Where there are no locks, on some network file systems and
    outside POSIX, nothing is locked.

    Raises:
        BusyError: another process has the lock.
        DataError: the file cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    path = Path(folder) / LOCK
    try:
        descriptor = _take_lock(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(path, descriptor):
                path.unlink()  # while it is locked; who has opened it in the meantime sees that it has gone
        os.close(descriptor)


def _take_lock(path: Path) -> int:
    """A descriptor of the file at `path`, locked, with this process's name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            _flock(descriptor, path)
            if _is_at(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has ended and removed it since it was opened


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise BusyError(f"{path.parent} is in use: {holder} is at work in it") from None
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
