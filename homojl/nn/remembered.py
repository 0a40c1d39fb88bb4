"""A remembered first step in the state of a module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from homojl.algorithms import AbstractErrorControlled, StepMemory, memory_of

Tensor = torch.Tensor


class RememberedStep(nn.Module):
    """Keeps a `StepMemory` exactly in a module's state, whatever the module's dtype and device; 0 means unknown.

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


def with_memory(algorithm: Any, remembered: RememberedStep | None, *, learns: bool) -> Any:
    """The algorithm with what a module has learned for it.

    Args:
        algorithm: the module's now; one without a memory is returned as it is.
        remembered: what the module has learned; None: what the algorithm's own memory has.
        learns: whether this solve adds to it, as in training; evaluation leaves it as it is, so that its results do not
            depend on the order of the batches.
    """
    memory = memory_of(algorithm)
    if memory is None:
        return algorithm
    assert isinstance(algorithm, AbstractErrorControlled), algorithm  # what else has a memory?
    memory = memory if remembered is None else remembered.memory
    return replace(algorithm, first_step=memory if learns else memory.copy())
