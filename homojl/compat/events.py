"""`odeint_event`: torchdiffeq's solve up to an event, with gradients through the event's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from homojl.compat.odeint import odeint
from homojl.compat.states import State, ThroughTime

Tensor = torch.Tensor


def odeint_event(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, State], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., tuple[Tensor, State]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, State]:
    """Solve from t0 up to the first change of sign of an event function; time and state of it carry gradients.

    Args:
        func, y0: as in `odeint`.
        t0: initial time, a tensor of one element; receives a gradient where it requires one.
        event_fn: (t, y) -> one value or several, of which the first to change its sign counts. Tensors that it uses
            receive gradients.
        reverse_time: solve backwards in time.
        odeint_interface: `odeint`, the default, or `odeint_adjoint`: how to differentiate the solve.
        kwargs: for `odeint_interface`.

    Returns:
        The event's time, 0-d, and the states at t0 and there, (2, *shape of y0), a tuple for a tuple.

    Raises:
        ConfigError, OdeintError: as `odeint`, the latter also where no event is found.

    References: Chen, Amos, Nickel (2021), arXiv 2011.03902.
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    interface: Callable[..., tuple[Tensor, State]] = odeint_interface or odeint
    return interface(func, y0, t, event_fn=ThroughTime(event_fn), **kwargs)
