"""Solving every case of a group with every solver that can."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from homojl.results.measurements import Measurement, Task, take_turns

from . import memory
from .experiments import Group
from .solvers import AbstractSolver, Case, Outcome


def measure(
    group: Group,
    solvers: Sequence[AbstractSolver],
    *,
    repetitions: int,
    patience: float,
    threads: int,
    seed: int,
    say: Callable[[str], None],
) -> list[Measurement]:
    """Solve every case of a group with every solver that can.

    Args:
        repetitions: how often each solve is timed.
        patience: seconds after which a solve that has been timed is not timed again.
        threads, seed: of the processes in which memory is measured.
        say: receives a line for each solve.

    Returns:
        One record for each case, solver and variant; where a solve failed its message says why.
    """
    found: list[Measurement] = []
    tasks: list[Task] = []
    for case in group.cases:
        for solver in solvers:
            if solver.name in group.without:
                continue
            for variant, make in solver.variants(case).items():
                blank = Measurement(
                    experiment=group.experiment,
                    group=group.title,
                    problem=case.problem.name,
                    dtype=str(case.problem.y0.dtype),
                    solver=solver.name,
                    variant=variant,
                    method=case.method,
                    tolerance=case.tolerance,
                    batch=float(case.problem.batch),
                    gradient=float(case.gradient),
                )
                task = _first(blank, case, make)
                if isinstance(task, Measurement):
                    say(f"  {task.label}, {task.method}: failed: {task.message}")
                    found.append(task)
                else:
                    tasks.append(task)
    if group.timed:
        take_turns(tasks, repetitions, patience)
    for task in tasks:
        measurement = task.timed
        if group.memory:
            measurement = _with_memory(measurement, group.cases[0], seed=seed, threads=threads)
        say(_line(measurement))
        found.append(measurement)
    return found


def _first(blank: Measurement, case: Case, make: Callable[[], Callable[[], Outcome]]) -> Task | Measurement:
    """The solve made ready and done once, its answer held against the reference; or why that failed."""
    started = time.perf_counter()
    try:
        solve = make()
        outcome = solve()
        first = time.perf_counter() - started
        measurement = replace(
            blank, first_seconds=first, nfe=float(outcome.nfe) or math.nan, steps=float(outcome.steps)
        )
        return Task(replace(measurement, **_errors(case, outcome)), solve)
    except Exception as error:  # a peer may fail in any way; the others are measured all the same
        words = " ".join(str(error).split()) or type(error).__name__
        return replace(blank, message=words[:300])


def _errors(case: Case, outcome: Outcome) -> dict[str, Any]:
    problem = case.problem
    ys = np.asarray(outcome.ys, dtype=np.float64)
    if problem.equilibrium:
        z = torch.from_numpy(ys.astype(problem.y0.dtype))
        with torch.no_grad():
            mapped = problem.torch_field(problem.batch)(None, z)
        return {"error": ((mapped - z).norm() / mapped.norm()).item()}
    reference = problem.reference
    error = np.abs(ys[:, : reference.shape[1]] - reference) / (1 + np.abs(reference))
    errors = {"error": float(error.max())}
    if outcome.gradient is not None:
        expected = problem.reference_gradient
        gradient = np.asarray(outcome.gradient, dtype=np.float64)[: len(expected)]
        errors["gradient_error"] = float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
    return errors


def _with_memory(measurement: Measurement, case: Case, *, seed: int, threads: int) -> Measurement:
    assert case.steps is not None, case
    try:
        peak = memory.peak_of_steps(measurement.solver, measurement.variant, case.steps, seed=seed, threads=threads)
    except memory.MeasurementFailed as error:
        return replace(measurement, message=f"memory: {error}"[:300])
    return replace(measurement, memory=peak)


def _line(m: Measurement) -> str:
    parts = [f"  {m.label}, {m.method}" + ("" if math.isnan(m.tolerance) else f" at {m.tolerance:g}")]
    if not math.isnan(m.seconds):
        parts.append(f"{1e3 * m.seconds:.3g} ms")
    parts.append(f"{m.steps:.0f} steps")
    parts.append(f"error {m.error:.1e}")
    if not math.isnan(m.memory):
        parts.append(f"{m.memory:.0f} MiB")
    if m.message:
        parts.append(m.message)
    return "  ".join(parts)
