"""Event functions as `odeint` takes them."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
State = Tensor | tuple[Tensor, ...]


class ThroughTime:
    """An event function whose zero determines the event's time for gradients too; without it that time is constant."""

    def __init__(self, event_fn: Callable[[Tensor, State], Tensor]) -> None:
        self._event_fn = event_fn

    def __call__(self, t: Tensor, y: State) -> Tensor:
        return self._event_fn(t, y)


@torch.no_grad()
def starts_on_event(condition: Callable[[Tensor, Tensor], Tensor], t0: Tensor, y0: Tensor) -> bool:
    """Whether a value of the condition is zero at the start: torchdiffeq then stops there."""
    return bool((condition(t0.to(y0.device, y0.dtype.to_real()), y0) == 0).any())
