"""homojl tune"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from homojl_cli.options import backend_option, run_argument

if TYPE_CHECKING:
    from homojl.results.tuning import Trial, Tuning
    from homojl.training.run import Run


@click.command("tune")
@run_argument
@click.option("--within", type=float, default=0.1, show_default=True, help="Accuracy that may be lost, in points.")
@click.option("--algorithms", help="Methods, with commas. [default: with equal steps and adaptive; for equilibria all]")
@click.option("--tolerances", default="1e-1,1e-2,1e-3,1e-4", show_default=True, help="Tolerances, with commas.")
@click.option("--batch-size", type=click.IntRange(1), help="Images per forward pass. [default: the run's]")
@click.option("--limit", type=click.IntRange(1), help="Only so many of the validation images.")
@backend_option("[default: where the run did]")
def command(
    run: str,
    within: float,
    algorithms: str | None,
    tolerances: str,
    batch_size: int | None,
    limit: int | None,
    backend: str | None,
) -> None:
    """Find the method and tolerance that answer a trained run's images with the fewest evaluations.

    Solves the trained model on the validation split in several ways, each held against one tight solve, and prints the
    command that solves with the cheapest that is as accurate and cheaper than what the run has. Writes tune.h5 and a
    figure into the run's folder; the test set is not touched. Exits with 1 if nothing tried is as accurate.

    \b
    Examples:
      homojl tune runs/NAME
      homojl tune runs/NAME --within 0 --algorithms bosh3,tsit5,rk4
      homojl tune runs/NAME --limit 1000 --batch-size 64
    """
    from homojl.models.settings import model_settings
    from homojl.training.config import check_algorithms
    from homojl.training.run import Run

    try:
        grid = [float(text) for text in tolerances.split(",")]
    except ValueError:
        raise click.BadParameter(f"{tolerances!r} are not numbers with commas", param_hint="--tolerances") from None
    names = None if algorithms is None else [name.strip().lower() for name in algorithms.split(",")]
    opened = Run.open(run)
    settings = model_settings(opened.config.model.name)
    if not settings.own:  # else its layers say which methods are for them
        check_algorithms(names or (), settings.states_ode(), run)

    from homojl.results.tuning import draw_tuning, write_tuning
    from homojl.training.tune import tune

    found = tune(
        opened,
        within=within / 100,
        algorithms=names,
        tolerances=grid,
        batch_size=batch_size,
        limit=limit,
        backend=backend,
        say=_Table().say,
    )
    write_tuning(opened.path / "tune.h5", found)
    if find_spec("matplotlib"):
        draw_tuning(found, opened.path / "figures")
    if found.reference.failed:
        print(f"note: {found.reference.failed} solves of the reference did not reach their tolerance")
    _recommend(opened, found, within, own=settings.own)


class _Table:
    """The trials, a line for each as it ends, under a head; 80 columns."""

    def __init__(self) -> None:
        print(f"{'':<27}{'accuracy':>9}{'agreement':>10}{'logits':>9}{'evaluations':>12}{'ms/image':>9}")
        self._first = True

    def say(self, trial: Trial) -> None:
        label, self._first = f"{trial.label}{', reference' if self._first else ''}", False
        if trial.message:
            print(f"{label:<27}  {trial.message}", flush=True)
            return
        failed = f"  {trial.failed} solves failed" if trial.failed else ""
        print(
            f"{label:<27}{100 * trial.accuracy:>7.2f} %{100 * trial.agreement:>8.2f} %{trial.logit_error:>9.1e}"
            f"{trial.evaluations:>12.1f}{1e3 * trial.seconds:>9.3f}{failed}",
            flush=True,
        )


def _recommend(run: Run, found: Tuning, within: float, *, own: bool) -> None:
    """Print what to solve with from now on; exit with 1 where nothing is as accurate as asked for."""
    choice, usual = found.choice, found.configured
    if choice is None and not found.accepts(usual):
        print(f"homojl: nothing tried comes within {within:g} points of the reference", file=sys.stderr)
        sys.exit(1)
    if choice is None or not found.gains:
        print(
            f"as configured: {usual.label.partition(',')[0]} with {usual.evaluations:.1f} evaluations; nothing tried "
            f"is as accurate, within {within:g} points, with fewer"
        )
        return
    print(
        f"{choice.label}: {choice.evaluations:.1f} evaluations for {usual.evaluations:.1f} as configured, "
        f"within {within:g} points on {found.images:,} validation images"
    )
    if own:
        print("use: " + ", ".join(f"{key}={value}" for key, value in choice.settings.items()) + " in your layers")
        return
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in choice.settings.items())
    path = shlex.quote(str(run.path))
    print(f"homojl evaluate {path} {options}")
    print(f"homojl train --config {path}/config.toml {choice.assignments}")
