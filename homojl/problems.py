"""What to solve: small frozen objects that say nothing of how, or where, or how to differentiate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homojl.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class ODEProblem:
    """The initial value problem dy/dt = f(t, y, *args), y(ts[0]) = y0.

    Args:
        f: vector field `f(t, y, *args) -> dy/dt`; `t` is a 0-d tensor of y0's real dtype, the result has y0's
            shape and dtype. It must be deterministic: adjoints evaluate it again.
        y0: initial state, any shape, float32 or float64, any strides (the memory format is kept).
        ts: times to save the state at, at least two, strictly increasing or strictly decreasing; the first is
            the initial time. Numbers or a 1-D tensor; dimension of time as in `f`.
        args: further arguments of `f`: a condition, a dropout mask. Tensors in it receive gradients.
        params: tensors inside `f` that receive gradients. The default, None, takes `f.parameters()` where `f` is
            a `torch.nn.Module`, else nothing. `DirectAdjoint` does not need it.

    Raises:
        ConfigError: if anything is of the wrong type, shape, dtype or order.
    """

    f: Callable[..., torch.Tensor]
    y0: torch.Tensor
    ts: tuple[float, ...]
    args: tuple[Any, ...] = ()
    params: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        import torch

        if not callable(self.f):
            raise ConfigError(f"f must be callable as f(t, y, *args), got {type(self.f).__name__}")
        if not isinstance(self.y0, torch.Tensor):
            raise ConfigError(f"y0 must be a torch.Tensor, got {type(self.y0).__name__}")
        if self.y0.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"y0 must be float32 or float64, got {self.y0.dtype}; convert it with y0.float()")
        if self.y0.numel() == 0:
            raise ConfigError(f"y0 is empty: its shape is {tuple(self.y0.shape)}")
        if not isinstance(self.args, tuple):
            raise ConfigError(f"args must be a tuple, got {type(self.args).__name__}; write args=(x,) for one argument")
        object.__setattr__(self, "ts", _checked_times(self.ts))
        if self.params is None:
            is_module = isinstance(self.f, torch.nn.Module)
            object.__setattr__(self, "params", tuple(self.f.parameters()) if is_module else ())
        else:
            object.__setattr__(self, "params", tuple(self.params))


def _checked_times(ts: Sequence[float] | torch.Tensor) -> tuple[float, ...]:
    if getattr(ts, "requires_grad", False):
        raise ConfigError("gradients with respect to ts are not supported; pass ts.detach()")
    try:
        times = tuple(float(t) for t in (ts.tolist() if hasattr(ts, "tolist") else ts))
    except (TypeError, ValueError):
        raise ConfigError(f"ts must be a sequence of numbers or a 1-D tensor, got {ts!r}") from None
    if len(times) < 2:
        raise ConfigError(f"ts needs the initial time and at least one more, got {len(times)} time(s)")
    if not all(math.isfinite(t) for t in times):
        raise ConfigError("ts has a time that is not finite")
    ahead = [b > a for a, b in itertools.pairwise(times)]
    if not (all(ahead) or all(b < a for a, b in itertools.pairwise(times))):
        raise ConfigError("ts must be strictly increasing or strictly decreasing")
    return times
