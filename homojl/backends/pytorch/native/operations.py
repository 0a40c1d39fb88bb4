"""C++ expressions for PyTorch's operations on elements, and which operations only look at their input otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

CHEAP, COSTLY = 1, 10  # relative times of an element


class Unsupported(Exception):
    """An operation that whole solves do not have; the message names it."""


class Postponed(Unsupported):
    """A field that cannot be traced now, as inside a transform of torch.func, but may be another time."""


def raise_postponed(error: Exception) -> None:
    """Raise Postponed if that was why tracing failed."""
    # torch.func's transforms have been set aside and PyTorch misses them, or tensors that graphs keep go through hooks.
    if any(what in str(error) for what in ("dynamicLayerStack", "saved tensor hooks")):
        raise Postponed("inside a transform of torch.func, or under hooks") from error


def literal(x: object) -> str:
    """A number of Python as one of C++; expressions of C++ as they are."""
    if isinstance(x, str):
        return x
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, int):
        return f"R({x})" if abs(x) < 2**24 else f"R({x}.0)"
    if not isinstance(x, float):
        raise Unsupported(f"a constant {x!r}")
    if math.isnan(x):
        return "R(NAN)"
    if math.isinf(x):
        return "R(INFINITY)" if x > 0 else "R(-INFINITY)"
    return f"R({x!r})"


def _scaled(x: str, alpha: Any) -> str:
    return x if alpha == 1 else f"{literal(alpha)} * {x}"


def _power(x: str, exponent: object) -> str:
    simple = {1: x, 2: f"{x} * {x}", 3: f"{x} * {x} * {x}", 4: f"({x} * {x}) * ({x} * {x})", -1: f"R(1) / {x}"}
    if isinstance(exponent, int | float):
        if exponent in simple:
            return f"({simple[int(exponent)]})"
        if exponent == 0.5:
            return f"sqrt({x})"
        if exponent == 0:
            return "R(1)"
        return f"pow({x}, {literal(exponent)})"
    return f"pow({x}, {exponent})"


def _clamp(x: str, low: object = None, high: object = None) -> str:
    if low is not None:
        x = f"largest({x}, {literal(low)})"
    if high is not None:
        x = f"least({x}, {literal(high)})"
    return x


def _unary(name: str) -> Callable[..., str]:
    return lambda x: f"{name}({x})"


def _infix(sign: str) -> Callable[..., str]:
    return lambda a, b: f"({literal(a)} {sign} {literal(b)})"


def _plus(sign: str) -> Callable[..., str]:
    return lambda a, b, alpha=1: f"({literal(a)} {sign} {_scaled(literal(b), alpha)})"


def _binary(name: str) -> Callable[..., str]:
    return lambda a, b: f"{name}({literal(a)}, {literal(b)})"


_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COSTLY_UNARY = (  # by the names that kernels.hpp gives them
    *("exp", "log", "log1p", "expm1", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "erf", "erfc", "sigmoid"),
)
_CHEAP_UNARY = {
    "neg": lambda x: f"(-{x})",
    "abs": _unary("fabs"),
    "sqrt": _unary("sqrt"),
    "rsqrt": lambda x: f"(R(1) / sqrt({x}))",
    "reciprocal": lambda x: f"(R(1) / {x})",
    "relu": lambda x: f"({x} <= R(0) ? R(0) : {x})",
    "sign": lambda x: f"(R({x} > R(0)) - R({x} < R(0)))",
    "sgn": lambda x: f"(R({x} > R(0)) - R({x} < R(0)))",
    "floor": _unary("floor"),
    "ceil": _unary("ceil"),
    "isnan": lambda x: f"({x} != {x})",
    "logical_not": lambda x: f"(!{x})",
    "bitwise_not": lambda x: f"(!{x})",
}


def _table() -> dict[Any, tuple[Callable[..., str], int, str]]:
    table: dict[Any, tuple[Callable[..., str], int, str]] = {}

    def add(name: str, write: Callable[..., str], cost: int = CHEAP, kind: str = "R") -> None:
        packet = getattr(aten, name)
        for overload in ("default", "Tensor", "Scalar", "Tensor_Scalar", "Tensor_Tensor", "self"):
            if overload in packet.overloads():
                table[getattr(packet, overload)] = write, cost, kind

    for name in _COSTLY_UNARY:
        add(name, _unary(f"{name}_"), COSTLY)
    for name, write in _CHEAP_UNARY.items():
        add(name, write, CHEAP, "bool" if name in ("isnan", "logical_not", "bitwise_not") else "R")
    for name, sign in _COMPARED.items():
        add(name, _infix(sign), CHEAP, "bool")
    for name, sign in (("logical_and", "&&"), ("logical_or", "||"), ("bitwise_and", "&"), ("bitwise_or", "|")):
        add(name, _infix(sign), CHEAP, "bool")
    add("add", _plus("+"))
    add("sub", _plus("-"))
    add("rsub", lambda a, b, alpha=1: f"({literal(b)} - {_scaled(a, alpha)})")
    add("mul", _infix("*"))
    add("div", lambda a, b: f"(R({literal(a)}) / {literal(b)})", 3)
    add("true_divide", lambda a, b: f"(R({literal(a)}) / {literal(b)})", 3)
    add("maximum", _binary("largest"))
    add("minimum", _binary("least"))
    add("atan2", _binary("atan2"), COSTLY)
    add("clamp", _clamp)
    add("clamp_min", lambda x, low: _clamp(x, low))
    add("clamp_max", lambda x, high: _clamp(x, None, high))
    add("where", lambda c, a, b: f"({c} ? {literal(a)} : {literal(b)})")
    add("masked_fill", lambda x, mask, value: f"({mask} ? {literal(value)} : {x})")
    add("leaky_relu", lambda x, slope=0.01: f"({x} > R(0) ? {x} : {literal(float(slope))} * {x})")
    add("threshold_backward", lambda g, x, limit: f"({x} <= {literal(limit)} ? R(0) : {g})")
    add("tanh_backward", lambda g, y: f"({g} * (R(1) - {y} * {y}))")
    add("sigmoid_backward", lambda g, y: f"({g} * (R(1) - {y}) * {y})")
    add("addcmul", lambda a, b, c, value=1: f"({a} + {_scaled(f'{b} * {c}', value)})")
    table[aten.pow.Tensor_Scalar] = table[aten.pow.Tensor_Tensor] = _power, 2, "R"
    table[aten.pow.Scalar] = (lambda a, b: f"pow({literal(float(a))}, {b})"), COSTLY, "R"
    return table


ELEMENTS = _table()  # operation -> how it is written, its cost and the type of its result

SAME = {
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
}

VIEWS = {
    aten.view.default: None,
    aten._unsafe_view.default: aten.view.default,
    aten.reshape.default: aten.view.default,
    aten.permute.default: None,
    aten.t.default: None,
    aten.transpose.int: None,
    aten.expand.default: None,
    aten.select.int: None,
    aten.slice.Tensor: None,
    aten.unsqueeze.default: None,
    aten.squeeze.default: None,
    aten.squeeze.dim: None,
    aten.squeeze.dims: None,
    aten.diagonal.default: None,
    aten.unbind.int: None,
    aten.split.Tensor: None,
    aten.split_with_sizes.default: None,
}  # operation -> what does the same to strides, where it is another

CASTS = {torch.ops.prims.convert_element_type.default, aten._to_copy.default}
FILLED = {
    aten.zeros_like.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.zeros.default: 0.0,
    aten.ones.default: 1.0,
    aten.new_zeros.default: 0.0,
    aten.new_ones.default: 1.0,
}
