"""Bratu's problem by Newton-Krylov beside SciPy's `newton_krylov`, to the same tolerance.

    python benchmarks/newton_krylov.py [--size 64] [--repetitions 9] [--threads 1]

-Laplacian(u) = 6 e^u on the unit square, zero around it, on a grid of 64 x 64 in float64, from u = 0, until the
Euclidean norm of the residual, scaled by h^2 / 4, is below 1e-4, 1e-6, 1e-8 and 1e-10. SciPy is given the same
function, in PyTorch, and one written for NumPy; it takes differences of the function for products with its Jacobian, as
homojl does where it is told to. All run in turn in one process; the medians of the processor time and of its ratios are
printed, and how often the function was called or a product with its Jacobian was made.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rows import head, row
from scipy.optimize import newton_krylov

import homojl as hj

STRENGTH = 6.0
EXACT, DIFFERENCES = "homojl", "homojl, differences"


def in_torch(z: torch.Tensor) -> torch.Tensor:
    """The map whose residual f(z) - z is the equation's; z is (b, m, m)."""
    p = torch.nn.functional.pad(z, (1, 1, 1, 1))
    around = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2]
    return 0.25 * (around + STRENGTH / (z.shape[1] + 1) ** 2 * torch.exp(z))


def in_numpy(u: np.ndarray) -> np.ndarray:
    r = -4 * u
    r[1:] += u[:-1]
    r[:-1] += u[1:]
    r[:, 1:] += u[:, :-1]
    r[:, :-1] += u[:, 1:]
    return 0.25 * (r + STRENGTH / (len(u) + 1) ** 2 * np.exp(u))


def residual_in_torch(u: np.ndarray) -> np.ndarray:
    z = torch.from_numpy(u)[None]
    return (in_torch(z) - z)[0].numpy()


def by_scipy(residual: Callable[[np.ndarray], np.ndarray], m: int, tolerance: float) -> tuple[np.ndarray, int]:
    calls = [0]

    def counted(u: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return residual(u)

    found = newton_krylov(counted, np.zeros((m, m)), f_tol=tolerance, tol_norm=np.linalg.norm, maxiter=500)
    return found, calls[0]


def by_homojl(m: int, tolerance: float, *, differences: bool) -> tuple[np.ndarray, int]:
    problem = hj.FixedPointProblem(in_torch, torch.zeros(1, m, m, dtype=torch.float64))
    algorithm = hj.NewtonKrylov(rtol=0.0, atol=tolerance, max_steps=500, differences=differences)
    sol = hj.solve(problem, algorithm, backend="pytorch")
    return sol.value[0].numpy(), sol.stats.nfe + sol.stats.n_jvp


def compare(m: int, tolerance: float, repetitions: int) -> None:
    contenders = {
        "SciPy, PyTorch's function": lambda: by_scipy(residual_in_torch, m, tolerance),
        "SciPy, NumPy's function": lambda: by_scipy(in_numpy, m, tolerance),
        EXACT: lambda: by_homojl(m, tolerance, differences=False),
        DIFFERENCES: lambda: by_homojl(m, tolerance, differences=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    last = {}
    for _ in range(repetitions + 1):
        for name, run in contenders.items():
            started = time.process_time()
            last[name] = run()
            seconds[name].append(time.process_time() - started)
    for name, (found, work) in last.items():
        exact, differences = (
            statistics.median(a / b for a, b in zip(seconds[own][1:], seconds[name][1:], strict=True))
            for own in (EXACT, DIFFERENCES)
        )
        left = np.linalg.norm(in_numpy(found))
        spent = 1e3 * statistics.median(seconds[name][1:])
        row(f"{tolerance:g}", name, f"{spent:.1f}", work, f"{left:.1e}", f"{exact:.2f}", f"{differences:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head("tolerance", "", "time [ms]", "calls", "residual left", "homojl over it", "with differences")
    for tolerance in (1e-4, 1e-6, 1e-8, 1e-10):
        compare(options.size, tolerance, options.repetitions)


if __name__ == "__main__":
    main()
