"""homojl trace"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homojl_cli.options import backend_option

if TYPE_CHECKING:
    import torch

    from homojl.models.base import AbstractImplicitModel


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
        if problem is not None:
            raise click.UsageError("RUN and --problem are two ways to say what to follow: give one")
        read = "natural" if velocity is None else velocity
        _trace_run(run, samples=samples or 5, velocity=read, augmented=augmented, rtol=rtol, out=out)
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


# ---- the paths of a trained model


def _trace_run(run: str, *, samples: int, velocity: str, augmented: bool, rtol: float | None, out: Path | None) -> None:
    """Print, and draw, the zero paths of a run's model for the first images of its test set."""
    from homojl.training.run import Run

    opened = Run.open(run)

    from homojl.training.evaluation import prepare
    from homojl.training.experiment import load_data

    model, form, _ = opened.load_model()
    data = load_data(opened.config)
    image = prepare(data.x_test[:samples], form, model)
    names = [f"image {i}: {form.class_names[label]}" for i, label in enumerate(data.y_test[:samples].tolist())]
    title = f"{opened.config.model.name} on {Path(opened.config.data.dataset).stem}"
    if model.states_ode():
        _read_trajectories(model, image, names, title, velocity=velocity, augmented=augmented, out=out)
    else:
        _follow_paths(model, image, names, title, rtol=rtol, out=out)


def _read_trajectories(
    model: AbstractImplicitModel,
    image: torch.Tensor,
    names: list[str],
    title: str,
    *,
    velocity: str,
    augmented: bool,
    out: Path | None,
) -> None:
    """The trajectories of a model that states an ODE, read as zero paths (equations (11) and (12))."""
    import torch

    from homojl.models.correspondence import recover_from_model
    from homojl.results.paths import draw_correspondence
    from homojl.results.plots import bend
    from homojl.results.tables import Table

    read = recover_from_model(model, image, velocity=velocity, augmented=augmented)
    what = "its appended channels" if augmented else "its state"
    print(f"{title}: {what} from s = 0 to 1 read as a zero path, {velocity} velocity")
    moved = (read.states[-1] - read.states[0]).flatten(1).norm(dim=1)
    off = (read.targets[0] - read.states[-1]).flatten(1).norm(dim=1) / moved
    columns = {"v(0)": read.velocities[0], "v(1)": read.velocities[-1]}
    if velocity == "constant":  # otherwise lambda is s
        columns["lambda(1/2)"] = read.lambdas[len(read.s) // 2]
    columns |= {
        "norm(z-z0)": moved,
        "bend": torch.tensor([bend(path.numpy()).max() for path in read.states.flatten(2).unbind(1)]),
        "f(z0) off": off,
        "(12)": read.tangent_residuals[1:].amax(dim=0),
    }
    rows = [(name, *(f"{column[i]:.4g}" for column in columns.values())) for i, name in enumerate(names)]
    print(Table(("sample", *columns), rows).text(), end="")
    if out is not None:
        for file in draw_correspondence(read, out, title=f"{title}: {what} read as a zero path", names=names):
            print(file)
    if not read.fits.all():
        missing = int((~read.fits).sum())
        print(
            f"homojl: no constant velocity fits {missing} of {len(names)} samples, whose speed varies too much; "
            "--velocity natural fits all",
            file=sys.stderr,
        )
        sys.exit(1)


def _follow_paths(
    model: AbstractImplicitModel,
    image: torch.Tensor,
    names: list[str],
    title: str,
    *,
    rtol: float | None,
    out: Path | None,
) -> None:
    """The zero paths to the equilibria of a model that states a fixed point, each image's own."""
    import torch

    from homojl.algorithms import ArcLength
    from homojl.problems import FixedPointProblem, HomotopyProblem
    from homojl.results.paths import draw_paths, path_row
    from homojl.results.tables import Table
    from homojl.solving import solve

    algorithm = ArcLength(rtol=1e-4 if rtol is None else rtol, atol=1e-6)
    paths = {}
    print(f"{title}: the zero path of z - f(z) from the model's own start")
    for i, name in enumerate(names):
        with torch.no_grad():
            problem = model.problem(model.encode(image[i : i + 1]))
        assert isinstance(problem, FixedPointProblem), model
        f, args = problem.f, problem.args

        def residual(z: torch.Tensor, f: Callable[..., torch.Tensor] = f, args: tuple[Any, ...] = args) -> torch.Tensor:
            return z - f(z, *args)

        with torch.no_grad():
            paths[name] = solve(HomotopyProblem(residual, problem.z0), algorithm, backend="pytorch", throw=False)
    head = ("sample", "ended", "s", "points", "folds", "nfe", "jvp", "norm(H)")
    rows = [(*path_row(name, p), f"{p.stats.n_jvp}", f"{p.residuals[-1]:.1e}") for name, p in paths.items()]
    print(Table(head, rows, words=2).text(), end="")
    if out is not None:
        for file in draw_paths(paths, out, title=f"{title}: zero paths to the equilibria"):
            print(file)
    failed = [path.message for path in paths.values() if not path.status.ok]
    if failed:
        print(f"homojl: {failed[0]}", file=sys.stderr)
        sys.exit(1)
