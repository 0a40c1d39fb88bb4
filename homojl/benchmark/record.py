"""What was measured: one record for each solve, the bars, and the libraries; data, no measuring."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

NAN = float("nan")


@dataclass(frozen=True)
class Quantity:
    """A number of a measurement: its unit and its meaning."""

    unit: str
    description: str


QUANTITIES: dict[str, Quantity] = {
    "tolerance": Quantity("1", "relative and absolute tolerance asked for; NaN with equal steps"),
    "batch": Quantity("samples", "samples solved at once"),
    "gradient": Quantity("1", "1: with the gradient's backward pass, 0: the solve alone"),
    "seconds": Quantity("s", "wall time of a solve, median of the repetitions"),
    "seconds_min": Quantity("s", "shortest of the repetitions"),
    "seconds_max": Quantity("s", "longest of the repetitions"),
    "repetitions": Quantity("1", "how often the solve was timed, in turn with the others of its group"),
    "first_seconds": Quantity("s", "compiling and the first solve, which is in no repetition"),
    "nfe": Quantity(
        "evaluations", "evaluations of the field by the forward solve, each on the batch; NaN: not counted"
    ),
    "steps": Quantity("steps", "accepted and rejected steps of the forward solve; iterations of an equilibrium"),
    "error": Quantity(
        "1",
        "largest |y - reference| / (1 + |reference|) at any save time; of an equilibrium norm(f(z) - z) / norm(f(z))",
    ),
    "gradient_error": Quantity("1", "Euclidean distance of dL/dy0 from the reference's over its norm"),
    "memory": Quantity("MiB", "growth of a fresh process's peak resident memory over one solve with gradient"),
}


@dataclass(frozen=True)
class Measurement:
    """One solve by one library.

    Attributes:
        experiment, group: as in `Group`, its title for the latter.
        problem, dtype: what was solved.
        solver, variant, method: by what, with which adjoint or call, by which method.
        message: why there are no numbers; empty if there are.

    The others are `QUANTITIES`; NaN where not measured.
    """

    experiment: str
    group: str
    problem: str
    dtype: str
    solver: str
    variant: str
    method: str
    message: str = ""
    tolerance: float = NAN
    batch: float = NAN
    gradient: float = 0.0
    seconds: float = NAN
    seconds_min: float = NAN
    seconds_max: float = NAN
    repetitions: float = 0.0
    first_seconds: float = NAN
    nfe: float = NAN
    steps: float = NAN
    error: float = NAN
    gradient_error: float = NAN
    memory: float = NAN

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


@dataclass(frozen=True)
class Bar:
    """One figure that the project holds itself to.

    Attributes:
        name: of the figure.
        value: as measured; NaN: not measured.
        limit: what it must not exceed; NaN: it stands beside others to compare them with.
        meaning: what was divided by what, or where the worst case is.
    """

    name: str
    value: float
    limit: float
    meaning: str

    @property
    def verdict(self) -> str:
        """ "met", "missed", "not measured", or nothing where there is no limit."""
        if math.isnan(self.value):
            return "not measured"
        if math.isnan(self.limit):
            return ""
        return "met" if self.value <= self.limit else "missed"


@dataclass(frozen=True)
class Library:
    """A solver that was asked for: its version, or why it is missing."""

    name: str
    package: str
    version: str = ""
    missing: str = ""


@dataclass
class Report:
    """All that one run of the benchmark found.

    Attributes:
        environment: versions, processor, threads and such, as of a training run.
        quick: whether sizes were small; the bars' sizes are not.
        seed: of starts and weights.
        leak: resident memory in MiB after each fiftieth of the solves of `memory.leak`; empty: not measured.
        leak_solves: how many solves that were.
    """

    environment: dict[str, Any]
    quick: bool
    seed: int
    libraries: list[Library] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    leak: list[float] = field(default_factory=list)
    leak_solves: int = 0
