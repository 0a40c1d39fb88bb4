"""homojl bench"""

from __future__ import annotations

from pathlib import Path

import click

from homojl.benchmark.names import PROBLEMS, SOLVERS, check_names


@click.command("bench")
@click.option("--problem", help=f"Problems, with commas: {', '.join(PROBLEMS)}. [default: all]")
@click.option("--solver", help=f"Solvers, with commas: {', '.join(SOLVERS)}. [default: all]")
@click.option("--quick", is_flag=True, help="Small sizes and few repetitions: minutes, and no measurement.")
@click.option("--out", type=click.Path(path_type=Path), default="bench", show_default=True, help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of starts and weights.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of every library. [default: PyTorch's]")
def command(problem: str | None, solver: str | None, quick: bool, out: Path, seed: int, threads: int | None) -> None:
    """Measure homojl's solvers and their peers on the same problems, side by side.

    Prints tables with ratios and writes bench.md, bench.h5 and figures. Peers come with `pip install
    'homojl[bench]'`; one that is not there is named and left out. docs/benchmarks.md says what each figure means.

    \b
    Examples:
      homojl bench --quick
      homojl bench --problem vanderpol,layer --threads 2 --out bench-2
      homojl bench --problem accuracy --solver homojl-pytorch,torchdiffeq
    """
    problems = PROBLEMS if problem is None else tuple(name.strip() for name in problem.split(","))
    solvers = SOLVERS if solver is None else tuple(name.strip() for name in solver.split(","))
    check_names(problems, solvers)

    from homojl.benchmark.run import run_bench, write_all
    from homojl.benchmark.table import markdown

    report = run_bench(
        problems=problems,
        solvers=solvers,
        quick=quick,
        seed=seed,
        threads=threads,
        say=lambda line: print(line, flush=True),
    )
    print()
    print(markdown(report))
    for path in write_all(report, out):
        print(path)
