"""homojl plot"""

from __future__ import annotations

from pathlib import Path

import click

from homojl_cli.options import run_argument


@click.command("plot")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the figures. [default: RUN/figures]")
def command(run: str, out: Path | None) -> None:
    """Draw a run's figures as PNG and SVG.

    Learning curves and solver cost; after an evaluation the confusion matrix; after `homojl export --trajectories`
    the paths.

    \b
    Example:
      homojl plot runs/NAME --out figures
    """
    from homojl.training.run import Run

    opened = Run.open(run)

    from homojl.results.plots import draw_all
    from homojl.training.outcome import stored_record

    record = stored_record(opened) or opened.record()
    for path in draw_all(record, opened.path / "figures" if out is None else out):
        print(path)
