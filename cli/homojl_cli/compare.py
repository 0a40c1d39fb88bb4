"""homojl compare"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import homojl
from homojl_cli.options import backend_option, complete_dataset, complete_model

if TYPE_CHECKING:
    from homojl.comparison.plan import Plan

SECONDS = 60.0  # of training for each run where no budget is given
RATE = 1e12  # operations per second for an estimate where nothing else is said

# Read without the package they belong to: --help, too, comes here.
_FILES = (Path(homojl.__file__).parent / "comparison" / "experiments").glob("*.toml")
EXPERIMENTS = ", ".join(sorted(file.stem for file in _FILES))


@click.command("compare")
@click.option(
    "--dataset",
    shell_complete=complete_dataset,
    help="Dataset by name, or the path of an .npz file or a folder. [default: digits]",
)
@click.option(
    "--models",
    shell_complete=complete_model,
    help="Models by name or file.py:Class, with commas. [default: the experiment's, or all]",
)
@click.option("--experiment", help=f"What to vary: {EXPERIMENTS}, or a .toml file. [default: the model]")
@click.option("--seeds", default="0", show_default=True, help="Seeds, with commas; each has its own split.")
@click.option("--epochs", type=int, help="Budget of each run: passes over the training images.")
@click.option("--seconds", type=float, help=f"Budget of each run: seconds of training. [default: {SECONDS:g}]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting of all runs.")
@backend_option()
@click.option("--device", help="cpu, cuda, cuda:1 or auto.")
@click.option("--data-root", help="Folder of datasets. [default: $HOMOJL_DATA or the user's cache]")
@click.option("--presets", help="Dataset whose presets to take, for images of your own. [default: --dataset]")
@click.option("--estimate", is_flag=True, help="Start nothing; say how long it would take, by counted operations.")
@click.option("--rate", type=float, help="Operations per second for --estimate. [default: the experiment's, or 1e12]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder. [default: runs/compare-<experiment>-<dataset>]")
@click.option("--quiet", is_flag=True, help="Print nothing but the table and the folder.")
def command(
    dataset: str | None,
    models: str | None,
    experiment: str | None,
    seeds: str,
    epochs: int | None,
    seconds: float | None,
    jobs: int,
    assignments: tuple[str, ...],
    backend: str | None,
    device: str | None,
    data_root: str | None,
    presets: str | None,
    estimate: bool,
    rate: float | None,
    out: Path | None,
    quiet: bool,
) -> None:
    """Train several models or variations on one dataset with one split and budget, and compare them.

    Ends with a table, figures, one HDF5 file and a report beside the published figures. The same command, given
    again after Ctrl-C or a kill, goes on: runs that have ended are kept, one that was stopped gets its rest.
    A run whose loss is no longer finite is reported in the table; delete its file in outcomes/ to try it again.

    \b
    Examples:
      homojl compare --dataset mnist --seeds 0,1 --seconds 240
      homojl compare --models homoode,deq --epochs 20 --jobs 2
      homojl compare --experiment initial-point --dataset mnist --seconds 240
      homojl compare --models homoode,cnn,my_net.py:Net --seconds 60
      homojl compare --experiment mine.toml --set optim.lr=3e-4
      homojl compare --experiment paper --dataset cifar10 --epochs 300
      homojl compare --dataset mine.npz --presets cifar10 --epochs 10
    """
    from homojl.comparison.experiment import MODELS_ALONE, read_experiment
    from homojl.comparison.plan import make_plan
    from homojl.environment import fair_share
    from homojl.errors import ConfigError
    from homojl.own import allow, is_own, short
    from homojl.training.config import parse_assignment

    names = None if models is None else [name.strip() for name in models.split(",")]
    names = None if names is None else [allow(name) if is_own(name) else name for name in names]
    if is_own(dataset):  # code that is named here may be run
        dataset = allow(str(dataset))
    if epochs is not None and seconds is not None:
        raise ConfigError("--epochs and --seconds are two budgets; give one")
    if epochs is None and seconds is None:
        seconds = SECONDS
    chosen = MODELS_ALONE if experiment is None else read_experiment(experiment)
    dataset = dataset or "digits"
    options = {"solver": {"backend": backend}, "train": {"device": device}, "data": {"root": data_root}}
    options = {s: {k: v for k, v in values.items() if v is not None} for s, values in options.items()}
    plan = make_plan(
        chosen,
        out or Path("runs") / f"compare-{chosen.name}-{Path(short(dataset)).stem}",
        dataset=dataset,
        seeds=_numbers(seeds),
        models=names,
        epochs=epochs,
        seconds=seconds,
        settings=[options, *(parse_assignment(text) for text in assignments)],
        threads=fair_share(jobs),
        presets=presets,
    )
    plan.check()
    if estimate or rate is not None or (chosen.rate is not None and not quiet):
        _print_estimate(plan, rate or chosen.rate or RATE)
    if estimate:
        return

    if not quiet:
        budget = f"{epochs} epochs" if seconds is None else f"{seconds:g} s of training"
        print(
            f"{chosen.title} on {short(dataset)}: {len(plan.runs)} runs of {budget} "
            f"({', '.join(plan.labels)}; seeds {seeds}), {jobs} at a time -> {plan.folder}",
            flush=True,
        )
    _run(plan, jobs, quiet=quiet)


def _run(plan: Plan, jobs: int, *, quiet: bool) -> None:
    """Train and compare; exits with 130 where it was stopped, and with 1 where a run broke off."""
    from homojl.comparison.record import collect
    from homojl.comparison.report import plain_tables, publish_comparison
    from homojl.comparison.runner import run_all

    say = (lambda _: None) if quiet else (lambda line: print(line, flush=True))
    if not run_all(plan, jobs=jobs, say=say):
        print("stopped and saved; the same command goes on")
        sys.exit(130)
    comparison = collect(plan)
    publish_comparison(comparison, command=sys.argv)
    print(plain_tables(comparison), end="")
    print(plan.folder)
    if any(run.status == "broken off" for run in comparison.runs):
        sys.exit(1)


def _print_estimate(plan: Plan, rate: float) -> None:
    from homojl.comparison.estimate import estimate, estimate_table
    from homojl.errors import ConfigError

    if not rate > 0:
        raise ConfigError(f"--rate must be positive, got {rate:g}")
    if plan.runs[0].config.train.seconds is not None:
        seconds = sum(run.config.train.seconds or 0 for run in plan.runs)
        print(
            f"{len(plan.runs)} runs take {seconds / 3600:.2f} hours of training one after the other, whatever they do"
        )
        return
    print(f"By the operations of untrained models, at {rate:g} per second:")
    print(estimate_table(estimate(plan), rate).text(), end="", flush=True)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a whole number, or several with commas", param_hint="--seeds"
        ) from None
