"""torchdiffeq: one step size for the whole batch, in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from .base import AbstractSolver, Case, MakeSolve, Outcome, Solve

# Our name -> torchdiffeq's, and its evaluations a step.
_METHODS = {
    "adaptiveheun": ("adaptive_heun", 2),
    "bosh3": ("bosh3", 3),
    "dopri5": ("dopri5", 6),
    "dopri8": ("dopri8", 13),
    "midpoint": ("midpoint", 2),
}
_FIRST = 2  # evaluations before the first step of an adaptive method: the derivative, and the estimate of a step


class TorchDiffEq(AbstractSolver):
    """`odeint`, and for gradients also `odeint_adjoint`."""

    name = package = "torchdiffeq"

    def variants(self, case: Case) -> Mapping[str, MakeSolve]:
        if case.problem.equilibrium or case.method not in _METHODS:
            return {}
        names = ("odeint", "odeint_adjoint") if case.gradient else ("odeint",)
        return {name if case.gradient else "": functools.partial(self._make, case, name) for name in names}

    def _make(self, case: Case, name: str) -> Solve:
        import torchdiffeq

        odeint = getattr(torchdiffeq, name)
        field = case.problem.torch_field(case.problem.batch)
        y0, ts = torch.from_numpy(case.problem.y0).clone(), torch.from_numpy(case.problem.ts)
        weights = torch.from_numpy(case.problem.cotangent)
        method, per_step = _METHODS[case.method]
        options: dict[str, Any] = {"method": method}
        if case.steps is None:
            options.update(rtol=case.tolerance, atol=case.tolerance)
        else:
            options["options"] = {"step_size": float(ts[-1] - ts[0]) / case.steps}
        nfe = steps = 0
        with torch.no_grad(), _Counter(field) as counter:  # the solves that are timed count nothing
            odeint(field, y0, ts, **options)
        nfe = counter.calls
        steps = (nfe - _FIRST) // per_step if case.steps is None else case.steps
        inputs = [y0.requires_grad_(), *field.parameters()] if case.gradient else []

        def solve() -> Outcome:
            with torch.set_grad_enabled(case.gradient):
                ys = odeint(field, y0, ts, **options)
            gradient = torch.autograd.grad(ys[-1], inputs, weights)[0] if case.gradient else None
            return Outcome(ys.detach(), nfe, steps, gradient)

        return solve


class _Counter:
    """Counts the calls of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module, self.calls = module, 0

    def __enter__(self) -> _Counter:
        def count(*_: object) -> None:
            self.calls += 1

        self._hook = self._module.register_forward_hook(count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
