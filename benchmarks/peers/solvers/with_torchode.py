"""torchode: steps for every sample of a batch, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .base import AbstractSolver, Case, MakeSolve, Outcome, Solve

_METHODS = {"dopri5": "Dopri5", "tsit5": "Tsit5", "midpoint": "Heun"}  # it has no midpoint rule; Heun's costs as much


class TorchODE(AbstractSolver):
    """`AutoDiffAdjoint` with its integral controller."""

    name = package = "torchode"

    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        if case.problem.equilibrium or case.method not in _METHODS:
            return {}
        return {"": lambda: self._make(case)}

    def _make(self, case: Case) -> Solve:
        import torchode

        problem = case.problem
        field = problem.torch_field(problem.batch)
        y0, weights = torch.from_numpy(problem.y0).flatten(1).clone(), torch.from_numpy(problem.cotangent).flatten(1)
        ts = torch.from_numpy(problem.ts).expand(problem.batch, -1)
        shape = problem.y0.shape

        def f(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return field(t, y.view(shape)).view(len(y), -1)

        term = torchode.ODETerm(f)
        dt0 = None
        if case.steps is None:
            control = torchode.IntegralController(atol=case.tolerance, rtol=case.tolerance, term=term)
        else:
            control = torchode.FixedStepController()
            dt0 = (ts[:, -1] - ts[:, 0]) / case.steps
        method = getattr(torchode, _METHODS[case.method])(term=term)
        adjoint = torchode.AutoDiffAdjoint(method, control)
        inputs = [y0.requires_grad_(), *field.parameters()] if case.gradient else []

        def solve() -> Outcome:
            with torch.set_grad_enabled(case.gradient):
                solution = adjoint.solve(torchode.InitialValueProblem(y0=y0, t_eval=ts), dt0=dt0)
            if solution.status.any():
                raise RuntimeError(f"torchode ended with status {int(solution.status.max())}")
            gradient = None
            if case.gradient:
                gradient = torch.autograd.grad(solution.ys[:, -1], inputs, weights)[0].view(shape)
            ys = solution.ys.detach().transpose(0, 1).reshape(-1, *shape)
            stats = solution.stats
            return Outcome(ys, int(stats["n_f_evals"].max()), int(stats["n_steps"].max()), gradient)

        return solve
