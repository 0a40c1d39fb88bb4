"""The PyTorch backend: one class in front of its Runge-Kutta methods, fixed-point iterations and path tracking."""

from __future__ import annotations

from typing import ClassVar

import torch

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AdamsBashforth,
    SciPy,
)
from homojl.backends.base import AbstractBackend, FixedPoint, Integration, Path, Task
from homojl.backends.pytorch.fixed_point import METHODS, find_fixed_point
from homojl.backends.pytorch.joint import integrate
from homojl.backends.pytorch.path import trace_path
from homojl.backends.pytorch.per_sample import integrate_samples
from homojl.backends.pytorch.scipy_solvers import integrate_scipy
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import AbstractStepper
from homojl.errors import ConfigError
from homojl.functions import AbstractMap

Tensor = torch.Tensor


class TorchBackend(AbstractBackend):
    """Runs wherever the tensors are. Its operations are ordinary ones, so a gradient can pass through them."""

    name: ClassVar[str] = "pytorch"
    records: ClassVar[bool] = True

    def supports(
        self,
        algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm,
        device: torch.device,
    ) -> bool:
        if isinstance(algorithm, AbstractODEAlgorithm):
            return algorithm.tableau is not None or isinstance(algorithm, AdamsBashforth | SciPy)
        return type(algorithm) in METHODS or isinstance(algorithm, AbstractPathAlgorithm)

    def integrate(self, task: Task, y0: Tensor) -> Integration:
        algorithm = task.algorithm
        if task.each:
            return integrate_samples(task, y0)
        if isinstance(algorithm, SciPy):
            if task.event is not None or task.jumps:
                raise ConfigError("SciPy() takes no events or discontinuities; use a method such as Tsit5()")
            return integrate_scipy(task.f, y0, task.ts, algorithm)
        return integrate(task, y0, self.stepper(task, y0))

    def stepper(self, task: Task, y0: Tensor) -> AbstractStepper:
        """What takes the steps of one solve."""
        return stepper_for(task.algorithm)

    def find_fixed_point(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        return find_fixed_point(f, z0, algorithm)

    def trace_path(self, r: AbstractMap, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str) -> Path:
        return trace_path(r, z0, algorithm, kind=kind)
