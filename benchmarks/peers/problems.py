"""What is measured: small systems with one formula for every library, HomoODE's layer, a network over many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from homojl.nn.parts import ConditionedField

Array = Any  # of torch, JAX or NumPy
Formula = Callable[[Any, Array, Array], Sequence[Array]]  # (module, t, y (..., D)) -> D derivatives, (...) each

REFERENCE_TOLERANCE = 1e-12  # of SciPy's DOP853


@dataclass(frozen=True, eq=False)
class Problem:
    """dy/dt = f(t, y) from y0, saved at ts; or, where `equilibrium`, z = f(z) from y0. Rows of y0 are independent.

    Attributes:
        name, title: what it is called, and what it is.
        y0: (B, ...), float32 or float64; every library works in its type.
        ts: save times, (T,), exact in y0's type.
        torch_field: the field `f(t, y)` for the first rows; parameters that require gradients receive them.
        jax_field: the same for all rows, as `f(t, y, parameters)`, and those parameters.
        julia: the same in Julia, as the source of a `JuliaField`; None: there is none.
        stiff: whether implicit methods are measured too.
        reference_rows: how many of the first rows are compared with the reference; None: all.
        gradient_tolerance: of the solve through which the reference's gradient is taken.
        equilibrium: whether the problem is a fixed point.
    """

    name: str
    title: str
    y0: np.ndarray
    ts: np.ndarray
    torch_field: Callable[[int], nn.Module]
    jax_field: Callable[[], tuple[Callable[[Array, Array, Any], Array], Any]]
    julia: str | None = None
    stiff: bool = False
    reference_rows: int | None = None
    gradient_tolerance: float = 1e-10
    equilibrium: bool = False

    @property
    def batch(self) -> int:
        return len(self.y0)

    @property
    def cotangent(self) -> np.ndarray:
        """dL/dy(T) of the loss whose gradient is taken, y0's shape and type; the same for every library."""
        return np.random.default_rng(1).standard_normal(self.y0.shape).astype(self.y0.dtype)

    @cached_property
    def reference(self) -> np.ndarray:
        """The first rows at `ts` by SciPy's DOP853 at rtol = atol = 1e-12, (T, rows, ...), float64.

        Raises:
            RuntimeError: if SciPy does not reach the end.
        """
        from scipy.integrate import solve_ivp

        start = self.y0[: self.reference_rows].astype(np.float64)
        field = self.torch_field(len(start)).double()

        def f(t: float, y: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(y.reshape(start.shape))
            return field(torch.tensor(t, dtype=torch.float64), state).numpy().reshape(-1)

        ends = (float(self.ts[0]), float(self.ts[-1]))
        with torch.no_grad():
            found = solve_ivp(
                f,
                ends,
                start.reshape(-1),
                method="DOP853",
                t_eval=self.ts.astype(np.float64),
                rtol=REFERENCE_TOLERANCE,
                atol=REFERENCE_TOLERANCE,
            )
        if not found.success:
            raise RuntimeError(f"SciPy found no reference for {self.name}: {found.message}")
        return found.y.T.reshape(-1, *start.shape)

    @cached_property
    def reference_gradient(self) -> np.ndarray:
        """dL/dy0 of the first rows, float64: through every operation of a tight Dopri8 solve."""
        import homojl as hj

        rows = len(self.y0[: self.reference_rows])
        y0 = torch.from_numpy(self.y0[:rows].astype(np.float64)).requires_grad_()
        field = self.torch_field(rows).double().requires_grad_(False)
        problem = hj.ODEProblem(field, y0, (float(self.ts[0]), float(self.ts[-1])))
        tight = hj.Dopri8(rtol=self.gradient_tolerance, atol=self.gradient_tolerance, max_steps=10**6)
        value = hj.solve(problem, tight, adjoint=hj.CheckpointAdjoint(), backend="pytorch").value
        weights = torch.from_numpy(self.cotangent[:rows].astype(np.float64))
        return torch.autograd.grad(value, y0, weights)[0].numpy()


# ---- small systems


@dataclass(frozen=True, eq=False)
class System:
    """A small system of equations, from which problems of any batch size are made.

    Attributes:
        title: what it is.
        formula: the derivatives, in the functions of the module that it is given; t broadcasts to a row's elements.
        start: y(t0), of which every sample gets one of its own near it.
        interval: t0 and t1, in either order.
        spread: how a batch's starts differ, as a factor exp(spread N(0, 1)); 0: they are standard normal numbers.
        julia: see `Problem`.
        stiff: see `Problem`.
        exact: the solution from `start`; None where there is no formula.
    """

    title: str
    formula: Formula
    start: tuple[float, ...]
    interval: tuple[float, float]
    spread: float = 0.2
    julia: str | None = None
    stiff: bool = False
    exact: Callable[[float], Sequence[float]] | None = None


class SystemField(nn.Module):
    """A system's formula as a field for PyTorch, (t, (..., D)) -> (..., D)."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack(tuple(self.formula(torch, t, y)), dim=-1)


def system_problem(
    name: str, *, batch: int, saves: int, dtype: str = "float32", seed: int = 0, interval: float | None = None
) -> Problem:
    """A system of `SYSTEMS` as a problem.

    Args:
        batch: samples; a single one has the system's own start.
        saves: save times, equidistant, the first and the last included.
        interval: how long to integrate instead of the system's own interval.
    """
    system = SYSTEMS[name]
    y0 = np.array([system.start])
    if batch > 1:
        noise = np.random.default_rng(seed).standard_normal((batch, len(system.start)))
        y0 = y0 * np.exp(system.spread * noise) if system.spread else noise
    t0, t1 = system.interval
    ts = np.linspace(t0, t1 if interval is None else t0 + interval, saves)

    def jax_field() -> tuple[Callable[[Array, Array, Any], Array], Any]:
        import jax.numpy as jnp

        return lambda t, y, _: jnp.stack(system.formula(jnp, t, y), axis=-1), ()

    return Problem(
        name,
        system.title,
        y0.astype(dtype),
        ts.astype(dtype),
        torch_field=lambda rows: SystemField(system.formula),
        jax_field=jax_field,
        julia=system.julia,
        stiff=system.stiff,
    )


def _in_julia(n: int, lines: str) -> str:
    """The source of a `JuliaField` on an n x batch matrix from lines on the numbers u1 .. un of one sample."""
    names = ", ".join(f"u{i}" for i in range(1, n + 1))
    values = ", ".join(f"u[{i}, b]" for i in range(1, n + 1))
    results = ", ".join(f"du[{i}, b]" for i in range(1, n + 1))
    return f"""
function f!(du, u, p, t)
    @inbounds @simd for b in axes(u, 2)
        {names} = {values}
        {results} = {lines}
    end
    return nothing
end
"""


def _van_der_pol(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    x, v = y[..., 0], y[..., 1]
    return v, 2 * (1 - x * x) * v - x


def _lotka_volterra(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    prey, predators = y[..., 0], y[..., 1]
    return 1.5 * prey - prey * predators, prey * predators - 3 * predators


def _lorenz(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return 10 * (b - a), a * (28 - c) - b, a * b - (8 / 3) * c


def _kaps(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    a, b = y[..., 0], y[..., 1]
    return -1002 * a + 1000 * b * b, a - b - b * b


def _kepler(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    a, b = y[..., 0], y[..., 1]
    square = a * a + b * b
    cube = square * xp.sqrt(square)
    return y[..., 2], y[..., 3], -a / cube, -b / cube


_MATRIX = ((-0.5, 2.0, 0.3), (-2.0, -0.2, 0.1), (0.4, -0.3, -1.0))
_LINEAR_START = (1.0, -0.5, 2.0)


def _linear(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    return [sum(a * y[..., j] for j, a in enumerate(row)) for row in _MATRIX]


def _linear_exact(t: float) -> Sequence[float]:
    matrix, start = torch.tensor(_MATRIX, dtype=torch.float64), torch.tensor(_LINEAR_START, dtype=torch.float64)
    return (torch.linalg.matrix_exp(matrix * t) @ start).tolist()


def _logistic(xp: Any, t: Array, y: Array) -> Sequence[Array]:
    return [2 * y[..., i] * (1 - y[..., i]) for i in range(2)]


def _logistic_exact(t: float) -> Sequence[float]:
    return [1 / (1 + (1 / start - 1) * math.exp(-2 * t)) for start in (0.1, 0.7)]


SYSTEMS: dict[str, System] = {
    "vanderpol": System(
        "Van der Pol's oscillator, mu 2",
        _van_der_pol,
        (2.0, 0.0),
        (0.0, 10.0),
        spread=0.0,
        julia=_in_julia(2, "u2, 2 * (1 - u1 * u1) * u2 - u1"),
    ),
    "lotka-volterra": System(
        "Lotka and Volterra's prey and predators",
        _lotka_volterra,
        (1.0, 1.0),
        (0.0, 10.0),
        julia=_in_julia(2, "u1 * 3 / 2 - u1 * u2, u1 * u2 - 3 * u2"),
    ),
    "lorenz": System(
        "Lorenz' system, before chaos has grown",
        _lorenz,
        (1.0, 1.0, 1.0),
        (0.0, 2.0),
        julia=_in_julia(3, "10 * (u2 - u1), u1 * (28 - u3) - u2, u1 * u2 - u3 * 8 / 3"),
    ),
    "kaps": System(
        "Kaps' stiff system, rate 1000",
        _kaps,
        (1.0, 1.0),
        (0.0, 5.0),
        julia=_in_julia(2, "-1002 * u1 + 1000 * u2 * u2, u1 - u2 - u2 * u2"),
        stiff=True,
        exact=lambda t: (math.exp(-2 * t), math.exp(-t)),
    ),
    "kepler": System(
        "a Kepler orbit of eccentricity 0.5",
        _kepler,
        (0.5, 0.0, 0.0, math.sqrt(3.0)),
        (0.0, 2 * math.pi),
        julia=_in_julia(4, "u3, u4, -u1 / sqrt(u1^2 + u2^2)^3, -u2 / sqrt(u1^2 + u2^2)^3"),
    ),
    "linear": System("a damped rotation in three dimensions", _linear, _LINEAR_START, (0.0, 2.0), exact=_linear_exact),
    "logistic": System("logistic growth", _logistic, (0.1, 0.7), (0.0, 2.0), exact=_logistic_exact),
    "forced": System(
        "y' = cos(t) y, which depends on time",
        lambda xp, t, y: [xp.cos(t) * y[..., 0]],
        (1.0,),
        (0.3, 3.3),
        exact=lambda t: (math.exp(math.sin(t) - math.sin(0.3)),),
    ),
    "rotation": System(
        "a rotation backwards in time",
        lambda xp, t, y: (-y[..., 1], y[..., 0]),
        (1.0, 0.0),
        (2.0, -1.0),
        exact=lambda t: (math.cos(t - 2), math.sin(t - 2)),
    ),
}
"""References: Kaps' system in Dekker, Verwer (1984), "Stability of Runge-Kutta methods for stiff nonlinear differential
equations", 7.5; the others in Hairer, Norsett, Wanner (1993)."""


# ---- networks


class LayerField(nn.Module):
    """HomoODE's layer with its condition inside, as a field (t, z) of every library and a map."""

    def __init__(self, field: ConditionedField, x: torch.Tensor) -> None:
        super().__init__()
        self.field = field
        self.x = nn.Parameter(x)

    def forward(self, t: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
        return self.field(t, z, self.x)


def layer_problem(*, batch: int, channels: int, size: int, seed: int = 0, equilibrium: bool = False) -> Problem:
    """HomoODE's layer at its initial weights, (batch, channels, size, size), float32, from 0 to 1.

    The condition is what a ReLU leaves of standard normal numbers; the start is one such number per channel for an
    ODE, as a learned initial point's, and zero for an equilibrium.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = ConditionedField(channels)
    x = torch.randn(batch, channels, size, size, generator=generator).relu()
    start = torch.randn(1, channels, 1, 1, generator=generator).expand_as(x)

    def torch_field(rows: int) -> LayerField:
        field = ConditionedField(channels)
        field.load_state_dict(weights.state_dict())
        return LayerField(field, x[:rows].clone())

    def jax_field() -> tuple[Callable[[Array, Array, Any], Array], Any]:
        import jax
        import jax.numpy as jnp

        given = {name: jnp.asarray(value.numpy()) for name, value in weights.state_dict().items()}

        def convolution(z: Array, name: str, p: dict[str, Array]) -> Array:
            z = jax.lax.conv_general_dilated(z, p[f"{name}.weight"], (1, 1), "SAME")
            return z + p[f"{name}.bias"][:, None, None]

        def group_norm(z: Array, name: str, p: dict[str, Array]) -> Array:
            groups = z.reshape(len(z), weights.norm1.num_groups, -1)
            mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
            z = ((groups - mean) / jnp.sqrt(variance + weights.norm1.eps)).reshape(z.shape)
            return z * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

        def field(t: Array, z: Array, parameters: tuple[dict[str, Array], Array]) -> Array:
            p, condition = parameters
            y = jax.nn.relu(group_norm(convolution(z, "conv1", p), "norm1", p))
            return group_norm(convolution(y + condition, "conv2", p), "norm2", p)

        return field, (given, jnp.asarray(x.numpy()))

    return Problem(
        "equilibrium" if equilibrium else "layer",
        f"HomoODE's layer, {channels} channels, {size} x {size}" + (", at rest" if equilibrium else ""),
        (torch.zeros_like(x) if equilibrium else start).numpy().copy(),
        np.array([0.0, 1.0], dtype=np.float32),
        torch_field=torch_field,
        jax_field=jax_field,
        reference_rows=2,
        gradient_tolerance=1e-8,  # the field has corners: 413 steps, at 1e-10 some thousands
        equilibrium=equilibrium,
    )


def network_problem(*, batch: int = 32, width: int = 64, seed: int = 0) -> Problem:
    """A network of one hidden tanh layer as a field, (batch, width), float32, from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / math.sqrt(width)
    tensors = [scale * torch.randn(*shape, generator=generator) for shape in ((width, width), (width,)) * 2]
    y0 = torch.randn(batch, width, generator=generator)

    class NetworkField(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
            with torch.no_grad():
                for own, value in zip(self.parameters(), tensors, strict=True):
                    own.copy_(value)

        def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(y)))

    def jax_field() -> tuple[Callable[[Array, Array, Any], Array], Any]:
        import jax.numpy as jnp

        def field(t: Array, y: Array, p: Sequence[Array]) -> Array:
            return jnp.tanh(y @ p[0].T + p[1]) @ p[2].T + p[3]

        return field, tuple(jnp.asarray(tensor.numpy()) for tensor in tensors)

    return Problem(
        "network",
        f"a network of {width} tanh units",
        y0.numpy(),
        np.array([0.0, 1.0], dtype=np.float32),
        torch_field=lambda rows: NetworkField(),
        jax_field=jax_field,
    )
