"""homojl plot"""

from __future__ import annotations

from pathlib import Path

import click

from homojl.names import FIGURE_FORMATS
from homojl_cli.options import run_argument


@click.command("plot")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the figures. [default: RUN/figures]")
@click.option(
    "--format",
    "formats",
    type=click.Choice(FIGURE_FORMATS),
    multiple=True,
    default=["png"],
    show_default=True,
    help="Of the files; may be given several times.",
)
def command(run: str, out: Path | None, formats: tuple[str, ...]) -> None:
    """Draw a run's figures.

    Learning curves and solver cost; after an evaluation the confusion matrix; after `homojl export --trajectories`
    the paths.

    \b
    Examples:
      homojl plot runs/NAME
      homojl plot runs/NAME --out figures --format svg --format png
    """
    from homojl.training.run import Run

    opened = Run.open(run)

    from homojl.results.hdf5 import read_run
    from homojl.results.plots import draw_all

    record = read_run(opened.path) or opened.record()
    for path in draw_all(record, opened.path / "figures" if out is None else out, formats):
        print(path)
