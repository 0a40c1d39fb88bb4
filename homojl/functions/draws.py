"""Random numbers that belong to the rows of a batch, whichever part of it is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def draw_rows(
    draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], part: tuple[int, int] | None = None
) -> Tensor:
    """Draw a tensor with a row for each sample.

    Args:
        draw: makes one of a shape, from whatever generator it uses.
        shape: (B, ...).
        part: where the B samples are part of a larger batch, the position of their first in it, and its size: the
            numbers are then drawn for the larger batch, so that a sample's do not depend on how that was divided.

    Returns:
        (B, ...).
    """
    if part is None:
        return draw(shape)
    first, total = part
    return draw((total, *shape[1:]))[first : first + shape[0]]
