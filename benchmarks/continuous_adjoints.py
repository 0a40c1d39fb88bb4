"""Evaluations and accuracy of `GaussAdjoint`: how many backward for those forward, and how far off the gradients are.

    python benchmarks/continuous_adjoints.py

A network 2-64-64-2 of tanh units as a field, 256 samples, in float64; the loss weighs every saved state at random. The
gradients by the start and by the weights are compared with those of `DirectAdjoint` over Dopri8 at 1e-11.
"""

from __future__ import annotations

import torch
from rows import head, row
from torch import nn

import homojl as hj


def gradients(end: float, saves: int, tolerance: float, algorithm: type, adjoint) -> tuple:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).double()
    y0 = torch.randn(256, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(saves, 256, 2, dtype=torch.float64)
    ts = tuple(torch.linspace(0, end, saves, dtype=torch.float64).tolist())
    problem = hj.ODEProblem(lambda t, y: net(y), y0, ts, params=tuple(net.parameters()))
    sol = hj.solve(problem, algorithm(rtol=tolerance, atol=tolerance), adjoint=adjoint, backend="pytorch")
    grads = torch.autograd.grad((sol.ys * weights).sum(), [y0, *net.parameters()])
    return sol.stats, grads[0], torch.cat([g.flatten() for g in grads[1:]])


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact))


def main() -> None:
    torch.set_num_threads(1)
    head("interval", "save times", "tolerance", "forward", "backward", "ratio", "error by y0", "by the weights")
    for end, saves in ((2.0, 20), (20.0, 100), (2.0, 200), (2.0, 3)):
        _, y0, weights = gradients(end, saves, 1e-11, hj.Dopri8, hj.DirectAdjoint())
        for tolerance in (1e-3, 1e-5, 1e-7):
            stats, by_y0, by_weights = gradients(end, saves, tolerance, hj.Dopri5, hj.GaussAdjoint())
            counts = (stats.nfe, stats.nfe_backward, f"{stats.nfe_backward / stats.nfe:.1f}")
            errors = (f"{off(by_y0, y0):.1e}", f"{off(by_weights, weights):.1e}")
            row(f"[0, {end:.0f}]", saves, f"{tolerance:g}", *counts, *errors)


if __name__ == "__main__":
    main()
