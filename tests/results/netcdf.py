"""What netCDF-4's readers, such as xarray with h5netcdf, want of the dimensions in an HDF5 file."""

from __future__ import annotations

from pathlib import Path

import h5py

from homojl.results.storage import DIMENSION_ONLY


def assert_netcdf(path: Path) -> None:
    """Every dimension of every dataset has one scale, of its name and size, in the dataset's group or one above it."""

    def check(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.is_scale:
            own = item.name.rpartition("/")[2]
            assert item.ndim == 1, name
            assert item.dims[0].label == own or item.attrs["NAME"].decode().startswith(DIMENSION_ONLY), name
            return
        scales = [list(dimension.values()) for dimension in item.dims]
        assert all(len(found) == 1 for found in scales), (name, scales)
        assert len({found[0].name for found in scales}) == item.ndim, (name, "a dimension twice")
        for dimension, size, (scale,) in zip(item.dims, item.shape, scales, strict=True):
            place, _, own = scale.name.rpartition("/")
            assert (own, scale.shape) == (dimension.label, (size,)), name
            assert item.parent.name == place or item.parent.name.startswith(place + "/"), (name, scale.name)

    with h5py.File(path) as file:
        file.visititems(check)
