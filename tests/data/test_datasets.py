"""Datasets by name and by path: where files are found, what is refused, and what an ImageDataset knows."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from homojl.data import ImageDataset, dataset_info, dataset_names, load_dataset, registry
from homojl.data.readers import DIGITS
from homojl.errors import ConfigError, DataError

from .formats import (
    cifar_files,
    idx_bytes,
    npz_arrays,
    random_images,
    write_cifar_archive,
    write_cifar_folder,
    write_idx,
    write_svhn,
)


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """No test sees this machine's datasets or reaches another machine: every address is a closed port."""
    monkeypatch.setenv("HOMOJL_DATA", str(tmp_path / "default-root"))
    for name, info in registry._DATASETS.items():
        files = tuple(
            dataclasses.replace(file, urls=tuple(f"http://127.0.0.1:9/{file.name}" for _ in file.urls))
            for file in info.files
        )
        monkeypatch.setitem(registry._DATASETS, name, dataclasses.replace(info, files=files))


def shrink(monkeypatch, name: str, n_train: int, n_test: int, contents: list[bytes], **changes) -> None:
    """Let the registry expect small files, whose packed contents (as bytes) are given in order."""
    info = dataset_info(name)
    files = tuple(
        dataclasses.replace(
            file,
            md5=hashlib.md5(content).hexdigest(),
            content_md5=file.content_md5 and hashlib.md5(gzip.decompress(content)).hexdigest(),
        )
        for file, content in zip(info.files, contents, strict=True)
    )
    small = dataclasses.replace(info, n_train=n_train, n_test=n_test, files=files, **changes)
    monkeypatch.setitem(registry._DATASETS, name, small)


MNIST_NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def small_mnist(monkeypatch) -> dict[str, np.ndarray]:
    """Unpacked file name -> array, for a MNIST and a Fashion-MNIST of 20 and 10 images."""
    labels = np.arange(20) % 10
    arrays = dict(
        zip(
            MNIST_NAMES,
            (random_images(0, 20, 28, 28), labels, random_images(1, 10, 28, 28), labels[:10]),
            strict=True,
        )
    )
    for name in ("mnist", "fashion-mnist"):
        shrink(monkeypatch, name, 20, 10, [gzip.compress(idx_bytes(array)) for array in arrays.values()])
    return arrays


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_datasets_where_they_may_lie(tmp_path, small_mnist, name, folder, ending):
    for file, array in small_mnist.items():
        write_idx(tmp_path / folder / f"{file}{ending}", array)
    data = load_dataset(name, root=tmp_path, download=False)
    assert (data.name, data.n_classes, data.input_shape) == (name, 10, (1, 28, 28))
    for tensor, array in zip((data.x_train, data.y_train, data.x_test, data.y_test), small_mnist.values(), strict=True):
        np.testing.assert_array_equal(tensor.numpy().squeeze(), array)
    assert data.class_names == dataset_info(name).class_names


def test_compressed_again_is_accepted(tmp_path, small_mnist):
    for file, array in small_mnist.items():
        write_idx(tmp_path / f"{file}.gz", array).write_bytes(gzip.compress(idx_bytes(array), 1, mtime=7))
    assert len(load_dataset("mnist", root=tmp_path).x_train) == 20


def test_another_dataset_in_mnist_s_files_is_noticed(tmp_path, small_mnist):
    for file, array in small_mnist.items():
        write_idx(tmp_path / f"{file}.gz", array[::-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: damaged, or not the published file"):
        load_dataset("mnist", root=tmp_path)


def test_wrong_number_of_images(tmp_path, small_mnist, monkeypatch):
    for file, array in small_mnist.items():
        write_idx(tmp_path / "fashion-mnist" / f"{file}.gz", array)
    info = dataset_info("fashion-mnist")
    monkeypatch.setitem(registry._DATASETS, "fashion-mnist", dataclasses.replace(info, n_train=21))
    with pytest.raises(DataError, match=r"20 training images .* expected 21"):
        load_dataset("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("folder", ["svhn", "."])
def test_svhn(tmp_path, monkeypatch, folder):
    images, digits = random_images(2, 12, 3, 32, 32), np.arange(12) % 10
    train = write_svhn(tmp_path / folder / "train_32x32.mat", images, digits)
    test = write_svhn(tmp_path / folder / "test_32x32.mat", images[:4], digits[:4])
    with pytest.raises(DataError, match=r"train_32x32\.mat: damaged, or not the published file"):
        load_dataset("svhn", root=tmp_path)
    shrink(monkeypatch, "svhn", 12, 4, [train.read_bytes(), test.read_bytes()])
    data = load_dataset("svhn", root=tmp_path)
    np.testing.assert_array_equal(data.x_train, images)
    np.testing.assert_array_equal(data.y_test, digits[:4])


@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("folder", ["cifar", "."])
def test_cifar(tmp_path, monkeypatch, n_classes, archive, folder):
    name = f"cifar{n_classes}"
    files = cifar_files(n_classes, per_file=2)
    contents = {file: data for file, (_, _, data) in files.items()}
    parent = tmp_path / folder.replace("cifar", name)
    path = write_cifar_archive(parent / f"cifar-{n_classes}-binary.tar.gz", n_classes, contents)
    shrink(monkeypatch, name, 2 * (len(files) - 1), 2, [path.read_bytes()])
    if not archive:
        path.unlink()
        write_cifar_folder(parent, n_classes, contents)
    data = load_dataset(name, root=tmp_path)
    np.testing.assert_array_equal(data.x_test, list(files.values())[-1][0])
    assert (data.n_classes, len(data.class_names), data.input_shape) == (n_classes, n_classes, (3, 32, 32))


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", [name for name in dataset_names() if dataset_info(name).files])
def test_missing_files_without_a_network(tmp_path, name, download):
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=tmp_path, download=download, progress=False)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert str(tmp_path / name) in message
    for file in dataset_info(name).files:
        assert file.name in message
        assert file.md5 in message
        assert file.urls[0] in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_what_is_missing_is_asked_for(tmp_path, small_mnist):
    for file in MNIST_NAMES[:3]:
        write_idx(tmp_path / f"{file}.gz", small_mnist[file])
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", root=tmp_path)
    assert "t10k-labels-idx1-ubyte.gz" in str(caught.value)
    assert "train-images" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOMOJL_DATA": "{tmp}/own"}, "own/svhn"),
        ({"HOMOJL_DATA": "", "XDG_CACHE_HOME": "{tmp}/cache"}, "cache/homojl/data/svhn"),
        ({"HOMOJL_DATA": "", "XDG_CACHE_HOME": "", "HOME": "{tmp}"}, ".cache/homojl/data/svhn"),
    ],
)
def test_default_root(tmp_path, monkeypatch, environment, expected):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.format(tmp=tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("svhn", download=False)
    assert f"Put into {tmp_path / expected}:" in str(caught.value)


def test_users_own_file(tmp_path):
    arrays = npz_arrays()
    np.savez(tmp_path / "mine.npz", **arrays)
    for path in (tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        data = load_dataset(path)
        assert (data.name, data.n_classes, data.class_names) == ("mine", 3, ("0", "1", "2"))
        np.testing.assert_array_equal(data.x_train, arrays["x_train"].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    (tmp_path / "mine.csv").write_text("1,2,3")
    for path in (tmp_path / "absent.npz", tmp_path / "mine.csv"):
        with pytest.raises(DataError, match=path.name):
            load_dataset(path)


@pytest.mark.parametrize(("name", "hint"), [("minst", "mnist"), ("cifar-10", "cifar10"), ("xyz", "svhn")])
def test_unknown_name(name, hint):
    with pytest.raises(ConfigError, match=f"{name}.*{hint}"):
        load_dataset(name)
    with pytest.raises(ConfigError, match=f"{name}.*{hint}"):
        dataset_info(name)


# SHA-256 of scikit-learn 1.9.1's load_digits().images and .target as bytes, and of the split that runs were made with
# while they were read from there.
DIGITS_BYTES = {
    "images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "labels": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
}
DIGITS_SPLIT = {
    "x_train": "56698d0a3d2ca8276e3f80516295e278dd4cc7942e39e1bf82e95a2adf4a02d0",
    "y_train": "623f476e17fdfbd83fa261cb3fa9d9f911a880784baf9cbc5bd06580e6f356ca",
    "x_test": "79f879f7d5c51589b8875b8f9a3b4cce601d08519a4c9060910c1b6df2c5db27",
    "y_test": "bfc50f70029db07375ea5336e1c45ed2c06dfa90c6aabe1b5f13cbb20d29ee3b",
}


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_digits():
    with np.load(DIGITS, allow_pickle=False) as file:
        assert {name: sha256(array) for name, array in file.items()} == DIGITS_BYTES
        levels, labels = file["images"], file["labels"]
    # The numbers of each digit are those that its authors publish.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    data = load_dataset("digits", download=False)
    assert {name: sha256(getattr(data, name).numpy()) for name in DIGITS_SPLIT} == DIGITS_SPLIT
    assert (data.n_classes, data.input_shape, data.x_train.dtype) == (10, (1, 8, 8), torch.uint8)
    # Each image once, with grey level g as round(255 g / 16).
    stretched = [round(g * 255 / 16) for g in range(17)]
    expected = Counter(
        (tuple(stretched[g] for g in image.flat), int(label)) for image, label in zip(levels, labels, strict=True)
    )
    actual = Counter(
        (tuple(image.flatten().tolist()), int(label))
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        for image, label in zip(x, y, strict=True)
    )
    assert actual == expected
    for label, count in Counter(label for _, label in expected.elements()).items():
        assert abs(int((data.y_test == label).sum()) - 0.2 * count) < 1
    assert torch.equal(load_dataset("digits").x_test, data.x_test)


def test_damaged_digits_are_refused(tmp_path, monkeypatch):
    whole = DIGITS.read_bytes()
    monkeypatch.setattr("homojl.data.readers.DIGITS", tmp_path / "digits.npz")
    for bytes_there in (b"", whole[:20_000], whole[:1000] + b"?" + whole[1001:]):
        (tmp_path / "digits.npz").write_bytes(bytes_there)
        with pytest.raises(DataError, match=r"digits\.npz: not a readable npz file"):
            load_dataset("digits")


def dataset_of(x_train: torch.Tensor, y_train: torch.Tensor, n_classes: int) -> ImageDataset:
    return ImageDataset("set", x_train, y_train, x_train[:1], y_train[:1], n_classes, tuple(map(str, range(n_classes))))


def test_mean_and_std_are_those_of_the_training_images():
    images = torch.from_numpy(random_images(3, 50, 3, 5, 6))
    images[:, 1] //= 4
    images[:, 2] = 77
    data = dataset_of(images, torch.arange(50) % 2, 2)
    pixels = images.double() / 255
    assert data.mean.dtype == data.std.dtype == torch.float32
    torch.testing.assert_close(data.mean.double(), pixels.mean((0, 2, 3)), rtol=1e-7, atol=0)
    expected_std = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(data.std[:2].double(), expected_std[:2], rtol=1e-7, atol=0)
    assert data.std[2] == torch.tensor(1 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": torch.zeros(4, 1, 2, 2)}, "training images are torch.float32"),
        ({"x_test": torch.zeros(2, 2, dtype=torch.uint8)}, "test images are torch.uint8"),
        ({"x_train": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, r"training images .*\(0, 1, 2, 2\)"),
        ({"y_train": torch.zeros(4)}, "training labels are torch.float32"),
        ({"y_train": torch.zeros(3, dtype=torch.int64)}, r"expected int64 \(4,\)"),
        ({"y_test": torch.tensor([0, 1, 2, 1])}, "test labels run from 0 to 2"),
        ({"y_test": torch.tensor([0, 1, -1, 1])}, "test labels run from -1 to 1"),
        ({"x_test": torch.zeros(4, 1, 3, 2, dtype=torch.uint8)}, r"test images \(1, 3, 2\)"),
        ({"class_names": ("a",)}, "1 class names for 2 classes"),
    ],
)
def test_image_dataset_refuses(changes, message):
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    fields = {
        "x_train": images,
        "y_train": labels,
        "x_test": images,
        "y_test": labels,
        "class_names": ("a", "b"),
    }
    with pytest.raises(DataError, match=message):
        ImageDataset(name="set", n_classes=2, **fields | changes)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63),
)
@example(counts=list(range(1, 41)), fraction=1 - 2**-53, seed=0)
def test_split(counts, fraction, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    data = dataset_of(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, len(counts))
    try:
        train, val = data.split(fraction, seed)
    except ConfigError:
        # Nothing would be left to validate on: rounds to none, or every class needs its images for training.
        assert round(fraction * len(labels)) == 0 or max(counts) == 1
        return
    assert train.dtype == val.dtype == torch.int64
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(len(labels)))
    assert torch.equal(train, train.sort().values)
    for label, count in enumerate(counts):
        in_val = int((labels[val] == label).sum())
        assert abs(in_val - fraction * count) <= 1
        assert in_val < count
    again = data.split(fraction, seed)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], val)


def test_splits_of_other_seeds_and_of_small_classes():
    labels = torch.arange(400) % 100
    data = dataset_of(torch.zeros(400, 1, 1, 1, dtype=torch.uint8), labels, 100)
    splits = {tuple(data.split(0.1, seed)[1].tolist()) for seed in range(10)}
    assert len(splits) == 10
    assert {len(split) for split in splits} == {40}  # though a tenth of four images rounds to none


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_split_refuses_a_fraction(fraction):
    data = dataset_of(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10) % 2, 2)
    with pytest.raises(ConfigError, match="fraction"):
        data.split(fraction, 0)


def test_split_refuses_a_negative_seed():
    data = dataset_of(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10) % 2, 2)
    with pytest.raises(ConfigError, match="seed"):
        data.split(0.5, -1)


def test_registry_is_complete():
    assert set(dataset_names()) >= {
        "digits", "mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet"
    }  # fmt: skip
    for name in dataset_names():
        info = dataset_info(name)
        assert info.name == name
        assert len(set(info.class_names)) == info.n_classes or (not info.class_names and info.name_reader)
        assert info.terms
        assert bool(info.files) == bool(info.folders)
        for file in info.files:
            assert file.urls
            assert len(bytes.fromhex(file.md5)) == 16


def test_importing_the_package_is_light():
    heavy = ["torch", "torchvision", "scipy"]
    code = f"""
import sys, homojl.data
homojl.data.dataset_names()
print([name for name in {heavy} if name in sys.modules])
homojl.data.load_dataset
print([name for name in {heavy[1:]} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
