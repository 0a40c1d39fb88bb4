"""homojl export"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from homojl_cli.options import backend_option, run_argument


@click.command("export")
@run_argument
@click.option("--out", type=click.Path(path_type=Path), help="File to write. [default: RUN/results.h5]")
@click.option(
    "--trajectories", type=int, default=0, metavar="N", help="Also the paths z(s) of the first N test images."
)
@backend_option("[default: where the run did]")
def command(run: str, out: Path | None, trajectories: int, backend: str | None) -> None:
    """Write a run's results to one self-describing HDF5 file.

    Configuration, environment, metrics per epoch, every test prediction, solver statistics and the initial point;
    docs/hdf5.md has the schema.

    \b
    Examples:
      homojl export runs/NAME --out results.h5
      homojl export runs/NAME --trajectories 8
    """
    from homojl.training.run import Run

    opened = Run.open(run)

    from homojl.results.hdf5 import read_run, write_results
    from homojl.training.outcome import evaluate_run, matching_data, trace_images

    loaded, stored = opened.load_model("best"), read_run(opened.path)
    data = matching_data(opened, loaded.form) if stored is None or trajectories else None
    evaluation = None if stored is None else stored.evaluation
    if stored is None:
        evaluation = evaluate_run(opened, data=data, loaded=loaded, backend=backend)
    record = opened.record(evaluation, loaded=loaded)
    if trajectories:
        paths, images = trace_images(opened, trajectories, data=data, loaded=loaded, backend=backend)
        record = replace(record, trajectories=paths, images=images)
    path = out or opened.results_path
    write_results(path, record)
    print(path)
