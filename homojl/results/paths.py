"""What zero paths show: how far apart two of them lie, and figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homojl.results.plots import PALETTE, new_figure, style, write_figures
from homojl.solution import PathSolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def _figure_of(paths: Mapping[str, PathSolution], title: str) -> Figure:
    with style():
        figure = new_figure(title)
        figure.set_size_inches(11, 4.8)
        state, along = figure.subplots(1, 2)
        for i, (name, path) in enumerate(paths.items()):
            points, color = points_of(path), PALETTE[i % len(PALETTE)]
            lambdas, z = points[:, -1], points[:, :-1]
            # Paths that coincide are all seen: the later ones are thinner and lie on top.
            width = 2 + 3 * (len(paths) - 1 - i)
            if z.shape[1] <= _ELEMENTS:
                for element in range(z.shape[1]):
                    state.plot(lambdas, z[:, element], _DASHES[element], color=color, linewidth=width)
            else:
                state.plot(lambdas, np.linalg.norm(z - z[-1], axis=1), color=color, linewidth=width)
            along.plot(path.s.numpy(), lambdas, color=color, label=name)
            along.plot(path.s[-1:].numpy(), lambdas[-1:], "o", color=color)
        first = points_of(next(iter(paths.values())))
        if first.shape[1] - 1 <= _ELEMENTS:
            for element in range(first.shape[1] - 1):
                state.plot(0, first[0, element], "o", color="black", markerfacecolor="white", zorder=3)
                state.plot(first[-1, -1], first[-1, element], "o", color="black", zorder=3)
                state.annotate(
                    f"z{element + 1}",
                    (first[-1, -1], first[-1, element]),
                    xytext=(8, 0),
                    textcoords="offset points",
                    va="center",
                )
            state.set_ylabel("elements of z")
        else:
            state.set_ylabel("distance of z from the end")
        state.set_xlabel("lambda")
        state.set_title("the state as lambda deforms the problem")
        along.set_xlabel("s")
        along.set_ylabel("lambda")
        along.set_title("lambda along the path")
        along.axhline(1, color="black", linewidth=1, linestyle=":")
        along.legend(loc="lower right")
        return figure
