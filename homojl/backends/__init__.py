"""Where to solve: the embedded PyTorch backend in `pytorch/`, Julia's in `julia/`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from homojl.algorithms import (
    AbstractAdaptive,
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    AbstractSplitting,
    ErrorNorm,
)
from homojl.backends.base import AbstractBackend, Integration, Task
from homojl.backends.pytorch.backend import TorchBackend
from homojl.errors import BackendUnavailable, ConfigError
from homojl.names import did_you_mean

if TYPE_CHECKING:
    from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint

__all__ = [
    "BACKEND_NAMES",
    "AbstractBackend",
    "ErrorNorm",
    "Integration",
    "Task",
    "TorchBackend",
    "choose_backend",
    "get_backend",
]

BACKEND_NAMES = ("auto", "pytorch", "pytorch-compiled", "julia")

logger = logging.getLogger("homojl")
_announced: set[str] = set()


def get_backend(name: str) -> AbstractBackend:
    """The backend called "pytorch", "pytorch-compiled", "julia" or "auto".

    Raises:
        ConfigError: for an unknown name.
        BackendUnavailable: if "julia" was asked for and cannot be used; there is no silent fallback.
    """
    if name == "pytorch":
        return TorchBackend()
    if name == "pytorch-compiled":
        from homojl.backends.pytorch.compiled import CompiledBackend

        return CompiledBackend()
    if name == "julia":
        from homojl.backends.julia.backend import JuliaBackend

        return JuliaBackend()
    if name == "auto":
        return automatic_backend()
    raise ConfigError(f"unknown backend {name!r}; {did_you_mean(name, BACKEND_NAMES)}")


def automatic_backend() -> AbstractBackend:
    """Julia's where its environment is installed, else PyTorch's."""
    from homojl.backends.julia import runtime

    return get_backend("julia" if runtime.usable() else "pytorch")


def _announced_once(backend: AbstractBackend) -> AbstractBackend:
    """The backend; that "auto" took it is logged once."""
    if backend.name not in _announced:
        _announced.add(backend.name)
        logger.info("backend auto: solving with %s", {"julia": "Julia", "pytorch": "PyTorch"}[backend.name])
    return backend


def choose_backend(
    name: str | AbstractBackend,
    algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | AbstractPathAlgorithm,
    device: torch.device,
    adjoint: AbstractODEAdjoint | AbstractFixedPointAdjoint | None = None,
    *,
    batch: str = "joint",
) -> AbstractBackend:
    """The backend that `solve` takes for a name.

    Raises:
        ConfigError: for an unknown name, or for steps of each sample's own with what has none.
        BackendUnavailable: if it cannot be used here, or has not that algorithm on that device.
    """
    if batch == "per-sample":
        _check_per_sample(algorithm, adjoint)
        if name in ("pytorch", "pytorch-compiled"):
            return get_backend(str(name))
        if name != "auto":
            raise ConfigError(
                "batch='per-sample' needs backend='pytorch', 'pytorch-compiled', or 'auto', which takes the first; "
                f"got {name!r}"
            )
        return _announced_once(get_backend("pytorch"))
    if isinstance(algorithm, AbstractSplitting):
        algorithm = algorithm.iteration()
    if name == "auto" and adjoint is not None and adjoint.through_solve and TorchBackend().supports(algorithm, device):
        return _announced_once(TorchBackend())
    chosen = name if isinstance(name, AbstractBackend) else get_backend(name)
    if name == "auto":
        chosen = _announced_once(chosen if chosen.supports(algorithm, device) else TorchBackend())
    if not chosen.supports(algorithm, device):
        if chosen.name == "julia" or TorchBackend().supports(algorithm, device):
            remedy = "try backend='pytorch'"
        else:
            remedy = "it needs backend='julia' and Julia, which `homojl julia install` installs"
        raise BackendUnavailable(f"the {chosen.name} backend has no {algorithm.name} on {device}; {remedy}")
    return chosen


def _check_per_sample(algorithm: object, adjoint: object) -> None:
    """Raise a ConfigError for methods that have no steps of each sample's own."""
    what = "batch='per-sample'"
    if not isinstance(algorithm, AbstractAdaptive) or algorithm.tableau is None:
        raise ConfigError(f"{what} needs an adaptive explicit method such as Tsit5(), got {algorithm!r}")
    if not getattr(adjoint, "retakes", False):
        raise ConfigError(f"{what} has gradients by DirectAdjoint() or CheckpointAdjoint(), got {adjoint!r}")
    refused = {
        "a norm of one's own": algorithm.norm != ErrorNorm(),
        "tolerances in tensors": any(isinstance(x, torch.Tensor) for x in (algorithm.rtol, algorithm.atol)),
        "an observer": algorithm.observer is not None,
        "a controller's floor": algorithm.step_control.floor > 0,
        "max_states": getattr(adjoint, "max_states", None) is not None,
    }
    for name, asked in refused.items():
        if asked:
            raise ConfigError(f"{what} does not go with {name}; use batch='joint'")
