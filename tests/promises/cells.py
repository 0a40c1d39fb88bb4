"""The matrix of promises: every way of solving beside everything people do with a solve, each cell a value and a check.

A cell is right where what the solve gives agrees with an independent value, refused where it ends in a HomoJLError (or
in PyTorch's own error about a tensor that was changed in place), and else a fault: wrong, or raw where the error of
another library reaches the caller.

The problems have closed forms, elementwise, for real and complex states of every shape, which PyTorch differentiates:

- dy/dt = -w x s y^2 from y0 ends at T at y0 / (1 + w x s T y0);
- z = w z^2 + x s has the root (1 - sqrt(1 - 4 w x s)) / (2 w), which is stable.

Where the closed form is lost, as with BatchNorm, a plain loop in PyTorch takes its place.
"""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

import homojl as hj

Tensor = torch.Tensor
END = 0.5
ROWS = 3  # as long as the last dimension of every state, so that an argument of that length could be either

# ---- the axes -------------------------------------------------------------------------------------------------------

PROBLEMS = ("joint", "per-sample", "fixed point", "path", "Julia", "Julia fixed point")  # two on the Julia backend

ODE_ALGORITHMS: dict[str, Callable[[float], Any]] = {
    "Tsit5": lambda tol: hj.Tsit5(rtol=tol, atol=tol),
    "Tsit5 dense": lambda tol: hj.Tsit5(rtol=tol, atol=tol),
    "RK4": lambda tol: hj.RK4(step_size=0.05),
    "KenCarp4": lambda tol: hj.KenCarp4(rtol=tol, atol=tol),
    "GaussLegendre4": lambda tol: hj.GaussLegendre4(step_size=0.1),
    "AdamsBashforth": lambda tol: hj.AdamsBashforth(step_size=0.02),
    "AdamsMoulton": lambda tol: hj.AdamsMoulton(step_size=0.02, rtol=tol, atol=tol),
}
SAMPLE_ALGORITHMS = {"Tsit5": ODE_ALGORITHMS["Tsit5"], "Bosh3": lambda tol: hj.Bosh3(rtol=tol, atol=tol)}
MAP_ALGORITHMS: dict[str, Callable[[float], Any]] = {
    name: functools.partial(lambda cls, tol: cls(rtol=tol, atol=tol), getattr(hj, name))
    for name in ("Anderson", "Broyden", "Picard", "NewtonKrylov", "PseudoTransient", "Relaxation", "Homotopy")
}
PATH_ALGORITHMS: dict[str, Callable[[float], Any]] = {
    "ArcLength": lambda tol: hj.ArcLength(rtol=tol, atol=tol, first_step=0.2),
    "ArcLength krylov": lambda tol: hj.ArcLength(rtol=tol, atol=tol, first_step=0.2, linear_solver="krylov"),
    "NaturalParameter": lambda tol: hj.NaturalParameter(rtol=tol, atol=tol, first_step=0.2),
}
JULIA_ALGORITHMS: dict[str, Callable[[float], Any]] = {
    "Tsit5": ODE_ALGORITHMS["Tsit5"],
    "RK4": ODE_ALGORITHMS["RK4"],
    "TRBDF2": lambda tol: hj.TRBDF2(rtol=tol, atol=tol),
    "Vern7": lambda tol: hj.Vern7(rtol=tol, atol=tol),
    "Rodas5P": lambda tol: hj.Rodas5P(rtol=tol, atol=tol),
    "FBDF": lambda tol: hj.FBDF(rtol=tol, atol=tol),
    "AutoSwitch": lambda tol: hj.AutoSwitch(rtol=tol, atol=tol),
    "SciML RadauIIA5": lambda tol: hj.SciML("RadauIIA5", rtol=tol, atol=tol),
    "SciML KenCarp58": lambda tol: hj.SciML("KenCarp58", rtol=tol, atol=tol),
}
JULIA_MAP_ALGORITHMS: dict[str, Callable[[float], Any]] = {
    **{name: MAP_ALGORITHMS[name] for name in ("Anderson", "Broyden", "Picard", "NewtonKrylov")},
    "TrustRegion": lambda tol: hj.TrustRegion(rtol=tol, atol=tol),
    "SciML LevenbergMarquardt": lambda tol: hj.SciML("LevenbergMarquardt", rtol=tol, atol=tol),
}
ALGORITHMS = {
    "joint": ODE_ALGORITHMS,
    "per-sample": SAMPLE_ALGORITHMS,
    "fixed point": MAP_ALGORITHMS,
    "path": PATH_ALGORITHMS,
    "Julia": JULIA_ALGORITHMS,
    "Julia fixed point": JULIA_MAP_ALGORITHMS,
}

ODE_ADJOINTS = {
    "Direct": hj.DirectAdjoint(),
    "Checkpoint": hj.CheckpointAdjoint(),
    "Checkpoint(2)": hj.CheckpointAdjoint(max_states=2),
    "Gauss": hj.GaussAdjoint(),
    "Backsolve": hj.BacksolveAdjoint(),
}
MAP_ADJOINTS = {
    "Implicit": hj.ImplicitAdjoint(),
    "Phantom": hj.PhantomAdjoint(),
    "OneStep": hj.OneStepAdjoint(),
    "Unrolled": hj.UnrolledAdjoint(),
}
ADJOINTS: dict[str, dict[str, Any]] = {
    "joint": ODE_ADJOINTS,
    "per-sample": ODE_ADJOINTS,
    "fixed point": MAP_ADJOINTS,
    "path": {"the path's own": None},
    "Julia": ODE_ADJOINTS,
    "Julia fixed point": MAP_ADJOINTS,
}

STATES = ("float64", "float32", "complex", "tuple", "dict", "channels_last", "empty")
HOLDERS = ("module", "closure", "bound method", "partial", "callable object", "args")
# Of the Julia backend alone: functions in Julia, with w among their arguments.
JULIA_HOLDERS = ("in Julia, in place", "in Julia, returning", "in Julia, with its own product")
JULIA_STATES = ("float64", "float32", "complex", "tuple")


@dataclass(frozen=True)
class Cell:
    """One promise.

    Attributes:
        problem, algorithm, adjoint: how it is solved; a problem whose name begins with Julia, on the Julia backend.
        state: form of the state.
        holder: what the function is, and so where its parameter lies.
        use: what is done with the solve; a name in `USES`.
    """

    problem: str
    algorithm: str
    adjoint: str
    state: str
    holder: str
    use: str

    def __str__(self) -> str:
        return " | ".join(astuple(self))


class Verdict(NamedTuple):
    """The outcome of a cell: "right", "refused", "wrong" or "raw", and in which words."""

    kind: str
    words: str = ""


# ---- states, functions and their exact values ----------------------------------------------------------------------


def base_state(form: str) -> Any:
    """An initial state, of numbers between 0.5 and 1.5; it differs from element to element."""

    def ramp(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        count = int(torch.Size(shape).numel())
        return (0.5 + torch.linspace(0.0, 1.0, max(count, 1))[:count]).to(dtype).reshape(shape)

    match form:
        case "float32":
            return ramp(ROWS, ROWS, dtype=torch.float32)
        case "complex":
            return ramp(ROWS, ROWS) * (1 + 0.3j)
        case "tuple":
            return ramp(ROWS, ROWS), ramp(ROWS, 2, ROWS)
        case "dict":
            return {"b": ramp(ROWS, ROWS), "a": [ramp(ROWS, 1, ROWS)]}
        case "channels_last":
            return ramp(ROWS, 2, 2, ROWS).contiguous(memory_format=torch.channels_last)
        case "empty":
            return ramp(0, ROWS)
        case _:
            return ramp(ROWS, ROWS)


def rows_like(x: Tensor, leaf: Tensor) -> Tensor:
    """One number for each sample, in front of a leaf's other dimensions."""
    return x.view(-1, *[1] * (leaf.ndim - 1))


Body = Callable[..., Tensor]  # of (w, leaf, x, s) -> leaf


def decay(w: Tensor, y: Tensor, x: Tensor, s: Any) -> Tensor:
    return -w * x * s * y * y


def mapping(w: Tensor, z: Tensor, x: Tensor, s: Any) -> Tensor:
    return w * z * z + x * s


def decayed(w: Tensor, y: Tensor, x: Tensor, s: Any) -> Tensor:
    return y / (1 + w * x * s * END * y)


def mapped(w: Tensor, z: Tensor, x: Tensor, s: Any) -> Tensor:
    return (1 - torch.sqrt(1 - 4 * w * x * s)) / (2 * w) + torch.zeros_like(z)


# A tensor (batch, ...) is an array (..., batch) in Julia; x has a number for each sample, s one for each column.
IN_JULIA = """
rows(x, u) = reshape(x, ntuple(_ -> 1, ndims(u) - 1)..., length(x))
s_of(p) = length(p) == 3 ? p[2] : 1
decay(u, p) = .-p[end][1] .* rows(p[1], u) .* s_of(p) .* u .* u
mapping(z, p) = p[end][1] .* z .* z .+ rows(p[1], z) .* s_of(p)
"""
OWN_PRODUCTS = {
    "decay": """
        function (du, dp, v, u, p, t)
            w, x, s = p[end][1], rows(p[1], u), s_of(p)
            du .= -2 .* v .* w .* x .* s .* u
            rest = .-v .* u .* u
            dp[1] .= vec(sum(rest .* w .* s; dims = 1:(ndims(u) - 1)))
            dp[end] .= sum(rest .* x .* s)
            length(p) == 3 && (dp[2] .= vec(sum(rest .* w .* x; dims = 2:ndims(u))))
            return nothing
        end
    """,
    "mapping": """
        function (dz, dp, v, z, p)
            w, x, s = p[end][1], rows(p[1], z), s_of(p)
            dz .= 2 .* v .* w .* z
            dp[1] .= vec(sum(v .* s .+ zero(z); dims = 1:(ndims(z) - 1)))
            dp[end] .= sum(v .* z .* z)
            length(p) == 3 && (dp[2] .= vec(sum(v .* x .+ zero(z); dims = 2:ndims(z))))
            return nothing
        end
    """,
}


@functools.cache
def in_julia(holder: str, timed: bool) -> Any:
    """The function of a problem, held in Julia."""
    name, t = ("decay", ", t") if timed else ("mapping", "")
    calls = f"(u, p{t}) -> {name}(u, p)" if "returning" in holder else f"(du, u, p{t}) -> (du .= {name}(u, p); nothing)"
    own = IN_JULIA + OWN_PRODUCTS[name] if "product" in holder else None
    return hj.JuliaField(IN_JULIA + calls, vjp=own)


class Method:
    """A class of a user's with the field as a method."""

    def __init__(self, w: Tensor, function: Callable[..., Any]) -> None:
        self.w, self._function = w, function

    def field(self, *inputs: Any) -> Any:
        return self._function(self.w, *inputs)


class Callee(Method):
    """An object that is the field itself."""

    def __call__(self, *inputs: Any) -> Any:
        return self._function(self.w, *inputs)


class Net(nn.Module):
    """A module whose parameter is w."""

    def __init__(self, w: nn.Parameter, function: Callable[..., Any]) -> None:
        super().__init__()
        self.w, self._function = w, function

    def forward(self, *inputs: Any) -> Any:
        return self._function(self.w, *inputs)


def held(holder: str, w: Tensor, function: Callable[..., Any]) -> tuple[Any, Callable[[Tensor], None]]:
    """A function of a problem that holds w, and what puts another tensor in its place."""

    def cannot(_: Tensor) -> None:
        raise AssertionError(holder)

    match holder:
        case "module":
            if isinstance(w, nn.Parameter):
                net = Net(w, function)
                return net, lambda other: setattr(net, "w", nn.Parameter(other))
            net = Net(nn.Parameter(torch.zeros((), dtype=w.dtype)), function)
            return lambda *inputs: torch.func.functional_call(net, {"w": w}, inputs), cannot
        case "closure":
            inner = w

            def closure(*inputs: Any) -> Any:
                return function(inner, *inputs)

            def put(other: Tensor) -> None:
                nonlocal inner
                inner = other

            return closure, put
        case "bound method":
            method = Method(w, function)
            return method.field, lambda other: setattr(method, "w", other)
        case "callable object":
            callee = Callee(w, function)
            return callee, lambda other: setattr(callee, "w", other)
        case "partial":
            return functools.partial(function, w), cannot
        case _:
            return lambda *inputs: function(inputs[-1], *inputs[:-1]), cannot


class Situation:
    """What a use is given: the solve of a cell, and the value that it should have.

    Everything is differentiated by `inputs`: the tensors of the initial state, the parameter w and the argument x.

    Args:
        cell: the cell.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.ode = cell, cell.problem in ("joint", "per-sample", "Julia")
        self.julia = cell.problem.startswith("Julia")
        self.state = base_state(cell.state)
        self.leaves, self.spec = pytree.tree_flatten(self.state)
        first = self.leaves[0]
        self.real = first.dtype.to_real()
        self.coarse = first.dtype == torch.float32
        self.w = nn.Parameter(torch.tensor(0.25, dtype=self.real))
        self.x = torch.linspace(0.3, 0.6, ROWS, dtype=self.real)[: len(first)].to(first.dtype)
        if first.is_complex():
            self.x = self.x * (1 + 0.2j)
        self.s: Any = 1.0
        self.body: Body = decay if self.ode else mapping
        self.closed: Body = decayed if self.ode else mapped
        self.plain: Body | None = None  # the same as `body` for a loop, where there is no closed form
        self.tol = 2e-3 if self.coarse else 2e-4
        self.marks = False
        self.throw = True
        self.loose: float | None = None  # tolerances, where not the cell's own
        self.solution: Any = None
        self.replace: Callable[[Tensor], None] = lambda _: None

    def inputs(self) -> list[Tensor]:
        """Leaves of autograd."""
        return [*(x.detach().clone().requires_grad_() for x in self.leaves), self.w, self.x.clone().requires_grad_()]

    def function(self, body: Body) -> Callable[..., Any]:
        """The problem's, of (w, its inputs, its arguments)."""

        def whole(w: Tensor, *inputs: Any) -> Any:
            _, state, x, *rest = inputs if self.ode else (None, *inputs)
            s = rest[0] if rest else 1.0
            return pytree.tree_map(lambda leaf: self._one(body, w, leaf, x, s), state)

        return whole

    def _one(self, body: Body, w: Tensor, leaf: Tensor, x: Tensor, s: Any) -> Tensor:
        if self.cell.problem != "path":
            return body(w, leaf, rows_like(x, leaf), s)
        kept = leaf.clone()
        return kept - body(w, leaf, rows_like(x, leaf), s)

    def problem(self, inputs: Sequence[Tensor]) -> Any:
        """The problem at these inputs."""
        *leaves, w, x = inputs
        in_args = self.cell.holder == "args" or self.cell.holder in JULIA_HOLDERS
        f, self.replace = held("args" if in_args else self.cell.holder, w, self.function(self.body))
        if self.cell.holder in JULIA_HOLDERS:
            f = in_julia(self.cell.holder, self.ode)
        args: tuple[Any, ...] = (x,) if not isinstance(self.s, Tensor) else (x, self.s)
        if self.marks:
            args = (hj.PerSample(x), *map(hj.Shared, args[1:]))
        args = (*args, w) if in_args else args
        return self.posed(f, pytree.tree_unflatten(leaves, self.spec), args)

    def posed(self, f: Any, state: Any, args: tuple[Any, ...]) -> Any:
        if self.ode:
            return hj.ODEProblem(f, state, (0.0, END), args)
        if self.cell.problem != "path":
            return hj.FixedPointProblem(f, state, args)
        return hj.HomotopyProblem(f, state, "newton", args)

    def solve(self, problem: Any) -> list[Tensor]:
        """The tensors of the state at the end."""
        cell, how = self.cell, {}
        tol = (1e-5 if self.ode else 1e-6) if self.coarse else (1e-8 if self.ode else 1e-10)
        tol = tol if self.loose is None else self.loose
        algorithm = ALGORITHMS[cell.problem][cell.algorithm](tol)
        adjoint = ADJOINTS[cell.problem][cell.adjoint]
        if self.ode:
            how = {"batch": "joint" if self.julia else cell.problem, "dense": cell.algorithm.endswith("dense")}
        backend = "julia" if self.julia else "pytorch"
        solution = hj.solve(problem, algorithm, adjoint=adjoint, backend=backend, throw=self.throw, **how)
        self.solution = solution
        between = how.get("dense") and solution.status.ok
        if torch.is_grad_enabled() and cell.adjoint != "Direct":
            between = False  # which has no gradients there
        value = solution.at(END) if between else solution.value
        return pytree.tree_leaves(value)

    def end(self, *inputs: Tensor) -> list[Tensor]:
        """What the solve gives."""
        return self.solve(self.problem(inputs))

    def exact(self, *inputs: Tensor) -> list[Tensor]:
        """What it should give."""
        *leaves, w, x = inputs
        if self.plain is not None:
            return self._loop(self.plain, leaves, w, x)
        values = [self.closed(w, leaf, rows_like(x, leaf), self.s) for leaf in leaves]
        if self.cell.adjoint not in ("Phantom", "OneStep"):
            return values
        # Adjoints of a few iterations from the equilibrium: those iterations.
        steps, damping = (5, 0.5) if self.cell.adjoint == "Phantom" else (1, 0.0)
        through = [v.detach() for v in values]
        for _ in range(steps):
            new = [mapping(w, z, rows_like(x, z), self.s) for z in through]
            through = [(1 - damping) * a + damping * b for a, b in zip(new, through, strict=True)]
        return through

    def _loop(self, body: Body, leaves: Sequence[Tensor], w: Tensor, x: Tensor) -> list[Tensor]:
        """The end by a plain loop."""

        def f(leaf: Tensor) -> Tensor:
            return body(w, leaf, rows_like(x, leaf), self.s)

        ends = []
        for y in leaves:
            if self.ode:
                h = END / 32
                for _ in range(32):
                    a = f(y)
                    b = f(y + h / 2 * a)
                    c = f(y + h / 2 * b)
                    y = y + h / 6 * (a + 2 * b + 2 * c + f(y + h * c))
            else:
                y = y.detach()
                for _ in range(80):
                    y = f(y)
                if self.cell.adjoint in ("Phantom", "OneStep"):
                    steps, damping = (5, 0.5) if self.cell.adjoint == "Phantom" else (1, 0.0)
                    y = y.detach()
                    for _ in range(steps):
                        y = (1 - damping) * f(y) + damping * y
            ends.append(y)
        return ends

    # Comparisons

    def loss(self, values: Sequence[Tensor]) -> Tensor:
        """A real number of all of them, in which each has another weight."""
        total = torch.zeros((), dtype=self.real)
        for v in values:
            v = torch.view_as_real(v.resolve_conj()) if v.is_complex() else v
            weights = torch.linspace(0.5, 1.5, v.numel(), dtype=self.real).reshape(v.shape)
            total = total + (weights * v).sum() + (weights * v * v).sum()
        return total

    def gradients(self, of: Callable[..., list[Tensor]], inputs: Sequence[Tensor], **how: Any) -> list[Tensor]:
        """Of the loss, by all inputs; zeros where there is none."""
        found = torch.autograd.grad(self.loss(of(*inputs)), inputs, allow_unused=True, materialize_grads=True, **how)
        return list(found)

    def agree(self, got: Any, want: Any, what: str, tol: float | None = None) -> None:
        """Raise `Differs` unless they are the same to the cell's tolerance."""
        tol = self.tol if tol is None else tol
        got, want = pytree.tree_leaves(got), pytree.tree_leaves(want)
        if len(got) != len(want):
            raise Differs(f"{what}: {len(got)} tensors, not {len(want)}")
        for a, b in zip(got, want, strict=True):
            a, b = a.detach(), b.detach()
            if a.shape != b.shape:
                raise Differs(f"{what}: shape {tuple(a.shape)}, not {tuple(b.shape)}")
            if a.dtype != b.dtype:
                raise Differs(f"{what}: {a.dtype}, not {b.dtype}")
            if not a.numel():
                continue
            error = float((a - b).abs().max())
            if not error <= tol * max(1.0, float(b.abs().max())):
                raise Differs(f"{what}: off by {error:.2g} of {float(b.abs().max()):.2g}")


class Differs(Exception):
    """A value that is not the independent one."""


# ---- what people do -------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[Situation], None]] = {}


def use(name: str) -> Callable[[Callable[[Situation], None]], Callable[[Situation], None]]:
    def add(function: Callable[[Situation], None]) -> Callable[[Situation], None]:
        USES[name] = function
        return function

    return add


def check_gradients(to: Situation, what: str = "gradient") -> None:
    inputs, wanted = to.inputs(), to.inputs()
    values = to.end(*inputs)
    to.agree(values, to.exact(*wanted), "value")
    found = torch.autograd.grad(to.loss(values), inputs, allow_unused=True, materialize_grads=True)
    to.agree(found, to.gradients(to.exact, wanted), what)


@use("value inside no_grad")
def no_grad(to: Situation) -> None:
    inputs = to.inputs()
    with torch.no_grad():
        kept = [x.clone() for x in inputs]
        values = to.end(*inputs)
        to.agree(values, to.exact(*inputs), "value")
        to.agree(inputs, kept, "what was given", 0.0)
    if any(v.requires_grad for v in values):
        raise Differs("a value has a graph inside no_grad")
    if to.cell.state == "channels_last" and not values[0].is_contiguous(memory_format=torch.channels_last):
        raise Differs("the value has lost the memory format")


@use("value inside inference_mode")
def inference_mode(to: Situation) -> None:
    with torch.inference_mode():
        inputs = [x.detach().clone() for x in to.inputs()]
        to.agree(to.end(*inputs), to.exact(*inputs), "value")


@use("state and argument made in inference_mode")
def inference_tensors(to: Situation) -> None:
    *_, w, _ = to.inputs()
    with torch.inference_mode():
        leaves, x = [leaf.clone() for leaf in to.leaves], to.x.clone()
    values = to.end(*leaves, w, x)
    want = to.exact(*to.leaves, w, to.x)
    to.agree(values, want, "value")
    to.agree(
        *(torch.autograd.grad(to.loss(v), w, allow_unused=True, materialize_grads=True) for v in (values, want)), ""
    )


@use("backward")
def backward(to: Situation) -> None:
    inputs = to.inputs()
    values = to.end(*inputs)
    to.agree(values, to.exact(*inputs), "value")
    if to.cell.state == "channels_last" and not values[0].is_contiguous(memory_format=torch.channels_last):
        raise Differs("the value has lost the memory format")
    to.loss(values).backward()
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
    to.w.grad = None
    to.agree(found, to.gradients(to.exact, to.inputs()), "gradient")


@use("backward twice through one graph")
def twice(to: Situation) -> None:
    inputs = to.inputs()
    loss = to.loss(to.end(*inputs))
    loss.backward(retain_graph=True)
    loss.backward()
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]
    to.w.grad = None
    to.agree(found, [2 * g for g in to.gradients(to.exact, to.inputs())], "twice the gradient")


@use("backward of a part of the state, the parameter frozen")
def frozen(to: Situation) -> None:
    *leaves, w, x = to.inputs()
    w.requires_grad_(False)
    inputs = [*leaves, x]

    def part(of: Callable[..., list[Tensor]]) -> Any:
        loss = of(*leaves, w, x)[0][..., :1].abs().sum()
        if not loss.requires_grad:
            return [torch.zeros_like(i) for i in inputs]
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    to.agree(part(to.end), part(to.exact), "gradient")


@use("second derivative")
def second(to: Situation) -> None:
    def curvature(of: Callable[..., list[Tensor]]) -> list[Tensor]:
        inputs = to.inputs()
        first = to.gradients(of, inputs, create_graph=True)
        return to.gradients(lambda *_: first, inputs)

    unrolled = to.coarse and to.cell.adjoint == "Unrolled"
    # Those of an iterate converge later than it does itself, and in float32 rounding comes first.
    tol = 250 * to.tol if unrolled else 5 * to.tol
    to.agree(curvature(to.end), curvature(to.exact), "second derivative", tol)


@use("torch.func.grad")
def func_grad(to: Situation) -> None:
    inputs, places = [x.detach() for x in to.inputs()], tuple(range(len(to.leaves) + 2))
    found = torch.func.grad(lambda *xs: to.loss(to.end(*xs)), places)(*inputs)
    to.agree(found, to.gradients(to.exact, to.inputs()), "gradient")


@use("torch.func.vmap over the state")
def vmap_state(to: Situation) -> None:
    *leaves, w, x = (i.detach() for i in to.inputs())
    stacked = [torch.stack([leaf, 0.8 * leaf]) for leaf in leaves]
    dims = (*[0] * len(leaves), None, None)
    found = torch.func.vmap(to.end, dims)(*stacked, w, x)
    want = [
        torch.stack(pair)
        for pair in zip(to.exact(*leaves, w, x), to.exact(*(s[1] for s in stacked), w, x), strict=True)
    ]
    to.agree(found, want, "value")


@use("torch.func.vmap over the parameter")
def vmap_parameter(to: Situation) -> None:
    *leaves, w, x = (i.detach() for i in to.inputs())
    ws = torch.stack([w, 0.5 * w])
    found = torch.func.vmap(to.end, (*[None] * len(leaves), 0, None))(*leaves, ws, x)
    want = [torch.stack(pair) for pair in zip(to.exact(*leaves, w, x), to.exact(*leaves, ws[1], x), strict=True)]
    to.agree(found, want, "value")


@use("torch.func.vmap of torch.func.grad")
def vmap_grad(to: Situation) -> None:
    *leaves, w, x = (i.detach() for i in to.inputs())
    ws = torch.stack([w, 0.5 * w])
    dims = (*[None] * len(leaves), 0, None)
    found, want = (
        torch.func.vmap(torch.func.grad(lambda *xs: to.loss(of(*xs)), len(leaves)), dims)(*leaves, ws, x)  # noqa: B023
        for of in (to.end, to.exact)
    )
    to.agree(found, want, "gradient")


@use("torch.func.jacrev")
def jacrev(to: Situation) -> None:
    *leaves, w, x = (i.detach() for i in to.inputs())

    def real(values: Sequence[Tensor]) -> list[Tensor]:
        return [torch.view_as_real(v) if v.is_complex() else v for v in values]

    found, want = (torch.func.jacrev(lambda w: real(of(*leaves, w, x)))(w) for of in (to.end, to.exact))  # noqa: B023
    to.agree(found, want, "Jacobian")


@use("torch.func.jvp")
def jvp(to: Situation) -> None:
    inputs = [x.detach() for x in to.inputs()]
    tangents = [torch.linspace(0.1, 1.0, max(x.numel(), 1))[: x.numel()].to(x.dtype).reshape(x.shape) for x in inputs]
    found, want = (torch.func.jvp(of, tuple(inputs), tuple(tangents)) for of in (to.end, to.exact))
    to.agree(found, want, "value and tangent")


@use("forward mode inside no_grad")
def dual_numbers(to: Situation) -> None:
    *leaves, w, x = (i.detach() for i in to.inputs())

    def tangent(of: Callable[..., list[Tensor]]) -> Any:
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(w, torch.ones_like(w))
            pairs = [torch.autograd.forward_ad.unpack_dual(v) for v in of(*leaves, dual, x)]
            return [torch.zeros_like(v.primal) if v.tangent is None else v.tangent.clone() for v in pairs]

    to.agree(tangent(to.end), tangent(to.exact), "tangent")


def changed(to: Situation, change: Callable[[Sequence[Tensor], list[Tensor]], None]) -> None:
    """A gradient after a change, which has to be that from before."""
    inputs = [x.clone() if x is not to.w else x for x in to.inputs()]
    values = to.end(*inputs)
    loss = to.loss(values)
    want = to.gradients(to.exact, to.inputs())
    with torch.no_grad():
        change(inputs, values)
    found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    to.agree(found, want, "gradient")


@use("parameter changed in place before the gradient")
def parameter_changed(to: Situation) -> None:
    changed(to, lambda inputs, _: inputs[-2].mul_(2.0))  # type: ignore[arg-type, func-returns-value]


@use("initial state changed in place before the gradient")
def state_changed(to: Situation) -> None:
    changed(to, lambda inputs, _: inputs[0].mul_(2.0))  # type: ignore[arg-type, func-returns-value]


@use("argument changed in place before the gradient")
def argument_changed(to: Situation) -> None:
    changed(to, lambda inputs, _: inputs[-1].mul_(2.0))  # type: ignore[arg-type, func-returns-value]


@use("solution changed in place before the gradient")
def solution_changed(to: Situation) -> None:
    inputs = to.inputs()
    values = to.end(*inputs)
    if values[0].requires_grad:
        values[0].mul_(2.0)
    found = torch.autograd.grad(to.loss(values), inputs, allow_unused=True, materialize_grads=True)
    wanted = to.inputs()
    want = to.exact(*wanted)
    want[0] = 2 * want[0]
    want_grads = torch.autograd.grad(to.loss(want), wanted, allow_unused=True, materialize_grads=True)
    to.agree(values, want, "value")
    to.agree(found, want_grads, "gradient")


@use("parameter replaced before the gradient")
def parameter_replaced(to: Situation) -> None:
    changed(to, lambda inputs, _: to.replace(3.0 * inputs[-2].detach()))


@use("functional_call with the gradient outside")
def functional_call(to: Situation) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Net(nn.Parameter(torch.zeros((), dtype=to.real)), to.function(to.body))

        def forward(self, leaves: list[Tensor], x: Tensor) -> list[Tensor]:
            return to.solve(to.posed(self.f, pytree.tree_unflatten(leaves, to.spec), (x,)))

    model = Model()

    def end(*inputs: Tensor) -> list[Tensor]:
        *leaves, w, x = inputs
        return list(torch.func.functional_call(model, {"f.w": w}, (leaves, x)))

    to.agree(to.gradients(end, to.inputs()), to.gradients(to.exact, to.inputs()), "gradient")


@use("parameter computed from another")
def computed_parameter(to: Situation) -> None:
    def of(end: Callable[..., list[Tensor]]) -> Tensor:
        theta = torch.tensor(0.5, dtype=to.real, requires_grad=True)
        *leaves, _, x = to.inputs()
        (grad,) = torch.autograd.grad(
            to.loss(end(*leaves, theta.square(), x)), theta, allow_unused=True, materialize_grads=True
        )
        return grad

    to.agree(of(to.end), of(to.exact), "gradient")


@use("hook of the parameter")
def hook(to: Situation) -> None:
    inputs = to.inputs()
    calls = []
    handle = to.w.register_hook(lambda g: calls.append(1) or 2 * g)  # type: ignore[func-returns-value]
    to.loss(to.end(*inputs)).backward()
    handle.remove()
    found = torch.zeros_like(to.w) if to.w.grad is None else to.w.grad
    to.w.grad = None
    if len(calls) > 1:
        raise Differs(f"the hook ran {len(calls)} times")
    to.agree(found, 2 * to.gradients(to.exact, to.inputs())[-2], "gradient")


@use("activation checkpointing around the solve")
def checkpointed(to: Situation) -> None:
    from torch.utils.checkpoint import checkpoint

    found = to.gradients(lambda *xs: checkpoint(to.end, *xs, use_reentrant=False), to.inputs())
    to.agree(found, to.gradients(to.exact, to.inputs()), "gradient")


@use("several threads")
def threads(to: Situation) -> None:
    want = to.gradients(to.exact, to.inputs())
    errors: list[BaseException] = []

    def go() -> None:
        try:
            to.agree(to.gradients(to.end, to.inputs()), want, "gradient")
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=go) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


@use("initial state that is transposed or expanded")
def strides(to: Situation) -> None:
    if to.cell.state != "channels_last":
        to.leaves = [
            leaf.transpose(0, -1).contiguous().transpose(0, -1) if leaf.numel() else leaf for leaf in to.leaves
        ]
        to.leaves[0] = to.leaves[0][..., :1].expand_as(to.leaves[0])
    inputs = [*(x.detach().requires_grad_() for x in to.leaves), to.w, to.x.clone().requires_grad_()]
    values = to.end(*inputs)
    want = to.exact(*inputs)
    to.agree(values, want, "value")
    found = [torch.autograd.grad(to.loss(v), inputs, allow_unused=True, materialize_grads=True) for v in (values, want)]
    if to.cell.adjoint != "Unrolled":
        to.agree(*found, "gradient")
        return
    # An iterate depends on its guess by as much as the iteration leaves: Broyden's by 0.0017 in float32.
    guesses = len(to.leaves)
    to.agree(*(grads[:guesses] for grads in found), "gradient by the guess", 5e-3)
    to.agree(*(grads[guesses:] for grads in found), "gradient", 1e-3)


# Functions of special kinds: each is checked for its value and its gradient.


# Those whose function is another one, which has no counterpart in Julia.
CHANGES_FUNCTION = ["function that draws random numbers", "autocast to bfloat16"]


def of_body(name: str, make: Callable[[Situation], None]) -> None:
    if name.startswith(("function", "BatchNorm")):
        CHANGES_FUNCTION.append(name)

    def check(to: Situation) -> None:
        make(to)
        inputs = to.inputs()
        with torch.no_grad():
            kept = [x.clone() for x in inputs]
            to.agree(to.end(*inputs), to.exact(*inputs), "value inside no_grad")
            to.agree(inputs, kept, "what was given", 0.0)
        check_gradients(to)

    USES[name] = check


def _after(first: Callable[[Tensor], Tensor]) -> Callable[[Situation], None]:
    def make(to: Situation) -> None:
        body = to.body
        to.body = lambda w, leaf, x, s: body(w, first(leaf), x, s)

    return make


def _own_input(to: Situation) -> None:
    if to.ode:
        to.body = lambda w, y, x, s: y
        to.closed = lambda w, y, x, s: y * torch.tensor(END, dtype=to.real).exp()
    else:
        to.body = lambda w, z, x, s: z.copy_(w * z.clone().square() + x * s)


def _buffer(to: Situation) -> None:
    body, buffers = to.body, {}

    def into(w: Tensor, leaf: Tensor, x: Tensor, s: Any) -> Tensor:
        value = body(w, leaf, x, s)
        key = (threading.get_ident(), tuple(value.shape))
        if key not in buffers:
            buffers[key] = torch.empty_like(value, requires_grad=False)
        if value.requires_grad:
            buffers[key] = buffers[key].detach()  # the same memory
        return buffers[key].copy_(value)

    to.body = into


def _by_state(requires: bool) -> Callable[[Situation], None]:
    """y^2 as the derivative of y^3 / 3."""

    def make(to: Situation) -> None:
        def body(w: Tensor, y: Tensor, x: Tensor, s: Any) -> Tensor:
            with torch.enable_grad():
                y = y.requires_grad_() if requires else y
                (square,) = torch.autograd.grad(
                    (y**3 / 3).real.sum() if y.is_complex() else (y**3 / 3).sum(), y, create_graph=True
                )
            square = square.conj() if square.is_complex() else square
            return -w * x * s * square if to.ode else w * square + x * s

        to.body = body

    return make


def _batch_norm(to: Situation) -> None:
    norms: dict[Any, nn.Module] = {}

    def normed(y: Tensor, *, plain: bool = False) -> Tensor:
        if y.is_complex():
            return y - y.mean(0)
        if plain:
            shape = [0, *range(2, y.ndim)]
            return (y - y.mean(shape, keepdim=True)) / (y.var(shape, correction=0, keepdim=True) + 1e-1).sqrt()
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[y.ndim]
        key = (threading.get_ident(), y.shape[1], y.ndim, y.dtype)
        if key not in norms:
            norms[key] = kind(y.shape[1], eps=1e-1, affine=False, dtype=y.dtype)
        return norms[key](y)

    def body(w: Tensor, y: Tensor, x: Tensor, s: Any, *, plain: bool = False) -> Tensor:
        value = w * normed(y, plain=plain) * (1.0 if to.ode else 0.5)
        return value + x * s * (-y if to.ode else 1.0)

    to.body, to.plain = body, functools.partial(body, plain=True)


def _long_argument(to: Situation) -> None:
    to.s = torch.linspace(0.4, 1.0, ROWS, dtype=to.real)


def _marked(to: Situation) -> None:
    _long_argument(to)
    to.marks = True


of_body("function that begins with an in-place relu", _after(lambda y: y.mul_(1) if y.is_complex() else y.relu_()))
of_body("function that writes into its state", _after(lambda y: y.mul_(2).mul_(0.5)))
of_body("function that returns its own input", _own_input)
of_body("function that returns a buffer of its own", _buffer)
of_body("function that differentiates by its state", _by_state(requires=False))
of_body("function that asks its state for a gradient", _by_state(requires=True))
of_body("BatchNorm in training mode", _batch_norm)
of_body("shared argument as long as the batch", _long_argument)
of_body("arguments marked PerSample and Shared", _marked)


@use("function that draws random numbers")
def random_numbers(to: Situation) -> None:
    """Whatever is drawn, the end of dy/dt = w m(draw) has the derivative (y - y0) / w by w."""
    to.loose = 1e-2
    if to.cell.algorithm in ("KenCarp4", "GaussLegendre4", "TRBDF2"):
        to.tol = 1e-2  # draws that Newton's method does not see
    if not to.ode:
        to.body = lambda w, z, x, s: w * z * z + x * (0.9 + 0.2 * torch.rand(z.shape, dtype=to.real))
        torch.manual_seed(0)
        check_gradients(to)
        return
    to.body = lambda w, y, x, s: w * (0.9 + 0.2 * torch.rand(y.shape, dtype=to.real)) * torch.ones_like(y)
    torch.manual_seed(0)
    *leaves, w, x = to.inputs()
    values = to.end(*leaves, w, x)
    got = torch.autograd.grad(to.loss(values), w, allow_unused=True, materialize_grads=True)
    rates = [((v - y) / w).detach() for v, y in zip(values, leaves, strict=True)]
    w2 = to.w.detach().clone().requires_grad_()
    ends = [y.detach() + w2 * rate for y, rate in zip(leaves, rates, strict=True)]
    to.agree(got, torch.autograd.grad(to.loss(ends), w2, allow_unused=True, materialize_grads=True), "gradient")


@use("autocast to bfloat16")
def autocast(to: Situation) -> None:
    body = to.body

    def product(w: Tensor, y: Tensor, x: Tensor, s: Any) -> Tensor:
        # What a linear layer does: its result is bfloat16 inside autocast, where the state is float32.
        return body(w, y @ torch.eye(y.shape[-1], dtype=y.dtype), x, s)

    to.body, to.tol = product, 0.1 if to.coarse else to.tol
    inputs, wanted = to.inputs(), to.inputs()
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = to.end(*inputs)
    to.agree(values, to.exact(*wanted), "value")
    found = torch.autograd.grad(to.loss(values), inputs, allow_unused=True, materialize_grads=True)
    to.agree(found, to.gradients(to.exact, wanted), "gradient")


@use("a sample that fails among good ones")
def failing_sample(to: Situation) -> None:
    to.throw = False
    *leaves, w, x = to.inputs()
    with torch.no_grad():
        x[1:2] = torch.nan
    values = to.end(*leaves, w, x)
    if len(leaves[0]) == 0:
        return
    if to.solution.status.ok:
        raise Differs(f"{to.solution.status} with a sample that is not finite")
    samples, good = getattr(to.solution, "samples", None), torch.tensor([0, 2])
    if samples is not None:
        ok = [status.ok for status in samples.statuses]
    elif not to.ode and to.cell.problem != "path":
        ok = to.solution.converged.tolist()
    else:  # one system, which says that it has failed
        raise hj.SolveError(to.solution.message)
    if ok[1]:
        raise Differs("the sample that is not finite is said to be right")
    if ok != [True, False, True]:
        raise hj.SolveError(to.solution.message)
    values = [v[good] for v in values]
    want = [v[good] for v in to.exact(*leaves, w, torch.where(x.isfinite(), x, torch.full_like(x, 0.4)))]
    to.agree(values, want, "values of the good samples")
    found = [
        torch.autograd.grad(to.loss(v), [*leaves, w], allow_unused=True, materialize_grads=True) for v in (values, want)
    ]
    to.agree(*found, "gradient of the good samples")


# ---- running ---------------------------------------------------------------------------------------------------------

# Pairs of values that mean nothing together.
_REPLACED = ("module", "closure", "bound method", "callable object")


def admits(problem: str, axis: str, value: str) -> bool:
    """Whether a cell of that problem may have the value."""
    in_julia = problem.startswith("Julia")
    match axis:
        case "problem":
            return value == problem
        case "algorithm":
            return value in ALGORITHMS[problem]
        case "adjoint":
            return value in ADJOINTS[problem]
        case "state":
            return value in (JULIA_STATES if in_julia else STATES)
        case "holder":
            return in_julia or value in HOLDERS
    return True


def together(axis: str, value: str, other: str, with_value: str) -> bool:
    """Whether a cell may have these two values."""
    if not any(admits(p, axis, value) and admits(p, other, with_value) for p in PROBLEMS):
        return False
    match {axis: value, other: with_value}:
        case {"use": use, "holder": holder} if holder in JULIA_HOLDERS and use in CHANGES_FUNCTION:
            return False
        case {"use": "parameter replaced before the gradient", "holder": holder}:
            return holder in _REPLACED
        case {"use": "functional_call with the gradient outside", "holder": holder}:
            return holder == "module"
    return True


AXES: dict[str, tuple[str, ...]] = {
    "problem": PROBLEMS,
    "algorithm": tuple(dict.fromkeys(itertools.chain(*ALGORITHMS.values()))),
    "adjoint": tuple(dict.fromkeys(itertools.chain(*ADJOINTS.values()))),
    "state": STATES,
    "holder": HOLDERS + JULIA_HOLDERS,
    "use": tuple(USES),
}
assert tuple(AXES) == tuple(f.name for f in fields(Cell))


def whole() -> Iterator[Cell]:
    """Every combination of problem, algorithm, adjoint, state and use, holders in turn; and what `pairwise` adds."""
    turns: dict[str, int] = {}
    cells: dict[Cell, None] = {}
    for problem in PROBLEMS:
        for algorithm, adjoint, state, name in itertools.product(ALGORITHMS[problem], ADJOINTS[problem], STATES, USES):
            if not admits(problem, "state", state):
                continue
            holders = [h for h in AXES["holder"] if admits(problem, "holder", h) and together("use", name, "holder", h)]
            turn = turns[name] = turns.get(name, -1) + 1
            holder = holders[(turn + turn // len(STATES)) % len(holders)]
            cells[Cell(problem, algorithm, adjoint, state, holder, name)] = None
    yield from (cells | dict.fromkeys(pairwise()))


def pairwise() -> list[Cell]:
    """Cells in which every two values of two axes, if they may, come together at least once."""
    names = list(AXES)
    open_pairs = {
        (a, x, b, y): None
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(AXES[a], AXES[b])
        if together(a, x, b, y)
    }
    cells: list[Cell] = []
    while open_pairs:
        a, x, b, y = next(iter(open_pairs))
        found = _completed({a: x, b: y}, [n for n in names if n not in (a, b)], open_pairs)
        assert found is not None, (a, x, b, y)
        for one, other in itertools.combinations(names, 2):
            open_pairs.pop((one, found[one], other, found[other]), None)
        cells.append(Cell(**found))
    return cells


def _completed(chosen: dict[str, str], left: Sequence[str], open_pairs: dict[Any, None]) -> dict[str, str] | None:
    """The values for the other axes that meet most pairs which have not met yet, with a step back where none fits."""
    if not left:
        return chosen
    axis, *others = left

    def gain(value: str) -> int:
        keys = ((axis, value, o, v) if _before(axis, o) else (o, v, axis, value) for o, v in chosen.items())
        return sum(key in open_pairs for key in keys)

    fitting = [v for v in AXES[axis] if all(together(axis, v, o, w) for o, w in chosen.items())]
    # Among equals another one each time, by how much is left.
    turn = len(open_pairs) % max(len(fitting), 1)
    for value in sorted(fitting[turn:] + fitting[:turn], key=gain, reverse=True):
        found = _completed({**chosen, axis: value}, others, open_pairs)
        if found is not None:
            return found
    return None


def _before(a: str, b: str) -> bool:
    names = list(AXES)
    return names.index(a) < names.index(b)


def run(cell: Cell) -> Verdict:
    """One cell.

    Returns:
        Its verdict; never raises for what the cell does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of numbers that are none
            USES[cell.use](Situation(cell))
    except hj.HomoJLError as error:
        return Verdict("refused", str(error))
    except Differs as error:
        return Verdict("wrong", str(error))
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return Verdict("refused", "PyTorch: a tensor needed for the gradient was modified by an inplace operation")
        return Verdict("raw", f"{type(error).__name__}: {error}"[:300])
    except Exception as error:
        return Verdict("raw", f"{type(error).__name__}: {error}"[:300])
    return Verdict("right")
