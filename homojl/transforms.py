"""ODE solves under torch.func, and in forward mode.

A solver decides by values, which some of PyTorch's transforms do not let it see. So the solve is done on the values,
and the transform goes through its accepted steps, taken again; under `vmap` every element of the mapped dimension is a
sample of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from homojl.adjoints import AbstractODEAdjoint, CheckpointAdjoint, DirectAdjoint
from homojl.adjoints.ode import Solve
from homojl.algorithms import AbstractAdaptive, AbstractODEAlgorithm
from homojl.backends.base import Integration
from homojl.errors import ConfigError
from homojl.functions import VectorField

Tensor = torch.Tensor


def refuse_tracing(start: Tensor) -> None:
    """Raise a ConfigError where PyTorch records operations to run them at other values, or computes none."""
    proxy = torch._C._TorchDispatchModeKey.PROXY
    exporting = getattr(torch.compiler, "is_exporting", bool)()
    if exporting or torch._C._get_tracing_state() is not None or torch._C._get_dispatch_mode(proxy) is not None:
        raise ConfigError(
            "a solve decides by the values it meets, which a trace would fix to those of its example; export a layer "
            "of hj.nn by torch.export, or take its value out of what is traced"
        )
    meta = start.is_meta and type(start) in (Tensor, torch.nn.Parameter)  # another class may have values
    if meta or (torch._C._len_torch_function_stack() and torch.get_default_device().type == "meta"):
        what = "the state is on" if meta else "torch's default device is"
        raise ConfigError(
            f"{what} the meta device, whose tensors have no values, and a solve decides by values: move the "
            'state with .to(), and call torch.set_default_device("cpu") before'
        )


def mapped(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors is mapped over by `vmap`, so that its values cannot be seen."""
    for x in tensors:
        while _functorch.is_functorch_wrapped_tensor(x):
            if _functorch.is_batchedtensor(x):
                return True
            x = _functorch.get_unwrapped(x)
    return False


class TransformedAdjoint(DirectAdjoint):
    """The steps of a solve on the values, taken again with what the transforms wrap."""

    def integrate(self, solve: Solve, y0: Tensor) -> Integration:
        f = solve.f
        values = f.with_tensors([_value(x) for x in f.held()])
        start = _value(y0)
        with torch.no_grad(), temporarily_clear_interpreter_stack():
            result = solve.but(f=values).run(start)
        f.like_rows_of(values)
        return self.recorded(solve, result, y0)


def _value(x: Tensor) -> Tensor:
    """A tensor without tangent, graph and what torch.func wraps it in."""
    x = forward_ad.unpack_dual(x).primal if forward_ad._current_level >= 0 else x
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()


def adjoint_for(algorithm: AbstractODEAlgorithm, adjoint: AbstractODEAdjoint) -> AbstractODEAdjoint:
    """The adjoint that does for a solve under a transform what the given one does else.

    Raises:
        ConfigError: if there is none.
    """
    if not isinstance(adjoint, DirectAdjoint | CheckpointAdjoint):
        raise ConfigError(f"{adjoint.name} does not go with torch.func or forward mode; use DirectAdjoint()")
    if not algorithm.explicit:
        raise ConfigError(
            f"{algorithm.name} does not go with torch.func or forward mode; take an explicit method such as Tsit5(), "
            "or torch.autograd.grad"
        )
    return TransformedAdjoint()


class Mapped(torch.autograd.Function):
    """A solve as a function of tensors, for `vmap`: its elements are samples with steps of their own.

    `call(tensors, size, mapped)` solves where the tensors named in `mapped` have that many elements in front; size 0:
    as it is.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return call(tensors, 0, [False] * len(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_MappedGradient.apply(ctx.call, cotangent, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ConfigError("a solve under vmap does not go with forward mode; use torch.func.jacrev or vjp")

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], call: Callable[..., Tensor], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        dims = in_dims[1:]
        front = [x if d is None else x.movedim(d, 0) for x, d in zip(tensors, dims, strict=True)]
        return call(front, info.batch_size, [d is not None for d in dims]), 0


class _MappedGradient(torch.autograd.Function):
    """The gradients of a solve by each of the tensors, for `vmap` too."""

    generate_vmap_rule = False

    @staticmethod
    def forward(call: Callable[..., Tensor], cotangent: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _gradients(lambda xs: call(xs, 0, [False] * len(xs)), cotangent, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise ConfigError("a solve under vmap has first derivatives only")

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], call: Callable[..., Tensor], cotangent: Tensor, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size

        def each(x: Tensor, d: int | None) -> Tensor:
            return x.expand(size, *x.shape) if d is None else x.movedim(d, 0)

        given = [each(x, d) for x, d in zip((cotangent, *tensors), in_dims[1:], strict=True)]
        grads = _gradients(lambda xs: call(xs, size, [True] * len(xs)), given[0], given[1:])
        return grads, (0,) * len(grads)


def _gradients(
    function: Callable[[Sequence[Tensor]], Tensor], cotangent: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(x.is_floating_point() or x.is_complex()) for x in tensors]
        value = function(leaves)
    wanted = [x for x in leaves if x.requires_grad]
    found = iter(torch.autograd.grad(value, wanted, cotangent, allow_unused=True, materialize_grads=True))
    return tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in leaves)


def solve_mapped(solve: Callable[..., Tensor], f: VectorField, y0: Tensor, algorithm: AbstractODEAlgorithm) -> Tensor:
    """The states (T, *shape of y0) of a solve under `vmap`.

    Args:
        solve: (function, y0, tensors, which of them have a row for each sample, batch) -> states (T, ...).
        f: the field.
        y0: initial state.
        algorithm: of the solve.
    """
    held = f.held()
    adaptive = isinstance(algorithm, AbstractAdaptive)

    def call(tensors: Sequence[Tensor], size: int, where: Sequence[bool]) -> Tensor:
        y, *others = tensors
        if not size:
            return solve(lambda t, y, *others: f.with_tensors(others)(t, y), y, others, where[1:], "joint")
        if not where[0]:
            y = y.expand(size, *y.shape)
        if not algorithm.explicit:  # one after the other
            none = [False] * len(tensors)
            each = [[x[i] if m else x for x, m in zip(others, where[1:], strict=True)] for i in range(size)]
            return torch.stack([call([y[i], *each[i]], 0, none) for i in range(size)])
        dims = [0 if m else None for m in where[1:]]

        def one(t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
            return f.with_tensors(others)(t, y)

        def field(t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
            times = t.reshape(len(y)) if adaptive else t
            return torch.func.vmap(one, in_dims=(0 if adaptive else None, 0, *dims))(times, y, *others)

        return solve(field, y, others, where[1:], "per-sample" if adaptive else "joint").movedim(1, 0)

    return Mapped.apply(call, y0, *held)
