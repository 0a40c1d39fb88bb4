"""A reader of numeric arrays from MATLAB 5 files (what MATLAB's save writes with -v6 or -v7).

Not scipy.io.loadmat: it uses the type of an array's data as an index without looking (SciPy 1.17), so that
one damaged byte in a file can end the whole process instead of raising an error.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from homojl.data.guards import MAX_DEFLATE_RATIO, MAX_UNPACKED, RefusedError

_MATRIX, _COMPRESSED = 14, 15
# Type of stored data -> numpy's code. MATLAB may store an array in a smaller type than its class.
_DATA_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, int8 ... uint64
_COMPLEX = 0x0800


def read_mat5(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named variables of a MATLAB 5 file, all of them real numeric arrays.

    Args:
        path: the file, of either byte order, compressed or not.
        names: which variables to read; others are passed over.

    Returns:
        Each variable with its MATLAB shape, in the type in which it is stored, which may be smaller than its
        class (a double array of small whole numbers is stored as uint8).

    Raises:
        RefusedError: another format, a variable missing or not numeric, or the structure damaged.
        OSError, zlib.error: the file cannot be read, or compressed data are damaged.

    References: The MathWorks, "MAT-File Format", chapter "Level 5 MAT-File Format".
    """
    found: dict[str, np.ndarray] = {}
    unpacked = 0
    with open(path, "rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        if order is None:
            raise RefusedError("not a MATLAB 5 file: its header does not end with the mark of the byte order")
        (version,) = struct.unpack(f"{order}H", header[124:126])
        if version != 0x0100:
            raise RefusedError(f"a MATLAB file of version 0x{version:04x}, expected 0x0100 (save it with -v7)")
        left = path.stat().st_size - len(header)
        while left > 0 and not found.keys() >= set(names):
            kind, size = _tag(file.read(8), order)
            left -= 8 + size
            if left < 0:
                raise RefusedError("truncated: a variable goes beyond the end of the file")
            body = file.read(size)
            if kind == _COMPRESSED:
                kind, body = _decompress(body, order, MAX_UNPACKED - unpacked)
                unpacked += len(body)
            if kind == _MATRIX:
                found |= _numeric_array(memoryview(body), order, names)
    if missing := [name for name in names if name not in found]:
        raise RefusedError(f"no variable {missing[0]!r} inside")
    return found


def _tag(data: bytes | memoryview, order: str) -> tuple[int, int]:
    """Type and number of bytes of the element that follows."""
    if len(data) < 8:
        raise RefusedError("truncated: it ends within the header of a variable")
    return struct.unpack(f"{order}II", data[:8])


def _decompress(body: bytes, order: str, limit: int) -> tuple[int, bytes]:
    """Type and content of the one element inside a compressed element; never more than its header says, or `limit`."""
    unpacker = zlib.decompressobj()
    kind, size = _tag(unpacker.decompress(body, 8), order)
    if not 0 < size <= min(len(body) * MAX_DEFLATE_RATIO, limit):
        raise RefusedError(f"a variable claims {size} bytes, which {len(body)} compressed bytes cannot hold")
    content = unpacker.decompress(unpacker.unconsumed_tail, size)
    if len(content) < size:
        raise RefusedError(f"truncated: a variable claims {size} bytes and has {len(content)}")
    unpacker.decompress(unpacker.unconsumed_tail, 1)  # to the end, where zlib compares checksums
    return kind, content


def _numeric_array(body: memoryview, order: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The array in a matrix element under its name, or nothing if the name is not wanted."""
    _, flags, position = _subelement(body, 0, order)
    _, dims, position = _subelement(body, position, order)
    _, letters, position = _subelement(body, position, order)
    name = bytes(letters).decode("latin-1")
    if name not in names:
        return {}
    if len(flags) != 8 or len(dims) % 4:
        raise RefusedError(f"damaged: the header of {name}")
    (word,) = struct.unpack(f"{order}I", flags[:4])
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    if word & 0xFF not in _NUMERIC_CLASSES or word & _COMPLEX:
        raise RefusedError(f"{name} is not an array of real numbers")
    kind, data, _ = _subelement(body, position, order)
    if kind not in _DATA_TYPES:
        raise RefusedError(f"damaged: the data of {name} have the unknown type {kind}")
    dtype = np.dtype(order + _DATA_TYPES[kind])
    if not shape or min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise RefusedError(f"damaged: {name} of shape {shape} has {len(data)} bytes of {dtype.name}")
    return {name: np.frombuffer(data, dtype).reshape(shape, order="F")}


def _subelement(body: memoryview, position: int, order: str) -> tuple[int, memoryview, int]:
    """Type and content of the element at a position, and the position of the next one.

    Up to four bytes are packed into the tag itself; its upper half then holds their number.
    """
    kind, size = _tag(body[position : position + 8], order)
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
    else:
        start = position + 8
        end = start + -(-size // 8) * 8  # contents are padded to 8 bytes
    if start + size > min(end, len(body)):
        raise RefusedError("damaged: a part of a variable goes beyond its end")
    return kind, body[start : start + size], end
