"""How datasets lie in an HDF5 file: dimension scales as netCDF-4 wants them, and checks of files from outside."""

from __future__ import annotations

import math

import h5py

from homojl.errors import DataError

DIMENSION_ONLY = "This is a netCDF dimension but not a netCDF variable."
"""How the name of a dimension scale begins that has no coordinates; netCDF-4's words."""

_MAX_BYTES, _MAX_RATIO = 1 << 26, 1032  # of a dataset that is read, and over its compressed size where it has more


def attach_scales(dataset: h5py.Dataset) -> None:
    """Give every dimension of a dataset its HDF5 dimension scale, made where there is none.

    As netCDF-4 wants them, the scale lies in the dataset's own group or in the root: the coordinates, where the group
    has them, else a dataset without numbers in the root; or in the group, where the root's has another size.
    """
    if is_coordinate(dataset):
        dataset.make_scale(dataset.dims[0].label)
        return
    for dimension, size in zip(dataset.dims, dataset.shape, strict=True):
        label = dimension.label
        for group in (dataset.parent, dataset.file):
            scale = group.get(label)
            if isinstance(scale, h5py.Dataset) and scale.is_scale and scale.shape == (size,):
                break
        else:
            scale = (dataset.parent if label in dataset.file else dataset.file).create_dataset(label, (size,), ">f4")
            scale.attrs["unit"] = "1"
            scale.attrs["description"] = f"the dimension {label}, without coordinates"
            scale.make_scale(f"{DIMENSION_ONLY}{size:10}")
        dimension.attach_scale(scale)


def is_coordinate(dataset: h5py.Dataset) -> bool:
    """Whether a dataset has the name of its only dimension."""
    return [dimension.label for dimension in dataset.dims] == [dataset.name.rpartition("/")[2]]


def is_inside(file: h5py.File, name: str) -> bool:
    """Whether there is something of that name in the file itself: a link could lead to any other file."""
    place = ""
    for part in name.strip("/").split("/"):
        place += f"/{part}"
        link = file.get(place, getlink=True)
        if link is None:
            return False
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{place} is a link to elsewhere")
    return True


def check_dataset(dataset: h5py.Dataset, name: str) -> None:
    """Refuse a dataset whose data are not in the file, or that would take far more memory than the file."""
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{name} is no dataset")
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
    if dataset.external or dataset.is_virtual or not filters <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise DataError(f"{name} is stored in another way than homojl stores it")
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None and text.length is None:
        raise DataError(f"{name} has texts of any length, expected of one")
    if dataset.chunks and _pieces(dataset) > max(1000, dataset.nbytes >> 10):  # HDF5 takes kilobytes for each
        raise DataError(f"{name} is stored in {_pieces(dataset)} pieces, far too many for its {dataset.nbytes} bytes")
    if dataset.nbytes > max(_MAX_BYTES, _MAX_RATIO * dataset.id.get_storage_size()):
        raise DataError(f"{name} has {dataset.nbytes} bytes, of which {dataset.id.get_storage_size()} are in the file")


def _pieces(dataset: h5py.Dataset) -> int:
    """How many chunks a dataset has."""
    return math.prod(-(-size // piece) for size, piece in zip(dataset.shape, dataset.chunks, strict=True))
