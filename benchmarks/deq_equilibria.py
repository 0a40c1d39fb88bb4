"""The equilibria of a trained DEQ by every method, from the model's own start and from bad ones; prints Markdown.

    python benchmarks/deq_equilibria.py RUN [--samples 20] [--rtol 1e-4] [--far 100] [--seed 0]

RUN is the folder of a run of `deq`, for example

    homojl train --model deq --epochs 20 --out runs/deq

The first test images, one by one, so that what is counted is each image's own: the share whose residual, norm(f(z) - z)
over norm(f(z)), evaluated again afterwards, is at most rtol; the means of evaluations and Jacobian-vector products; and
the processor time of a solve. Then all of them as one batch, time per image. Starts: the model's own, standard
normal numbers; the same times `far`. The homotopies follow each image's zero path by its length.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from rows import head, row

import homojl as hj
from homojl.training.evaluation import prepare
from homojl.training.experiment import load_data

METHODS = {
    "Picard": hj.Picard(max_steps=1000),
    "Anderson": hj.Anderson(max_steps=200),
    "Broyden": hj.Broyden(max_steps=200),
    "Newton-Krylov": hj.NewtonKrylov(max_steps=100),
    "pseudo-transient": hj.PseudoTransient(max_steps=200),
    "homotopy, fixed-point": hj.Homotopy(max_steps=100),
    "homotopy, Newton": hj.Homotopy(kind="newton", max_steps=100),
}


def timed(problem: hj.FixedPointProblem, algorithm) -> tuple[hj.EquilibriumSolution, float]:
    """The solution, converged or not, and the processor time in ms."""
    started = time.process_time()
    solution = hj.solve(problem, algorithm, backend="pytorch", throw=False)
    return solution, 1e3 * (time.process_time() - started)


@torch.no_grad()
def counted(f, z0: torch.Tensor, x: torch.Tensor, algorithm) -> tuple[str, ...]:
    found, nfe, products, alone = 0, 0, 0, 0.0
    count = len(z0)
    for i in range(count):
        one = x[i : i + 1]
        solution, ms = timed(hj.FixedPointProblem(f, z0[i : i + 1], args=(one,)), algorithm)
        fz = f(solution.value, one)
        found += (fz - solution.value).norm().item() <= 1.001 * algorithm.rtol * fz.norm().item()
        nfe, products, alone = nfe + solution.stats.nfe, products + solution.stats.n_jvp, alone + ms
    together = timed(hj.FixedPointProblem(f, z0, args=(x,)), algorithm)[1]
    numbers = (nfe / count, products / count, alone / count, together / count)
    return (f"{found} of {count}", *(f"{number:.3g}" for number in numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--far", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = hj.load_run(args.run)
    model, form, _ = run.load_model()
    with torch.no_grad():
        x = model.encode(prepare(load_data(run.config).x_test[: args.samples], form, model))
        problem = model.problem(x)

    def f(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return problem.f(z, x, *problem.args[1:])

    noise = torch.empty_like(problem.z0).normal_(generator=torch.Generator().manual_seed(args.seed))
    starts = {"own": problem.z0, "random": noise, f"random x {args.far:g}": args.far * noise}
    head("start", "method", "converged", "evaluations", "products", "ms alone", "ms in the batch")
    for start, z0 in starts.items():
        for name, method in METHODS.items():
            algorithm = replace(method, rtol=args.rtol, atol=0.0)
            row(start, name, *counted(f, z0, x, algorithm))


if __name__ == "__main__":
    main()
