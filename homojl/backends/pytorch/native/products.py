"""Matrix products and sums of a field's graph as C++."""

from __future__ import annotations

import math
from collections.abc import Sequence

from homojl.backends.pytorch.native.places import Index, Place
from homojl.backends.pytorch.native.values import Body, Code, Value, aligned

_SHORT = 4  # columns below which there is no vector of them
_NARROW = 8  # columns up to which a product is made of scalar products where they would have to be copied otherwise


class Product(Value):
    """a @ b, or that plus a bias; of matrices, or of as many pairs of them."""

    def __init__(self, shape: Sequence[int], a: Value, b: Value, bias: Value | None = None) -> None:
        values = [a, b] + ([] if bias is None else [bias])
        super().__init__(shape, max(v.phase for v in values))
        self.a, self.b, self.bias = a, b, bias

    def kept_apart(self, phase: int) -> bool:
        return True

    def store(self, code: Code, place: Place, *, accumulate: bool, phase: int | None = None) -> None:
        phase = self.phase if phase is None else phase
        a, b = self.a.realise(code), self.b.realise(code)
        start = "ADD" if accumulate else "SET"
        bias = "nullptr"
        if self.bias is not None:
            assert not accumulate
            added = self.bias
            row = added.shape == self.shape[-1:] and (added.place is None or added.place.strides == (1,))
            if added.place is None and added.phase == phase:
                added.realise(code)
            if row and place.strides[1] == 1:
                start, bias = "BIAS", code.pointer(added.realise(code), phase)
            else:
                code.write(self.shape, phase, place, lambda body, i: added.load(body, aligned(i, added.shape)))
                start = "ADD"
        for i in range(self.shape[0] if len(self.shape) == 3 else 1):
            parts = [Place(x.buffer, x.offset + i * x.strides[0], x.strides[-2:]) for x in (a, b, place)]
            code.lines[phase].append(_call(code, phase, self._sizes(), parts[0], parts[1], parts[2], start, bias))

    def _sizes(self) -> tuple[int, int, int]:
        return self.shape[-2], self.shape[-1], self.a.shape[-1]


def _call(
    code: Code, phase: int, sizes: tuple[int, int, int], a: Place, b: Place, c: Place, start: str, bias: str
) -> str:
    """The call of a product by the kernel that suits how the matrices lie."""
    m, n, k = sizes
    turned = [Place(x.buffer, x.offset, x.strides[::-1]) for x in (b, a, c)]
    sides = a.strides[0] == 1 and bias == "nullptr"  # whether the transposed product has columns side by side
    if sides and ((c.strides[1] != 1 and c.strides[0] == 1) or (n < _SHORT and n < m)):
        return _product(code, phase, (n, m, k), turned, start, bias)
    if (a.strides[1] == 1 or k == 1) and (n < _SHORT or (b.strides[1] != 1 and n <= _NARROW)):
        if b.strides[0] != 1 and k > 1:
            b = _packed(code, turned[0], (n, k), phase)
            b = Place(b.buffer, b.offset, b.strides[::-1])
        pointers = ", ".join(code.pointer(x, phase) for x in (a, b, c))
        numbers = f"{m}, {n}, {k}, {a.strides[0]}, {b.strides[1]}, {c.strides[0]}, {c.strides[1]}"
        return f"scalar_products<{numbers}, {start}>({pointers}, {bias});"
    if b.strides[1] != 1 and n > 1:
        if sides:
            return _product(code, phase, (n, m, k), turned, start, bias)
        b = _packed(code, b, (k, n), phase)
    return _product(code, phase, (m, n, k), [a, b, c], start, bias)


def _packed(code: Code, b: Place, shape: tuple[int, int], phase: int) -> Place:
    """A matrix with its columns side by side; once a solve where it does not change."""
    known: dict[tuple[str, int, tuple[int, ...]], Place] = code.__dict__.setdefault("packed", {})
    key = b.buffer.name, b.offset, b.strides
    if key not in known:
        known[key] = code.room(shape, b.buffer.phase)
        code.write(shape, b.buffer.phase, known[key], lambda body, index: body.element(b, index))
    return known[key]


def _product(
    code: Code, phase: int, sizes: tuple[int, int, int], places: Sequence[Place], start: str, bias: str
) -> str:
    a, b, c = places
    pointers = ", ".join(code.pointer(x, phase) for x in (a, b, c))
    m, n, k = sizes
    numbers = f"{m}, {n}, {k}, {a.strides[0]}, {a.strides[1]}, {b.strides[0]}, {c.strides[0]}, {c.strides[1]}, {start}"
    return f"product<{numbers}>({pointers}, {bias});"


class Reduction(Value):
    """The sums, or the largest elements, along some dimensions."""

    def __init__(self, source: Value, dims: Sequence[int], *, keep: bool, largest: bool = False) -> None:
        rank = len(source.shape)
        self.dims = tuple(sorted(d % rank for d in dims)) if dims else tuple(range(rank))
        shape = [1 if d in self.dims else n for d, n in enumerate(source.shape) if keep or d not in self.dims]
        super().__init__(shape, source.phase)
        self.source, self.keep, self.largest = source, keep, largest

    def kept_apart(self, phase: int) -> bool:
        return True

    def store(self, code: Code, place: Place, *, accumulate: bool, phase: int | None = None) -> None:
        phase, source, dims = self.phase if phase is None else phase, self.source, self.dims
        rank = len(source.shape)
        if source.kept_apart(phase):
            source.realise(code)
        if not accumulate:
            start = "-R(INFINITY)" if self.largest else "R(0)"
            code.write(self.shape, phase, place, lambda *_: start)
        outer = [d for d in range(rank) if d not in dims]
        inside = bool(outer) and max(outer) == rank - 1 and source.shape[-1] > 1
        # Sums over rows add whole rows; others add along the last dimension.
        order = [*dims, *outer] if inside else [*outer, *dims]
        body = Body(code, phase)
        index = [Index(0, ((f"i{d}", 1),)) if source.shape[d] > 1 else Index() for d in range(rank)]
        element = source.load(body, tuple(index))
        at = tuple(Index() if d in dims else index[d] for d in range(rank) if self.keep or d not in dims)
        target = body.element(place, at)
        total = target if inside else "total"
        sign = f"{total} = largest({total}, {element});" if self.largest else f"{total} += {element};"
        body.lines.append(sign)
        text = "\n".join(body.lines)
        for i, access in enumerate(body.accesses):
            text, target = text.replace(f"@{i}@", str(access)), target.replace(f"@{i}@", str(access))
        reduced = math.prod(source.shape[d] for d in dims)
        for depth, d in reversed(list(enumerate(order))):
            if source.shape[d] > 1:
                hint = ""
                if depth == rank - 1 and not self.largest:
                    hint = "SIDE_BY_SIDE\n" if inside else "SUMMED(total)\n"
                text = f"{hint}for (int i{d} = 0; i{d} < {source.shape[d]}; ++i{d}) {{\n{text}\n}}"
            if not inside and depth == len(outer):
                text = f"R total = {target};\n{text}\n{target} = total;"
        code.lines[phase].append(f"{{  // of {reduced}\n{text}\n}}")
