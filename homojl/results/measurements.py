"""Timed solves: the record of a measurement, its table and its HDF5 file, and timing in turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from homojl.results.schema import Column, DatasetSpec, Records, Schema, text
from homojl.results.tables import Table

NAN = float("nan")
_SHORTEST = 0.02  # seconds; a shorter solve is repeated within one timing
_MOST_CALLS = 20


def _text(description: str, default: Any = MISSING) -> Any:
    """A field that is a column of texts."""
    return field(default=default, metadata={"column": text(description)})


def _number(unit: str, description: str, default: float = NAN) -> Any:
    """A field that is a column of numbers."""
    return field(default=default, metadata={"column": Column(unit, description)})


@dataclass(frozen=True)
class Measurement:
    """One solve; numbers are NaN where they were not measured."""

    experiment: str = _text("name of the experiment")
    group: str = _text("what was measured together, its solves in turn")
    problem: str = _text("name of the problem")
    dtype: str = _text("type of the state's numbers")
    solver: str = _text("homojl and its backend, or another library")
    variant: str = _text("adjoint or function that was used; empty where there is one")
    method: str = _text("name of the method")
    message: str = _text("why numbers are missing; empty if none are", "")
    tolerance: float = _number("1", "relative and absolute tolerance asked for; NaN with equal steps")
    batch: float = _number("samples", "samples solved at once")
    gradient: float = _number("1", "1: with the gradient's backward pass, 0: the solve alone", 0.0)
    seconds: float = _number("s", "wall time of a solve, median of the repetitions")
    seconds_min: float = _number("s", "shortest of the repetitions")
    seconds_max: float = _number("s", "longest of the repetitions")
    repetitions: float = _number("1", "how often the solve was timed, in turn with the others of its group", 0.0)
    first_seconds: float = _number("s", "compiling and the first solve, which is in no repetition")
    nfe: float = _number(
        "evaluations", "evaluations of the field by the forward solve, each on the batch; NaN: not counted"
    )
    steps: float = _number("steps", "accepted and rejected steps of the forward solve; iterations of an equilibrium")
    error: float = _number(
        "1",
        "largest |y - reference| / (1 + |reference|) at any save time; of an equilibrium norm(f(z) - z) / norm(f(z))",
    )
    gradient_error: float = _number("1", "Euclidean distance of dL/dy0 from the reference's over its norm")
    memory: float = _number("MiB", "growth of a fresh process's peak resident memory over one solve with gradient")

    @property
    def label(self) -> str:
        """Solver and variant."""
        return f"{self.solver}, {self.variant}" if self.variant else self.solver

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps if self.steps else NAN

    @property
    def error_over_tolerance(self) -> float:
        return self.error / self.tolerance


SCHEMA = Schema.of_records(
    "homojl-bench",
    1,
    "solves measured side by side",
    {
        "/measurements": Records(
            "measurement",
            {f.name: f.metadata["column"] for f in fields(Measurement)},
            "one element for each solve; NaN where not measured",
        )
    },
    entries={"/environment": DatasetSpec("text", (), "1", "versions, processor, threads and command, JSON")},
    attributes={"quick": "1: small sizes, 0: full ones", "seed": "of starts and weights"},
)


@dataclass
class Task:
    """A solve to be timed, and its times so far."""

    measurement: Measurement
    solve: Callable[[], object]
    calls: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def timed(self) -> Measurement:
        """The measurement with its times."""
        if not self.seconds:
            return self.measurement
        return replace(
            self.measurement,
            seconds=statistics.median(self.seconds),
            seconds_min=min(self.seconds),
            seconds_max=max(self.seconds),
            repetitions=float(len(self.seconds)),
        )


def take_turns(tasks: Sequence[Task], repetitions: int, patience: float) -> None:
    """Time solves in turn, so that other work on the machine disturbs all alike. Each has run once before.

    Args:
        patience: seconds after which a solve that has been timed is not timed again.
    """
    for task in tasks:
        started = time.perf_counter()
        task.solve()
        taken = time.perf_counter() - started
        task.calls = max(1, min(_MOST_CALLS, math.ceil(_SHORTEST / taken)))  # a timing is to be long enough
    gc.collect()
    for _ in range(repetitions):
        for task in tasks:
            if sum(task.seconds) * task.calls > patience:
                continue
            started = time.perf_counter()
            for _ in range(task.calls):
                task.solve()
            task.seconds.append((time.perf_counter() - started) / task.calls)


def columns_of(
    measurements: Sequence[Measurement], columns: Mapping[str, Callable[[Measurement], str]], *, words: int
) -> Table:
    """A table without the columns that are empty."""
    cells = {name: [cell(m) for m in measurements] for name, cell in columns.items()}
    kept = {name: column for name, column in cells.items() if any(column)}
    return Table(tuple(kept), list(zip(*kept.values(), strict=True)), words=words)


def three_digits(value: float) -> str:
    """Three significant digits; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
