"""Algorithms and adjoints as tables of plain values: a name, and options of that method's own constructor.

Nothing here loads PyTorch, so that a configuration is read, and what cannot be is refused, at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from homojl.algorithms import (
    CONTROLLERS,
    FIXED_POINT_ALGORITHMS,
    ODE_ALGORITHMS,
    AbstractErrorControlled,
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    PIController,
    StepMemory,
)
from homojl.errors import ConfigError
from homojl.names import FIXED_POINT_ADJOINT_NAMES, ODE_ADJOINT_NAMES, did_you_mean
from homojl.training.values import converted, in_bounds

if TYPE_CHECKING:
    from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint

Table = dict[str, Any]  # "name", and options
Kind = type[AbstractODEAlgorithm] | type[AbstractFixedPointAlgorithm]

METHODS: dict[str, Kind] = dict([*ODE_ALGORITHMS.items(), *FIXED_POINT_ALGORITHMS.items()])

_OF_ADJOINTS: dict[str, dict[str, Any]] = {
    "checkpoint": {"max_states": int},
    "backsolve": {"seminorm": bool},
    "gauss": {"nodes": int},
    "phantom": {"steps": int, "damping": float},
}

HELP = {
    "name": "which one; its options are those of its class",
    "rtol": "relative tolerance",
    "atol": "absolute tolerance",
    "controller": "step-size control",
    "first_step": 'a size, or "remember": that of earlier solves; absent: estimated',
    "min_step": "smallest step before a solve fails",
    "max_step": "largest step",
    "max_steps": "steps or iterations before a solve fails",
    "step_size": "of equal steps",
    "linear_solver": "dense, krylov, or auto: by the size of the state",
    "max_order": "one more than the number of derivatives used, at most",
    "max_iter": "most corrections of a step",
    "solver": "SciPy's name of the method",
    "memory": "iterates that are combined, or updates that are kept",
    "mixing": "how much of f(z) rather than z enters",
    "damping": "how much of z rather than f(z) enters",
    "regularization": "of the least-squares problem",
    "krylov_steps": "products for one linear system",
    "differences": "whether those are differences of the map; float64 alone",
    "kind": "the homotopy: fixed-point or newton",
    "alpha": "step of a splitting; where it is tuned, the largest",
    "max_states": "states that are kept at a time",
    "seminorm": "whether the parameters' gradients stay out of the error",
    "nodes": "quadrature nodes per forward step",
    "steps": "iterations that are recorded",
    **dict.fromkeys(("safety", "min_factor", "max_factor", "floor", "beta1", "beta2"), "of the step-size control"),
    **dict.fromkeys(("integral", "proportional", "derivative", "prediction"), "gain of the step-size control"),
}
"""One line on each option."""

_OLD_NAMES = {"checkpoints": "max_states"}
_MOST = {"memory": 1000}


def _plain(kind: type[Any]) -> dict[str, Any]:
    """The options of a class that a file can hold, with the type of each."""
    types: dict[str, Any] = {"StepMemory": float | str, "PIController": PIController}
    types |= {kind.__name__: kind for kind in (float, int, str, bool)}
    found = {f.name: [types[name] for name in str(f.type).split(" | ") if name in types] for f in fields(kind)}
    return {name: kinds[-1] for name, kinds in found.items() if kinds}


_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "algorithm": {name: _plain(kind) for name, kind in METHODS.items()},
    "adjoint": {name: _OF_ADJOINTS.get(name, {}) for name in (*ODE_ADJOINT_NAMES, *FIXED_POINT_ADJOINT_NAMES)},
}
PARTS = tuple(_OPTIONS)
"""The parts of [solver] that are tables of a method."""

_ALL: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
for _part in PARTS:
    for _options in reversed(_OPTIONS[_part].values()):  # an adaptive method's first step may be a word
        _ALL[_part] |= _options


def options_of(part: str, name: object) -> dict[str, Any]:
    """The options of an algorithm or an adjoint with their types; none for an unknown name, such as "auto"."""
    return _OPTIONS[part].get(name.lower(), {}) if isinstance(name, str) else {}


def option_names() -> list[str]:
    """The options of all algorithms and adjoints."""
    return sorted({key for part in PARTS for key in _ALL[part]})


def owner_of(key: str, where: str, others: tuple[str, ...]) -> tuple[str, str]:
    """Which table of [solver] has an option that was written in [solver] itself, and its present name.

    Args:
        where: the section.
        others: what else it has, for the message.

    Raises:
        ConfigError: no algorithm and no adjoint has it.
    """
    name = _OLD_NAMES.get(key, key)
    for part in PARTS:
        if name in _ALL[part]:
            return part, name
    raise ConfigError(f"unknown key {where}.{key}; {did_you_mean(key, (*others, *PARTS, *option_names()))}")


def checked_table(part: str, table: Mapping[str, Any], where: str) -> Table:
    """A table with values of the right types; whether its method has them is for `check_options`.

    Raises:
        ConfigError: an option that no method has, or a value of another type.
    """
    result = {}
    for key, value in table.items():
        if key == "name":
            result[key] = converted(value, str, f"{where}.{part}")
        elif key in _ALL[part]:
            result[key] = _checked_option(_ALL[part][key], key, value, f"{where}.{key}")
        else:
            raise ConfigError(f"unknown key {where}.{part}.{key}; {did_you_mean(key, ('name', *_ALL[part]))}")
    return result


def _checked_option(kind: Any, key: str, value: Any, where: str) -> Any:
    if kind is PIController:
        return _checked_controller(value, where)
    low = 1 if kind is int and key in _ALL["adjoint"] else None
    return in_bounds(converted(value, kind, where), where, low=low, high=_MOST.get(key))


def _checked_controller(value: Any, where: str) -> str | Table:
    """A controller by its name, or as a table with its gains."""
    table = value if isinstance(value, dict) else {"name": value}
    name = in_bounds(converted(table.get("name"), str, where), where, choices=tuple(CONTROLLERS))
    known = _plain(CONTROLLERS[name])
    for key in table:
        if key != "name" and key not in known:
            raise ConfigError(f"unknown key {where}.{key}; {did_you_mean(key, known)}")
    options = {key: converted(x, known[key], f"{where}.{key}") for key, x in table.items() if key != "name"}
    return {"name": name, **options} if options else name


def check_options(part: str, table: Table) -> None:
    """Refuse options that the method of a table does not have.

    Raises:
        ConfigError: for the first of them.
    """
    for key in table:
        if key != "name" and key not in options_of(part, table["name"]):
            raise ConfigError(f"solver.{key} is not for {part} {table['name']!r}; leave it out")


def build_algorithm(table: Table) -> AbstractODEAlgorithm | AbstractFixedPointAlgorithm:
    """The algorithm of a table, by its own constructor.

    Raises:
        ConfigError: there is none of that name, or it cannot have these options.
    """
    kind: type[Any] | None = METHODS.get(table["name"].lower())
    if kind is None:
        raise ConfigError(f"unknown algorithm {table['name']!r}; {did_you_mean(table['name'].lower(), METHODS)}")
    options = {key: value for key, value in table.items() if key != "name"}
    if (control := options.get("controller")) is not None:
        gains = dict(control) if isinstance(control, dict) else {"name": control}
        options["controller"] = CONTROLLERS[gains.pop("name")](**gains)
    if isinstance(first := options.get("first_step"), str):
        if first not in ("remember", "estimate") or not issubclass(kind, AbstractErrorControlled):
            raise ConfigError(
                'solver.first_step must be a number, or for an adaptive ODE method "remember" or "estimate", got '
                f"{first!r} for {table['name']}"
            )
        options["first_step"] = StepMemory() if first == "remember" else None
    built: AbstractODEAlgorithm | AbstractFixedPointAlgorithm = kind(**options)
    return built


def build_adjoint(table: Table) -> AbstractODEAdjoint | AbstractFixedPointAdjoint:
    """The adjoint of a table, by its own constructor; loads PyTorch."""
    from homojl.adjoints import ODE_ADJOINTS, equilibrium

    options = {key: value for key, value in table.items() if key != "name"}
    if table["name"] == "implicit":
        options["throw"] = False  # as a forward solve's, its failures are counted: training goes on
    kinds: dict[str, type[Any]] = {**ODE_ADJOINTS, **equilibrium.FIXED_POINT_ADJOINTS}
    built: AbstractODEAdjoint | AbstractFixedPointAdjoint = kinds[table["name"]](**options)
    return built
