"""Rows of a batch as flat vectors, and the samples still at work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from homojl.functions import VectorField
from homojl.functions.layout import is_dense

Tensor = torch.Tensor

COMPACT_AT = 0.125  # the part of the batch that has to be done before the rest moves together


class RowLayout:
    """Rows of a batch as flat vectors and back: views where memory allows, its order kept where it does not.

    Args:
        like: the batch (B, ...) whose order of dimensions to follow.
    """

    def __init__(self, like: Tensor) -> None:
        # Not the batch itself: a graph holds this, and must hold no tensors.
        self._batch, self._strides, self._dense = like.shape, like.stride(), is_dense(like)
        strides = like.stride()
        order = sorted(range(1, like.ndim), key=lambda d: (-strides[d], d))
        self._order = (0, *order)
        self._shape = tuple(like.shape[d] for d in order)
        self._inverse = tuple(self._order.index(d) for d in range(like.ndim))
        self._ordered = self._order == self._inverse == tuple(range(like.ndim))

    def flatten(self, batch: Tensor) -> Tensor:
        """(b, ...) as (b, n)."""
        batch = batch if self._ordered else batch.permute(self._order)
        return batch if batch.ndim == 2 else batch.reshape(batch.shape[0], -1)

    def unflatten(self, flat: Tensor) -> Tensor:
        """(b, n) as (b, ...), a view."""
        batch = flat if len(self._shape) == 1 else flat.reshape(flat.shape[0], *self._shape)
        return batch if self._ordered else batch.permute(self._inverse)

    def restore(self, flat: Tensor) -> Tensor:
        """The whole batch, in the strides it came with where they were dense."""
        batch = self.unflatten(flat)
        if batch.stride() == self._strides or not self._dense:
            return batch
        return torch.empty_strided(self._batch, self._strides, dtype=flat.dtype, device=flat.device).copy_(batch)

    def field(self, f: VectorField, rows: Tensor | None) -> Any:
        """The field at those rows of the batch, for flat states (b, n) and times (b,)."""
        ndim = len(self._batch)
        if ndim == 2:  # states that are flat already
            return lambda t, y: f(t.view(-1, 1), y, rows=rows)

        def evaluate(t: Tensor, y: Tensor) -> Tensor:
            return self.flatten(f(t.view(-1, *[1] * (ndim - 1)), self.unflatten(y), rows=rows))

        return evaluate


class Compaction:
    """The samples still at work move into the first rows, those at the back into the places of those that are done.

    Args:
        active: which rows go on, (b,), bool.
        device: of the buffers.
    """

    def __init__(self, active: np.ndarray, device: torch.device) -> None:
        self._device = device
        self.size = int(np.count_nonzero(active))
        (self._holes,) = (~active[: self.size]).nonzero()
        self._movers = self.size + active[self.size :].nonzero()[0]
        self.order = np.arange(self.size)
        self.order[self._holes] = self._movers
        self._rows = self._index(self.order)

    def _index(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places).to(self._device, non_blocking=True)

    def take(self, buffer: Tensor) -> Tensor:
        """The remaining rows of a (b, ...) buffer, as a new tensor."""
        return buffer.index_select(0, self._rows)

    def shrink(self, buffer: Tensor) -> Tensor:
        """The same in place, so that only rows at the back are copied; for buffers that nothing else refers to."""
        if len(self._holes):
            buffer.index_copy_(0, self._index(self._holes), buffer.index_select(0, self._index(self._movers)))
        return buffer[: self.size]
