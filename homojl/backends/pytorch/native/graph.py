"""What a field computes, and the products of its derivatives with a cotangent, as one graph of simple operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from homojl.backends.pytorch.native.operations import Unsupported

Tensor = torch.Tensor
aten = torch.ops.aten

_KEPT = (  # operations that are better written as they are than as what they decompose into
    aten.addmm.default,
    aten.tanh_backward.default,
    aten.sigmoid_backward.default,
    aten.threshold_backward.default,
    aten.select_backward.default,
    aten.slice_backward.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.stack.default,
    aten.mean.dim,
    aten.mean.default,
    aten.relu.default,
    aten.leaky_relu.default,
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
    for node in pure.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        if node.target is aten.copy_.default or node.target._schema.is_mutable:
            raise Unsupported("a field that writes into a tensor which it holds")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unsupported("a field that draws random numbers")

    def joint(t: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, cotangent = rest
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            inputs = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(inputs)]
            value = pure(t, y, *inputs)
            by = [y, *(inputs[i] for i in wanted)]
            if not value.requires_grad:
                return (value, *(None for _ in by))
            return value, *torch.autograd.grad(value, by, cotangent, allow_unused=True)

    table = {k: v for k, v in core_aten_decompositions().items() if k not in _KEPT}
    traced: Any = make_fx(joint, decomposition_table=table)(*given, torch.ones_like(y))
    traced.graph.eliminate_dead_code()
    graph: torch.fx.Graph = traced.graph
    return graph
