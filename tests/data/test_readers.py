"""The readers of idx files and of CIFAR's binary version."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from homojl.data.readers import read_cifar_binary, read_idx, read_idx_dataset
from homojl.errors import ConfigError, DataError

from .formats import (
    assert_same,
    cifar_files,
    idx_bytes,
    random_images,
    refusal,
    write_cifar_archive,
    write_cifar_folder,
    write_idx,
)


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
@pytest.mark.parametrize("shape", [(5, 28, 28), (3, 2, 7), (9,)])
def test_idx_round_trip(tmp_path, name, shape):
    array = random_images(0, *shape)
    assert_same(read_idx(write_idx(tmp_path / name, array)), array, np.uint8)


def test_idx_is_known_by_content_and_not_by_name(tmp_path):
    path = tmp_path / "unpacked-but-still-called.gz"
    path.write_bytes(idx_bytes(np.arange(6)))
    assert_same(read_idx(path), np.arange(6), np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\0\0\x0d\x03" + bytes(12), "not an idx file"),  # floats
        (b"\0\0\x08\x02" + struct.pack(">II", 1, 1) + b"a", "not an idx file"),
        (b"\0\0\x08\x03" + bytes(5), "within the header"),
        (b"\0\0\x08\x01" + struct.pack(">I", 0), "empty"),
        (b"\0\0\x08\x03" + struct.pack(">III", 5, 0, 5), "empty"),
        (idx_bytes(np.arange(10))[:-1], "truncated"),
        (idx_bytes(np.arange(10)) + b"x", "too long"),
        (b"\0\0\x08\x03" + struct.pack(">III", *[2**32 - 1] * 3) + bytes(9), "truncated"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path, data, message, packed):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if packed else data)
    text = refusal(read_idx, path)
    assert message in text or (packed and "cannot hold" in text)


def test_idx_with_a_wrong_gzip_checksum(tmp_path):
    data = bytearray(gzip.compress(idx_bytes(np.arange(10))))
    data[-8] ^= 1
    (tmp_path / "file").write_bytes(data)
    assert "CRC" in refusal(read_idx, tmp_path / "file")


def test_small_hostile_files_do_not_fill_the_memory(tmp_path):
    bomb = gzip.compress(idx_bytes(np.arange(4)) + bytes(2**26))
    (tmp_path / "too-long").write_bytes(bomb)
    (tmp_path / "liar").write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 2**31 - 1) + bytes(9)))
    tracemalloc.start()
    assert "too long" in refusal(read_idx, tmp_path / "too-long")
    assert "cannot hold" in refusal(read_idx, tmp_path / "liar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_idx_dataset(tmp_path):
    x, y = random_images(1, 7, 4, 5), np.arange(7)
    files = [
        write_idx(tmp_path / "a.gz", x),
        write_idx(tmp_path / "b", y),
        write_idx(tmp_path / "c", x[:3]),
        write_idx(tmp_path / "d", y[:3]),
    ]
    arrays = read_idx_dataset(files)
    for actual, expected, dtype in zip(
        arrays, (x[:, None], y, x[:3, None], y[:3]), (np.uint8, np.int64) * 2, strict=True
    ):
        assert_same(actual, expected, dtype)
    for wrong, named, message in (
        ([1, 1, 2, 3], "b", "holds labels"),
        ([0, 0, 2, 3], "a.gz", "holds images"),
        ([0, 1, 2, 1], "b", "7 labels for the 3 images"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_idx_dataset([files[i] for i in wrong])
        assert str(caught.value).startswith(str(tmp_path / named))


@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("archive", [True, False])
def test_cifar_round_trip(tmp_path, n_classes, archive):
    files = cifar_files(n_classes, per_file=3)
    contents = {name: data for name, (_, _, data) in files.items()}
    if archive:  # whatever the order inside
        path = write_cifar_archive(tmp_path / "cifar.tar.gz", n_classes, dict(reversed(contents.items())))
    else:
        path = write_cifar_folder(tmp_path, n_classes, contents)
    x_train, y_train, x_test, y_test = read_cifar_binary(path, n_classes)
    images, labels, _ = zip(*files.values(), strict=True)
    assert_same(x_train, np.concatenate(images[:-1]), np.uint8)
    assert_same(y_train, np.concatenate(labels[:-1]), np.int64)
    assert_same(x_test, images[-1], np.uint8)
    assert_same(y_test, labels[-1], np.int64)
    assert sorted(tmp_path.iterdir()) == [path]  # nothing was extracted beside it


def test_cifar_class_count():
    with pytest.raises(ConfigError, match="not 20"):
        read_cifar_binary(Path("anything"), 20)


@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("damage", ["missing", "truncated", "too long", "empty", "label", "coarse label"])
def test_damaged_cifar(tmp_path, n_classes, archive, damage):
    contents = {name: data for name, (_, _, data) in cifar_files(n_classes, per_file=2).items()}
    name = list(contents)[-2]
    data = contents.pop(name)
    if damage == "coarse label" and n_classes == 10:
        damage = "label"
    label_at = len(data) // 2 + (n_classes == 100 and damage == "label")
    changed = {
        "truncated": data[:-1],
        "too long": data + b"x",
        "empty": b"",
        "label": data[:label_at] + bytes([n_classes]) + data[label_at + 1 :],
        "coarse label": data[:label_at] + b"\x14" + data[label_at + 1 :],
    }
    if damage != "missing":
        contents[name] = changed[damage]
    if archive:
        path = write_cifar_archive(tmp_path / "cifar.tar.gz", n_classes, contents)
    else:
        path = write_cifar_folder(tmp_path, n_classes, contents)
    text = refusal(read_cifar_binary, path, n_classes)
    assert name in text
    assert {"label": f"the label {n_classes};", "coarse label": "the label 20;", "missing": "no "}.get(
        damage, "not a whole number"
    ) in text


def test_cifar_archive_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("homojl.data.readers.MAX_UNPACKED", 2**20)
    contents = {name: data for name, (_, _, data) in cifar_files(10, per_file=1).items()}
    path = write_cifar_archive(tmp_path / "cifar.tar.gz", 10, contents | {"zeros": bytes(2**21)})
    assert "unpacks to more than 1048576 bytes" in refusal(read_cifar_binary, path, 10)
