"""Vector fields and maps written in Julia: solved there with no callback, differentiated there."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Iterator, Sequence
from types import SimpleNamespace as Job
from typing import Any

import torch

from homojl.backends.julia import runtime
from homojl.backends.julia.tensors import StateForm
from homojl.errors import ConfigError
from homojl.functions.states import FLOATS
from homojl.names import did_you_mean

Tensor = torch.Tensor

# Packages that differentiate, the first of "reverse" that is installed.
DIFFERENTIATIONS = {"forward": ("ForwardDiff",), "reverse": ("Mooncake", "ReverseDiff")}
# Up to so many numbers in the state and the arguments dual numbers are as fast.
FORWARD_UP_TO = 32


class JuliaField:
    """A vector field, or a map, written in Julia; use it as `f` of a problem.

    Args:
        source: Julia source that ends in a function: `f!(du, u, p, t)`, which writes the derivative into `du`, or
            `f(u, p, t)`, which returns it, for an `ODEProblem`; `f!(out, z, p)` or `f(z, p)` for a `FixedPointProblem`
            or a `HomotopyProblem`. It may begin with `using` lines, define helpers, or just name a function of a
            package: "import MyPackage; MyPackage.rhs!". Or a layer of Lux, as "using Lux; Dense(2 => 2, tanh)", on
            states (batch, features), with all its parameters in one vector as `args`: `first_parameters` makes it.
        differentiation: how gradients are made in Julia: "forward", dual numbers of ForwardDiff.jl, whose cost grows
            with the number of elements; "reverse", by Mooncake.jl or ReverseDiff.jl, whichever is installed
            (`homojl julia add Mooncake`); "auto": "reverse" for more than 32 numbers in state and arguments, where
            one of them is installed.
        vjp: Julia source that ends in the products with the transposed Jacobian instead, which it writes:
            `vjp!(du, dp, v, u, p, t)`, without t for a map; `du` is v' df/du and `dp`, of p's form, v' df/dp.

    States are Julia arrays of the tensor's shape reversed, on the same memory: a tensor (batch, 2) is a 2 x batch
    matrix. `p` is the problem's `args`: nothing without any, the array of the only one, or a tuple of arrays.

    With `backend="julia"` the solver runs without leaving Julia. Anywhere else a call evaluates the function in Julia.
    With dual numbers the function must accept arrays of any real numbers.

    Raises:
        BackendUnavailable: if there is no Julia.
        ConfigError: if the source does not end in a function.
        JuliaCodeError: if Julia cannot evaluate the source.

    Example:
        >>> decay = JuliaField("f!(du, u, p, t) = (du .= .-p .* u)")
        >>> problem = hj.ODEProblem(decay, torch.ones(3), (0.0, 1.0), args=(torch.tensor([1.0, 2.0, 3.0]),))
        >>> hj.solve(problem, hj.Tsit5(), backend="julia")
    """

    native_to = "julia"

    def __init__(self, source: str, *, differentiation: str = "auto", vjp: str | None = None) -> None:
        for name, text in (("source", source), ("vjp", vjp or "")):
            if not isinstance(text, str):
                raise ConfigError(f"{name} must be Julia source as a str, got {type(text).__name__}")
        if differentiation not in (kinds := ("auto", *DIFFERENTIATIONS)):
            raise ConfigError(f"unknown differentiation {differentiation!r}; {did_you_mean(differentiation, kinds)}")
        self.source, self.differentiation, self.vjp_source = source, differentiation, vjp
        self.checked = False  # whether a call has shown that it writes all of its result
        julia = runtime.start()
        with runtime.calling(julia):
            self._function = julia.calls.evaluate_source(source)
            self._vjp = None if vjp is None else julia.calls.evaluate_source(vjp)

    def __repr__(self) -> str:
        return f"JuliaField({self.source!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.source, self.differentiation, self.vjp_source)

    def products(self, state: Tensor, args: Sequence[Tensor]) -> dict[str, Any]:
        """Where products with the transposed Jacobian come from: a function of its own, or a package, loaded."""
        if self._vjp is not None:
            return {"vjp": self._vjp, "differentiation": ""}
        kind = self.differentiation
        if kind == "auto":
            kind = "forward" if state.numel() + sum(a.numel() for a in args) <= FORWARD_UP_TO else "reverse"
        wanted = DIFFERENTIATIONS[kind] + (("ForwardDiff",) if self.differentiation == "auto" else ())
        return {"vjp": None, "differentiation": runtime.require(runtime.start(), *wanted)}

    def first_parameters(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """The first parameters of a layer of Lux, all in one vector (n,): the layer's `args`, and what is trained.

        Args:
            seed: of Julia's random numbers.
            dtype: float32 or float64.

        Raises:
            ConfigError: if the source ends in a function, which has no parameters of its own.
        """
        julia = runtime.start()
        with runtime.calling(julia):
            return torch.tensor(array("d", julia.calls.first_parameters(self._function, seed)), dtype=dtype)

    def bind(self, args: tuple[Any, ...]) -> BoundJuliaField:
        """The function with its arguments, as the backend and autograd use it."""
        return BoundJuliaField(self, args)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """`f(t, y, *args)` with a 0-d t, or `f(z, *args)`; differentiable."""
        timed = inputs[0].ndim == 0
        t, (state, *args) = (inputs[0], inputs[1:]) if timed else (None, inputs)
        value: Tensor = _Evaluate.apply(self, None if t is None else float(t), state, *args)
        return value


def _rebuilt(source: str, differentiation: str, vjp: str | None) -> JuliaField:
    return JuliaField(source, differentiation=differentiation, vjp=vjp)


class BoundJuliaField:
    """A Julia function and the tensors in its `p`.

    Called like the right-hand side or map that it stands for; a Julia backend takes it as it is instead.

    Attributes:
        julia: the function, a Julia object.
        checked: whether it is known to write all of its result.
        parameters: flat tensors of the arguments.
        parameter_dims, dims: sizes in which Julia sees the arguments, and the state.
    """

    def __init__(self, field: JuliaField, args: tuple[Any, ...]) -> None:
        for i, arg in enumerate(args):
            if not isinstance(arg, Tensor) or arg.dtype not in FLOATS:
                got = arg.dtype if isinstance(arg, Tensor) else type(arg).__name__
                raise ConfigError(
                    f"the arguments of a JuliaField must be tensors of float32 or float64; args[{i}] is {got}"
                )
        self.field, self.args = field, args
        self.julia, self.checked = field._function, field.checked
        self.parameters = [_contiguous(arg) for arg in args]
        self.parameter_dims = [_reversed(arg) for arg in args]
        self.dims: tuple[int, ...] = ()

    def for_state(self, state: Tensor) -> BoundJuliaField:
        """The same, for states of this one's shape."""
        self.dims = _reversed(state)
        return self

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        # A map's second input says which rows of the batch it was given; a Julia map takes all.
        return self.field(*(i for i in inputs if i is not None), *self.args)


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1)


def _reversed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(reversed(tensor.shape)) or (1,)


class _Evaluate(torch.autograd.Function):
    """One evaluation of a JuliaField, and its products with vectors."""

    @staticmethod
    def forward(field: JuliaField, t: float | None, state: Tensor, *args: Tensor) -> Tensor:
        bound = field.bind(args).for_state(state)
        if any(x.device.type != "cpu" for x in (state, *args)):
            raise ConfigError(
                f"a JuliaField called as a function runs on the CPU, and got tensors on {state.device}; solve with "
                "backend='julia', or bring them to the CPU"
            )
        julia = runtime.start()
        out = torch.empty(state.numel(), dtype=state.dtype)
        with runtime.calling(julia):
            julia.calls.evaluate(Job(device=None, field=bound, out=out, state=_contiguous(state), t=t))
        field.checked = True
        return StateForm(state).laid_out(out.reshape(state.shape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.field, ctx.t, state, *args = inputs
        ctx.save_for_backward(state, *args)
        ctx.save_for_forward(state, *args)
        ctx.set_materialize_grads(False)  # what has no tangent is told from what has one of zero

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        state, *args = ctx.saved_tensors
        if cotangent is None:
            return (None,) * (3 + len(args))
        gradients: tuple[Tensor, ...] = _Pullback.apply(ctx.field, ctx.t, cotangent, state, *args)
        return None, None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        values = [_Evaluate.apply(*row) for row in _rows(info, in_dims, inputs)]
        return torch.stack(values), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        state, *args = ctx.saved_tensors
        _, _, tangent, *others = tangents
        if tangent is None or any(x is not None for x in others):
            raise ConfigError(
                "a JuliaField has tangents by its state alone: pass arguments without tangents, or use reverse mode"
            )
        julia = runtime.start()
        runtime.require(julia, "ForwardDiff")
        out = torch.empty(state.numel(), dtype=state.dtype)
        with runtime.calling(julia):
            julia.calls.jvp(_job(ctx.field, ctx.t, state, args, out, tangent))
        return out.reshape(state.shape)


class _Pullback(torch.autograd.Function):
    """The products of a JuliaField with the transposed Jacobian.

    PyTorch's `once_differentiable` would leave the field out of a second derivative that has other parts, in silence.
    """

    @staticmethod
    def forward(
        field: JuliaField, t: float | None, cotangent: Tensor, state: Tensor, *args: Tensor
    ) -> tuple[Tensor, ...]:
        out = torch.empty(state.numel(), dtype=state.dtype)
        outs = [torch.empty(arg.numel(), dtype=arg.dtype) for arg in args]
        job = _job(field, t, state, args, out, cotangent)
        vars(job).update(field.products(state, args), parameters_out=outs)
        julia = runtime.start()
        with runtime.calling(julia):
            julia.calls.vjp(job)
        return out.reshape(state.shape), *(o.reshape(arg.shape) for o, arg in zip(outs, args, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        values = zip(*(_Pullback.apply(*row) for row in _rows(info, in_dims, inputs)), strict=True)
        stacked = tuple(torch.stack(rows) for rows in values)
        return stacked, (0,) * len(stacked)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise ConfigError("a JuliaField gives first derivatives only; write the function in PyTorch for second ones")


def _rows(info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> Iterator[list[Any]]:
    """The inputs of each of the evaluations that `torch.func.vmap` asks for."""
    for i in range(info.batch_size):
        yield [x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)]


# PyTorch asks for the signature at every call, and would derive it each time.
_Evaluate.forward.__signature__ = inspect.signature(_Evaluate.forward)  # type: ignore[attr-defined]
_Pullback.forward.__signature__ = inspect.signature(_Pullback.forward)  # type: ignore[attr-defined]


def _job(
    field: JuliaField, t: float | None, state: Tensor, args: Sequence[Tensor], out: Tensor, direction: Tensor
) -> Job:
    """A product of an evaluation with a direction."""
    bound = field.bind(tuple(args)).for_state(state)
    return Job(device=None, field=bound, out=out, state=_contiguous(state), direction=_contiguous(direction), t=t)
