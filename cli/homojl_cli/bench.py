"""homojl bench"""

from __future__ import annotations

from pathlib import Path

import click

from homojl.names import BENCH_BACKENDS, BENCH_PROBLEMS, check_known


@click.command("bench")
@click.option("--problem", help=f"Problems, with commas: {', '.join(BENCH_PROBLEMS)}. [default: all]")
@click.option("--backend", help=f"Backends, with commas: {', '.join(BENCH_BACKENDS)}. [default: all that are here]")
@click.option("--quick", is_flag=True, help="Small sizes and few repetitions: a check, no measurement.")
@click.option("--out", type=click.Path(path_type=Path), default="bench", show_default=True, help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of starts and weights.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: PyTorch's]")
def command(problem: str | None, backend: str | None, quick: bool, out: Path, seed: int, threads: int | None) -> None:
    """Measure homojl's own solves on this machine, on every backend.

    Prints the time of a solve, how long compiling took, evaluations, steps and the error, and writes them as bench.md
    and bench.h5. docs/benchmarks.md says what each figure means, and how homojl is compared with other libraries.

    \b
    Examples:
      homojl bench --quick
      homojl bench --problem vanderpol,layer --threads 2 --out bench-2
      homojl bench --backend pytorch,pytorch-compiled
    """
    problems = BENCH_PROBLEMS if problem is None else tuple(name.strip() for name in problem.split(","))
    backends = BENCH_BACKENDS if backend is None else tuple(name.strip() for name in backend.split(","))
    check_known("problem", problems, BENCH_PROBLEMS)
    check_known("backend", backends, BENCH_BACKENDS)

    import torch

    from homojl.bench import bench_table, run_bench, write_bench
    from homojl.environment import environment

    if threads is not None:
        torch.set_num_threads(threads)
    found = run_bench(
        problems=problems, backends=backends, quick=quick, seed=seed, say=lambda line: print(line, flush=True)
    )
    print(f"\n{bench_table(found).text()}")
    for path in write_bench(out, found, environment(), quick=quick, seed=seed):
        print(path)
