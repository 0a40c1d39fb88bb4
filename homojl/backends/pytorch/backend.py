"""The PyTorch backend: one class in front of its Runge-Kutta methods, fixed-point iterations and path tracking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from homojl.algorithms import (
    AbstractAdaptive,
    AbstractErrorControlled,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AdamsBashforth,
    ErrorNorm,
    SciPy,
)
from homojl.backends.base import (
    AbstractBackend,
    EventCondition,
    FixedPoint,
    Integration,
    Path,
)
from homojl.backends.pytorch.fixed_point import METHODS, find_fixed_point
from homojl.backends.pytorch.joint import integrate
from homojl.backends.pytorch.path import trace_path
from homojl.backends.pytorch.per_sample import integrate_samples
from homojl.backends.pytorch.scipy_solvers import integrate_scipy
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import AbstractStepper
from homojl.errors import ConfigError
from homojl.functions import AbstractField, AbstractMap, VectorField

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

    def integrate(
        self,
        f: AbstractField,
        y0: Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractODEAlgorithm,
        *,
        norm: ErrorNorm = ErrorNorm(),
        keep_states: bool = False,
        event: EventCondition | None = None,
        jumps: Sequence[float] = (),
    ) -> Integration:
        if isinstance(algorithm, SciPy):
            if event is not None or jumps:
                raise ConfigError("SciPy() takes no events or discontinuities; use a method such as Tsit5()")
            return integrate_scipy(f, y0, ts, algorithm)
        assert isinstance(algorithm, AbstractErrorControlled | AbstractFixedStep), algorithm
        stepper = self.stepper(f, y0, ts, algorithm, norm)
        return integrate(f, y0, ts, algorithm, stepper, norm=norm, keep_states=keep_states, event=event, jumps=jumps)

    def integrate_samples(
        self,
        f: VectorField,
        y0: Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractAdaptive,
        *,
        keep_states: bool,
        event: EventCondition | None = None,
        starts: np.ndarray | None = None,
    ) -> Integration:
        """`integrate` where every sample of a batch has steps of its own, and perhaps a start of its own."""
        return integrate_samples(f, y0, ts, algorithm, keep_states=keep_states, event=event, starts=starts)

    def stepper(
        self, f: AbstractField, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractODEAlgorithm, norm: ErrorNorm
    ) -> AbstractStepper:
        """What takes the steps of one solve."""
        return stepper_for(algorithm)

    def find_fixed_point(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        return find_fixed_point(f, z0, algorithm)

    def trace_path(self, r: AbstractMap, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str) -> Path:
        return trace_path(r, z0, algorithm, kind=kind)
