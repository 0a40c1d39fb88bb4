"""homojl and its peers on the same problems in one run, and the figures that the project holds itself to.

    python benchmarks/side_by_side.py [--problem vanderpol ...] [--solver homojl-pytorch torchdiffeq ...] [--quick]
        [--threads 1] [--seed 0] [--out FILE.md]

Prints Markdown. The peers come with `pip install --group peers`; one that is not installed is named and left out, and
a solve that fails has its message in the place of numbers. docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peers import memory
from peers.bars import bars_of
from peers.experiments import MAKERS
from peers.measure import measure
from peers.solvers import SOLVERS, AbstractSolver
from peers.tables import MEANING, bar_table, group_table
from peers.threads import use_threads

from homojl.environment import environment
from homojl.results.measurements import Measurement
from homojl.results.tables import Table

REPETITIONS, PATIENCE, LEAK_SOLVES = 7, 20.0, 10_000
QUICK = 3, 4.0, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--solver", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument("--quick", action="store_true", help="small sizes: whether all works, no measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the tables, beside stdout")
    options = parser.parse_args()
    use_threads(options.threads)
    repetitions, patience, leak_solves = QUICK if options.quick else (REPETITIONS, PATIENCE, LEAK_SOLVES)
    solvers = [SOLVERS[name] for name in options.solver]
    present = [solver for solver in solvers if solver.missing() is None]
    found: list[Measurement] = []
    for problem in options.problem:
        for group in MAKERS[problem](options.quick, options.seed):
            print(group.title, flush=True)
            found += measure(
                group,
                present,
                repetitions=repetitions,
                patience=patience,
                threads=options.threads,
                seed=options.seed,
                say=lambda line: print(line, flush=True),
            )
    leak = memory.leak(leak_solves) if "leak" in options.problem else []
    text = report(solvers, found, leak, quick=options.quick)
    print(f"\n{text}", end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def report(solvers: list[AbstractSolver], found: list[Measurement], leak: list[float], *, quick: bool) -> str:
    """All tables in Markdown."""
    here = environment()
    rows = [(s.name, s.version() if s.missing() is None else "missing", s.missing() or "") for s in solvers]
    parts = [
        "# Solvers side by side\n",
        f"{here['processor']}, {here['threads']} threads, torch {here['packages']['torch']}"
        + ("; small sizes (--quick): a check that everything works, not a measurement.\n" if quick else ".\n"),
        bar_table(bars_of(found, leak)).markdown(),
        Table(("solver", "version", ""), rows).markdown(),
        MEANING,
    ]
    for title in dict.fromkeys(m.group for m in found):
        parts += [f"## {title}\n", group_table([m for m in found if m.group == title]).markdown()]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
