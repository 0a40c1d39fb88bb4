"""The reader of SVHN, and the one of MATLAB 5 files beneath it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from homojl.data.mat5 import read_mat5
from homojl.data.readers import read_svhn_mat

from .formats import (
    assert_same,
    random_images,
    refusal,
    write_svhn,
)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("n", [2, 11])
def test_svhn_round_trip(tmp_path, compress, n):
    images, digits = random_images(2, n, 3, 32, 32), np.arange(n) % 10
    x, y = read_svhn_mat(write_svhn(tmp_path / "train_32x32.mat", images, digits, compress=compress))
    assert_same(x, images, np.uint8)
    assert_same(y, digits, np.int64)


def test_svhn_labels_of_class_double_and_other_variables(tmp_path):
    images = random_images(3, 3, 3, 32, 32)
    variables = {"note": "text", "y": np.array([[10.0], [1.0], [9.0]]), "X": images.transpose(2, 3, 1, 0)}
    scipy.io.savemat(tmp_path / "train_32x32.mat", variables)
    x, y = read_svhn_mat(tmp_path / "train_32x32.mat")
    assert_same(x, images, np.uint8)
    assert_same(y, np.array([0, 1, 9]), np.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "no variable 'X'"),
        ({"y": None}, "no variable 'y'"),
        ({"X": np.zeros((32, 32, 3, 4))}, "X is float64"),
        ({"X": np.zeros((32, 32, 1, 4), np.uint8)}, "X is uint8 (32, 32, 1, 4)"),
        ({"X": np.zeros((32, 32, 3, 0), np.uint8)}, "X is uint8 (32, 32, 3, 0)"),
        ({"y": np.ones((3, 1), np.uint8)}, "y has shape (3, 1)"),
        ({"y": np.array([[0], [1], [2], [3]], np.uint8)}, "labels run from 0 to 3"),
        ({"y": np.array([[1], [1], [2], [11]], np.uint8)}, "labels run from 1 to 11"),
        ({"y": np.array([[1.0], [1.5], [2.0], [3.0]])}, "whole numbers"),
        ({"y": np.array([[1.0], [np.nan], [2.0], [3.0]])}, "labels run from nan"),
        ({"y": np.ones((4, 1), complex)}, "y is not an array of real numbers"),
        ({"y": "1234"}, "y is not an array of real numbers"),
    ],
)
def test_svhn_of_the_wrong_form(tmp_path, changes, message):
    variables = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)} | changes
    path = tmp_path / "train_32x32.mat"
    scipy.io.savemat(path, {name: value for name, value in variables.items() if value is not None})
    assert message in refusal(read_svhn_mat, path)


def mat_bytes(array: np.ndarray, *, compress: bool = False) -> bytearray:
    file = io.BytesIO()
    scipy.io.savemat(file, {"a": array}, do_compression=compress)
    return bytearray(file.getvalue())


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_mat5_reads_what_scipy_writes(tmp_path, compress, kind):
    array = (np.arange(24) * 5).astype(kind).reshape(2, 3, 4)
    path = tmp_path / "file.mat"
    path.write_bytes(mat_bytes(array, compress=compress))
    assert_same(read_mat5(path, ["a"])["a"], scipy.io.loadmat(path)["a"], array.dtype)


def test_mat5_big_endian(tmp_path):
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    matrix = b"".join(
        [
            element(6, struct.pack(">II", 6, 0)),  # class double
            element(5, struct.pack(">ii", 1, 2)),
            struct.pack(">I", 1 << 16 | 1) + b"a\0\0\0",  # a name within its tag
            element(3, struct.pack(">hh", -7, 300)),  # stored as int16
        ]
    )
    path = tmp_path / "file.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    np.testing.assert_array_equal(read_mat5(path, ["a"])["a"], [[-7, 300]])
    np.testing.assert_array_equal(scipy.io.loadmat(path)["a"], [[-7, 300]])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (127, ord("X"), "byte order"),
        (125, 2, "version 0x0200"),
        (128 + 4, 255, "beyond the end of the file"),
        (128 + 16, 99, "not an array of real numbers"),
        (128 + 32, 7, "of shape (7, 16)"),
        (128 + 48, 200, "unknown type 200"),
        (128 + 52, 255, "beyond its end"),
    ],
)
def test_mat5_with_one_damaged_byte(tmp_path, position, value, message):
    """The sixth of these ends the whole process in scipy.io.loadmat."""
    data = mat_bytes(random_images(4, 8, 16))
    data[position] = value
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(bytes(data).replace(b"\x01\0\x01\0a", b"\x01\0\x01\0X"))
    assert message in refusal(read_svhn_mat, path)


def test_mat5_compressed_variable_that_claims_too_much(tmp_path):
    packed = zlib.compress(struct.pack("<II", 14, 2**30) + bytes(100))
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(bytes(mat_bytes(np.zeros(1))[:128]) + struct.pack("<II", 15, len(packed)) + packed)
    assert "cannot hold" in refusal(read_svhn_mat, path)
