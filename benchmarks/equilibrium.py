"""Equilibria: a DEQ layer beside torchdeq, and what it saves to let go of samples that have converged.

    python benchmarks/equilibrium.py [--repetitions 9] [--threads 1] [--seeds 3]

The layer is the one of the DEQ tutorial (Kolter, Duvenaud, Johnson 2020, implicit-layers-tutorial.org), z ->
GN(relu(z + GN(x + conv(GN(relu(conv(z))))))), 48 channels, 64 within, 8 groups, on 16 x 16, 32 samples. Both packages
solve it by Anderson's method from z = 0 with 6 iterates, relative tolerance 1e-3, in turn in one process; the medians
of the processor time and of its ratio are printed, and what the evaluations alone would take. The residual of what
each returns is evaluated afterwards by the same function, norm(f(z) - z) / norm(f(z)) of the worst sample. torchdeq
returns f of the iterate that met the tolerance, one application further than what it checked; homojl returns the
iterate whose residual it has found, so it is also run at the tolerance that torchdeq's result really has, where its
own worst residual is equal or smaller. Inputs: normal numbers, alike for all samples; and the same times 1 to 10,
so that samples converge at different times.

A small layer, tanh(z W + x) of 64 samples and 32 units, at 1e-4: there it is the solver's own work that takes time, and
processor time for each evaluation is compared, and that for a solve, by Anderson's, Broyden's and Picard's methods.

Compaction: a batch of 64 in which a tenth of the samples converges ten times slower, Picard's iteration at 1e-4. Cost
is counted in samples: rows that the map was evaluated on, over those of a solver that carries the whole batch to the
end.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rows import head, row
from torch import nn

import homojl as hj

CHANNELS, INNER, SIZE, BATCH = 48, 64, 16, 32
COMPILED = "pytorch-compiled"


class Layer(nn.Module):
    """The tutorial's layer; counts its evaluations and their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, INNER, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(INNER, CHANNELS, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.norm3 = (
            nn.GroupNorm(8, INNER),
            nn.GroupNorm(8, CHANNELS),
            nn.GroupNorm(8, CHANNELS),
        )
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, 0, 0.01)
        self.calls = self.rows = 0

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.rows += len(z)
        y = self.norm1(torch.relu(self.conv1(z)))
        return self.norm3(torch.relu(z + self.norm2(x + self.conv2(y))))


def worst_residual(f: Layer, z: torch.Tensor, x: torch.Tensor) -> float:
    fz = f(z, x)
    return ((fz - z).flatten(1).norm(dim=1) / fz.flatten(1).norm(dim=1)).max().item()


def by_homojl(f: Layer, x: torch.Tensor, rtol: float, backend: str = "pytorch") -> torch.Tensor:
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
    return hj.solve(problem, hj.Anderson(rtol=rtol, atol=0.0, memory=6, max_steps=50), backend=backend).value


def by_compiled(f: Layer, x: torch.Tensor, rtol: float) -> torch.Tensor:
    return by_homojl(f, x, rtol, COMPILED)


def by_torchdeq(f: Layer, x: torch.Tensor, rtol: float) -> torch.Tensor:
    from torchdeq.solver import get_solver

    options = {"max_iter": 50, "tol": rtol, "stop_mode": "rel", "m": 6}
    return get_solver("anderson")(lambda z: f(z, x), torch.zeros_like(x), **options)[0]


def solved(run, f: Layer, x: torch.Tensor, rtol: float) -> dict[str, float]:
    f.calls = f.rows = 0
    started = time.process_time()
    z = run(f, x, rtol)
    seconds, calls, rows = time.process_time() - started, f.calls, f.rows
    return {"seconds": seconds, "calls": calls, "rows": rows / BATCH, "residual": worst_residual(f, z, x)}


@torch.no_grad()
def beside_torchdeq(repetitions: int, seeds: int) -> None:
    head(
        "inputs", "Anderson at 1e-3", "time [ms]", "evaluations", "in batches", "worst residual", "time over torchdeq's"
    )
    for inputs, spread in (("alike", 0.0), ("unlike", 1.0)):
        for seed in range(seeds):
            torch.manual_seed(seed)
            f, x = Layer(), torch.randn(BATCH, CHANNELS, SIZE, SIZE)
            x = x * torch.logspace(0, spread, BATCH)[:, None, None, None]
            one(f"{inputs} {seed}", f, x, repetitions)


def one(title: str, f: Layer, x: torch.Tensor, repetitions: int) -> None:
    reached = solved(by_torchdeq, f, x, 1e-3)["residual"]
    contenders = {
        "torchdeq": (by_torchdeq, 1e-3),
        "homojl": (by_homojl, 1e-3),
        "homojl, same residual": (by_homojl, reached),
        "compiled": (by_compiled, 1e-3),
        "compiled, same residual": (by_compiled, reached),
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    evaluation = []
    for _ in range(repetitions + 1):
        for name, (run, rtol) in contenders.items():
            measured[name].append(solved(run, f, x, rtol))
        started = time.process_time()
        f(x, x)
        evaluation.append(time.process_time() - started)
    peer = [m["seconds"] for m in measured["torchdeq"][1:]]
    for name, runs in measured.items():
        own = [m["seconds"] for m in runs[1:]]
        ratio = statistics.median(a / b for a, b in zip(own, peer, strict=True))
        m = runs[-1]
        spent = (f"{1e3 * statistics.median(own):.1f}", f"{m['calls']:.0f}", f"{m['rows']:.2f}")
        row(title, name, *spent, f"{m['residual']:.2e}", f"{ratio:.2f}")
    alone = statistics.median(evaluation[1:])
    row(title, "one evaluation", f"{1e3 * alone:.1f}", 1, "1.00", "", "")


@torch.no_grad()
def small(repetitions: int) -> None:
    from torchdeq.solver import get_solver

    torch.manual_seed(0)
    w, x, calls = torch.randn(32, 32) * 0.9 / 32**0.5, torch.randn(64, 32), [0]

    def f(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return torch.tanh(z @ w + x)

    def at_x(z: torch.Tensor) -> torch.Tensor:
        return f(z, x)

    def seconds(run) -> tuple[float, int]:
        calls[0], started = 0, time.process_time()
        run()
        return time.process_time() - started, calls[0]

    problem = hj.FixedPointProblem(f, torch.zeros(64, 32), args=(hj.PerSample(x),))
    head("small layer", "backend", "an evaluation, over torchdeq's", "a solve")
    peers = {"anderson": hj.Anderson, "broyden": hj.Broyden, "fixed_point_iter": hj.Picard}
    for name, algorithm in peers.items():
        method, ours = get_solver(name), algorithm(rtol=1e-4, atol=0.0, max_steps=50)
        ratios: dict[str, list[tuple[float, float]]] = {"pytorch": [], COMPILED: []}
        for _ in range(10 * repetitions):
            theirs = seconds(lambda m=method: m(at_x, torch.zeros(64, 32), max_iter=50, tol=1e-4, stop_mode="rel"))
            for backend, found in ratios.items():
                own = seconds(lambda a=ours, b=backend: hj.solve(problem, a, backend=b))
                found.append((own[0] / theirs[0], own[0] / own[1] / (theirs[0] / theirs[1])))
        for backend, found in ratios.items():
            whole, each = (statistics.median(x) for x in zip(*found, strict=True))
            row(algorithm.__name__, backend, f"{each:.2f}", f"{whole:.2f}")


@torch.no_grad()
def compaction(count: int = 64) -> None:
    """z -> c z + x, whose error falls by c an iteration: ten times slower where c^10 is the others' factor."""
    fast = 0.2
    c = torch.full((count, 1), fast, dtype=torch.float64)
    slow = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(count / 10)]
    c[slow] = fast**0.1
    x = torch.randn(count, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows: list[int] = []

    def f(z: torch.Tensor, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows.append(len(z))
        return c * z + x

    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(c, x))
    solution = hj.solve(problem, hj.Picard(rtol=1e-4, atol=0.0, max_steps=1000), backend="pytorch")
    quick = torch.ones(count, dtype=torch.bool)
    quick[slow] = False
    print(
        f"compaction: {len(slow)} of {count} samples take {solution.iterations[slow].max()} iterations, the others "
        f"{solution.iterations[quick].max()}: rows evaluated {sum(rows):,} with compaction, {count * len(rows):,} "
        f"without: {sum(rows) / (count * len(rows)):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    compaction()
    small(options.repetitions)
    beside_torchdeq(options.repetitions, options.seeds)


if __name__ == "__main__":
    main()
