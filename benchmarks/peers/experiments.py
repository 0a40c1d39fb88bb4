"""Which cases are measured: each experiment is a list of groups, whose solves take turns and are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from .problems import SYSTEMS, layer_problem, network_problem, system_problem
from .solvers import Case

COMPILED = "homojl-compiled"
ACCURACY_SAVES = 50


@dataclass(frozen=True, eq=False)
class Group:
    """Cases that are measured in turn.

    Attributes:
        experiment: "batch", "precision", "layer", "equilibrium", "trajectory", "steps" or "accuracy".
        title: what is measured.
        cases: what to solve.
        timed: whether times are taken, or the answers alone.
        memory: whether each solve is also made in a process of its own, to see what memory it takes.
        without: solvers that are left out.
    """

    experiment: str
    title: str
    cases: tuple[Case, ...]
    timed: bool = True
    memory: bool = False
    without: tuple[str, ...] = ()


def _system(name: str, quick: bool, seed: int) -> list[Group]:
    """A small system over batch size and tolerance, and its work-precision diagram."""
    stiff = SYSTEMS[name].stiff
    interval = 0.5 if stiff and quick else None  # an explicit method takes 300 steps for a unit of time
    methods: tuple[str, ...] = ("dopri5", "kvaerno5", "rodas5p") if stiff else ("dopri5",)
    groups = []
    for batch in (256,) if quick else (1, 16, 256):
        for tolerance in (1e-5,) if quick else (1e-3, 1e-5):
            problem = system_problem(name, batch=batch, saves=200, seed=seed, interval=interval)
            cases = tuple(Case(problem, method, tolerance) for method in methods)
            groups.append(Group("batch", f"{name}, batch {batch}, tolerance {tolerance:g}, float32", cases))
    problem = system_problem(name, batch=4, saves=20, dtype="float64", seed=seed, interval=interval)
    if stiff:
        methods = ("dopri5", "kencarp4", "kvaerno5", "rodas5p")
    else:
        methods = ("dopri5", "bosh3") if quick else ("bosh3", "dopri5", "tsit5", "dopri8")
    tolerances = (1e-3, 1e-5) if quick else (1e-3, 1e-5, 1e-7, 1e-9)
    cases = tuple(Case(problem, method, tolerance) for method in methods for tolerance in tolerances)
    # Compiled steps are the same steps, and each tolerance would be compiled anew.
    groups.append(Group("precision", f"{name}, batch 4, float64: work and precision", cases, without=(COMPILED,)))
    return groups


def _layer(quick: bool, seed: int) -> list[Group]:
    batch, channels, size = (4, 8, 8) if quick else (64, 64, 16)
    problem = layer_problem(batch=batch, channels=channels, size=size, seed=seed)
    return [
        Group("layer", f"{problem.title}, batch {batch}, 1e-3: {what}", (Case(problem, "dopri5", 1e-3, gradient=g),))
        for what, g in (("forward", False), ("forward and backward", True))
    ]


def _equilibrium(quick: bool, seed: int) -> list[Group]:
    batch, channels, size = (4, 8, 8) if quick else (64, 64, 16)
    problem = layer_problem(batch=batch, channels=channels, size=size, seed=seed, equilibrium=True)
    methods = ("anderson",) if quick else ("anderson", "broyden", "picard")
    return [
        Group(
            "equilibrium",
            f"{problem.title}, batch {batch}, 1e-3: {what}",
            tuple(Case(problem, method, 1e-3, gradient=g) for method in methods),
            without=(COMPILED,),
        )
        for what, g in (("forward", False), ("forward and backward", True))
    ]


def _trajectory(quick: bool, seed: int) -> list[Group]:
    orbits = 2 if quick else 100
    problem = system_problem(
        "kepler", batch=1, saves=10 * orbits + 1, dtype="float64", interval=orbits * SYSTEMS["kepler"].interval[1]
    )
    cases = tuple(Case(problem, method, 1e-8) for method in ("dopri5", "tsit5", "dopri8"))
    return [Group("trajectory", f"{problem.title}: {orbits} orbits at 1e-8, float64", cases, without=(COMPILED,))]


def _steps(quick: bool, seed: int) -> list[Group]:
    return [
        Group(
            "steps",
            f"a network's gradient through {steps} equal steps of order 2, batch 32, float32",
            (steps_case(steps, seed),),
            memory=True,
            without=(COMPILED,),
        )
        for steps in ((30, 300) if quick else (100, 1000, 10_000))
    ]


def steps_case(steps: int, seed: int) -> Case:
    """The gradient whose time and memory are measured as the number of steps grows."""
    return Case(network_problem(seed=seed), "midpoint", steps=steps, gradient=True)


def _accuracy(quick: bool, seed: int) -> list[Group]:
    """Every system from its own start, in float64, at every save time."""
    groups = []
    for name, system in SYSTEMS.items():
        explicit = ("dopri5",) if quick else ("bosh3", "dopri5", "tsit5", "dopri8")
        methods = ("kencarp4", "kvaerno5") if system.stiff else explicit
        tolerances = (1e-5,) if quick else (1e-3, 1e-5, 1e-7)
        problem = system_problem(name, batch=1, saves=ACCURACY_SAVES, dtype="float64")
        cases = tuple(Case(problem, method, tolerance) for method in methods for tolerance in tolerances)
        groups.append(
            Group("accuracy", f"{name}, one sample, float64: largest error", cases, timed=False, without=(COMPILED,))
        )
    return groups


MAKERS: dict[str, Callable[[bool, int], list[Group]]] = {
    **{name: functools.partial(_system, name) for name in ("vanderpol", "lotka-volterra", "lorenz", "kaps")},
    "layer": _layer,
    "equilibrium": _equilibrium,
    "trajectory": _trajectory,
    "steps": _steps,
    "accuracy": _accuracy,
    "leak": lambda quick, seed: [],  # it compares nothing: see `memory.leak`
}
