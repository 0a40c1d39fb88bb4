"""Where to solve: the embedded PyTorch backend in `pytorch/`; Julia's will stand beside it."""

from __future__ import annotations

import logging

from homojl.backends.base import AbstractBackend, ErrorNorm, Integration
from homojl.backends.pytorch.backend import TorchBackend
from homojl.errors import BackendUnavailable, ConfigError
from homojl.names import did_you_mean

__all__ = ["AbstractBackend", "ErrorNorm", "Integration", "get_backend"]

logger = logging.getLogger("homojl")
_announced: set[str] = set()


def get_backend(name: str) -> AbstractBackend:
    """The backend called "pytorch", "julia" or "auto".

    "auto" takes what is there, which today is PyTorch, and logs which one once.

    Raises:
        ConfigError: for an unknown name.
        BackendUnavailable: if "julia" was asked for and cannot be used; there is no silent fallback.
    """
    if name == "pytorch":
        return TorchBackend()
    if name == "julia":
        raise BackendUnavailable(
            "this version of homojl does not run solves in Julia yet; use backend='pytorch', which solves the "
            "same problems"
        )
    if name == "auto":
        if name not in _announced:
            _announced.add(name)
            logger.info("backend auto: solving with PyTorch")
        return TorchBackend()
    raise ConfigError(f"unknown backend {name!r}; {did_you_mean(name, ('auto', 'julia', 'pytorch'))}")
