"""Algorithms as Julia's: which of its packages has one of homojl's, and how it is called there."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from types import SimpleNamespace as Job
from typing import Any

from homojl.algorithms import (
    FBDF,
    RK4,
    TRBDF2,
    AbstractAdaptive,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    Anderson,
    ArcLength,
    AutoSwitch,
    Bosh3,
    Broyden,
    DFSane,
    Dopri5,
    Euler,
    Midpoint,
    NewtonKrylov,
    Picard,
    PseudoTransient,
    Relaxation,
    Rodas5P,
    SciML,
    TrustRegion,
    Tsit5,
    Vern7,
)
from homojl.algorithms.sciml import homes, packages
from homojl.backends.julia import runtime
from homojl.errors import ConfigError
from homojl.functions.user import warn_caller

Part = Callable[[Any], SciML]


def _gmres(algorithm: NewtonKrylov | PseudoTransient) -> SciML:
    return SciML("KrylovJL_GMRES", gmres_restart=algorithm.krylov_steps)


def _newton_krylov(algorithm: NewtonKrylov) -> SciML:
    return SciML(
        "NewtonRaphson",
        linsolve=_gmres(algorithm),
        linesearch=SciML("BackTracking"),
        forcing=SciML("EisenstatWalkerForcing2", **{"η₀": 0.3}),  # type: ignore[arg-type]
        concrete_jac=False,
    )


# What homojl's own names are short for; tolerances and step control are passed beside.
SHORT: dict[type[AbstractODEAlgorithm] | type[AbstractFixedPointAlgorithm], Part] = {
    Euler: lambda a: SciML("Euler"),
    Midpoint: lambda a: SciML("Midpoint"),
    RK4: lambda a: SciML("RK4"),
    Bosh3: lambda a: SciML("BS3"),
    Dopri5: lambda a: SciML("DP5"),
    Tsit5: lambda a: SciML("Tsit5"),
    Vern7: lambda a: SciML("Vern7"),
    Rodas5P: lambda a: SciML("Rodas5P"),
    # Solving with the iteration matrix makes the estimate too small: five times the error at the same tolerance.
    TRBDF2: lambda a: SciML("TRBDF2", smooth_est=False),
    FBDF: lambda a: SciML("FBDF"),
    AutoSwitch: lambda a: SciML("DefaultODEAlgorithm"),
    Picard: lambda a: SciML("ZeroPaths.SamplewisePicard", damping=a.damping),
    Anderson: lambda a: SciML(
        "ZeroPaths.SamplewiseAnderson", memory=a.memory, mixing=a.mixing, regularization=a.regularization
    ),
    # The residual is nearly z where f contracts, hence an initial Jacobian of 1.
    Broyden: lambda a: SciML("LimitedMemoryBroyden", alpha=1, threshold=a.memory, max_resets=100),
    NewtonKrylov: _newton_krylov,
    PseudoTransient: lambda a: SciML(
        "PseudoTransient", linsolve=_gmres(a), alpha_initial=a.first_step, concrete_jac=False
    ),
    TrustRegion: lambda a: SciML("TrustRegion", concrete_jac=True),
    DFSane: lambda a: SciML("DFSane"),
    Relaxation: lambda a: SciML("DynamicSS", SciML("Tsit5")),
}

PREDICTORS = {
    Euler: "Euler",
    Midpoint: "Midpoint",
    RK4: "RK4",
    Bosh3: "BogakiShampine3",
    Dopri5: "DormandPrince",
    Tsit5: "Tsitouras5",
}


def in_julia(algorithm: object) -> bool:
    """Whether Julia has the algorithm."""
    if isinstance(algorithm, AbstractPathAlgorithm):
        return type(algorithm.predictor) in PREDICTORS
    return isinstance(algorithm, SciML) or type(algorithm) in SHORT


@functools.lru_cache(maxsize=256)
def spelled_out(algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm, n: int | None = None) -> SciML:
    """An algorithm by its name in Julia; `n` is the number of unknowns, where it has an influence."""
    if isinstance(algorithm, SciML):
        return algorithm
    method = SHORT[type(algorithm)](algorithm)
    if isinstance(algorithm, Broyden) and n is not None and n < algorithm.memory:
        return SciML(method.method, alpha=1, threshold=n, max_resets=100)
    return method


@functools.lru_cache(maxsize=256)
def chosen(method: SciML) -> Any:
    """The algorithm in Julia, whose package is loaded if it is not yet.

    Raises:
        ConfigError: if no installed package has it.
    """
    julia = runtime.start()
    values = tuple(chosen(x) if isinstance(x, SciML) else _value(julia, x) for x in method.values)
    keywords = tuple((k, chosen(x) if isinstance(x, SciML) else _value(julia, x)) for k, x in method.keywords)
    maker = _maker(julia, method.method)
    home = packages().get(homes().get(method.method, ""))
    plain = home is not None and home.kind == "part"
    short = method.method.rpartition(".")[2]
    if short in homes() and short in packages()[homes()[short]].doubtful:
        warn_caller(
            f"{short} of {homes()[short]} misses its order or its tolerance on exact problems, as docs/sciml.md shows: "
            "compare its results with those of another method"
        )
    with runtime.calling(julia):
        return julia.calls.chosen(maker, Job(arguments=values, options=keywords, plain=plain))


def _value(julia: Any, value: object) -> object:
    return julia.jl.Symbol(value) if isinstance(value, str) else value


def _maker(julia: Any, name: str) -> Any:
    """What makes the algorithm of a name."""
    with runtime.calling(julia):
        package, _, short = name.rpartition(".")
        home = package or homes().get(name, "")
        if home:
            known = packages().get(home)
            module = julia.calls.load(home, known.uuid if known else "")
            maker = None if module is None else julia.calls.lookup(module, short)
        else:
            maker = julia.calls.lookup(None, short)
            for other, entry in packages().items() if maker is None else ():
                module = julia.calls.load(other, entry.uuid)
                maker = None if module is None else julia.calls.lookup(module, short)
                if maker is not None:
                    break
    if maker is None:
        raise ConfigError(unknown(name, home if home and module is not None else ""))
    return maker


def unknown(name: str, home: str = "") -> str:
    """What to say of a name that no installed package has; `home` is the package that was looked in, installed."""
    known = homes()
    package, _, short = name.rpartition(".")
    if not home and (package or name in known):
        package = package or known[name]
        return f"{short} is in the Julia package {package}, which is not installed; run `homojl julia add {package}`"
    # Of the nearest names the one with the most letters in common, so that swapped ones count little.
    near = difflib.get_close_matches(short, known, n=5, cutoff=0.6)
    near.sort(key=lambda other: -difflib.SequenceMatcher(None, sorted(short), sorted(other)).ratio())
    start = f"{home} has no algorithm {short!r}" if home else f"no installed Julia package has an algorithm {name!r}"
    if not near:
        return f"{start}; docs/sciml.md lists those that are known"
    other = known[near[0]]
    return f"{start}; did you mean {near[0]!r} of {other}? Where that is missing, run `homojl julia add {other}`"


LONGEST = 1e300  # of steps

# Of an ODE solve's options, those that Julia is told.
_REQUESTED = ("rtol", "atol", "first_step", "min_step", "max_step", "max_steps", "step_size")


@functools.lru_cache(maxsize=256)
def requested(algorithm: AbstractODEAlgorithm) -> Any:
    """Tolerances and step control of an ODE solve, as Julia's object."""
    julia = runtime.start()
    options = {name: getattr(algorithm, name) for name in _REQUESTED if hasattr(algorithm, name)}
    options["max_step"] = float(options.get("max_step", "inf"))
    control = None
    if isinstance(algorithm, AbstractAdaptive):
        c = algorithm.controller
        # The exponents depend on the order where they are left to it, and make a PredictiveController.
        control = (c.safety, c.min_factor, c.max_factor, *c.exponents(algorithm.order))
    if isinstance(algorithm, AbstractFixedStep):
        # OrdinaryDiffEq's RK4 estimates its error; here it takes one step to each save time unless told otherwise.
        options = {"step_size": algorithm.step_size or LONGEST}
    with runtime.calling(julia):
        if isinstance(algorithm, SciML) and algorithm.mass_matrix is not None:
            rows = algorithm.mass_matrix.detach().double().tolist()
            options["mass_matrix"] = julia.calls.matrix(Job(rows=rows))
        return julia.calls.request(Job(options=tuple(options.items()), controller=control))


@functools.lru_cache(maxsize=256)
def tracker(algorithm: AbstractPathAlgorithm) -> Any:
    """A path algorithm as ZeroPaths'."""
    julia = runtime.start()
    shared = ("max_corrections", "first_step", "max_step", "linear_solver", "krylov_steps")
    options: dict[str, Any] = {name: getattr(algorithm, name) for name in shared}
    options |= {"reltol": algorithm.rtol, "abstol": algorithm.atol, "maxiters": algorithm.max_steps}
    if isinstance(algorithm, ArcLength):
        options |= {"velocity": algorithm.velocity, "bound": algorithm.bound}
    else:
        options["by"] = "lambda"
    predictor = algorithm.predictor
    if isinstance(predictor, AbstractAdaptive):
        options |= {"predictor_reltol": predictor.rtol, "predictor_abstol": predictor.atol}
    with runtime.calling(julia):
        if algorithm.linear_solver != "dense":
            julia.calls.load("Krylov", "ba0b0d4f-ebba-5204-a429-3ac8c609bfb7")
        return julia.calls.tracker(Job(options=tuple(options.items()), predictor=PREDICTORS[type(predictor)]))
