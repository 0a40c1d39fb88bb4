"""Image datasets in memory: `load_dataset` finds, fetches, verifies and reads; `ImageDataset` holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homojl.data.download import download_files, find_file, missing_files_error, verify_file
from homojl.data.pictures import read_class_folders
from homojl.data.readers import Arrays, read_npz
from homojl.data.registry import (
    SPLIT_SEED,
    TEST_FRACTION,
    DatasetInfo,
    data_root,
    expanded,
    find_dataset,
    stratified_choice,
)
from homojl.errors import ConfigError, DataError
from homojl.own import load, short


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A dataset of images, whole, in main memory.

    Attributes:
        name: its registered name, or the stem of the user's file.
        x_train, x_test: images, uint8 `(N, C, H, W)`, on the CPU.
        y_train, y_test: labels, int64 `(N,)`, from 0 to n_classes - 1.
        n_classes: number of classes.
        class_names: one for each class, in the order of the labels.

    Raises:
        DataError: on construction, if the tensors do not have these types, shapes and ranges.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    n_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != torch.uint8 or x.ndim != 4 or x.numel() == 0:
                raise DataError(
                    f"{self.name}: {part} images are {x.dtype} {tuple(x.shape)}; expected uint8 N x C x H x W"
                )
            if y.dtype != torch.int64 or y.shape != x.shape[:1]:
                raise DataError(
                    f"{self.name}: {part} labels are {y.dtype} {tuple(y.shape)}; expected int64 ({len(x)},)"
                )
            if int(y.min()) < 0 or int(y.max()) >= self.n_classes:
                raise DataError(
                    f"{self.name}: {part} labels run from {int(y.min())} to {int(y.max())}; "
                    f"expected 0 to {self.n_classes - 1}"
                )
        if (test_shape := tuple(self.x_test.shape[1:])) != self.input_shape:
            raise DataError(f"{self.name}: training images are {self.input_shape}, test images {test_shape}")
        if len(self.class_names) != self.n_classes:
            raise DataError(f"{self.name}: {len(self.class_names)} class names for {self.n_classes} classes")

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        sizes = f"{len(self.x_train):,} + {len(self.x_test):,} images"
        return f"<ImageDataset {self.name}: {sizes} {shape}, {self.n_classes} classes>"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        # From the counts of the 256 grey levels: exact, and without a floating-point copy of all images.
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([torch.bincount(c.reshape(-1), minlength=256) for c in self.x_train.unbind(1)])
        weights = counts.double() / counts.sum(dim=1, keepdim=True)
        mean = weights @ levels
        variance = (weights * (levels - mean[:, None]).square()).sum(dim=1)
        return mean.float(), variance.sqrt().clamp_min(1 / 255).float()

    @property
    def mean(self) -> Tensor:
        """Mean of each channel over the training images, float32 `(C,)`, with pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel over the training images, float32 `(C,)`, with pixels in [0, 1].

        At least one grey level, 1/255, so that dividing a constant channel by it is harmless.
        """
        return self._moments[1]

    def split(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Divide the training images at random into training and validation images, class by class.

        Args:
            fraction: share of the validation images, in [0, 1); each class gets it to within one image.
            seed: not negative; the same seed gives the same split.

        Returns:
            Sorted indices into `x_train`, int64: those to train on, at least one of each class, and those to
            validate on, none where `fraction` is 0.

        Raises:
            ConfigError: `fraction` outside [0, 1), a negative seed, or so few images that none is left over.
        """
        if not 0 <= fraction < 1:
            raise ConfigError(f"the validation fraction must be at least 0 and below 1, got {fraction}")
        if seed < 0:
            raise ConfigError(f"the seed of the validation split must not be negative, got {seed}")
        train, val = stratified_choice(self.y_train.numpy(), fraction, np.random.default_rng(seed))
        if fraction > 0 and len(val) == 0:
            raise ConfigError(
                f"a validation fraction of {fraction} leaves no image to validate on: there are "
                f"{len(train)} training images in {self.n_classes} classes"
            )
        return torch.from_numpy(train), torch.from_numpy(val)


def load_dataset(
    name_or_path: str | Path, *, root: str | Path | None = None, download: bool = True, progress: bool = True
) -> ImageDataset:
    """Load a dataset by name, or a user's own.

    That is a function of one's own, `path/to/file.py:function` (see `homojl.own`), which returns an `ImageDataset` or
    the arrays x_train, y_train, x_test, y_test, uint8 (N, C, H, W) and int64 (N,); or an .npz file (see
    `homojl.data.readers.read_npz` for its form) or a folder of class folders (see
    `homojl.data.pictures.read_class_folders`), of which a fifth, always the same, is held out as the test set where the
    folder has none.

    Args:
        name_or_path: one of `dataset_names()`, or the path of a file or folder.
        root: the folder of datasets; by default `data_root()`. Files are looked for in `root/<name>`, in
            torchvision's folder and in `root` itself, as downloaded or unpacked.
        download: whether to download what is missing, into `root/<name>`.
        progress: whether a download shows its progress on stderr.

    Raises:
        ConfigError: neither a known name nor a file nor a folder.
        DataError: files are missing and could not be downloaded (the message says what to put where), or are
            damaged, or are not those of this dataset.
    """
    found = find_dataset(name_or_path)
    if isinstance(found, str):
        return _from_code(found)
    if isinstance(found, DatasetInfo):
        folder = expanded(root) if root else data_root()
        return _as_dataset(found.name, *_read_registered(found, folder, download, progress))
    if found.suffix == ".npz" or found.is_file():
        arrays = read_npz(found)
        return _as_dataset(found.stem, arrays, tuple(str(label) for label in range(int(arrays[1].max()) + 1)))
    pictures, class_names = read_class_folders(found)
    return _as_dataset(found.resolve().name, _with_test_set(found, *pictures), class_names)


def _from_code(name: str) -> ImageDataset:
    """What a user's own function returns."""
    made = load(name)()
    if isinstance(made, ImageDataset):
        return made
    if not isinstance(made, tuple | list) or len(made) != 4:
        raise DataError(
            f"{name} must return an hj.ImageDataset or x_train, y_train, x_test, y_test, got {type(made).__name__}"
        )
    x_train, y_train, x_test, y_test = (torch.as_tensor(array).cpu() for array in made)
    n_classes = int(max(y.max() if y.numel() else 0 for y in (y_train, y_test))) + 1
    labels = tuple(str(label) for label in range(n_classes))
    return ImageDataset(short(name), x_train, y_train.long(), x_test, y_test.long(), n_classes, labels)


def _read_registered(info: DatasetInfo, root: Path, download: bool, progress: bool) -> tuple[Arrays, tuple[str, ...]]:
    """Find the dataset's files, fetch the missing ones, verify and read them, compare with what is known."""
    folders = [(root / folder).resolve() for folder in info.folders]
    missing = [file for file in info.files if find_file(file, folders) is None]
    if missing and not download:
        raise missing_files_error(info.name, missing, folders[0], "not here, and downloading is off")
    if missing:
        download_files(info.name, missing, folders[0], progress=progress)
    paths = []
    for file in info.files:
        path = find_file(file, folders)
        assert path is not None, file  # it was here, or has been downloaded
        verify_file(file, path)
        paths.append(path)
    arrays, class_names = info.read(paths)
    where = paths[0].parent if paths else "the installation"
    for part, x, y, n in (("training", *arrays[:2], info.n_train), ("test", *arrays[2:], info.n_test)):
        if x.shape != (n, *info.input_shape) or y.max() >= info.n_classes:
            raise DataError(
                f"{where}: not {info.name}: {len(x)} {part} images of {x.shape[1:]} with labels up to "
                f"{y.max()}, expected {n} of {info.input_shape} with labels up to {info.n_classes - 1}"
            )
    return arrays, class_names


def _with_test_set(path: Path, *arrays: np.ndarray) -> Arrays:
    """The arrays as they are where there are four of them; where two, divided."""
    if len(arrays) == 4:
        return arrays
    x, y = arrays
    train, test = stratified_choice(y, TEST_FRACTION, np.random.default_rng(SPLIT_SEED))
    if len(test) == 0:
        raise DataError(f"{path}: {len(x)} pictures are too few to hold a test set out of them")
    return x[train], y[train], x[test], y[test]


def _as_dataset(name: str, arrays: Arrays, class_names: tuple[str, ...]) -> ImageDataset:
    x_train, y_train, x_test, y_test = (torch.from_numpy(array) for array in arrays)
    return ImageDataset(name, x_train, y_train, x_test, y_test, len(class_names), class_names)
