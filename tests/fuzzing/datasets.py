"""Hostile idx, CIFAR, MATLAB and .npz files."""

from __future__ import annotations

import functools
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.formats import npz_arrays
from tests.fuzzing.payloads import GIB, GZIP, ZLIB, Payload, Spoil, linked, pickled, pipe, replaced, zeros


def _huge_idx(path: Path, _: Path, *, sizes: tuple[int, ...] = (2**32 - 1,) * 3) -> None:
    path.write_bytes(struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes) + bytes(100))


def _idx_bomb(path: Path, _: Path) -> None:
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 1024, 1024, 1024)) + zeros(GIB, GZIP))


def _one_bomb(path: Path, _: Path) -> None:
    path.write_bytes(zeros(2 * GIB, GZIP))


def _many_members(path: Path, _: Path) -> None:
    path.write_bytes(gzip.compress(b"") * 50_000)


IDX: dict[str, Spoil] = {
    "huge": _huge_idx,
    "huge labels": functools.partial(_huge_idx, sizes=(2**32 - 1,)),
    "empty dimension": functools.partial(_huge_idx, sizes=(2**32 - 1, 0, 2**32 - 1)),
    "bomb": _idx_bomb,
    "bomb without a header": _one_bomb,
    "many empty members": _many_members,
    "pickle": pickled,
    "pipe": pipe(""),
    "endless": linked("", "/dev/zero"),
    "link to itself": lambda path, _: (path.unlink(), path.symlink_to(path.name)),
}


def tar_of(*members: tuple[str, bytes, dict[str, Any]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of members: name, content, and what else to set of its entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content, others in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in others.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _archive(content: Callable[[Path], bytes]) -> Spoil:
    return lambda path, canary: path.write_bytes(gzip.compress(content(canary), 1))


def _links(_: Path) -> bytes:
    there = "cifar-10-batches-bin/test_batch.bin"
    return tar_of(*(("cifar-10-batches-bin/" + name, b"", {"type": kind, "linkname": target})
                    for name, kind, target in (("test_batch.bin", tarfile.SYMTYPE, "/etc/passwd"),
                                               ("data_batch_1.bin", tarfile.LNKTYPE, there),
                                               ("data_batch_2.bin", tarfile.CHRTYPE, ""),
                                               ("data_batch_3.bin", tarfile.FIFOTYPE, ""))))  # fmt: skip


def _records(_: Path) -> bytes:
    """An extension header of twenty million records, all of them for one file."""
    records = b"6 a=b\n" * 20_000_000
    header = bytearray(tar_of(("x", b"", {}), form=tarfile.USTAR_FORMAT)[:512])
    header[156:157] = b"x"
    header[124:136] = b"%011o\0" % len(records)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + records + bytes(-len(records) % 512)


TAR: dict[str, Spoil] = {
    "bomb": _one_bomb,
    "pickle": pickled,
    "pickle in an archive": _archive(lambda c: tar_of(("data_batch_1.bin", pickle.dumps(Payload(c)), {}))),
    "paths that lead out": _archive(lambda c: tar_of((str(c), b"x", {}), (f"../../../..{c}", b"x", {}))),
    "links and devices": _archive(_links),
    "many records": _archive(_records),
    "many members": _archive(lambda _: tar_of(("x", b"", {}))[:512] * 400_000),
    "negative size": _archive(lambda _: tar_of(("test_batch.bin", b"", {}))[:124] + b"\xff" * 388),
    "no archive": _archive(lambda _: b"\1" * 2000),
    "pipe": pipe(""),
    "endless": linked("", "/dev/zero"),
}
CIFAR_FOLDER: dict[str, Spoil] = {
    "endless": linked("test_batch.bin", "/dev/zero"),
    "pipe": pipe("data_batch_1.bin"),
    "link to itself": linked("test_batch.bin", "test_batch.bin"),
    "folder": lambda path, _: ((path / "test_batch.bin").unlink(), (path / "test_batch.bin").mkdir()),
    "empty": replaced("data_batch_2.bin", b""),
    "pickle": lambda path, canary: pickled(path / "data_batch_1.bin", canary),
}


def _mat(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + b"".join(elements)


def _element(kind: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def _matrix(shape: tuple[int, ...], data: bytes, *, flags: int = 9, kind: int = 2, name: bytes = b"X") -> bytes:
    parts = (_element(6, struct.pack("<II", flags, 0)), _element(5, struct.pack(f"<{len(shape)}i", *shape)))
    return _element(14, b"".join(parts) + _element(1, name) + _element(kind, data))


MAT: dict[str, Spoil] = {
    name: functools.partial(lambda content, path, _: path.write_bytes(content), _mat(*elements))
    for name, elements in {
        "huge": (_matrix((2**31 - 1,) * 4, b""),),
        "negative": (_matrix((-1, -1, -1, -5), bytes(5)),),
        "many dimensions": (_matrix((1,) * 9000, b"\1"),),
        "cell": (_matrix((1, 1), b"\1", flags=1),),
        "object": (_matrix((1, 1), b"\1", flags=17),),
        "unknown type": (_matrix((1, 1), b"\1", kind=255),),
        "longer than the file": (_element(14, b"", 2**32 - 1),),
        "bomb": (_element(15, zlib.compress(struct.pack("<II", 14, GIB)) + zeros(GIB, ZLIB)),),
        "empty elements": (_element(1, b"") * 300_000,),
    }.items()
}


def _mat_bombs(path: Path, _: Path) -> None:
    """Six variables that are not asked for, each just below what one may unpack to."""
    size = 250 * 2**20
    packer = zlib.compressobj(9)
    packed = packer.compress(struct.pack("<II", 14, size)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(_mat(*[_element(15, packed + piece * 250)] * 6))


MAT |= {"bombs": _mat_bombs, "pickle": pickled, "pipe": pipe(""), "endless": linked("", "/dev/zero")}


def zip_of(members: dict[str, bytes], path: Path, *, packed: bool = True) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def zip_bomb(path: Path, members: dict[str, bytes], name: str, start: bytes, size: int) -> None:
    """An archive of members, and one more of `start` and so many zeros, which takes no time to write."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + zeros(size, -15)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(name, packed)
        info = archive.getinfo(name)  # for the archive's directory, which is written at its end
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(start) + size


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy_header(shape: str, dtype: str = "'|u1'", *, version: int = 1) -> bytes:
    """A header of the .npy format with any text as its shape and type."""
    content = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(content)) + content


def _npz(**members: bytes) -> Spoil:
    """A sound file but for some arrays, as the bytes of their .npy files; and 300 kB that allow for large claims."""

    def spoil(path: Path, _: Path) -> None:
        sound = {f"{key}.npy": npy_bytes(array) for key, array in npz_arrays().items()}
        sound["ballast.npy"] = os.urandom(300_000)
        zip_of(sound | {f"{key}.npy": content for key, content in members.items()}, path)

    return spoil


def _npz_objects(path: Path, canary: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **npz_arrays(x_train=np.array([Payload(canary)] * 6, dtype=object)))


def _npz_bomb(name: str, start: bytes, size: int) -> Spoil:
    """A sound file with one more member, or another in the place of an array's, that unpacks to so many zeros."""

    def spoil(path: Path, _: Path) -> None:
        sound = {f"{key}.npy": npy_bytes(array) for key, array in npz_arrays().items()}
        sound.pop(name, None)
        zip_bomb(path, sound, name, start, size)

    return spoil


NPZ: dict[str, Spoil] = {
    "objects": _npz_objects,
    "object header": _npz(x_train=npy_header("(1, 1, 1)", "'|O'")),
    "pickle": pickled,
    "pickle for an array": lambda path, c: _npz(x_train=pickle.dumps(Payload(c)))(path, c),
    "huge": _npz(x_train=npy_header("(1000000, 1000000, 3)")),
    "overflow": _npz(x_train=npy_header(f"({2**62}, {2**62}, 3)")),
    "negative": _npz(x_train=npy_header("(-1, -1, -5)") + bytes(5)),
    "shape of truths": _npz(x_train=npy_header("(True, True, True)") + bytes(1)),
    "shape of code": _npz(x_train=npy_header("__import__('os').system('true')")),
    "deep shape": _npz(x_train=npy_header("(" * 4000 + ")" * 4000)),
    "deep minus": _npz(x_train=npy_header("-" * 9000 + "1")),
    "long type": _npz(x_train=npy_header("(1, 1, 1)", repr("u1," * 3000))),
    "nan labels": _npz(y_train=npy_bytes(np.full(6, np.nan))),
    "large labels": _npz(y_train=npy_bytes(np.array([0, 1, 2, 0, 1, 2**64 - 1], dtype=np.uint64))),
    "bomb": _npz_bomb("x_train.npy", npy_header("(4000, 300, 300)"), 4000 * 300 * 300),
    "long header": _npz_bomb("x_train.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff", 2 * GIB),
    "one that numpy would read for x_train.npy": _npz_bomb("x_train", b"", 2 * GIB),
    "pipe": pipe(""),
    "endless": linked("", "/dev/zero"),
}
