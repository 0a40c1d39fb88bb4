"""Readers of image dataset files: from a path to numpy arrays, or one `DataError` line that names the file.

All images leave as uint8 `(N, C, H, W)`, all labels as int64 `(N,)` counting from 0; only `read_idx` gives
the array as it stands in the file. `guards.py` says what holds for damaged and hostile files.
"""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from homojl.data.guards import (
    MAX_DEFLATE_RATIO,
    MAX_UNPACKED,
    BoundedReader,
    RefusedError,
    open_unpacked,
    read_exactly,
    reading,
    unpacked_limit,
)
from homojl.data.mat5 import read_mat5
from homojl.data.registry import SPLIT_SEED, TEST_FRACTION, stratified_choice
from homojl.data.tar import tar_files
from homojl.errors import ConfigError, DataError
from homojl.files import read_bytes

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""x_train, y_train, x_test, y_test."""

DIGITS = Path(__file__).with_name("digits.npz")
"""The one dataset that comes along."""

_CIFAR_MEMBERS = {
    10: ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"),
    100: ("cifar-100-binary", ["train.bin"], "test.bin"),
}
_CIFAR_PIXELS = 3 * 32 * 32
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_NPY_MAX_HEADER = 2**16  # bytes; numpy takes 10,000, and would read four billion to find that they are too many


def read_digits(paths: list[Path]) -> Arrays:
    """The digits in `digits.npz`, grey levels 0 to 16 stretched to 0 to 255, with a fixed test set.

    The file has `images`, uint8 (1797, 8, 8), and `labels`, uint8 (1797,); `digits.txt` has its source and licence.
    """
    with reading(DIGITS, "npz"), np.load(DIGITS, allow_pickle=False) as file:
        levels, labels = file["images"], file["labels"].astype(np.int64)
    images = np.round(levels * (255 / 16)).astype(np.uint8)[:, None]
    train, test = stratified_choice(labels, TEST_FRACTION, np.random.default_rng(SPLIT_SEED))
    return images[train], labels[train], images[test], labels[test]


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, the format of MNIST and Fashion-MNIST, gzipped or plain.

    Args:
        path: the file. It begins with 0x00000803 for images or 0x00000801 for labels, then come the sizes as
            big-endian uint32.

    Returns:
        uint8, `(N, H, W)` for images or `(N,)` for labels.

    Raises:
        DataError: missing file, other magic number, no data, or fewer or more bytes than the header says.

    References: http://yann.lecun.com/exdb/mnist/, "File formats for the MNIST database".
    """
    path = Path(path)
    with reading(path, "idx"), open_unpacked(path) as (stream, packed):
        magic = stream.read(4)
        if magic not in (b"\0\0\x08\x01", b"\0\0\x08\x03"):
            raise RefusedError(
                f"not an idx file of unsigned bytes (it begins with 0x{magic.hex() or '(nothing)'}, "
                "expected 0x00000801 or 0x00000803)"
            )
        sizes = stream.read(4 * magic[3])
        if len(sizes) < 4 * magic[3]:
            raise RefusedError("truncated: it ends within the header")
        shape = struct.unpack(f">{magic[3]}I", sizes)
        expected = math.prod(shape)
        if expected == 0:
            raise RefusedError(f"empty: the header says {' x '.join(map(str, shape))}")
        on_disk = path.stat().st_size
        if packed and expected > min(on_disk * MAX_DEFLATE_RATIO, MAX_UNPACKED):
            raise RefusedError(f"the header promises {expected} bytes, which {on_disk} gzipped bytes cannot hold")
        if not packed and expected != on_disk - 4 - len(sizes):
            problem = "truncated" if expected > on_disk - 4 - len(sizes) else "too long"
            raise RefusedError(f"{problem}: {on_disk} bytes, the header asks for {expected + 4 + len(sizes)}")
        data = read_exactly(stream, expected)
        if stream.read(1):  # reading past the end also makes gzip check its checksum
            raise RefusedError(f"too long: the header promises {expected} bytes of data")
        return data.reshape(shape)


def read_idx_dataset(paths: list[Path]) -> Arrays:
    """Four idx files (training images, training labels, test images, test labels) as one dataset.

    Returns:
        x_train uint8 `(N, 1, H, W)`, y_train int64 `(N,)`, x_test, y_test.

    Raises:
        DataError: as `read_idx`; images where labels should be, or not one label for each image.
    """
    return (*_read_idx_pair(*paths[:2]), *_read_idx_pair(*paths[2:]))


def _read_idx_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise DataError(f"{images_path}: holds labels, expected images")
    if labels.ndim != 1:
        raise DataError(f"{labels_path}: holds images, expected labels")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}")
    return images[:, None], labels.astype(np.int64)


def read_cifar_binary(path: Path, n_classes: int) -> Arrays:
    """CIFAR-10 or CIFAR-100, binary version, from the .tar.gz as downloaded or from its unpacked folder.

    A record is one label byte (CIFAR-10) or a coarse and a fine one (CIFAR-100; the fine one is returned),
    then the red, the green and the blue plane of a 32 x 32 image, row by row. Nothing is extracted to disk.

    Args:
        path: the archive, or the folder `cifar-10-batches-bin` or `cifar-100-binary`.
        n_classes: 10 or 100.

    Returns:
        x_train uint8 `(N, 3, 32, 32)`, y_train int64 `(N,)`, x_test, y_test.

    Raises:
        DataError: a file is missing, damaged, not a whole number of records, or has a label out of range.
        ConfigError: `n_classes` is neither 10 nor 100.

    References: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
    """
    path = Path(path)
    if n_classes not in _CIFAR_MEMBERS:
        raise ConfigError(f"CIFAR has 10 or 100 classes, not {n_classes}")
    folder, train_names, test_name = _CIFAR_MEMBERS[n_classes]
    wanted = [*train_names, test_name]
    contents: dict[str, bytes] = {}
    with reading(path, "CIFAR binary"):
        if path.is_dir():
            for name in wanted:
                with reading(path / name, "CIFAR binary"):
                    contents[name] = read_bytes(path / name, limit=MAX_UNPACKED)
        else:
            with gzip.open(path) as unpacked:
                places = {f"{prefix}{name}": name for prefix in ("", f"{folder}/") for name in wanted}
                contents = tar_files(BoundedReader(unpacked, MAX_UNPACKED), places)
            if missing := [name for name in wanted if name not in contents]:
                raise RefusedError(f"no {folder}/{missing[0]} inside; is it the binary version of the dataset?")
    parts = [_cifar_records(contents.pop(name), path, name, n_classes) for name in wanted]
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    return x_train, y_train, *parts[-1]


def read_cifar10(paths: list[Path]) -> Arrays:
    """As `read_cifar_binary`."""
    return read_cifar_binary(paths[0], 10)


def read_cifar100(paths: list[Path]) -> Arrays:
    """As `read_cifar_binary`."""
    return read_cifar_binary(paths[0], 100)


def _cifar_records(data: bytes, path: Path, name: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, 3, 32, 32)` and labels `(N,)` of one file of CIFAR records."""
    n_labels = 1 if n_classes == 10 else 2
    record = n_labels + _CIFAR_PIXELS
    if len(data) == 0 or len(data) % record:
        raise DataError(f"{path}: {name} has {len(data)} bytes, not a whole number of {record}-byte records")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    for column, limit in zip(range(n_labels), (n_classes,) if n_labels == 1 else (20, n_classes), strict=True):
        if (highest := records[:, column].max()) >= limit:
            raise DataError(f"{path}: {name} has the label {highest}; labels run from 0 to {limit - 1}")
    images = records[:, n_labels:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), records[:, n_labels - 1].astype(np.int64)


def read_svhn_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file of SVHN's format 2 (cropped digits), a MATLAB 5 file.

    Args:
        path: `train_32x32.mat` or `test_32x32.mat`: `X` uint8 `(32, 32, 3, N)`, `y` `(N, 1)` from 1 to 10,
            where 10 stands for the digit 0.

    Returns:
        Images uint8 `(N, 3, 32, 32)`, labels int64 `(N,)` from 0 to 9, each the digit itself.

    Raises:
        DataError: missing or damaged file, variable missing or of other shape or type, label out of range.

    References: http://ufldl.stanford.edu/housenumbers/; Netzer et al. (2011).
    """
    path = Path(path)
    with reading(path, "MATLAB 5"):
        variables = read_mat5(path, ("X", "y"))
        images, labels = variables["X"], variables["y"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.size == 0:
            raise RefusedError(f"X is {images.dtype} {images.shape}; expected uint8 (32, 32, 3, N)")
        n = images.shape[3]
        if labels.shape not in ((n, 1), (1, n)):
            raise RefusedError(f"y has shape {labels.shape}; expected ({n}, 1), a label for each image")
        if not np.isin(labels, np.arange(1, 11)).all():
            raise RefusedError(f"labels run from {labels.min()} to {labels.max()}; expected whole numbers 1 to 10")
        return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.reshape(-1).astype(np.int64) % 10


def read_svhn(paths: list[Path]) -> Arrays:
    """Both files of SVHN, the training images first; raises as `read_svhn_mat`."""
    return *read_svhn_mat(paths[0]), *read_svhn_mat(paths[1])


def read_npz(path: Path) -> Arrays:
    """A user's own dataset: an .npz file with `x_train`, `y_train`, `x_test`, `y_test`.

    Images are uint8, N x H x W, N x H x W x C or N x C x H x W with C = 1 or 3. Four dimensions are read as
    channel-last when the last one is 1 or 3, even where the second one could be the channels too; only when
    the last one is neither and the second one is, they are read as channel-first. Labels are integers, `(N,)`
    or `(N, 1)`, from 0 to K - 1, and every class has a training image. Other keys are ignored.

    Returns:
        x_train uint8 `(N, C, H, W)`, y_train int64 `(N,)`, x_test, y_test.

    Raises:
        DataError: missing or damaged file, a key missing, or an array of another shape, type or range.

    References: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    path = Path(path)
    with reading(path, "npz"):
        with zipfile.ZipFile(path) as archive:
            heads = [_npy_head(archive, key, path.stat().st_size) for key in _NPZ_KEYS]
            if sum(head.n_bytes for head in heads) > unpacked_limit(path.stat().st_size):
                raise RefusedError("unpacks to far more than its size; if that is right, save it with np.savez")
            x_train, y_train, x_test, y_test = (head.read(archive) for head in heads)
        if x_train.shape[1:] != x_test.shape[1:]:
            raise RefusedError(f"training images are {x_train.shape[1:]}, test images {x_test.shape[1:]}")
        for x, y, part in ((x_train, y_train, "train"), (x_test, y_test, "test")):
            if y.shape not in ((len(x),), (len(x), 1)):
                raise RefusedError(f"y_{part} has shape {y.shape}; expected ({len(x)},), a label for each image")
        y_train, y_test = y_train.reshape(-1), y_test.reshape(-1)
        classes = np.unique(y_train)
        n_classes = len(classes)
        if n_classes < 2 or int(classes[0]) != 0 or int(classes[-1]) != n_classes - 1:
            raise RefusedError(
                f"y_train has {n_classes} different labels from {classes[0]} to {classes[-1]}; "
                "labels must be 0 to K - 1 with K at least 2, each with a training image"
            )
        if int(y_test.min()) < 0 or int(y_test.max()) >= n_classes:
            raise RefusedError(f"y_test runs from {y_test.min()} to {y_test.max()}; y_train from 0 to {n_classes - 1}")
        return (
            _channels_first(x_train),
            y_train.astype(np.int64),
            _channels_first(x_test),
            y_test.astype(np.int64),
        )


@dataclass(frozen=True)
class _NpyHead:
    """What is known of an array in an archive before its data are read."""

    member: zipfile.ZipInfo
    size: int  # of the header in bytes
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, archive: zipfile.ZipFile) -> np.ndarray:
        """The array. Not by np.load, which may take another member of the archive than the one that was looked at."""
        with archive.open(self.member) as file:
            file.read(self.size)
            data = read_exactly(file, self.n_bytes)
            file.read(1)  # to the end, where the checksum is compared
        return data.view(self.dtype).reshape(self.shape, order=self.order)


def _npy_head(archive: zipfile.ZipFile, key: str, on_disk: int) -> _NpyHead:
    """Refuse an array by its header alone: type, shape, a size that its bytes in the archive cannot hold."""
    if f"{key}.npy" not in archive.namelist():
        raise RefusedError(f"no array {key!r} inside; expected {', '.join(_NPZ_KEYS)}")
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"{key} is compressed by a method that np.savez_compressed does not use")
    with archive.open(info) as file:
        bounded = BoundedReader(file, _NPY_MAX_HEADER)
        version = np.lib.format.read_magic(bounded)
        if version not in ((1, 0), (2, 0)):
            raise RefusedError(f"{key} is in .npy format {version}; expected (1, 0) or (2, 0)")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        try:
            shape, fortran, dtype = read_header(bounded)
        except (MemoryError, RecursionError):  # what Python's own parser says of brackets in brackets
            raise RefusedError(f"damaged: the header of {key} is nested too deeply") from None
    head = _NpyHead(info, bounded.count, shape, "F" if fortran else "C", dtype)
    if key.startswith("x"):
        if dtype != np.uint8:
            raise RefusedError(f"{key} is {dtype}; images must be uint8, 0 to 255")
        if len(shape) != 3 and not (len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3))):
            raise RefusedError(f"{key} has shape {shape}; expected N x H x W (x C) or N x C x H x W with C 1 or 3")
    elif dtype.kind not in "iu":
        raise RefusedError(f"{key} is {dtype}; labels must be integers")
    if 0 in shape or not shape:
        raise RefusedError(f"{key} is empty: shape {shape}")
    room = on_disk * (MAX_DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1)
    if min(shape) < 0 or info.file_size != head.size + head.n_bytes or head.n_bytes > room:
        raise RefusedError(f"damaged: {key} claims {shape} {dtype}, which its bytes in the file cannot hold")
    return head


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Images in any of the forms that `read_npz` accepts, as contiguous `(N, C, H, W)`."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)
