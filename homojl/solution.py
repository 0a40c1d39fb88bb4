"""The result of a solve: states, status and statistics; data, no computation."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from homojl.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Status(enum.Enum):
    """How a solve ended; the value is the sentence that messages show.

    Attributes:
        ok: whether it is an end that was to be reached.
    """

    ok: bool

    SUCCESS = "the solve reached its end"
    EVENT = "the event took place"
    DIVERGED = "the state or its derivative is no longer finite"
    STEP_TOO_SMALL = "the step size fell below its smallest value"
    MAX_STEPS = "the largest number of steps was taken"
    STALLED = "the residual no longer falls"
    LEFT_BOUNDS = "the path left its bounds"
    RETURNED = "the path came back to lambda = 0"
    FOLD = "the path turns back in lambda"

    def __init__(self, sentence: str) -> None:
        self.ok = self._name_ in ("SUCCESS", "EVENT")


@dataclass
class Stats:
    """What a solve cost. The backward fields are zero until a gradient has been taken, and then add up.

    Attributes:
        backend, algorithm, adjoint: names of what did it.
        nfe: evaluations of the field in the forward solve, rejected steps included; calls, on however many rows.
        n_accepted, n_rejected: steps of the forward solve; where every sample has its own, of the one that took most.
        seconds: wall time of the forward solve.
        nfe_backward: evaluations of the field for gradients alone (recomputed stages, backward solves).
        n_jvp: Jacobian-vector products of the field, in the forward solve and for gradients of implicit steps.
        n_vjp: vector-Jacobian products of the field.
        unconverged_backward: samples whose linear system an `ImplicitAdjoint(throw=False)` did not solve.
        seconds_backward: wall time of an adjoint's own backward pass (0 for `DirectAdjoint`, whose backward
            pass belongs to PyTorch's graph).
    """

    backend: str = ""
    algorithm: str = ""
    adjoint: str = ""
    nfe: int = 0
    n_accepted: int = 0
    n_rejected: int = 0
    seconds: float = 0.0
    n_jvp: int = 0
    nfe_backward: int = 0
    n_vjp: int = 0
    unconverged_backward: int = 0
    seconds_backward: float = 0.0


class TotalStats:
    """The summed cost of several solves: the attributes of `Stats`, computed at each access.

    Backward passes add to the parts after the forward pass has ended, so that a sum taken before would miss them.

    Args:
        parts: of the solves, which share backend, algorithm and adjoint.
    """

    def __init__(self, parts: Sequence[Stats | TotalStats]) -> None:
        self._parts = tuple(parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not yet set, as while unpickling
            raise AttributeError(name)
        values = [getattr(part, name) for part in self._parts]
        return values[0] if isinstance(values[0], str) else sum(values)


@dataclass(frozen=True)
class StepSequence:
    """The accepted steps of an ODE solve, exactly as they were taken.

    Attributes:
        starts: times at which the steps start, n numbers.
        sizes: signed sizes of the steps, n numbers.
        saves: for each save time after the first, the index of the step it lies in and the fraction of that step
            in (0, 1]; exactly 1 means the end of the step.
    """

    starts: tuple[float, ...] = ()
    sizes: tuple[float, ...] = ()
    saves: tuple[tuple[int, float], ...] = ()

    def __len__(self) -> int:
        return len(self.starts)


class Happened(NamedTuple):
    """An event that did not end its solve.

    Attributes:
        time: 0-d, float64 on the CPU; carries gradients. With `batch="per-sample"` of each sample, (B,), NaN where it
            has no such event.
        state: the state there, before the event changed it; of a sample without one the last.
        which: which of the values of the condition changed its sign; of each sample, (B,), int64, -1 for none.
    """

    time: torch.Tensor
    state: Any
    which: int | torch.Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Status and statistics of each sample of a solve with `batch="per-sample"`: B entries, one for each row of y0.

    Attributes:
        statuses: how each of them ended.
        times: the last time that each reached, (B,), float64 on the CPU; those of events carry gradients.
        n_accepted, n_rejected: steps of each, (B,), int64 on the CPU.
        nfe: evaluations of the field that its row took part in, (B,), int64 on the CPU.
        events: which value of the event's condition changed its sign, -1 for none, (B,), int64 on the CPU.

    Where `n_rejected` and `nfe` are -1, as of a `JuliaField` on CUDA, they were not counted.
    """

    statuses: tuple[Status, ...]
    times: torch.Tensor
    n_accepted: torch.Tensor
    n_rejected: torch.Tensor
    nfe: torch.Tensor
    events: torch.Tensor


class StackedStates(Sequence["torch.Tensor"]):
    """States that lie in one tensor, (T, *shape); each is made a tensor of its own, a view, when it is asked for.

    Args:
        stacked: that tensor.
    """

    def __init__(self, stacked: torch.Tensor) -> None:
        self.stacked = stacked

    def __len__(self) -> int:
        return len(self.stacked)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> StackedStates: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | StackedStates:
        return StackedStates(self.stacked[index]) if isinstance(index, slice) else self.stacked[index]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.stacked.unbind())


def _described(state: Any) -> str:
    """A state's shape and type, or how many tensors it has."""
    shape = getattr(state, "shape", None)
    return f"{len(state)} tensors" if shape is None else f"{tuple(shape)} {str(state.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` returns.

    Attributes:
        ts: save times that were reached, (T,), float64 on the CPU; that of an event carries gradients.
        states: the states at those times, T tensors of y0's shape, dtype, device and memory format; they carry
            gradients.
        status: how the solve ended; nothing but `Status.SUCCESS` reaches the caller unless `throw=False`.
        stats: what it cost.
        steps: the accepted step sequence; empty where every sample has its own.
        message: one line on what happened and what to try; empty on success.
        samples: status and statistics of each sample, where each had steps of its own; else None. One that stopped
            early has its last accepted state at the save times that it did not reach.
        events: those on the way that did not end the solve, in their order.
        interpolant: what `at` asks; None without `dense=True`.
    """

    ts: torch.Tensor
    states: Sequence[Any]
    status: Status
    stats: Stats
    steps: StepSequence = field(default_factory=StepSequence)
    message: str = ""
    samples: Samples | None = None
    events: tuple[Happened, ...] = ()
    interpolant: Callable[[float | torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"<Solution by {self.stats.algorithm}: {self.status.name} at t = {float(self.ts[-1]):.6g}, "
            f"{len(self.states)} states {_described(self.states[-1])}, {self.stats.nfe} evaluations>"
        )

    @property
    def value(self) -> Any:
        """The last state reached, in y0's form."""
        return self.states[-1]

    def at(self, t: float | torch.Tensor) -> torch.Tensor:
        """The state at any time of the solve, which must have had `dense=True`.

        Where the method has a continuous extension it is that one, else a step from the last one before t. Stages are
        computed anew for the step that holds t and remembered until a time in another one is asked for.

        Args:
            t: a number or a 0-d tensor, or T times as a 1-D tensor, best in order; receives a gradient where it
                requires one.

        Returns:
            The state, (*shape of y0), or states, (T, *shape of y0); with `DirectAdjoint` they carry gradients.

        Raises:
            ConfigError: outside the solve, without `dense=True`, or where another adjoint would miss a gradient.
        """
        if self.interpolant is None:
            raise ConfigError("the states between the save times were not kept: solve(..., dense=True)")
        return self.interpolant(t)

    @cached_property
    def ys(self) -> Any:
        """All saved states, (T, *shape of y0); of several tensors, each of them stacked."""
        import torch
        from torch.utils import _pytree as pytree

        if isinstance(self.states, StackedStates):
            return self.states.stacked
        return pytree.tree_map(lambda *tensors: torch.stack(tensors), *self.states)


@dataclass(frozen=True, eq=False)
class EquilibriumSolution:
    """What `solve` returns for a `FixedPointProblem`.

    Attributes:
        value: the equilibria, or where a sample did not converge its best iterate: z0's shape, dtype, device and
            memory format; carries gradients.
        residuals: norm(f(z) - z) / norm(f(z)) of each sample at `value`, (B,), float64 on the CPU; of a splitting
            method's own iteration for those.
        iterations: of each sample, (B,), int64 on the CPU.
        converged: which samples met the tolerance, (B,), bool on the CPU.
        status: `Status.SUCCESS` if all did; nothing else reaches the caller unless `throw=False`.
        stats: what it cost; `nfe` counts evaluations of the map, each on as many samples as were still at work.
        message: one line on what happened and what to try; empty on success.
    """

    value: torch.Tensor
    residuals: torch.Tensor
    iterations: torch.Tensor
    converged: torch.Tensor
    status: Status
    stats: Stats | TotalStats
    message: str = ""

    def __repr__(self) -> str:
        largest = f"residual {float(self.residuals.max()):.2g}, " if len(self.residuals) else ""
        ended = f"{int(self.converged.sum())} of {len(self.converged)} converged"
        return (
            f"<EquilibriumSolution: {self.status.name}, {ended}, "
            f"{largest}{_described(self.value)}, {self.stats.nfe} evaluations>"
        )

    @staticmethod
    def of_all(solutions: Sequence[EquilibriumSolution]) -> EquilibriumSolution:
        """Several solves in a row as one: the last value, the largest residuals, the sums of iterations and costs.

        A sample has converged if it did in all of them; the status is that of the first solve that failed, if any.
        """
        import torch

        failed = next((s for s in solutions if not s.status.ok), solutions[-1])
        return EquilibriumSolution(
            value=solutions[-1].value,
            residuals=torch.stack([s.residuals for s in solutions]).amax(0),
            iterations=torch.stack([s.iterations for s in solutions]).sum(0),
            converged=torch.stack([s.converged for s in solutions]).all(0),
            status=failed.status,
            stats=TotalStats([s.stats for s in solutions]),
            message=failed.message,
        )


@dataclass(frozen=True, eq=False)
class PathSolution:
    """What `solve` returns for a `HomotopyProblem`.

    Attributes:
        s: length along the path at each of its points, in the unit that `velocity` sets, (T,), float64 on the CPU.
        lambdas: lambda there, (T,), float64 on the CPU; 0 at the first, 1 at the last of a solve that succeeded.
        states: z there, T detached tensors of z0's shape; the last is `value`.
        residuals: root mean square of H there, (T,), float64 on the CPU.
        value: z at the end of the path; carries gradients (implicit function theorem).
        folds: how often the path turned round in lambda.
        status: how it ended; nothing but `Status.SUCCESS` reaches the caller unless `throw=False`.
        stats: what it cost.
        message: one line on what happened and what to try; empty on success.
    """

    s: torch.Tensor
    lambdas: torch.Tensor
    states: tuple[torch.Tensor, ...]
    residuals: torch.Tensor
    value: torch.Tensor
    folds: int
    status: Status
    stats: Stats
    message: str = ""

    def __repr__(self) -> str:
        return (
            f"<PathSolution by {self.stats.algorithm}: {self.status.name} at lambda = {float(self.lambdas[-1]):.4g}, "
            f"{len(self.s)} points, {self.folds} folds, {self.stats.nfe} evaluations>"
        )
