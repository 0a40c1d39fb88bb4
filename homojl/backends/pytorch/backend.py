"""The PyTorch backend: one class in front of the explicit Runge-Kutta methods."""

from __future__ import annotations

from typing import ClassVar

import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep, AbstractODEAlgorithm
from homojl.backends.base import AbstractBackend, ErrorNorm, Integration, RightHandSide
from homojl.backends.pytorch.runge_kutta import integrate_adaptive, integrate_fixed


class TorchBackend(AbstractBackend):
    """Runs wherever the tensors are. Its operations are ordinary ones, so a gradient can pass through them."""

    name: ClassVar[str] = "pytorch"

    def supports(self, algorithm: AbstractODEAlgorithm, device: torch.device) -> bool:
        return isinstance(algorithm, AbstractFixedStep | AbstractAdaptive)

    def integrate(
        self,
        rhs: RightHandSide,
        y0: torch.Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractODEAlgorithm,
        *,
        error_norm: ErrorNorm = ErrorNorm(),
        keep_states: bool = False,
    ) -> Integration:
        if isinstance(algorithm, AbstractAdaptive):
            return integrate_adaptive(rhs, y0, ts, algorithm, error_norm=error_norm, keep_states=keep_states)
        return integrate_fixed(rhs, y0, ts, algorithm, keep_states=keep_states)
