"""What a field computes, and the products of its derivatives with a cotangent, as one graph of simple operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from homojl.backends.pytorch.native.operations import Unsupported

Tensor = torch.Tensor
aten = torch.ops.aten

_KEPT = (  # operations that are better written as they are than as what they decompose into
    aten.addmm.default,
    aten.tanh_backward.default,
    aten.sigmoid_backward.default,
    aten.threshold_backward.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.relu.default,
    aten.leaky_relu.default,
)


def _mean(x: Tensor, dims: Sequence[int] | None = None, keep: bool = False, **_: Any) -> Tensor:
    dims = dims or range(x.ndim)
    return x.sum(list(dims), keep) / math.prod(x.shape[d] for d in dims)


def _var_mean(
    x: Tensor, dims: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = list(dims or range(x.ndim))
    mean, n = _mean(x, dims, True), math.prod(x.shape[d] for d in dims)
    variance = (x - mean).square().sum(dims, keepdim) / (n - (1 if correction is None else correction))
    return variance, mean if keepdim else mean.squeeze(dims)


_SIMPLER: dict[Any, Callable[..., Any]] = {  # operations that `lower` has no words of its own for
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.var_mean.correction: _var_mean,
    aten.var.correction: lambda *x, **options: _var_mean(*x, **options)[0],
    aten.std.correction: lambda *x, **options: _var_mean(*x, **options)[0].sqrt(),
    aten.sum.default: lambda x, **_: x.sum(list(range(x.ndim))),
    aten.max.default: lambda x: x.amax(list(range(x.ndim))),
    aten.mv.default: lambda a, b: (a @ b[:, None])[:, 0],
    aten.dot.default: lambda a, b: (a * b).sum([0]),
    aten.stack.default: lambda xs, dim=0: torch.cat([x.unsqueeze(dim) for x in xs], dim),
}

_SPLIT = (  # operations that ATen counts among its core ones
    *("gelu", "gelu_backward", "elu", "elu_backward", "leaky_relu_backward", "hardtanh", "hardtanh_backward"),
    *("silu", "silu_backward", "softplus", "softplus_backward", "mish", "hardsigmoid", "hardswish", "glu"),
    *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data", "logsumexp"),
    *("native_layer_norm", "native_layer_norm_backward", "linalg_vector_norm", "norm"),
    *("log_sigmoid_forward", "log_sigmoid_backward", "addcdiv", "lerp", "frac", "tril", "triu", "select_backward"),
    "slice_backward",
)


def joint_graph(
    field: Callable[..., Tensor], t: Tensor, y: Tensor, inputs: Sequence[Tensor], wanted: Sequence[int]
) -> torch.fx.Graph:
    """(t, y, *inputs, cotangent) -> (derivative, its product by y, *by each wanted input), in ATen's operations.

    Args:
        field: (t, y, *inputs) -> derivative, free of side effects but for those on tensors.
        t, y, inputs: what it is traced with.
        wanted: positions of the inputs to differentiate by.

    Raises:
        Unsupported: if it writes into its inputs, draws random numbers, or is no graph.
    """
    given = [t.detach(), y.detach(), *(x.detach() for x in inputs)]
    with torch.no_grad():
        pure = make_fx(torch.func.functionalize(field, remove="mutations"))(*given)
    _without_copies(pure.graph)
    for node in pure.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        if node.target is aten.copy_.default or node.target._schema.is_mutable:
            raise Unsupported("a field that writes into a tensor which it holds")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unsupported("a field that draws random numbers")

    pure.recompile()

    def joint(t: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *inputs, cotangent = rest

        def value_at(y: Tensor, *by: Tensor) -> Tensor:
            given = list(inputs)
            for i, x in zip(wanted, by, strict=True):
                given[i] = x
            value: Tensor = pure(t, y, *given)
            return value

        value, pull = torch.func.vjp(value_at, y, *(inputs[i] for i in wanted))[:2]
        return value, *pull(cotangent)

    split = get_decompositions([getattr(aten, name) for name in _SPLIT])
    table: dict[Any, Any] = {k: v for k, v in (core_aten_decompositions() | split).items() if k not in _KEPT} | _SIMPLER
    pure_joint = torch.func.functionalize(joint, remove="mutations")
    traced: Any = make_fx(pure_joint, decomposition_table=table)(*given, torch.ones_like(y))
    traced.graph.eliminate_dead_code()
    graph: torch.fx.Graph = traced.graph
    return graph


def _without_copies(graph: torch.fx.Graph) -> None:
    """Put what is copied in the place of a copy that is written over all of a tensor."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.copy.default:
            into, source = node.args[0].meta["val"], node.args[1]
            if source.meta["val"].dtype != into.dtype:
                raise Unsupported("a copy into another type")
            if source.meta["val"].shape != into.shape:
                with graph.inserting_before(node):
                    source = graph.call_function(aten.expand.default, (source, list(into.shape)))
                    source.meta["val"] = into
            node.replace_all_uses_with(source)
            graph.erase_node(node)
