"""Writers of small files in the exact formats of the published datasets, and what their tests assert."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from homojl.errors import DataError

CIFAR_LAYOUT = {
    10: ("cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]),
    100: ("cifar-100-binary", ["train.bin", "test.bin"]),
}


def random_images(seed: int, *shape: int) -> np.ndarray:
    """uint8 noise of the given shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of one or three dimensions in MNIST's format."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> Path:
    """An idx file, gzipped if the name ends in .gz."""
    data = idx_bytes(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def cifar_files(n_classes: int, per_file: int, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray, bytes]]:
    """File name -> images (N, 3, 32, 32), labels (N,) and the bytes of the file in CIFAR's binary version."""
    rng = np.random.default_rng(seed)
    files = {}
    for name in CIFAR_LAYOUT[n_classes][1]:
        images = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, n_classes, per_file)
        data = b""
        for image, label in zip(images, labels, strict=True):
            coarse = b"" if n_classes == 10 else bytes([rng.integers(20)])
            red, green, blue = image
            data += coarse + bytes([label]) + red.tobytes() + green.tobytes() + blue.tobytes()
        files[name] = (images, labels, data)
    return files


def write_cifar_archive(path: Path, n_classes: int, contents: dict[str, bytes]) -> Path:
    """The .tar.gz, with a folder entry and a text file beside the data as in the published one."""
    folder = CIFAR_LAYOUT[n_classes][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        for name, data in {"readme.html": b"<html></html>", **contents}.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_cifar_folder(parent: Path, n_classes: int, contents: dict[str, bytes]) -> Path:
    """The unpacked folder."""
    folder = parent / CIFAR_LAYOUT[n_classes][0]
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


def write_svhn(path: Path, images: np.ndarray, digits: np.ndarray, *, compress: bool = True) -> Path:
    """SVHN's format 2 from images (N, 3, 32, 32) and digits 0 to 9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": labels}, do_compression=compress)
    return path


def npz_arrays(**changes) -> dict[str, np.ndarray]:
    """A sound user's dataset with some arrays exchanged, or left out where None."""
    arrays = {
        "x_train": random_images(5, 6, 8, 9, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random_images(6, 2, 8, 9, 3),
        "y_test": np.array([2, 0]),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def picture(seed: int, size=(6, 5), mode: str = "RGB") -> np.ndarray:
    """Noise, uint8 (H, W) for mode "L", else (H, W, 3); `size` is width and height."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    """A picture's file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_folder(root: Path, counts: dict[str, int], *, mode: str = "RGB", first: int = 0) -> None:
    """A folder of class folders with so many pictures each."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03}.png").write_bytes(encoded(picture(first + i, mode=mode)))


def tiny_files() -> dict[str, bytes]:
    """Two classes, of two and three training images, and two validation images; one of them grey."""
    big = {"size": (64, 64)}
    files = {f"train/n02/images/n02_{i}.JPEG": encoded(picture(i, **big), "JPEG") for i in range(2)}
    files |= {f"train/n01/images/n01_{i}.JPEG": encoded(picture(9 + i, **big), "JPEG") for i in range(3)}
    files["train/n01/n01_boxes.txt"] = b"n01_0.JPEG\t0\t0\t9\t9\n"
    files["val/images/val_0.JPEG"] = encoded(picture(20, **big), "JPEG")
    files["val/images/val_1.JPEG"] = encoded(picture(21, **big, mode="L"), "JPEG")
    files["val/val_annotations.txt"] = b"val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t1\t1\t2\t2\n"
    files["words.txt"] = b"n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\ttabby\n"
    return files


def write_tiny(path: Path, files: dict[str, bytes], *, packed: bool) -> Path:
    """Tiny ImageNet below a folder, as its archive or unpacked."""
    if packed:
        with zipfile.ZipFile(path / "tiny-imagenet-200.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", content)
        return path / "tiny-imagenet-200.zip"
    for name, content in files.items():
        file = path / "tiny-imagenet-200" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path / "tiny-imagenet-200"


def assert_same(actual: np.ndarray, expected: np.ndarray, dtype: type) -> None:
    """The same values, in the type that was promised."""
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, expected)


def refusal(read, path: Path, *arguments) -> str:
    """The message with which a reader refuses a file: one line that names it."""
    with pytest.raises(DataError) as caught:
        read(path, *arguments)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message
