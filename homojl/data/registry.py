"""The datasets known by name: what they are, where they come from, and how their files are read.

To add one, add an entry to `_DATASETS`; nothing else names them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from homojl.data.download import RemoteFile
from homojl.data.guards import reading
from homojl.errors import ConfigError
from homojl.names import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from homojl.data.readers import Arrays

TEST_FRACTION = 0.2
SPLIT_SEED = 0
"""For datasets with no test set of their own, such as the digits: a split that is the same everywhere."""

DIGITS = Path(__file__).with_name("digits.npz")
"""The one dataset that comes along."""

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
""".split()  # noqa: SIM905 (a hundred quoted names would fill a screen)


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before any of its files is opened.

    Attributes:
        name: the name that `load_dataset` takes.
        title: one line for people.
        input_shape: (C, H, W) of an image.
        n_classes, n_train, n_test: numbers of classes and of images.
        class_names: one for each class, in the order of the labels; empty where they come with the files.
        terms: licence or terms of use, as far as its authors state any.
        source: the page of its authors.
        files: what has to be on disk; empty for a dataset that comes with the installation.
        folders: where files are looked for, relative to the data folder; downloads go to the first.
        read: paths of the files, in the order of `files` -> x_train, y_train, x_test, y_test.
        read_class_names: the same paths -> the names, where `class_names` is empty.
    """

    name: str
    title: str
    input_shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    class_names: tuple[str, ...]
    terms: str
    source: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]
    read: Callable[[list[Path]], Arrays] = field(repr=False)
    read_class_names: Callable[[list[Path]], tuple[str, ...]] | None = field(default=None, repr=False)


def stratified_choice(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide indices at random so that each class is divided in the same proportion, to within one sample.

    The second part gets `round(fraction * N)` samples, shared out by largest remainders: rounding class by
    class would leave it empty when classes are small. It gets no class's last sample, so it may be smaller.

    Args:
        labels: integers `(N,)`.
        fraction: share of the second part, in [0, 1).
        rng: decides which samples.

    Returns:
        Sorted indices, int64, of the first and of the second part; together they are 0 to N - 1.
    """
    import numpy as np

    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    quotas = np.floor(shares).astype(np.int64)  # below the count of the class, since fraction < 1
    by_remainder = np.argsort(quotas - shares, kind="stable")
    for index in by_remainder[: max(0, round(fraction * len(labels)) - int(quotas.sum()))]:
        quotas[index] = min(quotas[index] + 1, counts[index] - 1)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# Each loads its reader when it is called: what lists the datasets, or refuses a name, waits for none of them.


def _read_digits(paths: list[Path]) -> Arrays:
    """The digits in `digits.npz`, grey levels 0 to 16 stretched to 0 to 255, with the fixed test set.

    The file has `images`, uint8 (1797, 8, 8), and `labels`, uint8 (1797,); `digits.txt` has its source and licence.
    """
    import numpy as np

    with reading(DIGITS, "npz"), np.load(DIGITS, allow_pickle=False) as file:
        levels, labels = file["images"], file["labels"].astype(np.int64)
    images = np.round(levels * (255 / 16)).astype(np.uint8)[:, None]
    train, test = stratified_choice(labels, TEST_FRACTION, np.random.default_rng(SPLIT_SEED))
    return images[train], labels[train], images[test], labels[test]


def _read_svhn(paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_svhn_mat

    return *read_svhn_mat(paths[0]), *read_svhn_mat(paths[1])


def _read_cifar(n_classes: int, paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_cifar_binary

    return read_cifar_binary(paths[0], n_classes)


def _read_idx(paths: list[Path]) -> Arrays:
    from homojl.data.readers import read_idx_dataset

    return read_idx_dataset(paths)


def _read_tiny_imagenet(paths: list[Path]) -> Arrays:
    from homojl.data.pictures import read_tiny_imagenet

    return read_tiny_imagenet(paths[0])


def _read_tiny_imagenet_names(paths: list[Path]) -> tuple[str, ...]:
    from homojl.data.pictures import read_tiny_imagenet_names

    return read_tiny_imagenet_names(paths[0])


def _idx_files(mirrors: tuple[str, ...], md5s: dict[str, tuple[str, str | None]]) -> tuple[RemoteFile, ...]:
    """The four files of a dataset in MNIST's format; `md5s`: unpacked name -> md5 packed, md5 unpacked."""
    return tuple(
        RemoteFile(
            name=f"{name}.gz",
            urls=tuple(f"{mirror}{name}.gz" for mirror in mirrors),
            md5=md5,
            unpacked=name,
            content_md5=content_md5,
            recompressible=True,
        )
        for name, (md5, content_md5) in md5s.items()
    )


# Addresses and checksums are those of torchvision.datasets 0.28 and, for CIFAR's binary version, of its
# authors' page. MNIST's unpacked ones were computed from the published files. Tiny ImageNet's authors publish no
# checksum: it is the one that several projects' loaders agree on.
_ENTRIES = (
    DatasetInfo(
        name="digits",
        title="Handwritten digits, 8 x 8, as in scikit-learn; comes with the installation",
        input_shape=(1, 8, 8),
        n_classes=10,
        n_train=1438,
        n_test=359,
        class_names=_DIGITS,
        terms="CC BY 4.0 (Alpaydin and Kaynak, UCI)",
        source="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        files=(),
        folders=(),
        read=_read_digits,
    ),
    DatasetInfo(
        name="mnist",
        title="MNIST handwritten digits, 28 x 28 grey",
        input_shape=(1, 28, 28),
        n_classes=10,
        n_train=60_000,
        n_test=10_000,
        class_names=_DIGITS,
        terms="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
        source="http://yann.lecun.com/exdb/mnist/",
        files=_idx_files(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            {
                "train-images-idx3-ubyte": (
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "6bbc9ace898e44ae57da46a324031adb",
                ),
                "train-labels-idx1-ubyte": (
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "a25bea736e30d166cdddb491f175f624",
                ),
                "t10k-images-idx3-ubyte": (
                    "9fb629c4189551a2d022fa330f9573f3",
                    "2646ac647ad5339dbf082846283269ea",
                ),
                "t10k-labels-idx1-ubyte": (
                    "ec29112dd5afa0611ce80d1b7f02629c",
                    "27ae3e4e09519cfbb04c329615203637",
                ),
            },
        ),
        folders=("mnist", "MNIST/raw", "."),
        read=_read_idx,
    ),
    DatasetInfo(
        name="fashion-mnist",
        title="Fashion-MNIST articles of clothing, 28 x 28 grey",
        input_shape=(1, 28, 28),
        n_classes=10,
        n_train=60_000,
        n_test=10_000,
        class_names=_FASHION,
        terms="MIT (Zalando SE)",
        source="https://github.com/zalandoresearch/fashion-mnist",
        files=_idx_files(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            {
                "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
                "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None),
                "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None),
                "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None),
            },
        ),
        # Not the data folder itself: the files have the names and shapes of MNIST's and could be those.
        folders=("fashion-mnist", "FashionMNIST/raw"),
        read=_read_idx,
    ),
    DatasetInfo(
        name="svhn",
        title="Street View House Numbers, cropped digits, 32 x 32 colour",
        input_shape=(3, 32, 32),
        n_classes=10,
        n_train=73_257,
        n_test=26_032,
        class_names=_DIGITS,
        terms="non-commercial use only (Netzer et al., 2011)",
        source="http://ufldl.stanford.edu/housenumbers/",
        files=tuple(
            RemoteFile(name=name, urls=(f"http://ufldl.stanford.edu/housenumbers/{name}",), md5=md5)
            for name, md5 in (
                ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
                ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
            )
        ),
        folders=("svhn", "."),
        read=_read_svhn,
    ),
    *(
        DatasetInfo(
            name=f"cifar{n_classes}",
            title=f"CIFAR-{n_classes} natural images, 32 x 32 colour",
            input_shape=(3, 32, 32),
            n_classes=n_classes,
            n_train=50_000,
            n_test=10_000,
            class_names=class_names,
            terms="no explicit licence; cite Krizhevsky (2009)",
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            files=(
                RemoteFile(
                    name=f"cifar-{n_classes}-binary.tar.gz",
                    urls=(f"https://www.cs.toronto.edu/~kriz/cifar-{n_classes}-binary.tar.gz",),
                    md5=md5,
                    unpacked=folder,
                ),
            ),
            folders=(f"cifar{n_classes}", "."),
            read=functools.partial(_read_cifar, n_classes),
        )
        for n_classes, class_names, folder, md5 in (
            (10, _CIFAR10, "cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530"),
            (100, tuple(_CIFAR100), "cifar-100-binary", "03b5dce01913d631647c71ecec9e9cb8"),
        )
    ),
    DatasetInfo(
        name="tiny-imagenet",
        title="Tiny ImageNet, 64 x 64 colour, 200 classes; tested on its validation images",
        input_shape=(3, 64, 64),
        n_classes=200,
        n_train=100_000,
        n_test=10_000,
        class_names=(),
        terms="non-commercial research, as ImageNet",
        source="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        files=(
            RemoteFile(
                name="tiny-imagenet-200.zip",
                urls=("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
                md5="90528d7ca1a48142e341f4ef8d21d0de",
                unpacked="tiny-imagenet-200",
            ),
        ),
        folders=("tiny-imagenet", "."),
        read=_read_tiny_imagenet,
        read_class_names=_read_tiny_imagenet_names,
    ),
)
_DATASETS = {info.name: info for info in _ENTRIES}


def dataset_names() -> tuple[str, ...]:
    """The names that `load_dataset` takes, besides the path of a user's own file."""
    return tuple(_DATASETS)


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the dataset of that name.

    Raises:
        ConfigError: no such name; the message says the nearest one.
    """
    if name not in _DATASETS:
        raise ConfigError(f"unknown dataset {name!r}; {did_you_mean(name, _DATASETS)}")
    return _DATASETS[name]
