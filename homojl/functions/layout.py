"""Several tensors as one flat vector and back, without copies where their memory is dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor fills a block of memory exactly, in any order of its dimensions (channels_last too)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


class Layout:
    """Where each of several tensors lies in one flat vector.

    Args:
        like: tensors whose shapes and strides to keep; one that is not dense is laid out contiguously.

    Attributes:
        shapes: of each tensor.
        parts: (start, stop) of each tensor in the flat vector.
    """

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        self.shapes = [t.shape for t in like]
        self._strides = [t.stride() if is_dense(t) else torch.empty(t.shape, device="meta").stride() for t in like]
        self.parts: list[tuple[int, int]] = []
        start = 0
        for t in like:
            self.parts.append((start, start + t.numel()))
            start += t.numel()

    def pack(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """One vector of `dtype` with the tensors, of the shapes given at the start, one after the other."""
        flat = []
        for tensor, shape, strides in zip(tensors, self.shapes, self._strides, strict=True):
            if tensor.stride() != strides:
                tensor = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
            flat.append(tensor.as_strided((tensor.numel(),), (1,)).to(dtype))
        return torch.cat(flat)

    def unpack(self, flat: torch.Tensor, count: int | None = None) -> list[torch.Tensor]:
        """The first `count` tensors (default: all) as views of the vector."""
        offset = flat.storage_offset()
        return [
            flat.as_strided(shape, strides, offset + start)
            for shape, strides, (start, _) in list(zip(self.shapes, self._strides, self.parts, strict=True))[:count]
        ]
