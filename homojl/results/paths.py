"""What zero paths show: how far apart two of them lie, and figures of them and of trajectories read as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homojl.results.plots import PALETTE, bend, new_figure, style, write_figures
from homojl.solution import PathSolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from homojl.correspondence import Correspondence

_DASHES = ("-", "--", ":")
_ELEMENTS = len(_DASHES)  # of a state; of a larger one the distance from the end is drawn


def points_of(path: PathSolution) -> np.ndarray:
    """The points of a path, (T, n + 1) float64: the flat state, then lambda."""
    states = np.stack([z.double().cpu().numpy().reshape(-1) for z in path.states])
    return np.concatenate([states, path.lambdas.numpy()[:, None]], axis=1)


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
    """Draw zero paths of one problem, `path.png` and so on: the state as lambda deforms it, and lambda along the path.

    Args:
        paths: by what they are called, such as "v = 5".
        folder: made where it does not exist.
        title: above both.
        formats: "png", "svg", "pdf".

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is missing, or an unknown format.
        DataError: a file cannot be written.
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
    """Draw trajectories read as zero paths, `correspondence.png` and so on.

    Lambda(s), or where that is chosen (lambda = s / S) how far the path is from the straight line between its ends;
    v(s); and the residual of H = 0, or where that is zero by construction how far f(z(s)) is from the output.

    Args:
        read: what `homojl.correspondence.recover` found.
        folder: made where it does not exist.
        title: above all.
        names: of the samples, for the legend; None: their positions.
        formats: "png", "svg", "pdf".

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is missing, or an unknown format.
        DataError: a file cannot be written.
    """
    names = [f"sample {i}" for i in range(read.lambdas.shape[1])] if names is None else names
    return write_figures({"correspondence": lambda: _correspondence_figure(read, names, title)}, folder, formats)


def _correspondence_figure(read: Correspondence, names: Sequence[str], title: str) -> Figure:
    with style():
        figure = new_figure(title)
        figure.set_size_inches(14, 4.6)
        table, speed, missed = figure.subplots(1, 3)
        s, given = read.s.numpy(), bool((read.residuals.nan_to_num() > 1e-9).any())
        chosen = not given and bool(((read.lambdas - (read.s / read.s[-1])[:, None]).abs() < 1e-9).all())
        for i, name in enumerate(names):
            look = {"color": PALETTE[i % len(PALETTE)], "linestyle": _DASHES[i // len(PALETTE) % len(_DASHES)]}
            if chosen:
                table.plot(s, bend(read.states[:, i].flatten(1).numpy()), **look)
            else:
                table.plot(s, read.lambdas[:, i].numpy(), **look, linewidth=_width(i, len(names)))
            speed.plot(s, read.velocities[:, i].numpy(), label=name, **look, linewidth=_width(i, len(names)))
            if given:
                missed.plot(s[1:], read.residuals[1:, i].numpy(), **look)
            else:
                off = (read.targets[:, i] - read.states[-1, i]).flatten(1).norm(dim=1)
                missed.plot(s, (off / (read.states[-1, i] - read.states[0, i]).norm()).numpy(), **look)
        table.set_title("how far the path bends" if chosen else "how far the problem is deformed")
        table.set_ylabel("distance from the straight line / ‖z(1) − z0‖" if chosen else "λ(s)")
        speed.set_title("how fast the path is followed")
        speed.set_ylabel("v(s)")
        missed.set_title("what of the way no λ explains" if given else "the equilibrium map on the way")
        missed.set_ylabel("‖H‖ / ‖z − z0‖" if given else "‖f(z(s)) − z(1)‖ / ‖z(1) − z0‖")
        for axes in (table, speed, missed):
            axes.set_xlabel("s")
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        figure.legend(*speed.get_legend_handles_labels(), loc="outside right center")
        return figure


def _figure_of(paths: Mapping[str, PathSolution], title: str) -> Figure:
    with style():
        figure = new_figure(title)
        figure.set_size_inches(11, 4.8)
        state, along = figure.subplots(1, 2)
        # Paths of many elements without a fold all look like straight lines: what they deviate from those is shown.
        straight = all(points_of(path).shape[1] - 1 > _ELEMENTS and not path.folds for path in paths.values())
        for i, (name, path) in enumerate(paths.items()):
            points, color = points_of(path), PALETTE[i % len(PALETTE)]
            lambdas, z = points[:, -1], points[:, :-1]
            width = _width(i, len(paths))
            if z.shape[1] <= _ELEMENTS:
                for element in range(z.shape[1]):
                    state.plot(lambdas, z[:, element], _DASHES[element], color=color, linewidth=width)
            else:
                state.plot(lambdas, bend(z), color=color, marker=".")
            s = path.s.numpy()
            if straight:
                along.plot(s / s[-1], lambdas - s / s[-1], color=color, label=name, marker=".")
            else:
                along.plot(s, lambdas, color=color, label=name, linewidth=min(width, 4))
                along.plot(s[-1:], lambdas[-1:], "o", color=color)
        first = points_of(next(iter(paths.values())))
        if first.shape[1] - 1 <= _ELEMENTS:
            for element in range(first.shape[1] - 1):
                state.plot(0, first[0, element], "o", color="black", markerfacecolor="white", zorder=3)
                state.plot(first[-1, -1], first[-1, element], "o", color="black", zorder=3)
                state.annotate(
                    f"z{element + 1}" if first.shape[1] > 2 else "",
                    (first[-1, -1], first[-1, element]),
                    xytext=(8, 0),
                    textcoords="offset points",
                    va="center",
                )
            state.set_ylabel("elements of z" if first.shape[1] > 2 else "z")
        else:
            state.set_ylabel("distance from the straight line / ‖z(1) − z0‖")
        state.set_xlabel("λ")
        state.set_title("the state as λ deforms the problem")
        along.set_xlabel("s / S" if straight else "s")
        along.set_ylabel("λ − s / S" if straight else "λ")
        along.set_title("λ along the path, of length S" if straight else "λ along the path")
        if not straight:
            along.axhline(1, color="black", linewidth=1, linestyle=":")
        along.legend(loc="best" if straight else "lower right")
        return figure


def _width(i: int, count: int) -> float:
    """Of the i-th of several lines: those that coincide are all seen, the later ones thinner and on top."""
    return 2 + min(3, 8 / count) * (count - 1 - i)
