"""Readers of picture files: folders of class folders, and Tiny ImageNet in its archive or unpacked.

Images leave as uint8 `(N, C, H, W)`, labels as int64 `(N,)`; whatever goes wrong is one `DataError` line that names
the file (see `guards.py`). A picture's size is known, and held against that of the others, before it is decoded.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from homojl.data.guards import RefusedError, reading, unpacked_limit
from homojl.data.readers import Arrays
from homojl.files import read_bytes

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files in a class folder that are pictures, in small letters; others are passed over."""

_NOT_CLASSES = (
    "__MACOSX",
    "$RECYCLE.BIN",
    "System Volume Information",
)  # folders that systems add to archives and disks

# Pillow tells a format by the content, whatever the name, and reads some with other programs, such as Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MAX_FILE = 2**26  # bytes of one file

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # modes of grey with more than 8 bits, which `convert` would clip

_TINY_SIZE = 64
_TINY_MAX_MEMBER = 2**23  # bytes of one unpacked file; the largest published one, words.txt, has below three million


def read_class_folders(path: Path) -> tuple[Arrays | tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """A folder with a folder of pictures for each class, whose names are the classes'.

    Args:
        path: either of these folders, or one with `train` and `test` (or `val`) in it that are both such folders of
            the same classes. All pictures have the same size. Pictures that are grey, all of them, have one channel,
            otherwise three; grey of 12 or 16 bits becomes 8 bits, floating-point grey has to lie between 0, which is
            black, and 1. Names that begin with a dot, and folders such as `__MACOSX`, are passed over.

    Returns:
        x_train, y_train, x_test, y_test, or where there is no such division only x, y; and the classes' names, sorted.

    Raises:
        DataError: no class folders, a class without pictures, classes that differ, sizes that differ, a file that
            is not a readable picture, or one of which cannot be told what is white.
    """
    path = Path(path)
    with reading(path, "folder of class folders"):
        held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
        if not (path / "train").is_dir() or held_out is None:
            names, files, labels = _class_folders(path)
            return (_decoded(files, grey=_all_grey(files)), labels), names
        names, train, y_train = _class_folders(path / "train")
        others, test, y_test = _class_folders(held_out)
        if others != names:
            odd = sorted(set(names) ^ set(others))
            raise RefusedError(f"train and {held_out.name} must have the same classes; only one of them has {odd[0]!r}")
        grey = _all_grey(train + test)
        images = _decoded(train + test, grey=grey)
        return (images[: len(train)], y_train, images[len(train) :], y_test), names


def read_pictures(paths: Sequence[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Single pictures for a model, uint8 (N, C, H, W): grey or in colour, and scaled to its size where theirs differs.

    Args:
        shape: (C, H, W) of the result, C 1 or 3.

    Raises:
        DataError: one is no readable picture, or what is white in it cannot be told.
    """
    from PIL import Image

    channels, height, width = shape
    images = np.empty((len(paths), *shape), dtype=np.uint8)
    for place, path in enumerate(paths):
        with reading(path, "picture"):
            source = Source(path.name, partial(read_bytes, path, limit=_MAX_FILE), path.stat().st_size)
            image = _decoded([source], grey=channels == 1)[0]
        if image.shape != shape:
            bands = [Image.fromarray(band).resize((width, height), Image.Resampling.BILINEAR) for band in image]
            image = np.stack([np.asarray(band) for band in bands])
        images[place] = image
    return images


def read_tiny_imagenet(paths: list[Path]) -> Arrays:
    """Tiny ImageNet; its validation images, whose labels are published, serve as the test set.

    Args:
        paths: one: of tiny-imagenet-200.zip, or of the folder that it unpacks to.

    Returns:
        Images `(N, 3, 64, 64)`, labels in the order of the sorted WordNet identifiers.

    Raises:
        DataError: missing or damaged files, or of another form.
    """
    (path,) = paths
    with reading(path, "Tiny ImageNet"), _members(path) as (names, read):
        train = sorted(name for name in names if _is_training_image(name))
        classes = sorted({name.split("/")[1] for name in train})
        index = {name: label for label, name in enumerate(classes)}
        rows = [line.split("\t") for line in read("val/val_annotations.txt").decode().splitlines()]
        unknown = [row for row in rows if len(row) < 2 or row[1] not in index]
        if not train or not rows or unknown:
            raise RefusedError("not Tiny ImageNet: no training images, or val/val_annotations.txt names other classes")
        test = [f"val/images/{row[0]}" for row in rows]
        for name in sorted(set(test).difference(names)):  # also one that leads out of the folder
            raise RefusedError(f"val/val_annotations.txt names {name}, which is not there")
        sources = [Source(name, partial(read, name), _TINY_MAX_MEMBER) for name in (*train, *test)]
        images = _decoded(sources, grey=False, size=(_TINY_SIZE, _TINY_SIZE))
        y_train = np.array([index[name.split("/")[1]] for name in train], dtype=np.int64)
        y_test = np.array([index[row[1]] for row in rows], dtype=np.int64)
        return images[: len(train)], y_train, images[len(train) :], y_test


def read_tiny_imagenet_names(paths: list[Path]) -> tuple[str, ...]:
    """The first word for each of Tiny ImageNet's classes, sorted by WordNet identifier; that, where a word repeats.

    Args, Raises: as of `read_tiny_imagenet`.
    """
    (path,) = paths
    with reading(path, "Tiny ImageNet"), _members(path) as (names, read):
        classes = sorted({name.split("/")[1] for name in names if _is_training_image(name)})
        words = dict(line.split("\t", 1) for line in read("words.txt").decode().splitlines() if "\t" in line)
        found = [words.get(name, name).partition(",")[0] for name in classes]
        times = Counter(found)
        return tuple(word if times[word] == 1 else name for name, word in zip(classes, found, strict=True))


class Source(NamedTuple):
    """A picture: its name for messages, what reads its file, and how many bytes that has, or may have."""

    name: str
    read: Callable[[], bytes]
    size: int


def _of_system(name: str) -> bool:
    """Whether a file or folder is an operating system's own, or hidden: `._x.png`, `.DS_Store`, `__MACOSX`."""
    return name.startswith(".") or name in _NOT_CLASSES


def _class_folders(path: Path) -> tuple[tuple[str, ...], list[Source], np.ndarray]:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not _of_system(p.name))
    if len(folders) < 2:
        raise RefusedError(f"{path.name} has {len(folders)} folders; a folder of pictures is needed for each class")
    for folder in folders:
        if not folder.name.isprintable():  # it becomes a class's name, in tables and in files of other formats
            raise RefusedError(f"the class folder {folder.name!r} has characters in its name that cannot be shown")
    files, labels = [], []
    for label, folder in enumerate(folders):
        own = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not _of_system(p.name))
        if not own:
            raise RefusedError(f"the class folder {folder.name!r} has no pictures ({', '.join(SUFFIXES)})")
        files += [
            Source(str(p.relative_to(path)), partial(read_bytes, p, limit=_MAX_FILE), p.stat().st_size) for p in own
        ]
        labels += [label] * len(own)
    return tuple(folder.name for folder in folders), files, np.array(labels, dtype=np.int64)


def _is_training_image(name: str) -> bool:
    """Whether a member of Tiny ImageNet is one."""
    return name.startswith("train/") and name.endswith(".JPEG") and not any(map(_of_system, name.split("/")))


@contextmanager
def _members(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names below tiny-imagenet-200, and what reads one of them, in the archive or the folder."""
    if path.is_dir():
        yield (
            [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()],
            lambda name: read_bytes(path / name, limit=_TINY_MAX_MEMBER),
        )
        return
    with zipfile.ZipFile(path) as archive:
        prefix = "tiny-imagenet-200/"

        def read(name: str) -> bytes:
            info = archive.getinfo(prefix + name)
            if info.file_size > _TINY_MAX_MEMBER:
                raise RefusedError(f"{name} unpacks to {info.file_size} bytes")
            return archive.read(info)

        yield [name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)], read


def _opened(source: Source) -> Image.Image:
    from PIL import Image  # only pictures need it

    try:
        content = source.read()
    except OSError as error:
        raise RefusedError(f"{source.name} cannot be read: {error.strerror or error}") from error
    try:
        with _silent():
            return Image.open(io.BytesIO(content), formats=_FORMATS)
    except Exception as error:
        raise RefusedError(f"{source.name} is not a readable picture ({type(error).__name__})") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress Pillow's warnings: the error that follows says what is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _all_grey(sources: Sequence[Source]) -> bool:
    return all(_opened(source).mode in ("1", "L", *_DEEP) for source in sources)


def _eight_bits(source: Source, picture: Image.Image) -> Image.Image:
    """The picture, its grey of more bits as mode "L": 65535, or what else is white, becomes 255.

    Raises:
        RefusedError: what is white cannot be told.
    """
    if picture.mode not in _DEEP:
        return picture
    from PIL import Image, TiffImagePlugin

    bits = 16
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        if picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            raise RefusedError(f"{source.name} has 0 for white and {bits} bits a pixel; save it with 0 for black")
        if picture.mode == "I":
            raise RefusedError(
                f"{source.name} has whole numbers of {bits} bits with a sign, or of 32 bits, and nothing says which of "
                "them is white; save it with 8 or 16 bits, from 0"
            )
    values = np.asarray(picture)
    if picture.mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # also NaN
            raise RefusedError(
                f"{source.name} has floating-point pixels from {low:.4g} to {high:.4g}; expected 0, black, to 1, white"
            )
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    values = values.astype(np.uint16)  # mode I here is 16 bits of PNG or PGM
    if bits == 12:
        values = values << 4 | values >> 8
    rounded = (np.minimum(values, 65407) + 128) // 257  # in 16 bits: 65407 + 128 is their largest number
    return Image.fromarray(rounded.astype(np.uint8))


def _decoded(sources: Sequence[Source], *, grey: bool, size: tuple[int, int] | None = None) -> np.ndarray:
    """All pictures, uint8 (N, C, H, W), of one (width, height); by default the first one's."""
    images: np.ndarray | None = None
    for i, source in enumerate(sources):
        picture = _opened(source)
        size = picture.size if size is None else size
        if picture.size != size:
            shown, wanted = (" x ".join(map(str, s)) for s in (picture.size, size))
            raise RefusedError(f"{source.name} is {shown} pixels, others are {wanted}; bring them to one size first")
        if images is None:
            shape = (len(sources), 1 if grey else 3, size[1], size[0])
            if math.prod(shape) > unpacked_limit(sum(source.size for source in sources)):
                raise RefusedError(
                    f"{len(sources)} pictures of {size[0]} x {size[1]} pixels unpack to {math.prod(shape)} bytes, "
                    "far more than their files have; if that is right, save them in an .npz file with np.savez"
                )
            images = np.empty(shape, dtype=np.uint8)
        try:
            with _silent():
                pixels = np.asarray(_eight_bits(source, picture).convert("L" if grey else "RGB"))
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"{source.name} is damaged ({type(error).__name__})") from error
        images[i] = pixels if grey else pixels.transpose(2, 0, 1)
    assert images is not None, "there is a picture"
    return images
