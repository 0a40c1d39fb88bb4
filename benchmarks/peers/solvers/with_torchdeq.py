"""torchdeq: fixed points in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .base import AbstractSolver, Case, MakeSolve, Outcome, Solve

_METHODS = {"picard": "fixed_point_iter", "anderson": "anderson", "broyden": "broyden"}


class TorchDEQ(AbstractSolver):
    """Its solvers to a relative tolerance, forward and backward, with the implicit function theorem's gradient."""

    name = package = "torchdeq"

    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        if not case.problem.equilibrium or case.method not in _METHODS:
            return {}
        return {"implicit" if case.gradient else "": lambda: self._make(case)}

    def _make(self, case: Case) -> Solve:
        from torchdeq import get_deq

        method = _METHODS[case.method]
        limits = {"f_max_iter": 100, "b_max_iter": 100, "f_tol": case.tolerance, "b_tol": case.tolerance}
        deq = get_deq(
            core="sliced", ift=True, f_solver=method, b_solver=method, f_stop_mode="rel", b_stop_mode="rel", **limits
        )
        field = case.problem.torch_field(case.problem.batch)
        z0, weights = torch.from_numpy(case.problem.y0), torch.from_numpy(case.problem.cotangent)
        inputs = list(field.parameters())
        x = next(i for i, p in enumerate(inputs) if p is field.x)
        deq.train(case.gradient)

        def f(z: torch.Tensor) -> torch.Tensor:
            return field(None, z)

        def solve() -> Outcome:
            with torch.set_grad_enabled(case.gradient):
                found, info = deq(f, z0)
            nfe = int(info["nstep"].max())
            gradient = torch.autograd.grad(found[-1], inputs, weights)[x] if case.gradient else None
            return Outcome(found[-1].detach(), nfe, nfe, gradient)

        return solve
