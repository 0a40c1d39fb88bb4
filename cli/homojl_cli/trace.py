"""homojl trace"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homojl_cli.options import backend_option

if TYPE_CHECKING:
    import torch


@click.command("trace")
@click.argument("run", required=False, type=click.Path(path_type=str))
@click.option("--problem", help="Name of a problem in the gallery. [default: list them]")
@click.option("--homotopy", type=click.Choice(("fixed-point", "newton")), help="[default: the problem's own]")
@click.option("--velocity", help="Speed along the path; several with commas. For RUN: natural or constant.")
@click.option("--start", help="Where to start: one number for all elements, or all of them with commas.")
@click.option("--algorithm", default="arclength", show_default=True, help="arclength or naturalparameter.")
@click.option("--predictor", default="midpoint", show_default=True, help="ODE method that takes the predictor steps.")
@click.option("--samples", type=click.IntRange(1), help="For RUN: test images to follow. [default: 5]")
@click.option("--augmented", is_flag=True, help="For RUN, an ANODE: its appended channels alone.")
@click.option("--max-step", type=float, default=0.05, show_default=True, help="Largest step along the path.")
@click.option("--rtol", type=float, help="Relative tolerance.")
@click.option("--atol", type=float, help="Absolute tolerance.")
@backend_option(default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a figure, PNG and SVG.")
def command(
    run: str | None,
    problem: str | None,
    velocity: str | None,
    samples: int | None,
    augmented: bool,
    rtol: float | None,
    out: Path | None,
    **how: Any,
) -> None:
    """Follow the zero path of a problem in the gallery to its root, or those of a trained model.

    Of a problem it prints, for each velocity, how the path ended, its length in s, its folds, what it cost and how far
    it lies from the first one. Exits with 1 if a path does not reach lambda = 1.

    RUN is a run folder. A DEQ's paths lead to its equilibria; the trajectories of a HomoODE, a Neural ODE or an ANODE
    are read as zero paths: lambda(s) and v(s) of equations (11) and (12), natural (lambda = s) or of constant velocity;
    how far the path bends away from the straight line between its ends, and how far f(z0) lies from the output, both
    relative to norm(z - z0); and what they miss of (12), relative to norm(dz/ds).

    \b
    Examples:
      homojl trace
      homojl trace --problem fold --velocity 1,5,10 --out figures
      homojl trace --problem himmelblau --start 2,-3 --homotopy newton
      homojl trace runs/NAME --samples 3 --out figures
      homojl trace runs/ANODE --augmented
    """
    if run is not None:
        from homojl_cli.trace_run import trace_run

        if problem is not None:
            raise click.UsageError("RUN and --problem are two ways to say what to follow: give one")
        read = "natural" if velocity is None else velocity
        trace_run(run, samples=samples or 5, velocity=read, augmented=augmented, rtol=rtol, out=out)
        return
    if samples is not None or augmented:
        raise click.UsageError("--samples and --augmented are for a RUN")
    from homojl import gallery

    if problem is None:
        listed = click.HelpFormatter()
        listed.write_dl(list(gallery.SUMMARIES.items()))
        print(listed.getvalue(), end="")
        return

    gallery.check(problem)
    _follow(problem, velocity=velocity or "1", rtol=rtol, out=out, **how)


def _follow(
    problem: str,
    *,
    homotopy: str | None,
    velocity: str,
    start: str | None,
    algorithm: str,
    predictor: str,
    max_step: float,
    rtol: float | None,
    atol: float | None,
    backend: str,
    out: Path | None,
) -> None:
    """Print, and draw, the paths of a problem in the gallery; arguments as of the command."""
    from homojl import gallery
    from homojl.algorithms import ode_algorithm, path_algorithm

    options: dict[str, Any] = {"predictor": ode_algorithm(predictor), "max_step": max_step, "rtol": rtol, "atol": atol}
    options["max_steps"] = max(2000, int(200 / max_step)) if max_step > 0 else None
    chosen = {}
    for v in _numbers("velocity", velocity):
        speed = {} if v == 1 else {"velocity": v}  # lambda's own path has none
        chosen[f"v = {v:g}"] = path_algorithm(algorithm, **options, **speed)

    from homojl.results.paths import draw_paths, hausdorff_distance, path_row
    from homojl.results.tables import Table
    from homojl.solving import solve

    example = gallery.get(problem)
    z0 = _start(start, example.z0)
    paths = {
        name: solve(example.problem(z0, kind=homotopy), how, backend=backend, throw=False)
        for name, how in chosen.items()
    }
    first = next(iter(paths.values()))
    print(f"{example.name}: {example.summary}")
    head = ("velocity", "ended", "s", "points", "folds", "nfe", "norm(H)", "apart", "z")
    rows = [
        (
            *path_row(name, path),
            f"{path.residuals[-1]:.1e}",
            f"{hausdorff_distance(first, path):.1e}",
            _short(path.value),
        )
        for name, path in paths.items()
    ]
    print(Table(head, rows, words=2).text(), end="")
    if out is not None:
        kind = example.kind if homotopy is None else homotopy
        for file in draw_paths(paths, out, title=f"{example.name}: {kind} homotopy"):
            print(file)
    failed = [path.message for path in paths.values() if not path.status.ok]
    if failed:
        print(f"homojl: {failed[0]}", file=sys.stderr)
        sys.exit(1)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a number, or several with commas", param_hint=f"--{option}"
        ) from None


def _start(text: str | None, like: torch.Tensor) -> torch.Tensor:
    """The start that was asked for, in the form of the problem's own."""
    import torch

    if text is None:
        return like
    values = _numbers("start", text)
    if len(values) not in (1, like.numel()):
        message = f"got {len(values)} numbers; the problem has {like.numel()} elements"
        raise click.BadParameter(message, param_hint="--start")
    return torch.tensor(values, dtype=like.dtype).expand(like.numel()).reshape(like.shape).clone()


def _short(z: torch.Tensor) -> str:
    """The first elements of a state."""
    values = z.detach().reshape(-1)
    return ", ".join(f"{v:.6g}" for v in values[:4].tolist()) + (", ..." if values.numel() > 4 else "")
