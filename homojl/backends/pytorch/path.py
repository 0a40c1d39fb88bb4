"""Path tracking in eager PyTorch."""

from __future__ import annotations

from homojl.backends.base import Path


def trace_path(r, z0, algorithm, *, kind, jvp) -> Path:
    raise NotImplementedError
