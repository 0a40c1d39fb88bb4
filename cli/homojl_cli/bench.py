"""homojl bench"""

from __future__ import annotations

from pathlib import Path

import click

# As in homojl.benchmark, whose import loads torch.
PROBLEMS = "vanderpol, lotka-volterra, lorenz, kaps, layer, equilibrium, trajectory, steps, accuracy, leak"
SOLVERS = "homojl-pytorch, homojl-compiled, homojl-julia, torchdiffeq, torchode, diffrax, torchdeq"


@click.command("bench")
@click.option("--problem", help=f"Problems, with commas: {PROBLEMS}. [default: all]")
@click.option("--solver", help=f"Solvers, with commas: {SOLVERS}. [default: all]")
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
    from homojl.benchmark.run import run_bench, write_all
    from homojl.benchmark.table import markdown

    chosen = {"problems": problem, "solvers": solver}
    names = {key: [name.strip() for name in text.split(",")] for key, text in chosen.items() if text is not None}
    report = run_bench(**names, quick=quick, seed=seed, threads=threads, say=lambda line: print(line, flush=True))
    print()
    print(markdown(report))
    for path in write_all(report, out):
        print(path)
