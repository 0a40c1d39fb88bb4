"""A remembered first step in the state of a module."""

from __future__ import annotations

import torch
from torch import nn

from homojl.algorithms import StepMemory

Tensor = torch.Tensor


class RememberedStep(nn.Module):
    """Has a `StepMemory` in a module's state, to the bit, whatever the module's dtype and device; 0 is not known.

    Args:
        memory: of the module's algorithm.
    """

    def __init__(self, memory: StepMemory) -> None:
        super().__init__()
        self.memory = memory

    def get_extra_state(self) -> Tensor:
        sizes = (self.memory.onwards, self.memory.backwards)
        return torch.tensor([size or 0.0 for size in sizes], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        if not (state >= 0).all() or not state.isfinite().all():
            raise ValueError(f"remembered steps must be positive and finite, got {state.tolist()}")
        self.memory.onwards, self.memory.backwards = (size or None for size in state.tolist())
