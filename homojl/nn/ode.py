"""A layer that follows an ODE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.adjoints import AbstractODEAdjoint, CheckpointAdjoint
from homojl.algorithms import AbstractODEAlgorithm, Tsit5
from homojl.nn.exported import integrate
from homojl.nn.layer import AbstractLayer, per_sample, unmarked
from homojl.problems import ODEProblem
from homojl.solution import Solution

Tensor = torch.Tensor


class ODE(AbstractLayer):
    """y(1) from y(0) = y0, where dy/dt = field(t, y) or field(t, y, condition).

    `layer(y0)`, `layer(y0, condition)`: the state at the last time; where there are more than two times, the states at
    all of them, stacked in front, (T, *shape of y0).

    Args:
        field: `field(t, y, *conditions) -> dy/dt`, a module or any function; t is 0-d, or with `batch="per-sample"`
            (B, 1, ..., 1). It must be deterministic: dropout belongs outside, or its mask among the conditions.
        algorithm: how, with its tolerances. A `StepMemory` in it becomes part of the layer's state.
        times: at least two, monotone.
        adjoint: how to differentiate.
        batch: "joint": one step size for all; "per-sample": each row of y0 has its own.
        backend, precision, strict: as of `AbstractLayer`.

    Shapes:
        y0: any, or a tuple, list or dict of tensors, float32 or float64. Conditions: anything that the field takes.

    Raises:
        SolveError: where a solve does not reach its end and `strict` is set.
    """

    algorithm: AbstractODEAlgorithm
    kinds = (AbstractODEAlgorithm, AbstractODEAdjoint)
    what = "an ODE"

    def __init__(
        self,
        field: Callable[..., Any],
        algorithm: AbstractODEAlgorithm | None = None,
        *,
        times: Sequence[float] | Tensor = (0.0, 1.0),
        adjoint: AbstractODEAdjoint | None = None,
        batch: str = "joint",
        backend: str = "pytorch",
        precision: str = "full",
        strict: bool = False,
    ) -> None:
        super().__init__(
            Tsit5(rtol=1e-3, atol=1e-3) if algorithm is None else algorithm,
            CheckpointAdjoint() if adjoint is None else adjoint,
            backend=backend,
            precision=precision,
            strict=strict,
            batch=batch,
        )
        self.field = field
        self.times = times
        ODEProblem(_unused, torch.zeros(1), times)  # refuses what cannot be

    def problem(self, y0: Any, *conditions: Any, times: Sequence[float] | Tensor | None = None) -> ODEProblem:
        """The initial value problem of `layer(y0, *conditions)`; `times` replaces the layer's."""
        if self.batch != "joint":
            rows = len(pytree.tree_leaves(y0)[0])
            conditions = tuple(per_sample(c, rows) for c in conditions)
        return ODEProblem(self.field, y0, self.times if times is None else times, conditions)

    def _solved(self, *inputs: Any, **options: Any) -> Any:
        problem = self.problem(*inputs, **options)
        solution = self._solve(problem)
        assert isinstance(solution, Solution)
        return self._value(solution.value if len(problem.ts) == 2 else solution.ys)

    def _written_out(self, problem: ODEProblem) -> Any:
        states = integrate(problem.f, problem.y0, problem.ts, unmarked(problem.args), self.algorithm)
        if len(problem.ts) == 2:
            return states[-1]
        return pytree.tree_map(lambda *tensors: torch.stack(tensors), *states)

    def extra_repr(self) -> str:
        times = self.times.tolist() if isinstance(self.times, Tensor) else tuple(self.times)
        return f"{super().extra_repr()}, times={times}"


def _unused(t: Tensor, y: Tensor) -> Tensor:
    return y
