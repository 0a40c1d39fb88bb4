"""From the graph of a field, and of its products with a cotangent, to the C++ functions that compute them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from homojl.backends.pytorch.native.operations import CASTS, ELEMENTS, FILLED, SAME, VIEWS, Unsupported, literal
from homojl.backends.pytorch.native.places import Buffer, Place, contiguous, rule_of
from homojl.backends.pytorch.native.products import Product, Reduction
from homojl.backends.pytorch.native.values import (
    BACKWARD,
    FORWARD,
    ONCE,
    Code,
    Constant,
    Count,
    Elementwise,
    Joined,
    Leaf,
    Moved,
    Value,
)

aten = torch.ops.aten
_C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
}
_REALS = (torch.float32, torch.float64)


class Functions(NamedTuple):
    """Generated C++.

    Attributes:
        text: of the functions `once`, `field` and `pull`.
        consts, saved, work: elements of memory: of what is computed once a solve, of what `pull` needs of an evaluation
            and of what only lasts as long as a call.
        needs_state: whether `pull` needs the state.
    """

    text: str
    consts: int
    saved: int
    work: int
    needs_state: bool


class Lowering:
    """Values of a graph's nodes.

    Args:
        graph: (t, y, *inputs, cotangent) -> (derivative, by y, *by each wanted input), ATen operations alone.
        dtype: of the state.
        inputs: what the inputs look like.
        wanted: positions of the inputs whose gradients the graph has.
        rows: positions of those that have a row for each sample, where the state's samples lie side by side in lanes,
            each with a time of its own; None: the state is one.
    """

    def __init__(
        self,
        graph: torch.fx.Graph,
        dtype: torch.dtype,
        inputs: Sequence[torch.Tensor],
        wanted: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> None:
        self.rows, self.dtype, self.wanted = rows, dtype, wanted
        self.real = _C_TYPES[dtype]
        self._state, self._cotangent = Buffer("y", FORWARD), Buffer("g", BACKWARD)
        self._values: dict[torch.fx.Node, Any] = {}
        nodes = [n for n in graph.nodes if n.op == "placeholder"]
        self._shape = tuple(nodes[1].meta["val"].shape)
        self.code = Code(self._shape[0] if rows is not None else None)
        like = list(inputs)
        for i, node in enumerate(nodes):
            shape = tuple(node.meta["val"].shape)
            if i == 0 and rows is None:
                value: Value = Constant((), "t[0]", FORWARD)
            elif i == 0:
                value = Leaf(shape, FORWARD, Place(Buffer("t", FORWARD), 0, (1, *[0] * (len(shape) - 1))))
            elif i == 1:
                value = Leaf(shape, FORWARD, Place(self._state, 0, self.code.strides(shape)))
            elif i - 2 < len(like):
                value = self._input(i - 2, like[i - 2])
            else:
                value = Leaf(shape, BACKWARD, Place(self._cotangent, 0, self.code.strides(shape)))
            value.users = len(node.users)
            self._values[node] = value
        self._inputs = len(like)
        for node in graph.nodes:
            if node.op == "call_function":
                value = self._lower(node)
                if isinstance(value, Value) and value.place is None:
                    value.users = max(len(node.users), 1)
                self._values[node] = value
            elif node.op == "output":
                self._outputs = node.args[0]
            elif node.op == "get_attr":
                self._values[node] = _constant(getattr(node.graph.owning_module, node.target))
            elif node.op != "placeholder":
                raise Unsupported(f"a graph with {node.op} {node.target}")

    def _input(self, i: int, like: torch.Tensor) -> Value:
        if like.dtype not in _C_TYPES:
            raise Unsupported(f"tensors of {like.dtype}")
        kind = "R" if like.dtype == self.dtype else _C_TYPES[like.dtype]
        if self.rows is not None and i in self.rows:
            return Leaf(like.shape, FORWARD, Place(Buffer(f"p{i}", FORWARD, kind), 0, self.code.strides(like.shape)))
        place = Place(Buffer(f"p{i}", ONCE, kind), 0, tuple(like.stride()))
        return Leaf(like.shape, ONCE, place, "bool" if like.dtype == torch.bool else "R")

    # Operations

    def _lower(self, node: torch.fx.Node) -> Any:
        target, args, kwargs = node.target, node.args, node.kwargs
        value: Any = node.meta.get("val")
        given: list[Any] = [self._values[a] if isinstance(a, torch.fx.Node) else a for a in args]
        if target is operator.getitem:
            return given[0][given[1]]
        if target in SAME:
            return given[0]
        if target in VIEWS:
            return self._view(target, given)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype not in _REALS:
            raise Unsupported(f"{target} in {value.dtype}")
        if target in CASTS:
            return self._cast(given[0], value)
        if target in FILLED or target in (aten.full.default, aten.full_like.default, aten.scalar_tensor.default):
            fill = FILLED[target] if target in FILLED else args[0 if target is aten.scalar_tensor.default else 1]
            return Constant(value.shape, literal(fill), ONCE, "bool" if value.dtype == torch.bool else "R")
        if target in ELEMENTS:
            write, cost, kind = ELEMENTS[target]
            chosen = {k: v for k, v in kwargs.items() if k in ("alpha", "value")}
            write = functools.partial(write, **chosen) if chosen else write
            return Elementwise(value.shape, kind, cost, write, given)
        method = getattr(self, str(target).replace("aten.", "_").replace(".", "_"), None)
        if method is None:
            raise Unsupported(str(target))
        return method(value, *given, **kwargs)

    def _cast(self, x: Value, value: torch.Tensor) -> Value:
        kind = "bool" if value.dtype == torch.bool else "R"
        if kind == x.kind and (value.dtype.is_floating_point or kind == "bool"):
            return x
        write = (lambda a: f"({a} != 0)") if kind == "bool" else (lambda a: f"R({a})")
        if kind == "R" and not value.dtype.is_floating_point and x.kind == "R":
            raise Unsupported("a cast to whole numbers")
        return Elementwise(x.shape, kind, 1, write, [x])

    def _view(self, target: Any, given: list[Any]) -> Any:
        source, same = given[0], VIEWS[target] or target
        place, shape = source.place, source.shape
        for _ in range(2):
            strides, offset = (contiguous(shape), 0) if place is None else (place.strides, place.offset)
            reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
            meta = torch.empty(reach, device="meta").as_strided(shape, strides, offset)
            try:
                views = same(meta, *given[1:])
            except RuntimeError:  # a view that these strides do not have
                place = self._in_order(source).realise(self.code)
                continue
            many = isinstance(views, list | tuple)
            found = [self._viewed(source, place, v) for v in (views if many else [views])]
            return found if many else found[0]
        raise Unsupported(str(target))

    def _in_order(self, source: Value) -> Value:
        return Elementwise(source.shape, source.kind, 0, str, [source]) if source.place is not None else source

    def _viewed(self, source: Value, place: Place | None, view: torch.Tensor) -> Value:
        strides, offset = tuple(view.stride()), int(view.storage_offset())
        if place is None:
            rule = rule_of(source.shape, tuple(view.shape), strides, offset)
            if rule is not None:
                return Moved(source, view.shape, rule, strides, offset)
            place = source.realise(self.code)
        return Leaf(view.shape, source.phase, Place(place.buffer, offset, strides), source.kind)

    def _mm_default(self, value: torch.Tensor, a: Value, b: Value) -> Value:
        return Product(value.shape, a, b)

    _bmm_default = _mm_default

    def _addmm_default(self, value: torch.Tensor, bias: Value, a: Value, b: Value, **scales: Any) -> Value:
        if scales:
            raise Unsupported("addmm with factors")
        return Product(value.shape, a, b, bias)

    def _sum_dim_IntList(self, value: torch.Tensor, x: Value, dims: Any = None, keep: bool = False, **_: Any) -> Value:
        return Reduction(x, dims or [], keep=keep) if x.shape else x

    def _amax_default(self, value: torch.Tensor, x: Value, dims: Any = (), keep: bool = False) -> Value:
        return Reduction(x, dims, keep=keep, largest=True) if x.shape else x

    def _cat_default(self, value: torch.Tensor, parts: Sequence[torch.fx.Node], dim: int = 0) -> Value:
        places, at = [], 0
        for node in parts:
            part = self._values[node]
            size = part.shape[dim]
            places.append((range(at, at + size), part))
            at += size
        return Joined(value.shape, dim % len(value.shape), None, places)

    def _select_scatter_default(self, value: torch.Tensor, base: Value, part: Value, dim: int, index: int) -> Value:
        dim, index = dim % len(base.shape), index % base.shape[dim]
        source = self._view(aten.unsqueeze.default, [part, dim])
        return Joined(value.shape, dim, base, [(range(index, index + 1), source)])

    def _slice_scatter_default(
        self,
        value: torch.Tensor,
        base: Value,
        part: Value,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> Value:
        places = range(*slice(start, end, step).indices(base.shape[dim]))
        return Joined(value.shape, dim % len(base.shape), base, [(places, part)])

    def _arange_start_step(self, value: torch.Tensor, start: float, end: float, step: float = 1, **_: Any) -> Value:
        return Count(value.shape[0], float(start), float(step))

    # Functions

    def functions(self) -> Functions:
        """The code of the graph's outputs."""
        code, (derivative, *gradients) = self.code, self._outputs
        self._output(derivative, Buffer("k", FORWARD), FORWARD, accumulate=False)
        for node, name in zip(gradients, ("by_y", *(f"by{i}" for i in self.wanted)), strict=False):
            buffer = Buffer(name, BACKWARD)
            aside = self.rows is not None and name != "by_y" and int(name[2:]) not in self.rows
            if name == "by_y" and node is None:
                zero = Constant(self._shape, "R(0)")
                zero.store(code, Place(buffer, 0, contiguous(zero.shape)), accumulate=False, phase=BACKWARD)
            elif node is not None:
                self._output(node, buffer, BACKWARD, accumulate=name != "by_y", aside=aside)
        sizes, tables = self._memory()
        arguments = "const void *const *inputs, const R *consts"
        signatures = (
            "static void once(const void *const *inputs, R *consts)",
            f"static void field(const R *t, const R *y, {arguments}, R *saved, R *work, R *__restrict k)",
            f"static void pull(const R *t, const R *y, {arguments}, const R *saved, R *work, const R *g, "
            "R *__restrict by_y, R *const *by)",
        )
        bodies = [
            "\n".join([signature, "{", *tables[phase], *code.lines[phase], "}"])
            for phase, signature in enumerate(signatures)
        ]
        return Functions("\n\n".join(bodies), *sizes, needs_state=self._state.kept)

    def _output(self, node: Any, buffer: Buffer, phase: int, *, accumulate: bool, aside: bool = False) -> None:
        """Write an output; `aside`: it is no sample's."""
        value = self._values[node]
        if self.rows is not None and not aside:
            value.store(self.code, Place(buffer, 0, self.code.strides(value.shape)), accumulate=accumulate, phase=phase)
            return
        place = Place(buffer, 0, contiguous(value.shape))
        while isinstance(value, Moved) and value.users <= 1 and value.place is None:  # written where it is wanted
            source = value.source
            if value.same_order:
                value, place = source, Place(buffer, 0, contiguous(source.shape))
            elif len(source.shape) == 2 and value.shape == source.shape[::-1] and value.strides == (1, source.shape[1]):
                value, place = source, Place(buffer, 0, place.strides[::-1])
            else:
                break
        if isinstance(value, Product | Reduction) and (value.users > 1 or value.place is not None):
            value = Leaf(value.shape, value.phase, value.realise(self.code), value.kind)
        value.store(self.code, place, accumulate=accumulate, phase=phase)

    def _memory(self) -> tuple[tuple[int, int, int], list[list[str]]]:
        """How much memory the three kinds need, and the declarations of the pointers into it."""
        ends = {"consts": 0, "saved": 0, "work": 0}
        places: dict[str, str] = {}
        tables: list[list[str]] = [[], [], []]
        for phase in (ONCE, FORWARD, BACKWARD):
            for name, buffer in self.code.used[phase].items():
                if name[0] == "p":
                    kind = self.real if buffer.kind == "R" else buffer.kind
                    tables[phase].append(f"const {kind} *const {name} = (const {kind} *)inputs[{name[1:]}];")
                elif name.startswith("by") and name != "by_y":
                    tables[phase].append(f"R *const __restrict {name} = by[{self.wanted.index(int(name[2:]))}];")
                elif buffer.size:
                    if name not in places:
                        kept = "consts" if buffer.phase == ONCE else "saved" if buffer.kept else "work"
                        places[name] = f"{kept} + {ends[kept]}"
                        ends[kept] += -(-buffer.size // 16) * 16
                    const = "const " if phase > buffer.phase else ""
                    tables[phase].append(f"{const}R *const __restrict {name} = {places[name]};")
        return (ends["consts"], ends["saved"], ends["work"]), tables


def _constant(x: object) -> Value:
    """A number that the function makes a tensor of."""
    if not isinstance(x, torch.Tensor) or x.numel() != 1 or x.is_complex():
        raise Unsupported("a tensor that the function makes of numbers")
    return Constant(x.shape, literal(x.item()), ONCE, "bool" if x.dtype == torch.bool else "R")
