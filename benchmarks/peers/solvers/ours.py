"""homojl's own backends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

import homojl as hj
from homojl.adjoints import AbstractODEAdjoint
from homojl.algorithms import (
    FIXED_POINT_ALGORITHMS,
    ODE_ALGORITHMS,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractODEAlgorithm,
)
from homojl.backends import get_backend
from homojl.backends.julia import runtime

from ..problems import LayerField
from .base import MAX_STEPS, AbstractSolver, Case, MakeSolve, Outcome, Solve

ADJOINTS = {
    "direct": hj.DirectAdjoint(),
    "checkpoint": hj.CheckpointAdjoint(),
    "30 states": hj.CheckpointAdjoint(max_states=30),
}
_FEW_STEPS = 100  # with fewer, 30 kept states save nothing


class HomoJL(AbstractSolver):
    """One backend; with "julia" a small system's field is held in Julia, any other is called in PyTorch."""

    package = "homojl"

    def __init__(self, name: str, backend: str) -> None:
        self.name, self._backend = name, backend

    def missing(self) -> str | None:
        if self._backend == "julia" and not runtime.usable():
            return "Julia is not installed: homojl julia install"
        return None

    def version(self) -> str:
        return hj.__version__

    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        known = FIXED_POINT_ALGORITHMS if case.problem.equilibrium else ODE_ALGORITHMS
        kind: type[Any] | None = known.get(case.method)  # constructed with the options of its own kind
        if kind is None:
            return {}
        algorithm: Any
        if case.problem.equilibrium:
            algorithm = kind(rtol=case.tolerance, atol=1e-12, max_steps=100)
        elif issubclass(kind, AbstractFixedStep):
            assert case.steps is not None, case
            algorithm = kind(step_size=float(case.problem.ts[-1] - case.problem.ts[0]) / case.steps)
        else:
            algorithm = kind(rtol=case.tolerance, atol=case.tolerance, max_steps=MAX_STEPS)
        if not get_backend(self._backend).supports(algorithm, torch.device("cpu")):
            return {}
        if case.problem.equilibrium:
            return {"implicit" if case.gradient else "": functools.partial(self._equilibrium, case, algorithm)}
        if not case.gradient:
            return {"": functools.partial(self._forward, case, algorithm)}
        adjoints = dict(ADJOINTS)
        if case.steps is None or case.steps < _FEW_STEPS:
            del adjoints["30 states"]
        return {name: functools.partial(self._backward, case, algorithm, a) for name, a in adjoints.items()}

    def _forward(self, case: Case, algorithm: AbstractODEAlgorithm) -> Solve:
        field = self._field(case)
        y0, ts = torch.from_numpy(case.problem.y0), torch.from_numpy(case.problem.ts)

        @torch.no_grad()
        def solve() -> Outcome:
            solution = hj.solve(hj.ODEProblem(field, y0, ts), algorithm, backend=self._backend)
            stats = solution.stats
            return Outcome(solution.ys, stats.nfe, stats.n_accepted + stats.n_rejected)

        return solve

    def _backward(self, case: Case, algorithm: AbstractODEAlgorithm, adjoint: AbstractODEAdjoint) -> Solve:
        field = self._field(case)
        y0 = torch.from_numpy(case.problem.y0).clone().requires_grad_()
        ts, weights = torch.from_numpy(case.problem.ts), torch.from_numpy(case.problem.cotangent)
        inputs = [y0, *(field.parameters() if isinstance(field, torch.nn.Module) else ())]

        def solve() -> Outcome:
            solution = hj.solve(hj.ODEProblem(field, y0, ts), algorithm, adjoint=adjoint, backend=self._backend)
            gradient = torch.autograd.grad(solution.value, inputs, weights)[0]
            stats = solution.stats
            return Outcome(solution.ys.detach(), stats.nfe, stats.n_accepted + stats.n_rejected, gradient)

        return solve

    def _equilibrium(self, case: Case, algorithm: AbstractFixedPointAlgorithm) -> Solve:
        field = case.problem.torch_field(case.problem.batch)
        assert isinstance(field, LayerField), case.problem
        z0, weights = torch.from_numpy(case.problem.y0), torch.from_numpy(case.problem.cotangent)
        inner = tuple(field.field.parameters())

        def f(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            image: torch.Tensor = field.field(None, z, x)
            return image

        def solve() -> Outcome:
            with torch.set_grad_enabled(case.gradient):
                solution = hj.solve(
                    hj.FixedPointProblem(f, z0, args=(field.x,), params=inner), algorithm, backend=self._backend
                )
            gradient = None
            if case.gradient:
                gradient = torch.autograd.grad(solution.value, [field.x, *inner], weights)[0]
            return Outcome(solution.value.detach(), solution.stats.nfe, int(solution.iterations.max()), gradient)

        return solve

    def _field(self, case: Case) -> Callable[..., torch.Tensor]:
        if self._backend == "julia" and case.problem.julia is not None:
            return hj.JuliaField(case.problem.julia)
        return case.problem.torch_field(case.problem.batch)
