"""Hostile folders of pictures, and Tiny ImageNet as an archive and unpacked."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.fuzzing.datasets import zip_bomb, zip_of
from tests.fuzzing.payloads import GIB, Payload, Spoil, linked, pickled, pipe, replaced


def picture_bytes(width: int, height: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, form)
    return stream.getvalue()


@functools.cache
def _png_bomb() -> bytes:
    return picture_bytes(9000, 9000)


def _png_claim(width: int, height: int) -> bytes:
    """A PNG that claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _postscript(canary: Path) -> bytes:
    """What Pillow would give to Ghostscript."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n%%EndComments\n"
        b"(" + str(canary).encode() + b") (w) file closefile\nshowpage\n%%EOF\n"
    )


def _all_pictures(content: Callable[[Path], bytes]) -> Spoil:
    def spoil(path: Path, canary: Path) -> None:
        for file in path.rglob("*.png"):
            file.write_bytes(content(canary))

    return spoil


def _renamed(name: str | bytes) -> Spoil:
    return lambda path, _: os.rename(bytes(path / "cat"), bytes(path) + b"/" + os.fsencode(name))


_BMP_RLE = (
    struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0)
    + bytes(1024)
    + b"\0\0" * 8000
)
PICTURES: dict[str, Spoil] = {
    "postscript": _all_pictures(_postscript),
    "bombs": _all_pictures(lambda _: _png_bomb()),
    "large claims": _all_pictures(lambda _: _png_claim(2**31 - 1, 2**31 - 1)),
    "claims": _all_pictures(lambda _: _png_claim(12_000, 12_000)),
    "run-length bitmaps": _all_pictures(lambda _: _BMP_RLE),
    "pickle": _all_pictures(lambda canary: pickle.dumps(Payload(canary))),
    "endless": linked("cat/000.png", "/dev/zero"),
    "secret": linked("cat/000.png", "/etc/passwd"),
    "pipe": pipe("cat/000.png"),
    "link to itself": linked("cat/000.png", "000.png"),
    "folder for a picture": lambda path, _: ((path / "cat/000.png").unlink(), (path / "cat/000.png").mkdir()),
    "class that is a link": lambda path, _: (path / "bird").symlink_to("/proc/self"),
    "class name with a line break": _renamed("c\nat"),
    "class name that is no text": _renamed(b"c\xff\xfeat"),
    "class name for a terminal": _renamed("\x1b[2J"),
}


def _annotations(row: str) -> Spoil:
    return replaced("val/val_annotations.txt", f"{row}\tn02\t0\t0\t9\t9\n".encode())


def _zipped(change: dict[str, bytes]) -> Spoil:
    def spoil(path: Path, _: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        zip_of(members | {f"tiny-imagenet-200/{name}": content for name, content in change.items()}, path)

    return spoil


def _tiny_bomb(name: str) -> Spoil:
    def spoil(path: Path, _: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        name_there = f"tiny-imagenet-200/{name}"
        members.pop(name_there)
        zip_bomb(path, members, name_there, b"", 2 * GIB)

    return spoil


def _zip_method(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x63\0"))


TINY_FOLDER: dict[str, Spoil] = {
    "path that leads out": _annotations("../../../../../../../../dev/zero"),
    "secret": _annotations("../../../../../../../../etc/passwd"),
    "nothing": _annotations(""),
    "nul": _annotations("a\0b"),
    "endless": linked("val/val_annotations.txt", "/dev/zero"),
    "pipe": pipe("val/val_annotations.txt"),
    "not UTF-8": replaced("val/val_annotations.txt", b"\xff\n"),
    "large claim": replaced("train/n01/images/n01_0.JPEG", _png_claim(64, 2**31 - 1)),
    "postscript": lambda path, canary: (path / "train/n01/images/n01_0.JPEG").write_bytes(_postscript(canary)),
}
TINY_ZIP: dict[str, Spoil] = {
    "bomb": _tiny_bomb("train/n01/images/n01_0.JPEG"),
    "bomb of words": _tiny_bomb("words.txt"),
    "paths that lead out": _zipped({"../../../../../tmp/x": b"x", "train/../../x.JPEG": b"x"}),
    "many classes": _zipped({f"train/n{i:06}/images/x.JPEG": b"" for i in range(40_000)}),
    "another method": _zip_method,
    "pickle": pickled,
    "pipe": pipe(""),
}
