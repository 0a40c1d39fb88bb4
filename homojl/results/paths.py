"""Distances between zero paths, and figures of them and of trajectories read as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homojl.results.plots import bend
from homojl.results.style import DASHES, PALETTE, legend_beside, look, new_figure, write_figures
from homojl.solution import PathSolution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from homojl.models.correspondence import Correspondence

_ELEMENTS = 3  # of a state; of a larger one the distance from the end is drawn


def points_of(path: PathSolution) -> np.ndarray:
    """The points of a path, (T, n + 1) float64: the flat state, then lambda."""
    states = np.stack([z.double().cpu().numpy().reshape(-1) for z in path.states])
    return np.concatenate([states, path.lambdas.numpy()[:, None]], axis=1)


def path_row(name: str, path: PathSolution) -> tuple[str, ...]:
    """A path in a table: its name, how it ended, its length, points, folds and evaluations."""
    numbers = (f"{path.s[-1]:.4g}", f"{len(path.s)}", f"{path.folds}", f"{path.stats.nfe}")
    return (name, path.status.name, *numbers)


def hausdorff_distance(a: PathSolution, b: PathSolution) -> float:
    """The largest distance from a point of either path to the other, each path as the polyline through its points."""
    p, q = points_of(a), points_of(b)
    return max(_farthest(p, q), _farthest(q, p))


def _farthest(points: np.ndarray, line: np.ndarray) -> float:
    starts, chords = line[:-1], np.diff(line, axis=0)
    squares = np.maximum((chords**2).sum(axis=1), np.finfo(float).tiny)
    farthest = 0.0
    for point in points:
        fractions = np.clip(((point - starts) * chords).sum(axis=1) / squares, 0, 1)
        nearest = starts + fractions[:, None] * chords
        farthest = max(farthest, np.linalg.norm(point - nearest, axis=1).min())
    return float(farthest)


def draw_paths(
    paths: Mapping[str, PathSolution], folder: str | Path, *, title: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw zero paths of one problem as `path.png` and so on, as `write_figures`.

    Left the state as lambda deforms it, right lambda along the path.

    Args:
        paths: by name, such as "v = 5".
        title: above both.
    """
    return write_figures({"path": lambda: _figure_of(paths, title)}, folder, formats)


def draw_correspondence(
    read: Correspondence,
    folder: str | Path,
    *,
    title: str,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw trajectories read as zero paths as `correspondence.png` and so on, as `write_figures`.

    Lambda(s), or where that is chosen (lambda = s / S) how far the path is from the straight line between its ends;
    v(s); and the residual of H = 0, or where that is zero by construction how far f(z(s)) is from the output.

    Args:
        read: what `homojl.models.correspondence.recover` found.
        title: above all.
        names: of the samples, for the legend; None: their positions.
    """
    names = [f"sample {i}" for i in range(read.lambdas.shape[1])] if names is None else names
    return write_figures({"correspondence": lambda: _correspondence_figure(read, names, title)}, folder, formats)


def _correspondence_figure(read: Correspondence, names: Sequence[str], title: str) -> Figure:
    with new_figure(title, (14, 4.6)) as figure:
        table, speed, missed = figure.subplots(1, 3)
        s, given = read.s.numpy(), bool((read.residuals.nan_to_num() > 1e-9).any())
        chosen = not given and bool(((read.lambdas - (read.s / read.s[-1])[:, None]).abs() < 1e-9).all())
        for i, name in enumerate(names):
            line, width = look(i, marker=""), _width(i, len(names))
            if chosen:
                table.plot(s, bend(read.states[:, i].flatten(1).numpy()), **line)
            else:
                table.plot(s, read.lambdas[:, i].numpy(), **line, linewidth=width)
            speed.plot(s, read.velocities[:, i].numpy(), label=name, **line, linewidth=width)
            if given:
                missed.plot(s[1:], read.residuals[1:, i].numpy(), **line)
            else:
                off = (read.targets[:, i] - read.states[-1, i]).flatten(1).norm(dim=1)
                missed.plot(s, (off / (read.states[-1, i] - read.states[0, i]).norm()).numpy(), **line)
        table.set_title("how far the path bends" if chosen else "how far the problem is deformed")
        table.set_ylabel("distance from the straight line / ‖z(1) − z0‖" if chosen else "λ(s)")
        speed.set_title("how fast the path is followed")
        speed.set_ylabel("v(s)")
        missed.set_title("residual that no λ removes" if given else "the equilibrium map along the trajectory")
        missed.set_ylabel("‖H‖ / ‖z − z0‖" if given else "‖f(z(s)) − z(1)‖ / ‖z(1) − z0‖")
        for axes in (table, speed, missed):
            axes.set_xlabel("s")
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        legend_beside(figure, speed)
    return figure


def _figure_of(paths: Mapping[str, PathSolution], title: str) -> Figure:
    with new_figure(title, (11, 4.8)) as figure:
        state, along = figure.subplots(1, 2)
        for i, path in enumerate(paths.values()):
            points, color = points_of(path), PALETTE[i % len(PALETTE)]
            lambdas, z = points[:, -1], points[:, :-1]
            if z.shape[1] <= _ELEMENTS:
                for element in range(z.shape[1]):
                    state.plot(lambdas, z[:, element], DASHES[element], color=color, linewidth=_width(i, len(paths)))
            else:
                state.plot(lambdas, bend(z), color=color, marker=".")
        _mark_ends(state, points_of(next(iter(paths.values()))))
        state.set_xlabel("λ")
        state.set_title("the state as λ deforms the problem")
        # Paths of many elements without a fold all look like straight lines: what they deviate from those is shown.
        if all(points_of(path).shape[1] - 1 > _ELEMENTS and not path.folds for path in paths.values()):
            _draw_deviations(along, paths)
        else:
            _draw_lambdas(along, paths)
    return figure


def _draw_lambdas(axes: Axes, paths: Mapping[str, PathSolution]) -> None:
    for i, (name, path) in enumerate(paths.items()):
        s, lambdas, color = path.s.numpy(), points_of(path)[:, -1], PALETTE[i % len(PALETTE)]
        axes.plot(s, lambdas, color=color, label=name, linewidth=min(_width(i, len(paths)), 4))
        axes.plot(s[-1:], lambdas[-1:], "o", color=color)
    axes.set_xlabel("s")
    axes.set_ylabel("λ")
    axes.set_title("λ along the path")
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.legend(loc="lower right")


def _draw_deviations(axes: Axes, paths: Mapping[str, PathSolution]) -> None:
    for i, (name, path) in enumerate(paths.items()):
        s = path.s.numpy() / path.s[-1].item()
        axes.plot(s, points_of(path)[:, -1] - s, color=PALETTE[i % len(PALETTE)], label=name, marker=".")
    axes.set_xlabel("s / S")
    axes.set_ylabel("λ − s / S")
    axes.set_title("λ along the path, of length S")
    axes.legend(loc="best")


def _mark_ends(axes: Axes, points: np.ndarray) -> None:
    """Label the axis of the state, and mark where a small state starts and ends."""
    elements = points.shape[1] - 1
    if elements > _ELEMENTS:
        axes.set_ylabel("distance from the straight line / ‖z(1) − z0‖")
        return
    axes.set_ylabel("elements of z" if elements > 1 else "z")
    for element in range(elements):
        end = points[-1, -1], points[-1, element]
        axes.plot(0, points[0, element], "o", color="black", markerfacecolor="white", zorder=3)
        axes.plot(*end, "o", color="black", zorder=3)
        name = f"z{element + 1}" if elements > 1 else ""
        axes.annotate(name, end, xytext=(8, 0), textcoords="offset points", va="center")


def _width(i: int, count: int) -> float:
    """The i-th line's width: later ones are thinner, so that all of several lines that coincide can be seen."""
    return 2 + min(3, 8 / count) * (count - 1 - i)
