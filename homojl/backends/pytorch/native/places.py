"""Where values lie in memory, and positions in them as loops count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Index(NamedTuple):
    """A position along a dimension: a constant and multiples of loop variables."""

    constant: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def times(self, factor: int) -> Index:
        if factor == 0:
            return Index()
        return Index(self.constant * factor, tuple((v, c * factor) for v, c in self.terms))

    def plus(self, other: Index) -> Index:
        terms = dict(self.terms)
        for variable, factor in other.terms:
            terms[variable] = terms.get(variable, 0) + factor
        return Index(self.constant + other.constant, tuple(sorted((v, c) for v, c in terms.items() if c)))

    def __str__(self) -> str:
        parts = [v if c == 1 else f"{c} * {v}" for v, c in self.terms]
        return " + ".join(parts + [str(self.constant)] * (self.constant != 0 or not parts))


Indices = tuple[Index, ...]


class Buffer:
    """Memory that generated code reads or writes.

    Args:
        name: of the pointer.
        phase: in which it is written.
        kind: type of its elements.
        size: number of elements, of those that the code itself asks for; 0: the caller gives it.

    Attributes:
        kept: whether the backward phase reads what the forward phase wrote.
    """

    def __init__(self, name: str, phase: int, kind: str = "R", size: int = 0) -> None:
        self.name, self.phase, self.kind, self.size, self.kept = name, phase, kind, size, False


class Place(NamedTuple):
    """Where a value lies in memory."""

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]

    def at(self, index: Indices) -> Index:
        position = Index(self.offset)
        for i, stride in zip(index, self.strides, strict=True):
            position = position.plus(i.times(stride))
        return position


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose elements lie one after the other."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def rule_of(shape: Sequence[int], seen: Sequence[int], strides: Sequence[int], offset: int) -> Any:
    """How positions of a view follow from those of its source, whose elements are in order; None: not one by one."""
    own = contiguous(shape)
    starts = []
    for n, step in zip(shape, own, strict=True):
        starts.append(offset // step % n if n > 1 else 0)
    rules: list[tuple[int, int] | None] = []  # for each dimension of the view, that of the source and the step in it
    reach = list(starts)
    for n, stride in zip(seen, strides, strict=True):
        if n == 1 or stride == 0:
            rules.append(None)
            continue
        found = None
        for d in range(len(shape)):
            if shape[d] > 1 and stride % own[d] == 0:
                step = stride // own[d]
                if reach[d] + (n - 1) * step < shape[d]:
                    found = d, step
                    break
        if found is None:
            return None
        reach[found[0]] += (n - 1) * found[1]
        rules.append(found)

    def move(index: Indices) -> Indices:
        at = [Index(s) for s in starts]
        for i, rule in zip(index, rules, strict=True):
            if rule is not None:
                at[rule[0]] = at[rule[0]].plus(i.times(rule[1]))
        return tuple(at)

    return move
