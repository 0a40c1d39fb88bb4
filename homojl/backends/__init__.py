"""Where to solve: the embedded PyTorch backend here, Julia's in its own package."""

from homojl.backends.base import AbstractBackend, ErrorNorm, Integration, get_backend

__all__ = ["AbstractBackend", "ErrorNorm", "Integration", "get_backend"]
