"""Programs that torchdiffeq and homojl both run, and the comparison of what comes out."""

from __future__ import annotations

import torch
import torchdiffeq

import homojl as hj

LIBRARIES = (torchdiffeq, hj)
ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
T = torch.tensor([0.3, 0.7, 1.1, 1.15, 2.0], dtype=torch.float64)


class Net(torch.nn.Module):
    """A small field with a time input; records the times it is asked at."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype) * 0.7)
        self.b = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64).to(dtype) * 0.3)
        self.times: list[float] = []

    def forward(self, t, y):
        self.times.append(t.item())
        return torch.tanh(y @ self.w + self.b * torch.cos(2 * t)) - 0.2 * y


def start(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3).requires_grad_()


def run(library, call: str = "odeint", t: torch.Tensor = T, dtype=torch.float64, **options):
    """States, and the gradients of a loss at every time by y0, t and the parameters."""
    field, y0, t = Net(dtype), start(dtype), t.clone().requires_grad_()
    ys = getattr(library, call)(field, y0, t, **options)
    weights = torch.linspace(0.5, 1.5, len(t), dtype=dtype).view(-1, 1, 1)
    gradients = torch.autograd.grad((weights * torch.sin(ys)).sum(), [y0, t, *field.parameters()])
    return ys.detach(), *gradients


def assert_same(results, bound: float) -> None:
    theirs, ours = results
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=bound, atol=bound)


def assert_same_but_by_time(results, bound: float) -> None:
    """torchdiffeq's direct gradient by time is that of what it interpolates with; test_times.py has the exact one."""
    assert_same([[r for i, r in enumerate(result) if i != 2] for result in results], bound)
