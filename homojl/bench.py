"""The solves of `homojl bench`: homojl's own on this machine, with their time, evaluations, error and compiling.

Comparisons with other libraries are in `benchmarks/peers`, and use the same measurements.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homojl.adjoints import (
    AbstractFixedPointAdjoint,
    AbstractODEAdjoint,
    CheckpointAdjoint,
    DirectAdjoint,
    ImplicitAdjoint,
)
from homojl.algorithms import AbstractErrorControlled, AbstractFixedPointAlgorithm, Anderson, Dopri5, Dopri8, Kvaerno5
from homojl.backends import get_backend
from homojl.errors import BackendUnavailable
from homojl.files import make_folder, replace_file
from homojl.names import BENCH_BACKENDS, BENCH_PROBLEMS, check_known
from homojl.nn.parts import ConditionedField
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.results.measurements import SCHEMA, Measurement, Task, columns_of, take_turns, three_digits
from homojl.results.tables import Table
from homojl.solving import solve

# ---- the cases


@dataclass(frozen=True, eq=False)
class Case:
    """A solve to be measured on every backend.

    Attributes:
        problem: of `BENCH_PROBLEMS`.
        make: the problem, in the type of numbers and for so many of its first samples.
        batch: its samples.
        algorithm: how to solve it.
        adjoint: with which the gradient is taken as well; None: the solve alone.
        exact: the state at the end, where there is a formula.
    """

    problem: str
    make: Callable[[torch.dtype, int], ODEProblem | FixedPointProblem]
    batch: int
    algorithm: AbstractErrorControlled | AbstractFixedPointAlgorithm
    adjoint: AbstractODEAdjoint | AbstractFixedPointAdjoint | None = None
    exact: torch.Tensor | None = None


def cases(problem: str, *, quick: bool, seed: int) -> list[Case]:
    """The solves of one of `BENCH_PROBLEMS`; with `quick` smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    if problem == "vanderpol":
        y0, ts = torch.randn(16 if quick else 256, 2, generator=generator), torch.linspace(0, 10, 200)

        def oscillator(dtype: torch.dtype, rows: int) -> ODEProblem:
            return ODEProblem(_van_der_pol, y0[:rows].to(dtype), ts.to(dtype))

        return [Case(problem, oscillator, len(y0), Dopri5(rtol=1e-5, atol=1e-5))]
    if problem == "kaps":
        span = 0.5 if quick else 5.0
        start = torch.ones(16, 2, dtype=torch.float64)
        exact = torch.tensor([math.exp(-2 * span), math.exp(-span)], dtype=torch.float64)

        def stiff(dtype: torch.dtype, rows: int) -> ODEProblem:
            return ODEProblem(_kaps, start[:rows], (0.0, span))

        algorithms = (Kvaerno5(rtol=1e-5, atol=1e-5), Dopri5(rtol=1e-5, atol=1e-5, max_steps=10**6))
        return [Case(problem, stiff, len(start), algorithm, exact=exact) for algorithm in algorithms]
    batch, channels, size = (4, 8, 8) if quick else (64, 64, 16)
    block, x = _layer(channels, size, batch, generator)

    def layer(dtype: torch.dtype, rows: int) -> ODEProblem:
        return ODEProblem(block(dtype), torch.zeros_like(x[:rows], dtype=dtype), (0.0, 1.0), args=(x[:rows].to(dtype),))

    def rest(dtype: torch.dtype, rows: int) -> FixedPointProblem:
        f = block(dtype)
        return FixedPointProblem(
            lambda z, x: f(None, z, x), torch.zeros_like(x), args=(x,), params=tuple(f.parameters())
        )

    if problem == "equilibrium":
        anderson = Anderson(rtol=1e-3, atol=1e-12, max_steps=100)
        return [Case(problem, rest, batch, anderson, adjoint) for adjoint in (None, ImplicitAdjoint())]
    dopri5 = Dopri5(rtol=1e-3, atol=1e-3)
    return [Case(problem, layer, batch, dopri5, a) for a in (None, DirectAdjoint(), CheckpointAdjoint())]


def _van_der_pol(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, v = y.unbind(-1)
    return torch.stack([v, 2 * (1 - x * x) * v - x], dim=-1)


def _kaps(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Dekker, Verwer (1984), 7.5: stiff with rate 1000, from (1, 1) exactly (exp(-2t), exp(-t))."""
    a, b = y.unbind(-1)
    return torch.stack([-1002 * a + 1000 * b * b, a - b - b * b], dim=-1)


def _layer(
    channels: int, size: int, batch: int, generator: torch.Generator
) -> tuple[Callable[[torch.dtype], torch.nn.Module], torch.Tensor]:
    """HomoODE's layer at its initial weights, in any type of numbers, and a condition for it."""
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        weights = ConditionedField(channels)
    x = torch.randn(batch, channels, size, size, generator=generator).relu()

    def block(dtype: torch.dtype) -> torch.nn.Module:
        made = ConditionedField(channels).to(dtype)
        made.load_state_dict(weights.state_dict())
        return made

    return block, x


# ---- measuring


def run_bench(
    *,
    problems: Sequence[str] = BENCH_PROBLEMS,
    backends: Sequence[str] = BENCH_BACKENDS,
    quick: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Make every solve of the problems on every backend that can; one that is missing is named and left out.

    Args:
        problems: of `BENCH_PROBLEMS`.
        backends: of `BENCH_BACKENDS`.
        quick: smaller sizes and fewer repetitions.
        seed: of starts and weights.
        say: receives a line of progress at a time.

    Raises:
        ConfigError: for an unknown name.
    """
    check_known("problem", problems, BENCH_PROBLEMS)
    check_known("backend", backends, BENCH_BACKENDS)

    present = []
    for name in backends:
        try:
            present.append(get_backend(name))
        except BackendUnavailable as error:
            say(f"{name} is left out: {error}")
    found: list[Measurement] = []
    for problem in problems:
        say(problem)
        tasks = [
            _task(case, backend.name)
            for case in cases(problem, quick=quick, seed=seed)
            for backend in present
            if backend.supports(case.algorithm, torch.device("cpu"))
        ]
        take_turns(tasks, 3 if quick else 7, 4.0 if quick else 20.0)
        found += [task.timed for task in tasks]
    return found


def _task(case: Case, backend: str) -> Task:
    """Make a solve once, and return it ready to be timed, with its cost and its error."""
    problem = case.make(torch.float32, case.batch)
    gradient = case.adjoint is not None

    def run() -> Any:
        with torch.set_grad_enabled(gradient):
            solution = solve(problem, case.algorithm, adjoint=case.adjoint, backend=backend)
        if gradient:
            torch.autograd.backward(solution.value.sum())
        return solution

    started = time.perf_counter()
    solution = run()
    first = time.perf_counter() - started
    if isinstance(problem, FixedPointProblem):
        steps = int(solution.iterations.max())
    else:
        steps = solution.stats.n_accepted + solution.stats.n_rejected
    measurement = Measurement(
        experiment="own",
        group=case.problem,
        problem=case.problem,
        dtype=str(solution.value.dtype).removeprefix("torch."),
        solver=f"homojl-{backend}",
        variant="" if case.adjoint is None else case.adjoint.name,
        method=type(case.algorithm).__name__,
        tolerance=float(case.algorithm.rtol),
        batch=float(case.batch),
        gradient=float(gradient),
        first_seconds=first,
        nfe=float(solution.stats.nfe),
        steps=float(steps),
        error=_error(case, solution.value.detach()),
    )
    return Task(measurement, run)


def _error(case: Case, value: torch.Tensor) -> float:
    """The relative residual of an equilibrium; else the distance from the exact or a tight solution of two samples."""
    with torch.no_grad():
        if isinstance(problem := case.make(torch.float32, case.batch), FixedPointProblem):
            mapped = problem.f(value, *problem.args)
            return ((mapped - value).norm() / mapped.norm()).item()
        reference = case.exact if case.exact is not None else _tight(case)
        return ((value[:2] - reference).abs() / (1 + reference.abs())).max().item()


def _tight(case: Case) -> torch.Tensor:
    algorithm = Dopri8(rtol=1e-8, atol=1e-8, max_steps=10**6)
    return solve(case.make(torch.float64, 2), algorithm, backend="pytorch").value


def bench_table(measurements: Sequence[Measurement]) -> Table:
    """One line for each solve; columns in which there is nothing are left out."""
    columns: dict[str, Callable[[Measurement], str]] = {
        "problem": lambda m: m.problem,
        "solved by": lambda m: m.label,
        "method": lambda m: m.method,
        "time [ms]": lambda m: three_digits(1e3 * m.seconds),
        "compiling [s]": lambda m: three_digits(max(0.0, m.first_seconds - m.seconds)),
        "evaluations": lambda m: three_digits(m.nfe),
        "steps": lambda m: three_digits(m.steps),
        "per step [us]": lambda m: three_digits(1e6 * m.seconds_per_step),
        "error": lambda m: "" if math.isnan(m.error) else f"{m.error:.1e}",
        "message": lambda m: m.message,
    }
    return columns_of(measurements, columns, words=3)


def write_bench(
    folder: Path, measurements: Sequence[Measurement], environment: Mapping[str, Any], *, quick: bool, seed: int
) -> list[Path]:
    """Write bench.h5 and bench.md, and return their paths; `SCHEMA.load` reads the first.

    Raises:
        DataError: if one of them cannot be written.
    """
    make_folder(folder)
    files = [folder / "bench.h5", folder / "bench.md"]
    attributes = {"quick": int(quick), "seed": seed}
    parts = {"/environment": json.dumps(dict(environment))}
    SCHEMA.save(files[0], {"/measurements": measurements}, parts=parts, attributes=attributes)
    head = "# homojl's solves on this machine\n\n"
    if quick:
        head += "Small sizes (--quick): a check that everything works, not a measurement.\n\n"
    head += (
        f"{environment['processor']}, {environment['threads']} threads, torch {environment['packages']['torch']}.\n\n"
    )
    replace_file(files[1], (head + bench_table(measurements).markdown()).encode())
    return files
