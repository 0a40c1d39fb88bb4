"""homojl evaluate"""

from __future__ import annotations

import sys
from typing import Any

import click

from homojl_cli.options import run_argument, solver_options


@click.command("evaluate")
@run_argument
@click.option("--split", type=click.Choice(["test", "val", "train"]), default="test", show_default=True)
@click.option("--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True)
@solver_options
def command(run: str, split: str, checkpoint: str, **solver: Any) -> None:
    """Evaluate a trained run, as it was configured or with another solver.

    As configured, on the test set and with the best checkpoint, it also renews the run's results.h5, report and,
    where they show other answers, figures; otherwise it only prints.

    \b
    Examples:
      homojl evaluate runs/NAME
      homojl evaluate runs/NAME --algorithm tsit5 --rtol 1e-5 --atol 1e-5
      homojl evaluate runs/NAME --split val --checkpoint last
    """
    from homojl.training.config import with_solver
    from homojl.training.run import Run

    opened = Run.open(run)
    with_solver(opened.config, **solver)  # what it refuses is refused before PyTorch is loaded

    from homojl.training.outcome import evaluate_run, illustrate, store

    loaded = opened.load_model(checkpoint)
    evaluation = evaluate_run(opened, split=split, which=checkpoint, loaded=loaded, **solver)
    s = evaluation.solver
    for name, value in {
        "accuracy": f"{100 * evaluation.accuracy:.2f} % of {len(evaluation.labels)} {split} images",
        "loss": f"{evaluation.loss:.4f} nat",
        "evaluations": f"{evaluation.nfe.mean():.1f} per forward pass of {s['batch_size']} images",
        "solver": f"{s['algorithm']}{_how(s)} on {s['backend']}",
        "checkpoint": evaluation.checkpoint,
        "time": f"{1e3 * evaluation.seconds / len(evaluation.labels):.3f} ms per image",
    }.items():
        print(f"{name:<12} {value}")
    if evaluation.failed:
        print(f"{'solves':<12} {evaluation.failed}")
    sys.stdout.flush()
    if split == "test" and checkpoint == "best" and all(value is None for value in solver.values()):
        illustrate(opened, store(opened, evaluation, loaded=loaded))


def _how(solver: dict[str, Any]) -> str:
    """A method's tolerances, or its steps where it has equal ones."""
    from homojl.algorithms import ODE_ALGORITHMS, AbstractFixedStep

    if "rtol" in solver:
        return f" (rtol {solver['rtol']:g}, atol {solver['atol']:g})"
    method = ODE_ALGORITHMS.get(str(solver["algorithm"]).lower())
    if method is None or not issubclass(method, AbstractFixedStep):
        return ""
    return f" (steps of {solver['step_size']:g})" if "step_size" in solver else " (one step, of 1)"
