"""Fixed-point iterations in eager PyTorch, each sample on its own."""

from __future__ import annotations

from homojl.backends.base import FixedPoint

METHODS: dict[type, object] = {}


def find_fixed_point(f, z0, algorithm, *, jvp=None) -> FixedPoint:
    raise NotImplementedError
