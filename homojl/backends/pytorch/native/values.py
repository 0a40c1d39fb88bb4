"""What the operations of a field's graph come to, and the C++ loops that compute it.

A value is lazy, an expression of an element's position that is computed where it is asked for, or it lies in memory;
which of the two is decided when a loop asks for it. Code belongs to one of three phases, each of which runs after the
one before it: what depends on parameters alone (once a solve), on the state (once an evaluation), on the cotangent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from homojl.backends.pytorch.native.operations import COSTLY, Unsupported
from homojl.backends.pytorch.native.places import Buffer, Index, Indices, Place, contiguous

ONCE, FORWARD, BACKWARD = 0, 1, 2  # phases
_UNROLLED = 4  # the longest dimension whose elements are written one by one where they are computed otherwise


class Body:
    """The statements of a loop's innermost body."""

    def __init__(self, code: Code, phase: int) -> None:
        self.code, self.phase = code, phase
        self.lines: list[str] = []
        self.accesses: list[Index] = []
        self.known: dict[tuple[int, Indices], str] = {}

    def element(self, place: Place, index: Indices) -> str:
        """One element, whose position is written in at the end."""
        self.code.uses(place.buffer, self.phase)
        self.accesses.append(place.at(index))
        return f"{place.buffer.name}[@{len(self.accesses) - 1}@]"

    def local(self, kind: str, expression: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {expression};")
        return name


class Value:
    """A tensor of the graph.

    Attributes:
        shape: of it.
        phase: the first in which it is known.
        kind: "R" or "bool".
        cost: of an element where it is computed anew.
        users: how many operations ask for it.
        choosy: whether its elements are computed in ways that depend on their position.
        place: where it lies, once it does.
    """

    place: Place | None = None
    users = 1
    choosy = False
    cost = 0

    def __init__(self, shape: Sequence[int], phase: int, kind: str = "R") -> None:
        self.shape, self.phase, self.kind = tuple(int(n) for n in shape), phase, kind

    def compute(self, body: Body, index: Indices) -> str:
        """An expression of one element."""
        raise NotImplementedError

    def load(self, body: Body, index: Indices) -> str:
        """One element, computed or read."""
        key = id(self), index
        if key not in body.known:
            if self.place is None and self.kept_apart(body.phase):
                self.realise(body.code)
            if self.place is not None:
                text = body.element(self.place, index)
                kind = self.place.buffer.kind
                if self.kind == "bool":
                    text = f"({text} != 0)" if kind != "bool" else text
                elif kind != "R":
                    text = f"R({text})"
                body.known[key] = body.local(self.kind, text)
            else:
                body.known[key] = self.compute(body, index)
        return body.known[key]

    def kept_apart(self, phase: int) -> bool:
        """Whether it is written to memory rather than computed where a loop of a phase asks for it."""
        if self.phase == ONCE and phase > ONCE:
            return self.cost > 0
        many = self.users > 1 or self.phase < phase
        return many and self.cost >= COSTLY

    @property
    def share(self) -> int:
        """What it adds to the cost of an element that is computed from it."""
        return 0 if self.place is not None or (self.users > 1 and self.cost >= COSTLY) else self.cost

    def realise(self, code: Code) -> Place:
        """Have it in memory."""
        if self.place is None:
            place = code.room(self.shape, self.phase)
            self.store(code, place, accumulate=False)
            self.place = place
        return self.place

    def store(self, code: Code, place: Place, *, accumulate: bool, phase: int | None = None) -> None:
        """Write it to a place, or add it to what is there."""
        phase = self.phase if phase is None else phase
        element = self.load if accumulate or self.place is not None else self.first
        code.write(self.shape, phase, place, element, sign="+=" if accumulate else "=", choosy=self.choosy)

    def first(self, body: Body, index: Indices) -> str:
        """One element in the loop that writes all of them."""
        return self.compute(body, index)


class Leaf(Value):
    """What the caller gives."""

    def __init__(self, shape: Sequence[int], phase: int, place: Place, kind: str = "R") -> None:
        super().__init__(shape, phase, kind)
        self.place = place


class Constant(Value):
    """One expression for all elements."""

    def __init__(self, shape: Sequence[int], text: str, phase: int = ONCE, kind: str = "R") -> None:
        super().__init__(shape, phase, kind)
        self.text = text

    def compute(self, body: Body, index: Indices) -> str:
        return self.text


class Count(Value):
    """start + step i along one dimension."""

    choosy = True

    def __init__(self, size: int, start: float, step: float) -> None:
        super().__init__((size,), ONCE)
        self.start, self.step = start, step

    def kept_apart(self, phase: int) -> bool:
        return True

    def store(self, code: Code, place: Place, *, accumulate: bool, phase: int | None = None) -> None:
        name = place.buffer.name
        code.uses(place.buffer, ONCE)
        code.lines[ONCE].append(
            f"for (int i = 0; i < {self.shape[0]}; ++i) {name}[i] = R({self.start!r} + {self.step!r} * i);"
        )


class Elementwise(Value):
    """An operation on the elements of values, with broadcasting."""

    def __init__(
        self, shape: Sequence[int], kind: str, cost: int, write: Callable[..., str], arguments: Sequence[Value | object]
    ) -> None:
        values = [a for a in arguments if isinstance(a, Value)]
        super().__init__(shape, max((v.phase for v in values), default=ONCE), kind)
        self.write, self.arguments = write, arguments
        self.cost = min(cost + sum(v.share for v in values), 1000)
        self.choosy = any(v.choosy for v in values)

    def compute(self, body: Body, index: Indices) -> str:
        given = [a.load(body, aligned(index, a.shape)) if isinstance(a, Value) else a for a in self.arguments]
        return body.local(self.kind, self.write(*given))


def aligned(index: Indices, shape: tuple[int, ...]) -> Indices:
    """A position in a broadcast shape as one in the shape before."""
    last = index[len(index) - len(shape) :]
    return tuple(Index() if n == 1 else i for i, n in zip(last, shape, strict=True))


class Moved(Value):
    """A view: each dimension of the source at some multiples of the view's positions.

    Args:
        source: of which it is a view.
        shape: of the view.
        rule: from its positions to the source's.
        strides, offset: the same where the source's elements lie one after the other.
    """

    def __init__(
        self,
        source: Value,
        shape: Sequence[int],
        rule: Callable[[Indices], Indices],
        strides: tuple[int, ...],
        offset: int,
    ) -> None:
        super().__init__(shape, source.phase, source.kind)
        self.source, self.rule, self.choosy, self.cost = source, rule, source.choosy, source.share
        self.strides, self.offset = strides, offset

    @property
    def same_order(self) -> bool:
        """Whether its elements are all of the source's, in their order."""
        size = math.prod(self.shape)
        steps = zip(self.shape, self.strides, contiguous(self.shape), strict=True)
        return size == math.prod(self.source.shape) and all(n == 1 or a == b for n, a, b in steps)

    def realise(self, code: Code) -> Place:
        if self.place is None:
            source = self.source.realise(code)
            if source.strides != contiguous(self.source.shape):
                return super().realise(code)
            self.place = Place(source.buffer, source.offset + self.offset, self.strides)
        return self.place

    def kept_apart(self, phase: int) -> bool:
        return False

    def compute(self, body: Body, index: Indices) -> str:
        return self.source.load(body, self.rule(index))


class Joined(Value):
    """Parts that lie one after the other along a dimension: (first position, step between positions, part)."""

    choosy = True

    def __init__(
        self, shape: Sequence[int], dim: int, base: Value | None, parts: Sequence[tuple[range, Value]]
    ) -> None:
        values = [part for _, part in parts] + ([] if base is None else [base])
        super().__init__(shape, max(v.phase for v in values), "R")
        self.dim, self.base, self.parts = dim, base, parts
        self.cost = max(v.share for v in values)

    def compute(self, body: Body, index: Indices) -> str:
        at = index[self.dim]
        if at.terms:
            return body.local("R", body.element(self.realise(body.code), index))
        for places, part in self.parts:
            if at.constant in places:
                inside = Index(places.index(at.constant))
                return part.load(body, (*index[: self.dim], inside, *index[self.dim + 1 :]))
        assert self.base is not None, "the parts leave nothing out"
        return self.base.load(body, index)

    def store(self, code: Code, place: Place, *, accumulate: bool, phase: int | None = None) -> None:
        if self.shape[self.dim] <= _UNROLLED:
            super().store(code, place, accumulate=accumulate, phase=phase)
            return
        if accumulate:
            self.realise(code)
            Value.store(self, code, place, accumulate=True, phase=phase)
            return
        phase = self.phase if phase is None else phase
        if self.base is not None:
            code.write(self.shape, phase, place, self.base.load, choosy=self.base.choosy)
        for places, part in self.parts:
            strides = list(place.strides)
            offset = place.offset + places.start * strides[self.dim]
            strides[self.dim] *= places.step
            inside = Place(place.buffer, offset, tuple(strides))
            code.write(part.shape, phase, inside, part.load, choosy=part.choosy)


class Code:
    """The statements of the three phases, and the memory that they need.

    Args:
        lanes: how many samples lie side by side; None: the state is one.
    """

    def __init__(self, lanes: int | None = None) -> None:
        self._lanes = lanes
        self.lines: tuple[list[str], list[str], list[str]] = ([], [], [])
        self.used: tuple[dict[str, Buffer], ...] = ({}, {}, {})
        self._count = itertools.count()

    def room(self, shape: Sequence[int], phase: int) -> Place:
        """Memory for a value of that shape."""
        buffer = Buffer(f"b{next(self._count)}", phase, size=math.prod(shape))
        return Place(buffer, 0, self.strides(shape) if phase > ONCE else contiguous(shape))

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How a value of that shape lies: with samples side by side where there are lanes."""
        if self._lanes is None or not shape or shape[0] != self._lanes:
            return contiguous(shape)
        return 1, *(self._lanes * n for n in contiguous(shape[1:]))

    def uses(self, buffer: Buffer, phase: int) -> None:
        """Note that code of a phase reads or writes a buffer."""
        self.used[phase][buffer.name] = buffer
        if phase > buffer.phase:
            buffer.kept = True

    def pointer(self, place: Place, phase: int) -> str:
        """The address of a place's first element."""
        self.uses(place.buffer, phase)
        if place.buffer.kind != "R":
            raise Unsupported("a matrix of another type than the state's")
        return f"{place.buffer.name} + {place.offset}" if place.offset else place.buffer.name

    def write(
        self,
        shape: Sequence[int],
        phase: int,
        place: Place,
        element: Callable[[Body, Indices], str],
        *,
        sign: str = "=",
        choosy: bool = False,
    ) -> None:
        """Append loops over all positions of a shape, which assign an element of each to its place."""
        body = Body(self, phase)
        sizes: list[tuple[str, int]] = []
        index: list[Index | None] = []
        for n in shape:
            if n == 1 or (choosy and n <= _UNROLLED):
                index.append(None if n > 1 else Index())
            else:
                sizes.append((f"i{len(sizes)}", n))
                index.append(Index(0, ((sizes[-1][0], 1),)))
        if self._lanes is not None and len(shape) > 1 and shape[0] == self._lanes:
            sizes = sizes[1:] + sizes[:1]  # the samples innermost
        open_sizes = [n for n, i in zip(shape, index, strict=True) if i is None]
        for chosen in itertools.product(*map(range, open_sizes)):
            given = iter(chosen)
            at = tuple(Index(next(given)) if i is None else i for i in index)
            text = element(body, at)
            body.lines.append(f"{body.element(place, at)} {sign} {text};")
        self.lines[phase].append(_rendered(body, sizes))


def _rendered(body: Body, sizes: list[tuple[str, int]]) -> str:
    """Nested loops, those that together go through memory in one stride made one."""
    accesses, loops = [dict(a.terms) for a in body.accesses], list(sizes)
    for k in range(len(loops) - 2, -1, -1):
        (outer, n), (inner, m) = loops[k], loops[k + 1]
        if all(a.get(outer, 0) == m * a.get(inner, 0) for a in accesses):
            loops[k : k + 2] = [(inner, n * m)]
            for a in accesses:
                a.pop(outer, None)
    text = "\n".join(body.lines)
    for i, (access, terms) in enumerate(zip(body.accesses, accesses, strict=True)):
        text = text.replace(f"@{i}@", str(Index(access.constant, tuple(terms.items()))))
    for k, (variable, n) in reversed(list(enumerate(loops))):
        hint = "SIDE_BY_SIDE\n" if k == len(loops) - 1 else ""
        text = f"{hint}for (int {variable} = 0; {variable} < {n}; ++{variable}) {{\n{text}\n}}"
    return text if loops else f"{{\n{text}\n}}"
