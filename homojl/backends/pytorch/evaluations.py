"""The evaluations of a solve's right-hand side: how many, whose memory, and where they are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from homojl.backends.base import RightHandSide
from homojl.errors import ConfigError

Tensor = torch.Tensor


class WrittenOver(ConfigError):
    """A field has written into what it returned before, which a step still needs."""


class Untouched:
    """Sees to it that a field leaves alone what it has returned: a step's stages are kept as they come."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._version = 0

    def __call__(self, dy: Tensor) -> Tensor:
        """What the field has just returned, as it is."""
        if self._last is not None and self._last._version != self._version:
            raise WrittenOver("f wrote into the tensor that it had returned before; return a new one each time")
        if not dy.is_inference():  # those have no version
            self._last, self._version = dy, dy._version
        return dy


class Counted:
    """A right-hand side that counts its evaluations."""

    def __init__(self, rhs: RightHandSide) -> None:
        self.rhs, self.calls = rhs, 0
        self._untouched = Untouched()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self._untouched(self.rhs(t, y))

    def count(self, evaluations: int) -> None:
        """Add evaluations that were made otherwise."""
        self.calls += evaluations


def all_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())


def which_sample(tensors: Sequence[Tensor]) -> str:
    """In which row of a batch something is not finite, for a message."""
    if tensors[0].ndim < 2:
        return ""
    bad = torch.stack([~torch.isfinite(x.detach()).flatten(1).all(1) for x in tensors]).any(0)
    rows = bad.nonzero().flatten().tolist()
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f", sample {rows[0]}{others}" if rows else ""
