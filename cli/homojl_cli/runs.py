"""homojl runs"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from homojl.training.listing import ListedRun


@click.command("runs")
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--sort", metavar="METRIC", help="Highest first: any metric of a run, or test_accuracy. [default: time]")
@click.option("--lowest", is_flag=True, help="Lowest first.")
def command(folder: Path, sort: str | None, lowest: bool) -> None:
    """List the runs in a folder and those below it, the latest last, or sorted by a metric.

    Numbers are those of the best epoch. A run that has not come to its end shows how far it is.

    \b
    Examples:
      homojl runs
      homojl runs runs/sweep --sort val_accuracy
      homojl runs --sort nfe_forward --lowest
    """
    from homojl.training.listing import COLUMNS, find_runs, sorted_runs

    found = sorted_runs(find_runs(folder), sort, lowest=lowest)
    if not found:
        print(f"there is no run in {folder}")
        return
    shown = [*COLUMNS, *([sort] if sort is not None and sort not in COLUMNS else [])]
    rows = [
        [str(run.path), run.model, run.dataset, run.epochs, *(_number(name, run) for name in shown)] for run in found
    ]
    head = ["run", "model", "dataset", "epochs", *(COLUMNS.get(name, name) for name in shown)]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        left = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=False)]
        right = [f"{cell:>{width}}" for cell, width in zip(row[3:], widths[3:], strict=True)]
        print("  ".join([*left, *right]).rstrip())


def _number(name: str, run: ListedRun) -> str:
    value: Any = run.numbers.get(name, math.nan)
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4g}"
