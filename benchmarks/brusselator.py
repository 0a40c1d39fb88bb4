"""Gradients that scale: the Brusselator by the method of lines, held in Julia, with its parameters in PyTorch.

    python benchmarks/brusselator.py [--size 64] [--differentiation reverse] [--own] [--algorithm Tsit5]

The loss is the mean square of both species at ten times; its gradient by the three parameters (A, B and the
diffusion) is compared with central differences, and its time with that of the forward solve. `--own` takes the products
with the transposed Jacobian that stand below instead of automatic differentiation; `--algorithm` is any of SciML's.
"""

from __future__ import annotations

import argparse
import time

import torch

import homojl as hj

FIELD = """
function f!(du, u, p, t)
    a, b, d = p[1], p[2], p[3]
    n = size(u, 1)
    h2 = d * n^2
    @inbounds for j in 1:n, i in 1:n
        up, down = i == 1 ? n : i - 1, i == n ? 1 : i + 1
        left, right = j == 1 ? n : j - 1, j == n ? 1 : j + 1
        x, y = u[i, j, 1], u[i, j, 2]
        du[i, j, 1] = b + x * x * y - (a + 1) * x +
            h2 * (u[up, j, 1] + u[down, j, 1] + u[i, left, 1] + u[i, right, 1] - 4 * x)
        du[i, j, 2] = a * x - x * x * y +
            h2 * (u[up, j, 2] + u[down, j, 2] + u[i, left, 2] + u[i, right, 2] - 4 * y)
    end
    return nothing
end
"""

OWN = """
function vjp!(du, dp, v, u, p, t)
    a, b, d = p[1], p[2], p[3]
    n = size(u, 1)
    h2 = d * n^2
    da, db, dd = zero(a), zero(a), zero(a)
    @inbounds for j in 1:n, i in 1:n
        up, down = i == 1 ? n : i - 1, i == n ? 1 : i + 1
        left, right = j == 1 ? n : j - 1, j == n ? 1 : j + 1
        x, y, v1, v2 = u[i, j, 1], u[i, j, 2], v[i, j, 1], v[i, j, 2]
        around(w, k) = w[up, j, k] + w[down, j, k] + w[i, left, k] + w[i, right, k] - 4 * w[i, j, k]
        # The Laplacian is symmetric.
        du[i, j, 1] = (2 * x * y - a - 1) * v1 + (a - 2 * x * y) * v2 + h2 * around(v, 1)
        du[i, j, 2] = x * x * (v1 - v2) + h2 * around(v, 2)
        da += x * (v2 - v1)
        db += v1
        dd += n^2 * (v1 * around(u, 1) + v2 * around(u, 2))
    end
    dp[1], dp[2], dp[3] = da, db, dd
    return nothing
end
"""


def start(n: int) -> torch.Tensor:
    """The two species on the grid, (2, n, n): Julia sees them as n x n x 2."""
    x = torch.arange(n, dtype=torch.float64) / n
    first = 22 * (x * (1 - x)).pow(1.5)
    return torch.stack([first[:, None].expand(n, n), (27 * (x * (1 - x)).pow(1.5))[None, :].expand(n, n)]).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--differentiation", default="reverse")
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--algorithm", default="Tsit5")
    options = parser.parse_args()
    field = hj.JuliaField(FIELD, differentiation=options.differentiation, vjp=OWN if options.own else None)
    y0, ts = start(options.size), tuple(torch.linspace(0, 1, 11).tolist())
    algorithm = hj.SciML(options.algorithm, rtol=1e-8, atol=1e-8)

    def loss(p: torch.Tensor) -> torch.Tensor:
        problem = hj.ODEProblem(field, y0, ts, args=(p,))
        ys = hj.solve(problem, algorithm, adjoint=hj.GaussAdjoint(), backend="julia").ys
        return ys[1:].square().mean()

    values = torch.tensor([3.4, 1.0, 0.01], dtype=torch.float64)
    seconds = {"forward": [], "gradient": []}
    for _ in range(3):
        started = time.process_time()
        with torch.no_grad():
            loss(values)
        seconds["forward"].append(time.process_time() - started)
        p = values.clone().requires_grad_()
        started = time.process_time()
        loss(p).backward()
        seconds["gradient"].append(time.process_time() - started)
    assert p.grad is not None
    differences = []
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5 * values[i]
        with torch.no_grad():
            differences.append(((loss(values + step) - loss(values - step)) / (2 * step[i])).item())
    expected = torch.tensor(differences, dtype=torch.float64)
    forward, gradient = min(seconds["forward"]), min(seconds["gradient"])
    print(f"{options.size} x {options.size}: gradient {p.grad.tolist()}")
    print(f"relative difference to finite differences {((p.grad - expected) / expected).abs().max().item():.1e}")
    print(f"forward {forward:.3f} s, with gradient {gradient:.3f} s of CPU time: {gradient / forward:.1f} times")


if __name__ == "__main__":
    main()
