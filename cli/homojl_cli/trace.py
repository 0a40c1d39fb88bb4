"""homojl trace"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from homojl_cli.options import BACKENDS


@click.command("trace")
@click.option("--problem", help="Name of a problem in the gallery. [default: list them]")
@click.option("--homotopy", type=click.Choice(("fixed-point", "newton")), help="[default: the problem's own]")
@click.option("--velocity", default="1", show_default=True, help="Speed along the path; several with commas.")
@click.option("--start", help="Where to start: one number for all elements, or all of them with commas.")
@click.option("--algorithm", default="arclength", show_default=True, help="arclength or naturalparameter.")
@click.option("--predictor", default="midpoint", show_default=True, help="ODE method that takes the predictor steps.")
@click.option("--max-step", type=float, default=0.05, show_default=True, help="Largest step along the path.")
@click.option("--rtol", type=float, help="Relative tolerance.")
@click.option("--atol", type=float, help="Absolute tolerance.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Where to solve.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a figure, PNG and SVG.")
def command(
    problem: str | None,
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
    """Follow the zero path of a problem in the gallery to its root.

    Prints, for each velocity, how the path ended, its length in s, its folds, what it cost and how far it lies from the
    first one. Exits with 1 if a path does not reach lambda = 1.

    \b
    Examples:
      homojl trace
      homojl trace --problem fold --velocity 1,5,10 --out figures
      homojl trace --problem himmelblau --start 2,-3 --homotopy newton
    """
    from homojl import gallery

    if problem is None:
        for name in gallery.names():
            print(f"{name:<18} {gallery.get(name).summary}")
        return

    from homojl.algorithms import ode_algorithm, path_algorithm
    from homojl.results.paths import draw_paths, hausdorff_distance
    from homojl.solving import solve

    example = gallery.get(problem)
    z0 = _start(start, example.z0)
    options = {"predictor": ode_algorithm(predictor), "max_step": max_step, "rtol": rtol, "atol": atol}
    options["max_steps"] = max(2000, int(200 / max_step)) if max_step > 0 else None
    paths = {}
    for v in _numbers("velocity", velocity):
        speed = {} if v == 1 else {"velocity": v}  # lambda's own path has none
        chosen = path_algorithm(algorithm, **options, **speed)
        paths[f"v = {v:g}"] = solve(example.problem(z0, kind=homotopy), chosen, backend=backend, throw=False)
    first = next(iter(paths.values()))
    print(f"{example.name}: {example.summary}")
    print(f"{'velocity':<10}{'ended':<16}{'s':>9}{'points':>8}{'folds':>7}{'nfe':>7}{'norm(H)':>10}{'apart':>10}  z")
    for name, path in paths.items():
        print(
            f"{name:<10}{path.status.name:<16}{path.s[-1]:>9.4g}{len(path.s):>8}{path.folds:>7}{path.stats.nfe:>7}"
            f"{path.residuals[-1]:>10.1e}{hausdorff_distance(first, path):>10.1e}  {_short(path.value)}"
        )
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


def _start(text: str | None, like):
    """The start that was asked for, in the form of the problem's own."""
    import torch

    if text is None:
        return like
    values = _numbers("start", text)
    if len(values) not in (1, like.numel()):
        message = f"got {len(values)} numbers; the problem has {like.numel()} elements"
        raise click.BadParameter(message, param_hint="--start")
    return torch.tensor(values, dtype=like.dtype).expand(like.numel()).reshape(like.shape).clone()


def _short(z) -> str:
    """The first elements of a state."""
    values = z.detach().reshape(-1)
    return ", ".join(f"{v:.6g}" for v in values[:4].tolist()) + (", ..." if values.numel() > 4 else "")
