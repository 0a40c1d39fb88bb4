"""Folders of class folders, and Tiny ImageNet as an archive and unpacked."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from homojl.data import dataset_info, load_dataset, registry
from homojl.data.pictures import read_class_folders, read_tiny_imagenet
from homojl.errors import DataError

from .formats import encoded, picture, tiny_files, write_folder, write_tiny


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders(tmp_path, mode, channels, held_out):
    write_folder(tmp_path / "train", {"b cat": 3, "a dog": 2}, mode=mode)
    write_folder(tmp_path / held_out, {"a dog": 1, "b cat": 2}, mode=mode, first=7)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "a dog" / "notes.txt").write_text("not a picture")
    data = load_dataset(tmp_path)
    assert (data.name, data.class_names) == (tmp_path.name, ("a dog", "b cat"))
    assert data.input_shape == (channels, 5, 6)
    assert data.y_train.tolist() == [0, 0, 1, 1, 1]
    assert data.y_test.tolist() == [0, 1, 1]
    pixels = picture(8, mode=mode)
    expected = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(data.x_test[2].numpy(), expected)


def test_without_a_test_folder_a_fifth_is_held_out(tmp_path):
    write_folder(tmp_path, {"x": 10, "y": 5})
    data, again = load_dataset(tmp_path), load_dataset(str(tmp_path))
    assert (len(data.x_train), len(data.x_test)) == (12, 3)
    assert data.y_test.tolist() == [0, 0, 1]
    assert (data.x_test == again.x_test).all()


def test_one_colour_picture_makes_all_of_them_colour(tmp_path):
    write_folder(tmp_path, {"x": 2, "y": 2}, mode="L")
    (tmp_path / "y" / "z.bmp").write_bytes(encoded(picture(1), "BMP"))
    (x, y), names = read_class_folders(tmp_path)
    assert (x.shape, y.tolist(), names) == ((5, 3, 5, 6), [0, 0, 1, 1, 1], ("x", "y"))


def write_deep(root, form, arrays):
    for name in ("x", "y"):
        (root / name).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(array).save(root / name / f"{i}.{form}")


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_sixteen_bits_become_eight(tmp_path, form):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_deep(tmp_path, form, [levels, levels[::-1].copy()])
    (x, _), _ = read_class_folders(tmp_path)
    assert x.shape == (4, 1, 256, 256)
    expected = np.rint(levels / 257).astype(np.uint8)
    np.testing.assert_array_equal(x[0, 0], expected)
    np.testing.assert_array_equal(x[1, 0], expected[::-1])
    (tmp_path / "x" / "z.png").write_bytes(encoded(picture(0, size=(256, 256))))
    (x, _), _ = read_class_folders(tmp_path)
    assert x.shape == (5, 3, 256, 256)
    np.testing.assert_array_equal(x[0], np.stack([expected] * 3))


def test_big_endian_and_plain_and_scarce_sixteen_bits(tmp_path):
    levels = np.array([[0, 257, 4095, 65535]], dtype=np.uint16)
    write_deep(tmp_path, "tif", [levels])
    (tmp_path / "x" / "0.tif").write_bytes(tiff(levels.astype(">u2").tobytes(), bits=16, order=">"))
    (tmp_path / "y" / "0.tif").unlink()
    (tmp_path / "y" / "0.pgm").write_bytes(b"P2 4 1 65535 0 257 4095 65535")
    (tmp_path / "y" / "1.pgm").write_bytes(b"P2 4 1 1020 0 4 64 1020")  # its own white
    (tmp_path / "y" / "2.tif").write_bytes(tiff(bytes([0x00, 0x00, 0x10, 0x10, 0x0F, 0xFF]), bits=12))
    (x, _), _ = read_class_folders(tmp_path)
    assert x[:, 0, 0].tolist() == [[0, 1, 16, 255]] * 4


def tiff(data: bytes, *, bits: int, photometric: int = 1, sample: int = 1, order: str = "<") -> bytes:
    """A grey picture of 4 x 1 pixels."""
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1), (339, sample)]
    tags.insert(8, (279, len(data)))
    entries = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def test_floating_point_pictures(tmp_path):
    write_deep(tmp_path, "tif", [np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)])
    (x, _), _ = read_class_folders(tmp_path)
    assert x[:, 0, 0].tolist() == [[0, 64, 128, 255]] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(np.array([0, 1, 2, 255], "<f4").tobytes(), bits=32, sample=3), r"floating-point pixels from 0 to 255"),
        (tiff(np.array([0, 1, -0.1, 0], "<f4").tobytes(), bits=32, sample=3), r"floating-point pixels from -0.1 to 1"),
        (tiff(np.array([0, 1, np.nan, 0], "<f4").tobytes(), bits=32, sample=3), r"floating-point pixels from nan"),
        (tiff(np.arange(4, dtype="<i4").tobytes(), bits=32, sample=2), r"whole numbers of 32 bits"),
        (tiff(np.arange(4, dtype="<i2").tobytes(), bits=16, sample=2), r"whole numbers of 16 bits with a sign"),
        (tiff(np.arange(4, dtype="<u2").tobytes(), bits=16, photometric=0), r"0 for white and 16 bits"),
    ],
)
def test_what_is_white_cannot_be_told(tmp_path, content, message):
    write_deep(tmp_path, "png", [np.zeros((1, 4), np.uint8)])
    (tmp_path / "y" / "odd.tif").write_bytes(content)
    with pytest.raises(DataError, match=rf"y/odd\.tif has {message}") as error:
        load_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_what_systems_add_to_archives_is_passed_over(tmp_path):
    write_folder(tmp_path / "train", {"x": 2, "y": 2})
    write_folder(tmp_path / "test", {"x": 1, "y": 1})
    for folder in (tmp_path, tmp_path / "train", tmp_path / "test", tmp_path / "train" / "x"):
        for name in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"Mac OS X or Windows")
        for name in ("__MACOSX", "$RECYCLE.BIN", "System Volume Information"):
            (folder / name / "x").mkdir(parents=True)
            (folder / name / "._000.png").write_bytes(b"Mac OS X or Windows")
    data = load_dataset(tmp_path)
    assert (data.class_names, data.y_train.tolist(), data.y_test.tolist()) == (("x", "y"), [0, 0, 1, 1], [0, 1])


def spoil_size(root):
    (root / "x" / "zz.png").write_bytes(encoded(picture(0, size=(7, 5))))


def spoil_content(root):
    (root / "x" / "zz.png").write_bytes(b"no picture")


def spoil_end(root):
    content = encoded(np.zeros((50, 60, 3), np.uint8) + np.arange(60, dtype=np.uint8)[None, :, None])
    for path in root.rglob("*.png"):
        path.write_bytes(content)
    (root / "x" / "000.png").write_bytes(content[: len(content) // 2])


def spoil_class(root):
    (root / "empty").mkdir()


def spoil_all(root):
    for path in root.rglob("*.png"):
        path.unlink()
    (root / "x").rmdir()
    (root / "y").rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_size, r"zz.png is 7 x 5 pixels, others are 6 x 5"),
        (spoil_content, r"zz.png is not a readable picture"),
        (spoil_end, r"000.png is (damaged|not a readable picture)"),
        (spoil_class, r"the class folder 'empty' has no pictures"),
        (spoil_all, r"has 0 folders"),
    ],
)
def test_refused(tmp_path, spoil, message):
    write_folder(tmp_path, {"x": 3, "y": 2})
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_refused_where_classes_differ_or_are_too_small(tmp_path):
    write_folder(tmp_path / "own" / "train", {"x": 1, "y": 1})
    write_folder(tmp_path / "own" / "test", {"x": 1, "z": 1})
    with pytest.raises(DataError, match="only one of them has 'y'"):
        load_dataset(tmp_path / "own")
    write_folder(tmp_path / "small", {"x": 1, "y": 1})
    with pytest.raises(DataError, match="too few"):
        load_dataset(tmp_path / "small")


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet(tmp_path, monkeypatch, packed):
    folder = tmp_path / "tiny-imagenet"
    folder.mkdir()
    path = write_tiny(folder, tiny_files(), packed=packed)
    info = dataset_info("tiny-imagenet")
    (file,) = info.files
    if packed:
        file = dataclasses.replace(file, md5=hashlib.md5(path.read_bytes()).hexdigest())
    small = dataclasses.replace(info, n_classes=2, n_train=5, n_test=2, files=(file,))
    monkeypatch.setitem(registry._DATASETS, "tiny-imagenet", small)
    data = load_dataset("tiny-imagenet", root=tmp_path, download=False)
    assert data.class_names == ("goldfish", "tabby")
    assert data.input_shape == (3, 64, 64)
    assert data.y_train.tolist() == [0, 0, 0, 1, 1]
    assert data.y_test.tolist() == [1, 0]
    expected = np.asarray(Image.open(io.BytesIO(tiny_files()["train/n02/images/n02_1.JPEG"])).convert("RGB"))
    np.testing.assert_array_equal(data.x_train[4].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("packed", [True, False])
def test_tiny_imagenet_that_a_mac_has_packed(tmp_path, packed):
    added = {"train/n01/images/._n01_0.JPEG": b"Mac OS X", "train/._n01": b"Mac OS X", "train/.DS_Store": b"Mac OS X"}
    x, y, _, _ = read_tiny_imagenet([write_tiny(tmp_path, tiny_files() | added, packed=packed)])
    assert (len(x), y.tolist()) == (5, [0, 0, 0, 1, 1])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/val_annotations.txt": b"val_0.JPEG\tn09\n"}, "names other classes"),
        ({"val/val_annotations.txt": b"val_7.JPEG\tn01\n"}, "val_7"),
        ({"train/n02/images/n02_0.JPEG": b"no picture"}, "n02_0.JPEG is not a readable picture"),
        ({"train/n02/images/n02_0.JPEG": encoded(picture(0), "JPEG")}, "is 6 x 5 pixels, others are 64 x 64"),
    ],
)
def test_tiny_imagenet_refused(tmp_path, packed, change, message):
    path = write_tiny(tmp_path, tiny_files() | change, packed=packed)
    with pytest.raises(DataError, match=message):
        read_tiny_imagenet([path])
