"""Image datasets by name or from a user's file, in memory as uint8, with splits and batched augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homojl.data.registry import DatasetInfo, dataset_info, dataset_names

if TYPE_CHECKING:
    from homojl.data.datasets import ImageDataset, load_dataset

__all__ = ["DatasetInfo", "ImageDataset", "dataset_info", "dataset_names", "load_dataset"]


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # These two need torch; listing the datasets does not, and should not wait for it.
        if name in ("ImageDataset", "load_dataset"):
            from homojl.data import datasets

            return getattr(datasets, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
