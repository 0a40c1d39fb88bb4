"""Any algorithm of SciML's Julia packages, by its name there."""

from __future__ import annotations

import functools
import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from homojl.algorithms.base import AbstractErrorControlled
from homojl.algorithms.checks import require
from homojl.algorithms.control import ErrorNorm, StepObserver
from homojl.algorithms.equilibrium import AbstractFixedPointAlgorithm
from homojl.algorithms.step_memory import StepMemory

if TYPE_CHECKING:
    from torch import Tensor


class Package(NamedTuple):
    """A Julia package with algorithms.

    Attributes:
        uuid: its identity in Julia's registry.
        kind: of its algorithms: "ode", "root", or "part" for what they are made with, as linear solvers.
        orders: their names, each with its order; 0: none, or one that varies.
        doubtful: those that miss their order or their tolerance on exact problems.
    """

    uuid: str
    kind: str
    orders: dict[str, int]
    doubtful: tuple[str, ...] = ()


@functools.cache
def packages() -> dict[str, Package]:
    """The packages that are known by name, from `sciml.toml`, which `benchmarks/sciml.py --list` writes."""
    table = tomllib.loads((Path(__file__).parent / "sciml.toml").read_text(encoding="utf-8"))
    return {
        name: Package(entry["uuid"], entry["kind"], entry["orders"], tuple(entry.get("doubtful", ())))
        for name, entry in table.items()
    }


@functools.cache
def homes() -> dict[str, str]:
    """Name of an algorithm, or of a part of one -> the package that has it."""
    return {name: package for package, entry in packages().items() for name in entry.orders}


@dataclass(frozen=True, kw_only=True, init=False, eq=False)
class SciML(AbstractErrorControlled, AbstractFixedPointAlgorithm):
    """An algorithm of a Julia package by its name, for ODEs or for fixed points, with the Julia backend.

    `SciML("RadauIIA5", rtol=1e-8, atol=1e-8)`, `SciML("KenCarp58", autodiff=False)`,
    `SciML("AutoTsit5", SciML("Rosenbrock23"))`, `SciML("LevenbergMarquardt")`. Any algorithm of the installed packages:
    OrdinaryDiffEq's, and for z = f(z), as the root of z - f(z), NonlinearSolve's and SteadyStateDiffEq's. A
    `HomotopyProblem` is solved for its root without following the path to it.
    `SciML("MyPackage.MyMethod")` is one of any other package.

    Products with the field's Jacobian come from PyTorch, or for a field held in Julia from ForwardDiff;
    `autodiff=False` takes finite differences instead. Where the method has a linear solver and none is given, it is an
    LU factorisation for states of up to 64 elements and GMRES beyond; `linsolve=SciML("KrylovJL_GMRES")` gives one.

    Gradients come from `GaussAdjoint` or `BacksolveAdjoint`, of fixed points from `ImplicitAdjoint`. Which names are
    known, and to which accuracy they solve problems, says the table in docs/sciml.md.

    Args:
        method: Julia's name of it.
        *values: positional arguments of it: numbers, booleans, strings or others of this class.
        rtol, atol, max_steps: for an ODE 1e-3, 1e-6 and 10,000 unless given; for a fixed point 1e-4, 1e-6 and 100.
        first_step, min_step, max_step, norm: as in `AbstractErrorControlled`.
        step_size: equal steps of at most this size that end on every save time, instead of steps by the error; a
            method without an estimate of its error otherwise takes one step from each save time to the next.
        mass_matrix: M of M dy/dt = f, (n, n) for n elements of the state; singular for differential-algebraic
            equations, with a method such as Rodas5P. Values only, no gradients.
        **keywords: keyword arguments of the method. Names that Python does not have can be given with `**{"η": 0.1}`.

    Raises:
        ConfigError: for a name or a value that is not acceptable; for a method that no installed package has when it is
            solved with, which says the nearest, and how to add it.
    """

    method: str
    values: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    step_size: float | None
    mass_matrix: Tensor | None

    def __init__(
        self,
        method: str,
        *positional: object,
        rtol: float | Tensor | None = None,
        atol: float | Tensor | None = None,
        first_step: float | StepMemory | None = None,
        min_step: float = 0.0,
        max_step: float = math.inf,
        max_steps: int | None = None,
        norm: ErrorNorm = ErrorNorm(),
        observer: StepObserver | None = None,
        step_size: float | None = None,
        mass_matrix: Tensor | None = None,
        values: tuple[Any, ...] = (),
        keywords: tuple[tuple[str, Any], ...] = (),
        **options: Any,
    ) -> None:
        require(isinstance(method, str) and bool(method), f"method must be a name such as 'Tsit5', got {method!r}")
        package = packages().get(homes().get(method, ""))
        root = package is not None and package.kind == "root"
        given = {
            "method": method,
            "values": (*values, *positional),
            "keywords": (*keywords, *options.items()),
            "rtol": (1e-4 if root else 1e-3) if rtol is None else rtol,
            "atol": 1e-6 if atol is None else atol,
            "max_steps": (100 if root else 10_000) if max_steps is None else max_steps,
            "first_step": first_step,
            "min_step": min_step,
            "max_step": max_step,
            "norm": norm,
            "observer": observer,
            "step_size": step_size,
            "mass_matrix": mass_matrix,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (*self.values, *(value for _, value in self.keywords)):
            ok = value is None or isinstance(value, bool | int | float | str | SciML)
            require(ok, f"arguments of {self.method} must be numbers, strings or SciML(...), got {value!r}")
        step = self.step_size
        require(
            step is None or (math.isfinite(step) and step > 0), f"step_size must be positive and finite, got {step}"
        )

    @property
    def name(self) -> str:  # type: ignore[override]  # of each instance
        return self.method

    @property
    def order(self) -> int:  # type: ignore[override]
        """Of convergence; 5 where it varies or is not known."""
        package = packages().get(homes().get(self.method, ""))
        return (package.orders[self.method] if package else 0) or 5

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same as another, hashable: a tensor as it is now, which may be changed in place."""
        tensors: list[Any] = [x for x in (self.rtol, self.atol, self.mass_matrix) if hasattr(x, "data_ptr")]
        return (*self._given, *((id(x), 0 if x.is_inference() else x._version) for x in tensors))

    @functools.cached_property
    def _given(self) -> tuple[Any, ...]:
        values = [getattr(self, f.name) for f in fields(self)]
        return (type(self), *(None if hasattr(x, "data_ptr") else _key(x) for x in values))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SciML) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        values = [repr(x) for x in self.values] + [f"{k}={v!r}" for k, v in self.keywords]
        return f"SciML({', '.join([repr(self.method), f'rtol={self.rtol}', f'atol={self.atol}', *values])})"


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    # A tensor is itself; 1, 1.0 and True are different arguments in Julia.
    return (type(value), value)
