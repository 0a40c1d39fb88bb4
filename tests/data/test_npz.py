"""The reader of a user's own .npz file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from homojl.data.readers import read_npz

from .formats import (
    assert_same,
    npz_arrays,
    random_images,
    refusal,
)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 9), None),
        ((8, 9, 1), (0, 3, 1, 2)),
        ((8, 9, 3), (0, 3, 1, 2)),
        ((3, 9, 3), (0, 3, 1, 2)),  # ambiguous: the last dimension is preferred
        ((3, 9, 1), (0, 3, 1, 2)),
        ((1, 8, 9), (0, 1, 2, 3)),
        ((3, 8, 9), (0, 1, 2, 3)),
    ],
)
def test_npz_layouts(tmp_path, save, shape, axes):
    arrays = npz_arrays(x_train=random_images(7, 6, *shape), x_test=random_images(8, 2, *shape), extra=np.ones(3))
    save(tmp_path / "own.npz", **arrays)
    x_train, y_train, x_test, y_test = read_npz(tmp_path / "own.npz")
    for actual, given_images in ((x_train, arrays["x_train"]), (x_test, arrays["x_test"])):
        expected = given_images[:, None] if axes is None else given_images.transpose(axes)
        assert_same(actual, expected, np.uint8)
        assert actual.flags.c_contiguous
    assert_same(y_train, arrays["y_train"], np.int64)
    assert_same(y_test, arrays["y_test"], np.int64)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_npz_label_types_and_columns(tmp_path, dtype):
    labels = np.array([0, 1, 2, 0, 1, 2], dtype)
    np.savez(tmp_path / "own.npz", **npz_arrays(y_train=labels[:, None], y_test=labels[:2]))
    assert_same(read_npz(tmp_path / "own.npz")[1], labels, np.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({key: None}, f"no array '{key}'") for key in ("x_train", "y_train", "x_test", "y_test")),
        ({"x_train": np.full((6, 8, 9, 3), np.nan)}, "x_train is float64; images must be uint8"),
        ({"x_test": np.zeros((2, 8, 9, 3), np.int16)}, "x_test is int16"),
        ({"y_train": np.array([0, 1, np.nan, 0, 1, 2])}, "y_train is float64; labels must be integers"),
        ({"y_test": np.array([True, False])}, "y_test is bool"),
        ({"y_test": np.array([{}, {}], dtype=object)}, "y_test is object"),
        ({"x_train": np.zeros((6, 8, 9, 2), np.uint8)}, "x_train has shape (6, 8, 9, 2)"),
        ({"x_train": np.zeros((6, 72), np.uint8)}, "x_train has shape (6, 72)"),
        ({"x_train": np.zeros((0, 8, 9, 3), np.uint8)}, "x_train is empty"),
        ({"x_test": np.zeros((0, 8, 9, 3), np.uint8), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"x_test": np.zeros((2, 9, 8, 3), np.uint8)}, "test images (9, 8, 3)"),
        ({"y_train": np.array([0, 1, 2])}, "y_train has shape (3,)"),
        ({"y_train": np.array(1)}, "y_train is empty"),
        ({"y_train": np.array([1, 2, 3, 1, 2, 3])}, "3 different labels from 1 to 3"),
        ({"y_train": np.array([0, 2, 2, 0, 2, 2])}, "2 different labels from 0 to 2"),
        ({"y_train": np.array([-1, 0, 1, 0, 1, 2])}, "labels from -1 to 2"),
        ({"y_train": np.array([0, 0, 0, 0, 0, 2**64 - 1], np.uint64)}, f"from 0 to {2**64 - 1}"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(2, int)}, "K at least 2"),
        ({"y_test": np.array([0, 3])}, "y_test runs from 0 to 3"),
        ({"y_test": np.array([-1, 0])}, "y_test runs from -1 to 0"),
    ],
)
def test_npz_of_the_wrong_form(tmp_path, changes, message):
    np.savez(tmp_path / "own.npz", **npz_arrays(**changes))
    assert message in refusal(read_npz, tmp_path / "own.npz")


def test_npz_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "own.npz", **npz_arrays(x_train=np.array([Trap()], dtype=object)))
    assert "x_train is object" in refusal(read_npz, tmp_path / "own.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_header_that_claims_too_much(tmp_path, compression):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 9, 3)})
    with zipfile.ZipFile(tmp_path / "own.npz", "w", compression) as archive:
        archive.writestr("x_train.npy", file.getvalue() + bytes(100))
    assert "cannot hold" in refusal(read_npz, tmp_path / "own.npz")


def test_npz_of_another_compression(tmp_path):
    with zipfile.ZipFile(tmp_path / "own.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x_train.npy", b"anything")
    assert "compressed by a method" in refusal(read_npz, tmp_path / "own.npz")
