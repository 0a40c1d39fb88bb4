"""What every library is asked for: ready-made solves of a case, each of which says what it found and what it cost."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, ClassVar

from ..problems import Problem

MAX_STEPS = 10**6


@dataclass(frozen=True, eq=False)
class Case:
    """One solve to be made by several libraries.

    Attributes:
        problem: what to solve.
        method: name of the method, as homojl has it: "dopri5", "midpoint", "anderson".
        tolerance: relative and absolute; of an equilibrium relative alone. NaN for a method with equal steps.
        steps: how many equal steps to take; None: the method chooses its own.
        gradient: whether also to take the gradient of `sum(cotangent * last state)` with respect to the start and the
            field's parameters; for an equilibrium with respect to the parameters alone.
    """

    problem: Problem
    method: str
    tolerance: float = float("nan")
    steps: int | None = None
    gradient: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a solve found, in arrays of its library.

    Attributes:
        ys: states at the save times, (T, B, ...); of an equilibrium z, (B, ...).
        nfe: evaluations of the field in the forward solve.
        steps: accepted and rejected steps; of a solver with steps for every sample, of the one that took most.
        gradient: dL/dy0, or None; for an equilibrium dL/dx.
    """

    ys: Any
    nfe: int
    steps: int
    gradient: Any = None


Solve = Callable[[], Outcome]
MakeSolve = Callable[[], Solve]  # what may take long, such as compiling, and is not part of a solve


class AbstractSolver(abc.ABC):
    """One library, or one way of using it.

    Attributes:
        name: as `--solver` takes it.
        package: the distribution on PyPI.
    """

    name: str
    package: ClassVar[str]

    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do; None: it can."""
        if find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install --group peers"
        return None

    def version(self) -> str:
        """Of the package."""
        return metadata.version(self.package)

    @abc.abstractmethod
    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        """The solves that it has for a case by what sets them apart, such as the adjoint; empty: it has none."""
