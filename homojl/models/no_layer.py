"""What stands for the algorithm of a network without a layer."""

from __future__ import annotations

from dataclasses import dataclass

from homojl.algorithms import AbstractFixedPointAlgorithm


@dataclass(frozen=True, kw_only=True)
class NoLayer(AbstractFixedPointAlgorithm):
    """Stands for the algorithm of a network without a layer."""
