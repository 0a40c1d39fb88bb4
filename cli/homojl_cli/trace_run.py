"""homojl trace RUN: what zero paths a trained model follows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from homojl.models.base import AbstractImplicitModel


def trace_run(run: str, *, samples: int, velocity: str, augmented: bool, rtol: float | None, out: Path | None) -> None:
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
