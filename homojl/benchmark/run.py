"""One run of the benchmark: what was asked for, measured, and written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from homojl.benchmark import memory
from homojl.benchmark.experiments import groups_of
from homojl.benchmark.figures import draw_bench
from homojl.benchmark.hdf5 import write_bench
from homojl.benchmark.measure import measure, use_threads
from homojl.benchmark.names import PROBLEMS, check_names
from homojl.benchmark.record import Library, Report
from homojl.benchmark.solvers import SOLVERS, AbstractSolver
from homojl.benchmark.table import markdown
from homojl.environment import environment
from homojl.errors import DataError
from homojl.files import replace_file

REPETITIONS, PATIENCE, LEAK_SOLVES = 7, 20.0, 10_000
QUICK_REPETITIONS, QUICK_PATIENCE, QUICK_LEAK_SOLVES = 3, 4.0, 1000


def run_bench(
    *,
    problems: Sequence[str] = PROBLEMS,
    solvers: Sequence[str] = tuple(SOLVERS),
    quick: bool = False,
    seed: int = 0,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure the solvers on the problems; one that is missing is said to be, and left out.

    Args:
        problems: of `PROBLEMS`.
        solvers: of `SOLVERS`.
        quick: smaller sizes and fewer repetitions.
        seed: of starts and weights.
        threads: of every library; None: PyTorch's own choice.
        say: receives a line of progress at a time.

    Raises:
        ConfigError: for an unknown name.
    """
    check_names(problems, solvers)
    threads = torch.get_num_threads() if threads is None else threads
    use_threads(threads)
    report = Report(environment(), quick, seed)
    present: list[AbstractSolver] = []
    for solver in (SOLVERS[name] for name in solvers):
        if (missing := solver.missing()) is None:
            present.append(solver)
            report.libraries.append(Library(solver.name, solver.package, solver.version()))
        else:
            say(f"{solver.name} is missing: {missing}")
            report.libraries.append(Library(solver.name, solver.package, missing=missing))
    for problem in problems:
        for group in groups_of(problem, quick=quick, seed=seed):
            say(group.title)
            report.measurements += measure(
                group,
                present,
                repetitions=QUICK_REPETITIONS if quick else REPETITIONS,
                patience=QUICK_PATIENCE if quick else PATIENCE,
                threads=threads,
                seed=seed,
                say=say,
            )
        if problem == "leak" and any(solver.name == "homojl-pytorch" for solver in present):
            report.leak_solves = QUICK_LEAK_SOLVES if quick else LEAK_SOLVES
            say(f"memory over {report.leak_solves:,} solves with gradient")
            report.leak = memory.leak(report.leak_solves)
    return report


def write_all(report: Report, folder: Path) -> list[Path]:
    """Write `bench.h5`, `bench.md` and, where matplotlib is installed, the figures.

    Returns:
        The files.

    Raises:
        DataError: if one of them cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror}") from error
    write_bench(folder / "bench.h5", report)
    replace_file(folder / "bench.md", markdown(report).encode())
    figures = draw_bench(report, folder / "figures") if find_spec("matplotlib") else []
    return [folder / "bench.h5", folder / "bench.md", *figures]
