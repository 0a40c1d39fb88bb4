"""Where to solve: the embedded PyTorch backend in `pytorch/`, Julia's in `julia/`."""

from __future__ import annotations

import logging

from homojl.algorithms import ErrorNorm
from homojl.backends.base import AbstractBackend, Integration, Task
from homojl.backends.pytorch.backend import TorchBackend
from homojl.errors import ConfigError
from homojl.names import did_you_mean

__all__ = [
    "BACKEND_NAMES",
    "AbstractBackend",
    "ErrorNorm",
    "Integration",
    "Task",
    "TorchBackend",
    "announce",
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


def announce(backend: AbstractBackend) -> AbstractBackend:
    """The backend; that "auto" took it is logged once."""
    if backend.name not in _announced:
        _announced.add(backend.name)
        logger.info("backend auto: solving with %s", {"julia": "Julia", "pytorch": "PyTorch"}[backend.name])
    return backend
