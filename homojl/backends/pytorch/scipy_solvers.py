"""SciPy's solvers as a method of the PyTorch backend: on the CPU, in float64, without a graph."""

from __future__ import annotations

import numpy as np
import torch

from homojl.algorithms import SciPy
from homojl.backends.base import Integration
from homojl.backends.pytorch.record import Record
from homojl.backends.pytorch.steps import time_like
from homojl.errors import BackendUnavailable, ConfigError
from homojl.functions import AbstractField
from homojl.solution import Status

Tensor = torch.Tensor


def integrate_scipy(f: AbstractField, y0: Tensor, ts: tuple[float, ...], algorithm: SciPy) -> Integration:
    """See `AbstractBackend.integrate`.

    Raises:
        BackendUnavailable: if SciPy is not installed.
        ConfigError: if a gradient would have to go through the solver's operations, or for an unknown solver.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise BackendUnavailable("SciPy is not installed; run: pip install scipy") from None
    started = f.calls
    missed = "no gradient passes through SciPy's solvers; use BacksolveAdjoint() or GaussAdjoint()"
    if torch.is_grad_enabled() and y0.requires_grad:
        raise ConfigError(missed)

    def on_arrays(t: float, flat: np.ndarray) -> np.ndarray:
        # A copy, because SciPy also passes columns of arrays, and works on its own.
        y = torch.from_numpy(flat.copy()).to(y0.device, y0.dtype).view(y0.shape)
        dy = f(time_like(t, y0), y)
        if dy.requires_grad:
            raise ConfigError(missed)
        return dy.reshape(-1).cpu().numpy().astype(flat.dtype)

    options = {"min_step": algorithm.min_step} if algorithm.solver == "LSODA" else {}
    try:
        found = solve_ivp(
            on_arrays,
            (ts[0], ts[-1]),
            y0.detach().reshape(-1).cpu().to(torch.complex128 if y0.is_complex() else torch.float64).numpy(),
            t_eval=ts,
            method=algorithm.solver,
            rtol=algorithm.rtol,
            atol=algorithm.atol,
            max_step=algorithm.max_step,
            **options,
        )
    except ValueError as error:
        raise ConfigError(f"SciPy: {error}") from error
    states = torch.from_numpy(found.y.T.copy()).to(y0.device, y0.dtype).view(-1, *y0.shape)
    ok = found.status == 0
    return Integration(
        ts=ts[: len(states)],
        ys=[y0, *states[1:].unbind()],
        record=Record(),
        status=Status.SUCCESS if ok else Status.STEP_TOO_SMALL,
        message="" if ok else f"SciPy's {algorithm.solver}: {found.message} (after {f.calls - started} evaluations)",
        nfe=f.calls - started,
        n_rejected=0,
    )
