"""homojl tune"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import click

from homojl_cli.options import backend_option, run_argument


@click.command("tune")
@run_argument
@click.option("--within", type=float, default=0.1, show_default=True, help="Accuracy that may be lost, in points.")
@click.option("--algorithms", help="Methods, with commas. [default: those of order 2 to 8, or those for equilibria]")
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
    options of the cheapest that is as accurate. Writes tune.h5 and a figure into the run's folder; the test set is not
    touched. Exits with 1 if nothing tried is as accurate.

    \b
    Examples:
      homojl tune runs/NAME
      homojl tune runs/NAME --within 0 --algorithms bosh3,tsit5,rk4 --tolerances 1e-1,3e-2,1e-2
      homojl tune runs/NAME --limit 1000 --batch-size 64
    """
    from homojl.training.config import check_algorithms
    from homojl.training.run import Run

    try:
        grid = [float(text) for text in tolerances.split(",")]
    except ValueError:
        raise click.BadParameter(f"{tolerances!r} are not numbers with commas", param_hint="--tolerances") from None
    names = None if algorithms is None else [name.strip().lower() for name in algorithms.split(",")]
    opened = Run.open(run)
    check_algorithms(opened.config, names or (), run)

    from homojl.results.tuning import Trial, draw_tuning, write_tuning
    from homojl.training.tune import tune

    print(f"{'':<28}{'accuracy':>10}{'agreement':>11}{'logits':>10}{'evaluations':>13}{'ms/image':>10}")
    first = True

    def say(trial: Trial) -> None:
        nonlocal first
        label, first = f"{trial.label}{', reference' if first else ''}", False
        if trial.message:
            print(f"{label:<28}  {trial.message}", flush=True)
            return
        failed = f"  {trial.failed} solves failed" if trial.failed else ""
        print(
            f"{label:<28}{100 * trial.accuracy:>8.2f} %{100 * trial.agreement:>9.2f} %{trial.logit_error:>10.1e}"
            f"{trial.evaluations:>13.1f}{1e3 * trial.seconds:>10.3f}{failed}",
            flush=True,
        )

    found = tune(
        opened,
        within=within / 100,
        algorithms=names,
        tolerances=grid,
        batch_size=batch_size,
        limit=limit,
        backend=backend,
        say=say,
    )
    write_tuning(opened.path / "tune.h5", found)
    if find_spec("matplotlib"):
        draw_tuning(found, opened.path / "figures")
    if found.reference.failed:
        print(f"note: {found.reference.failed} solves of the reference did not reach their tolerance")
    choice = found.choice
    if choice is None:
        print(f"homojl: nothing tried comes within {within:g} points of the reference", file=sys.stderr)
        sys.exit(1)
    print(
        f"{choice.label}: {choice.evaluations:.1f} evaluations for {found.configured.evaluations:.1f} as configured, "
        f"within {within:g} points on {found.images:,} validation images"
    )
    print(f"use: homojl train ... {choice.assignments}")
