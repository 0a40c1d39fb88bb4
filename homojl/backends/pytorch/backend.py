"""The PyTorch backend: one class in front of its Runge-Kutta methods, fixed-point iterations and path tracking."""

from __future__ import annotations

from typing import ClassVar

import torch

from homojl.algorithms import (
    AbstractErrorControlled,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractJacobianBased,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AdamsBashforth,
    ErrorNorm,
    SciPy,
)
from homojl.backends.base import (
    AbstractBackend,
    AbstractRightHandSideJVP,
    EventCondition,
    FixedPoint,
    Integration,
    Map,
    MapJVP,
    Path,
    Residual,
    ResidualJVP,
    RightHandSide,
)
from homojl.backends.pytorch.fixed_point import METHODS, find_fixed_point
from homojl.backends.pytorch.integrate import integrate_adaptive, integrate_fixed
from homojl.backends.pytorch.path import trace_path
from homojl.backends.pytorch.schemes import AbstractScheme, scheme_for
from homojl.backends.pytorch.scipy_solvers import integrate_scipy
from homojl.errors import ConfigError

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
        rhs: RightHandSide,
        y0: Tensor,
        ts: tuple[float, ...],
        algorithm: AbstractODEAlgorithm,
        *,
        error_norm: ErrorNorm = ErrorNorm(),
        keep_states: bool = False,
        jvp: AbstractRightHandSideJVP | None = None,
        event: EventCondition | None = None,
        discontinuities: tuple[float, ...] = (),
    ) -> Integration:
        if isinstance(algorithm, SciPy):
            if event is not None or discontinuities:
                raise ConfigError("SciPy() takes no events or discontinuities; use a method such as Tsit5()")
            return integrate_scipy(rhs, y0, ts, algorithm)
        implicit = isinstance(algorithm, AbstractJacobianBased)
        scheme = scheme_for(algorithm, jvp) if implicit else self.scheme(rhs, y0, ts, algorithm, error_norm)
        if not isinstance(algorithm, AbstractErrorControlled):
            assert isinstance(algorithm, AbstractFixedStep), algorithm
            return integrate_fixed(rhs, y0, ts, algorithm, scheme, keep_states=keep_states, event=event)
        return integrate_adaptive(
            rhs,
            y0,
            ts,
            algorithm,
            scheme,
            error_norm=error_norm,
            keep_states=keep_states,
            event=event,
            discontinuities=discontinuities,
        )

    def scheme(
        self, rhs: RightHandSide, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractODEAlgorithm, norm: ErrorNorm
    ) -> AbstractScheme:
        """What takes the steps of one solve."""
        return scheme_for(algorithm)

    def find_fixed_point(
        self, f: Map, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, *, jvp: MapJVP | None = None
    ) -> FixedPoint:
        return find_fixed_point(f, z0, algorithm, jvp=jvp)

    def trace_path(
        self, r: Residual, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str, jvp: ResidualJVP
    ) -> Path:
        return trace_path(r, z0, algorithm, kind=kind, jvp=jvp)
