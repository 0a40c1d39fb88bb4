"""The further arguments of a user's function: their tensors, and which of them have a row for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.problems import AbstractMark

Tensor = torch.Tensor


def _is_mark(x: object) -> bool:
    return isinstance(x, AbstractMark)


class Arguments:
    """`args` of a problem, nested as they may be, as a list of leaves.

    Args:
        args: the problem's.

    Attributes:
        leaves: tensors and others, without their marks.
        marks: of each leaf: True: a row for each sample, False: shared, None: not said.
        filled: as the function receives them.
        tensors: those among the leaves.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        leaves, self._spec = list(args), None
        if not all(isinstance(a, Tensor | AbstractMark) for a in args):
            leaves, self._spec = pytree.tree_flatten(args, is_leaf=_is_mark)
        self.marks: list[bool | None] = [a.per_sample if _is_mark(a) else None for a in leaves]
        values = [a if mark is None else a.value for a, mark in zip(leaves, self.marks, strict=True)]
        self._slots = [isinstance(a, Tensor) for a in values]
        if any(slot and a.is_inference() for a, slot in zip(values, self._slots, strict=True)):
            with torch.inference_mode(False):  # they can be in no graph, which products need
                values = [
                    a.clone() if slot and a.is_inference() else a for a, slot in zip(values, self._slots, strict=True)
                ]
        self._put(values)

    def _put(self, leaves: list[Any]) -> None:
        self.leaves, self.filled = leaves, self.fill(leaves)
        self.tensors = [a for a, slot in zip(leaves, self._slots, strict=True) if slot]

    def fill(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Those leaves as the function receives them."""
        return tuple(leaves) if self._spec is None else tuple(pytree.tree_unflatten(leaves, self._spec))

    def at(self, rows: Tensor, marks: Sequence[bool | None]) -> tuple[Any, ...]:
        """The arguments at some rows of the batch, (b,), where those that are marked have a row for each sample."""
        return self.fill([a.index_select(0, rows) if mark else a for a, mark in zip(self.leaves, marks, strict=True)])

    def replaced(self, tensors: Sequence[Tensor] | None) -> Arguments:
        """The same with other tensors in the places of its own; None: with none."""
        given = iter(tensors or ())
        other = object.__new__(Arguments)
        other.__dict__.update(self.__dict__)
        empty = tensors is None
        other._put(
            [(None if empty else next(given)) if slot else a for a, slot in zip(self.leaves, self._slots, strict=True)]
        )
        return other

    def of_length(self, count: int) -> list[bool]:
        """Which leaves are tensors whose first dimension has that length."""
        pairs = zip(self.leaves, self._slots, strict=True)
        return [slot and a.ndim > 0 and len(a) == count for a, slot in pairs]
