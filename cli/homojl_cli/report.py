"""homojl report"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write. [default: RUN/report.html; of several ./report.html]"
)
@click.option(
    "--samples",
    type=click.IntRange(0, 1000),
    default=24,
    show_default=True,
    metavar="N",
    help="Images of the highest loss to show of each run; 0 needs no dataset.",
)
def command(runs: tuple[str, ...], out: Path | None, samples: int) -> None:
    """Write one or several runs as one HTML file that needs nothing beside itself.

    Results, learning curves, what the solves took, the confusion matrix, the images of highest loss, where time and
    memory went, configuration and environment; of several runs side by side, with what differs marked. Answers are
    those of the run's one evaluation on the test set, or of the validation split before it.

    \b
    Examples:
      homojl report runs/NAME
      homojl report runs/first runs/second --out comparison.html
      homojl report runs/NAME --samples 0
    """
    import sys

    from homojl.training.run import Run

    for path in runs:
        Run.open(path)

    from homojl.results.page import write_page
    from homojl.training.reporting import gather

    reported = gather(runs, samples)
    for run in reported:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    file = out or (Path(runs[0]) if len(runs) == 1 else Path()) / "report.html"
    write_page(file, reported)
    print(file)
