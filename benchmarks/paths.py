"""Zero paths of the gallery's problems: how often they end in a root, what they cost, and how Newton and SciPy do.

    python benchmarks/paths.py [--starts 100] [--repetitions 20] [--backend pytorch|julia] [problem ...]

Roots: from random starts, how many end in a known root by arc length (fixed-point homotopy) and by Newton's method with
a dense Jacobian, at most 100 iterations, both to the same tolerance; evaluations and Jacobian-vector products per path,
and the largest residual anywhere on a path over its tolerance.

Velocities: from the problem's own start, the paths of v = 5 and 10 beside that of v = 1: the larger of their Hausdorff
distance and of the distance of their ends, over the tolerance at the root.

Newton's step: the Newton homotopy by one Euler step of length 1 without corrections, from the problem's own start,
beside Newton's step with a dense Jacobian: the norm of their difference over that of the step.

Time: from the problem's own start, the median of repetitions taken in turn in one process, over that of
`scipy.optimize.root` (hybrid Powell, whether or not it finds the root) and of a plain trace: the path's ODE in lambda
by `scipy.integrate.solve_ivp` (DOP853 at rtol 1e-6), which is only tried where the path does not fold.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from rows import head, row
from scipy.integrate import solve_ivp
from scipy.optimize import root

import homojl as hj
from homojl import gallery
from homojl.results.paths import hausdorff_distance

RTOL, ATOL = 1e-6, 1e-8


def tolerance(z: torch.Tensor) -> float:
    return ATOL + RTOL * z.square().mean().sqrt().item()


def newton(example: gallery.Example, z: torch.Tensor) -> torch.Tensor | None:
    """Where Newton's method ends, None where it does not."""

    def r(u: torch.Tensor) -> torch.Tensor:
        return example.r(u.reshape(example.z0.shape)).reshape(-1)

    u = z.reshape(-1)
    for _ in range(100):
        value = r(u)
        if value.square().mean().sqrt().item() <= tolerance(u):
            return u.reshape(z.shape)
        u = u - torch.linalg.lstsq(torch.autograd.functional.jacobian(r, u), value[:, None]).solution[:, 0]
        if not torch.isfinite(u).all():
            return None
    return None


def is_answer(example: gallery.Example, z: torch.Tensor | None) -> bool:
    """Whether z is a root: one that is known, where all are."""
    if z is None:
        return False
    if example.all_roots:
        return example.is_root(z)
    return example.r(z).square().mean().sqrt().item() <= 10 * tolerance(z)


def roots_from_random_starts(example: gallery.Example, count: int, backend: str) -> tuple[object, ...]:
    by_path = by_newton = evaluations = products = 0
    worst = 0.0
    for z0 in example.random_starts(count):
        solution = hj.solve(example.problem(z0), hj.ArcLength(rtol=RTOL, atol=ATOL), backend=backend, throw=False)
        by_path += solution.status.ok and is_answer(example, solution.value)
        evaluations += solution.stats.nfe
        products += solution.stats.n_jvp
        sizes = [tolerance(z) for z in solution.states]
        worst = max(worst, (solution.residuals / torch.tensor(sizes)).max().item())
        by_newton += is_answer(example, newton(example, z0))
    return by_path, by_newton, f"{evaluations / count:.0f}", f"{products / count:.0f}", f"{worst:.2f}"


def apart(example: gallery.Example, backend: str) -> float:
    """How far the paths of v = 1, 5 and 10 lie from each other, over the tolerance."""
    first, *others = (
        hj.solve(example.problem(), hj.ArcLength(velocity=v, rtol=RTOL, atol=ATOL), backend=backend)
        for v in (1.0, 5.0, 10.0)
    )
    farthest = max(max(hausdorff_distance(first, p), (first.value - p.value).norm().item()) for p in others)
    return farthest / tolerance(first.value)


def off_newtons_step(example: gallery.Example, backend: str) -> float:
    """One Euler step of the Newton homotopy beside Newton's step, relative."""
    z0 = example.z0
    algorithm = hj.NaturalParameter(first_step=1.0, predictor=hj.Euler(), max_corrections=0, linear_solver="dense")
    path = hj.solve(example.problem(kind="newton"), algorithm, backend=backend, throw=False)
    jacobian = torch.autograd.functional.jacobian(lambda u: example.r(u.reshape(z0.shape)).reshape(-1), z0.reshape(-1))
    step = torch.linalg.solve(jacobian, -example.r(z0).reshape(-1)).reshape(z0.shape)
    return ((path.value - z0 - step).norm() / step.norm()).item()


def traced_by_scipy(example: gallery.Example) -> None:
    """The fixed-point homotopy's path as an ODE in lambda: (lambda J + (1 - lambda) I) dz/dlambda = z - z0 - r."""
    z0 = example.z0.reshape(-1)

    def slope(lam: float, z: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(z)
        jacobian = torch.autograd.functional.jacobian(lambda v: example.r(v.reshape(example.z0.shape)).reshape(-1), u)
        matrix = lam * jacobian + (1 - lam) * torch.eye(len(u), dtype=u.dtype)
        r = example.r(u.reshape(example.z0.shape)).reshape(-1)
        return torch.linalg.solve(matrix, u - z0 - r).numpy()

    solve_ivp(slope, (0.0, 1.0), z0.numpy(), method="DOP853", rtol=RTOL, atol=ATOL)


def found_by_scipy(example: gallery.Example) -> None:
    shape = example.z0.shape
    root(lambda z: example.r(torch.from_numpy(z).reshape(shape)).reshape(-1).numpy(), example.z0.reshape(-1).numpy())


def times(example: gallery.Example, repetitions: int, backend: str) -> tuple[str, ...]:
    problem, algorithm = example.problem(), hj.ArcLength(rtol=RTOL, atol=ATOL)
    tasks = {
        "path": lambda: hj.solve(problem, algorithm, backend=backend),
        "root": lambda: found_by_scipy(example),
        "trace": lambda: traced_by_scipy(example),
    }
    if hj.solve(problem, algorithm, backend=backend).folds:
        del tasks["trace"]
    spent = {name: [] for name in tasks}
    for _ in range(repetitions):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            spent[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    trace = f"{medians['path'] / medians['trace']:.2f}" if "trace" in medians else "it folds"
    return f"{1e3 * medians['path']:.2f}", f"{medians['path'] / medians['root']:.1f}", trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=gallery.names())
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--backend", default="pytorch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = ("roots found", "by Newton", "evaluations", "products", "residual", "apart", "off Newton's step")
    head("problem", *found, "ms", "/ root", "/ trace")
    for name in args.problems:
        example = gallery.get(name)
        counted = roots_from_random_starts(example, args.starts, args.backend)
        checked = (f"{apart(example, args.backend):.1e}", f"{off_newtons_step(example, args.backend):.1e}")
        row(name, *counted, *checked, *times(example, args.repetitions, args.backend))


if __name__ == "__main__":
    main()
