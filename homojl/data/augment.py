"""Whole batches of uint8 images, on whatever device they are: augmentation, normalisation, order of an epoch.

Every random number comes from a generator or a seed that the caller gives, never from global state, so a run
that is resumed in the middle of an epoch sees the images that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from homojl.errors import ConfigError


def augment(images: Tensor, *, pad: int, flip: bool, generator: torch.Generator | None) -> Tensor:
    """Random crop of the zero-padded image and random horizontal flip, each image on its own.

    Args:
        images: uint8 `(B, C, H, W)`; not modified.
        pad: zero pixels added on each side before an H x W window is cut out at a uniformly random place.
        flip: whether to mirror each image left to right with probability 1/2.
        generator: where randomness comes from. It may be on another device than the images: one on the CPU
            gives the same crops and flips on every device. None is allowed only where nothing is random.

    Returns:
        uint8 `(B, C, H, W)` on the images' device; the images themselves where there is nothing to do.

    Raises:
        ConfigError: images of another type or shape, a negative `pad`, or no generator where one is needed.
    """
    _check_images(images)
    if pad < 0:
        raise ConfigError(f"pad must not be negative, got {pad}")
    if pad == 0 and not flip:
        return images
    if generator is None:
        raise ConfigError("augmentation with pad or flip needs a torch.Generator, so that runs can be repeated")
    n, channels, height, width = images.shape

    def draw(high: int) -> Tensor:  # uniform on 0 to high - 1, one for each image
        return torch.randint(high, (n, 1), generator=generator, device=generator.device).to(images.device)

    # Where in the padded image each row and each column of the result comes from.
    top, left = draw(2 * pad + 1), draw(2 * pad + 1)
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(draw(2).bool(), width - 1 - columns, columns)
    columns = left + columns
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def normalise(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """(pixel / 255 - mean) / std for each channel, computed in float32 or, for a float64 result, in float64.

    Args:
        images: uint8 `(B, C, H, W)`; not modified.
        mean, std: `(C,)`, with pixels in [0, 1]; see `ImageDataset.mean`.
        dtype: floating-point type of the result.
        memory_format: of the result; `torch.channels_last` suits convolutions on recent GPUs.

    Returns:
        `dtype` `(B, C, H, W)` on the images' device.

    Raises:
        ConfigError: images of another type or shape, or `mean` or `std` not of shape `(C,)`.
    """
    _check_images(images)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    shifted = []
    for name, value in (("mean", mean), ("std", std)):
        if value.shape != images.shape[1:2]:
            raise ConfigError(f"{name} has shape {tuple(value.shape)}; expected ({images.shape[1]},)")
        shifted.append(value.to(images.device, precise)[:, None, None])
    pixels = images.to(precise, memory_format=memory_format).div_(255)
    return pixels.sub_(shifted[0]).div_(shifted[1]).to(dtype)


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the samples: a permutation that (n, seed, epoch) alone decide.

    Returns:
        int64 `(n,)` on the CPU.

    Raises:
        ConfigError: a negative argument.
    """
    if min(n, seed, epoch) < 0:
        raise ConfigError(f"n, seed and epoch must not be negative, got {n}, {seed}, {epoch}")
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n).astype(np.int64, copy=False))


def iterate_batches(
    n: int, batch_size: int, *, seed: int, epoch: int, first_batch: int = 0, drop_last: bool = False
) -> Iterator[Tensor]:
    """The batches of one epoch, as indices into the samples, in the order of `epoch_order`.

    Args:
        n: number of samples.
        batch_size: samples in a batch; the last batch may have fewer.
        seed, epoch: decide the order.
        first_batch: batches to skip, for a run that resumes in the middle of the epoch.
        drop_last: whether to leave out a last batch that is not full.

    Yields:
        int64 `(batch_size,)` on the CPU.

    Raises:
        ConfigError: at the first batch; a batch size below 1 or another negative argument.
    """
    if batch_size < 1 or first_batch < 0:
        raise ConfigError(f"batch_size must be positive and first_batch not negative, got {batch_size}, {first_batch}")
    order = epoch_order(n, seed=seed, epoch=epoch)
    end = n - n % batch_size if drop_last else n
    for start in range(first_batch * batch_size, end, batch_size):
        yield order[start : min(start + batch_size, end)]


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ConfigError(f"expected uint8 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
