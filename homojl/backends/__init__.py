"""Where to solve: the embedded PyTorch backend in `pytorch/`, Julia's in `julia/`."""

from __future__ import annotations

import logging

from homojl.backends.base import AbstractBackend, ErrorNorm, Integration
from homojl.backends.pytorch.backend import TorchBackend
from homojl.errors import ConfigError
from homojl.names import did_you_mean

__all__ = ["AbstractBackend", "ErrorNorm", "Integration", "TorchBackend", "announce", "get_backend"]

logger = logging.getLogger("homojl")
_announced: set[str] = set()


def get_backend(name: str) -> AbstractBackend:
    """The backend called "pytorch", "julia" or "auto".

    Raises:
        ConfigError: for an unknown name.
        BackendUnavailable: if "julia" was asked for and cannot be used; there is no silent fallback.
    """
    if name == "pytorch":
        return TorchBackend()
    if name == "julia":
        from homojl.backends.julia.backend import JuliaBackend

        return JuliaBackend()
    if name == "auto":
        return automatic_backend()
    raise ConfigError(f"unknown backend {name!r}; {did_you_mean(name, ('auto', 'julia', 'pytorch'))}")


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
