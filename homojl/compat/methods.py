"""torchdiffeq's methods by name, and what its options say as algorithms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from homojl import algorithms as alg
from homojl.algorithms import AbstractODEAlgorithm, ErrorNorm
from homojl.backends.pytorch.stage_equations import ITERATIONS
from homojl.compat.states import CALLBACKS
from homojl.errors import ConfigError

Tensor = torch.Tensor
GridConstructor = Callable[[Any, Tensor, Tensor], Tensor]  # (func, y0, times to save at) -> points
MakeGrid = Callable[[GridConstructor, tuple[float, ...]], list[float]]

METHODS: dict[str, type[AbstractODEAlgorithm]] = {
    "dopri8": alg.Dopri8,
    "dopri5": alg.Dopri5,
    "tsit5": alg.Tsit5,
    "bosh3": alg.Bosh3,
    "fehlberg2": alg.Fehlberg2,
    "adaptive_heun": alg.AdaptiveHeun,
    "euler": alg.Euler,
    "midpoint": alg.Midpoint,
    "heun2": alg.Heun2,
    "heun3": alg.Heun3,
    "rk4": alg.RK38,  # torchdiffeq's rk4 is the 3/8 rule
    "explicit_adams": alg.AdamsBashforth,
    "implicit_adams": alg.AdamsMoulton,
    "fixed_adams": alg.AdamsMoulton,
    "implicit_euler": alg.ImplicitEuler,
    "implicit_midpoint": alg.ImplicitMidpoint,
    "trapezoid": alg.Trapezoid,
    "radauIIA3": alg.RadauIIA3,
    "gl4": alg.GaussLegendre4,
    "radauIIA5": alg.RadauIIA5,
    "gl6": alg.GaussLegendre6,
    "sdirk2": alg.SDIRK2,
    "trbdf2": alg.FixedTRBDF2,
    "scipy_solver": alg.SciPy,
}

# Options of the controlled methods and of the fixed ones; the others' own are ignored with a warning.
ADAPTIVE_OPTIONS = (
    *("min_step", "max_step", "first_step", "step_t", "jump_t", "safety", "ifactor", "dfactor", "max_num_steps"),
    *("dtype", "norm"),
)
FIXED_OPTIONS = ("step_size", "grid_constructor", "interp", "perturb", "norm")
SCIPY_OPTIONS = ("solver", "min_step", "max_step", "norm", "grid_points", "eps")  # the last three say nothing to it
OWN_OPTIONS: dict[type[AbstractODEAlgorithm], tuple[str, ...]] = {
    alg.AdamsBashforth: ("max_order",),
    alg.AdamsMoulton: ("max_order", "max_iters"),
}
MOST_EVENT_STEPS = 20_000  # of a fixed method on its way to an event, as in torchdiffeq
MOST_STEPS = 2**31 - 1


def method_named(name: str | None) -> type[AbstractODEAlgorithm]:
    """The algorithm of one of torchdiffeq's method names; None: dopri5.

    Raises:
        ConfigError: for an unknown name.
    """
    name = "dopri5" if name is None else name
    if name not in METHODS:
        known = '{"' + '", "'.join(METHODS) + '"}'
        raise ConfigError(f'Invalid method "{name}". Must be one of {known}.')
    return METHODS[name]


class Options:
    """The `options` of a call, with its method and tolerances, as an algorithm and discontinuities.

    Args:
        method, options: as the user gave them; options that the method lacks are reported by a warning.
        rtol, atol: tolerances for the joined state.
        intervals: between the times to save at: torchdiffeq counts `max_num_steps` for each of them.
    """

    def __init__(
        self,
        method: str | None,
        options: dict[str, Any] | None,
        *,
        rtol: float | Tensor,
        atol: float | Tensor,
        intervals: int,
    ) -> None:
        self.name = "dopri5" if method is None else method
        self._cls: type[Any] = method_named(method)  # constructed with the options of its own kind
        self._options = dict(options or {})
        self.rtol, self.atol, self._intervals = rtol, atol, intervals
        self.adaptive = issubclass(self._cls, alg.AbstractErrorControlled)
        known: tuple[str, ...] = SCIPY_OPTIONS
        if self._cls is not alg.SciPy:
            known = (*(ADAPTIVE_OPTIONS if self.adaptive else FIXED_OPTIONS), *OWN_OPTIONS.get(self._cls, ()))
        if issubclass(self._cls, alg.AbstractImplicitFixedStep):
            known = (*known, "max_iters")
        unused = {key: value for key, value in self._options.items() if key not in known}
        if unused:
            warnings.warn(f"{self.name}: Unexpected arguments {unused}", stacklevel=4)

    @property
    def callbacks(self) -> tuple[str, ...]:
        """The callbacks that the method calls."""
        if self._cls is alg.SciPy:
            return ()
        return CALLBACKS if self.adaptive else CALLBACKS[:1]

    @property
    def outside(self) -> bool:
        """Whether the solve leaves PyTorch, so that its operations give no gradient."""
        return self._cls is alg.SciPy

    @property
    def norm(self) -> Callable[..., Tensor] | str | None:
        return self._options.get("norm")

    def algorithm(self, norm: ErrorNorm, grid: MakeGrid, **more: Any) -> AbstractODEAlgorithm:
        """The algorithm.

        Args:
            norm: for the step-size control.
            grid: makes a grid's points, given torchdiffeq's constructor of grids and the save times.
            more: further attributes of the algorithm.
        """
        if self.adaptive:
            return self._controlled(norm, **more)
        if self._cls is alg.SciPy:
            settings = {"solver": self._options.get("solver", "LSODA"), "rtol": self.rtol, "atol": self.atol}
            settings |= {key: float(self._options[key]) for key in ("min_step", "max_step") if key in self._options}
            return alg.SciPy(**settings)
        if (
            issubclass(self._cls, alg.AbstractImplicitFixedStep)
            and int(self._options.get("max_iters", 100)) < ITERATIONS
        ):
            raise ConfigError(
                f"max_iters must be at least {ITERATIONS}: Newton's iteration here takes no more than that"
            )
        if issubclass(self._cls, alg.AdamsBashforth):
            more["max_order"] = self._max_order()
        if self._cls is alg.AdamsMoulton:
            more |= {"rtol": self.rtol, "atol": self.atol, "max_iter": int(self._options.get("max_iters", 4))}
        return self._fixed(grid, **more)

    def _max_order(self) -> int:
        order = int(self._options.get("max_order", 12))
        if order < 4:
            warnings.warn("max_order is below 4, so the solver reduces to `rk4`.", stacklevel=6)
        return order

    def discontinuities(self) -> tuple[float, ...]:
        """The times of `jump_t` and `step_t`: steps end there and start anew."""
        times: list[float] = []
        for name in ("step_t", "jump_t") if self.adaptive else ():
            value = self._options.get(name)
            times += [] if value is None else torch.as_tensor(value).reshape(-1).tolist()
        if len(set(times)) < len(times):
            raise ConfigError("`step_t` and `jump_t` must not have any repeated elements between them.")
        return tuple(times)

    def _controlled(self, norm: ErrorNorm, **more: Any) -> alg.AbstractErrorControlled:
        given = self._options
        if given.get("dtype", torch.float64) not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype must be torch.float64 or torch.float32, got {given['dtype']}; times are float64")
        first = given.get("first_step")
        control = alg.PIController(
            safety=float(given.get("safety", 0.9)),
            max_factor=float(given.get("ifactor", 10.0)),
            min_factor=float(given.get("dfactor", 0.2)),
            floor=float(given.get("min_step", 0.0)),
        )
        algorithm: alg.AbstractErrorControlled = self._cls(
            rtol=self.rtol,
            atol=self.atol,
            first_step=None if first is None else float(first),
            max_step=float(given.get("max_step", float("inf"))),
            max_steps=min(int(given.get("max_num_steps", MOST_STEPS)) * self._intervals, MOST_STEPS),
            controller=control,
            norm=norm,
            **more,
        )
        return algorithm

    def _fixed(self, grid: MakeGrid, **more: Any) -> alg.AbstractFixedStep:
        given = self._options
        step_size, constructor = given.get("step_size"), given.get("grid_constructor")
        if step_size is not None:
            if constructor is not None:
                raise ConfigError("step_size and grid_constructor are mutually exclusive arguments.")
            constructor = uniform(step_size)
        if constructor is None:
            constructor = _save_times
        interp = given.get("interp", "linear")
        if interp not in ("linear", "cubic"):
            raise ConfigError(f"Unknown interpolation method {interp}")
        points = alg.Grid(
            points=lambda ts: grid(constructor, ts), interpolation=interp, apart=bool(given.get("perturb", False))
        )
        algorithm: alg.AbstractFixedStep = self._cls(grid=points, **more)
        return algorithm

    def horizon(self, t0: float, direction: float) -> float:
        """How far to look for an event.

        Raises:
            ConfigError: for a fixed method without a step size, and for alg.SciPy's.
        """
        if self.outside:
            raise ConfigError(f"{self.name} finds no events; take another method, such as dopri5")
        if self.adaptive:
            return t0 + direction * 1e30
        if self._options.get("step_size") is None:
            raise ConfigError(
                "Event handling for fixed step solvers currently requires `step_size` to be provided in options."
            )
        return t0 + direction * MOST_EVENT_STEPS * float(self._options["step_size"])


def _save_times(func: object, y0: Tensor, t: Tensor) -> Tensor:
    return t


def uniform(step_size: float) -> GridConstructor:
    """A constructor of grids: steps of that size from the first time, the last one shorter, up to the last time."""

    def constructor(func: object, y0: Tensor, t: Tensor) -> Tensor:
        span = t[-1] - t[0]
        count = int(torch.ceil(span.abs() / step_size + 1).item())
        points = t[0] + torch.arange(count, dtype=t.dtype, device=t.device) * step_size * torch.sign(span)
        # Rounding may put the last whole step on the end, or past it.
        inside = (points - t[-1]) * torch.sign(span) < 0
        return torch.cat([points[inside], t[-1:]])

    return constructor
