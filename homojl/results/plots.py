"""Figures of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homojl.errors import ConfigError
from homojl.results.answers import confusion_counts, most_confused
from homojl.results.hdf5 import run_names
from homojl.results.records import METRICS, RunRecord, Trajectories
from homojl.results.style import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    log_axis,
    look,
    new_figure,
    percent_axis,
    write_figures,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Draw = Callable[[RunRecord, Figure], None]
    Drawn = Callable[[RunRecord], Figure]

CROSS_ENTROPY = "cross_entropy"
"""The loss of a run that names no other."""


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Attributes:
        title: what it shows, in a few words.
        caption: how to read it.
        has: whether a record holds what it needs.
        draw: draws it.
    """

    title: str
    caption: str
    has: Callable[[RunRecord], bool]
    draw: Callable[[RunRecord], Figure]


FIGURES: dict[str, FigureKind] = {}
"""Every kind of figure by the stem of its file."""


def draw_all(
    record: RunRecord,
    folder: str | Path,
    formats: Sequence[str] = ("png",),
    *,
    stems: Collection[str] | None = None,
) -> list[Path]:
    """Draw every figure that the record has the data for, as `write_figures`.

    Args:
        stems: of `FIGURES`, where not all are wanted.
    """
    wanted = FIGURES if stems is None else stems
    drawable = {stem: kind for stem, kind in FIGURES.items() if stem in wanted and kind.has(record)}
    return write_figures(
        {stem: functools.partial(kind.draw, record) for stem, kind in drawable.items()}, folder, formats
    )


def _figure(
    title: str, caption: str, has: Callable[[RunRecord], bool], size: tuple[float, float] = (10, 4.4)
) -> Callable[[Draw], Drawn]:
    """Register a drawing function in `FIGURES` under its name; it draws in the common style."""

    def register(draw: Draw) -> Drawn:
        @functools.wraps(draw)
        def drawn(record: RunRecord) -> Figure:
            if not has(record):
                raise ConfigError(f"this run has no data for the figure {draw.__name__!r}")
            with new_figure(f"{title}: {' on '.join(run_names(record))}", size) as made:
                draw(record, made)
            return made

        FIGURES[draw.__name__] = FigureKind(title, caption, has, drawn)
        return drawn

    return register


def _label(text: str, metric: str) -> str:
    """An axis label with the metric's unit."""
    unit = METRICS[metric].unit
    return text if unit == "1" else f"{text} [{unit}]"


def _curves(axes: Axes, record: RunRecord, curves: dict[str, tuple[str, str, str]]) -> None:
    """Metrics over the epochs: name -> (legend, colour, marker); one without a finite number is left out."""
    from matplotlib.ticker import MaxNLocator

    epochs = np.array([row["epoch"] for row in record.metrics], dtype=float)
    marked = max(1, len(epochs) // 15)
    for name, (legend, colour, marker) in curves.items():
        values = np.array([row.get(name, np.nan) for row in record.metrics], dtype=float)
        values[~np.isfinite(values)] = np.nan
        if not np.isnan(values).all():
            axes.plot(epochs, values, color=colour, marker=marker, markevery=marked, label=legend)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
        axes.set_xticks(epochs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.margins(y=0.1)


def _legend(axes: Axes, **options: str) -> None:
    if axes.get_legend_handles_labels()[0]:  # else matplotlib warns
        axes.legend(**options)


def _has_epochs(record: RunRecord) -> bool:
    return bool(record.metrics)


# ---- the figures


@_figure(
    "Learning curves",
    "Loss and accuracy after each epoch, on the images trained on and on the validation split; accuracies lower than "
    "any in the second half of training are below the frame, so that the end can be read. "
    "Training numbers are averages over the epoch, with dropout and augmentation where they are used.",
    _has_epochs,
)
def learning_curves(record: RunRecord, figure: Figure) -> None:
    """Loss and accuracy on the training images and the validation split, epoch by epoch."""
    loss, accuracy = figure.subplots(1, 2)
    split = {"train": ("training", BLUE, "o"), "val": ("validation", VERMILLION, "s")}
    _curves(loss, record, {f"{name}_loss": style for name, style in split.items()})
    if loss.dataLim.y0 > 0:  # a loss of one's own may be negative
        loss.set_yscale("log")
        log_axis(loss.yaxis)
    own = record.config.get("train", {}).get("loss", CROSS_ENTROPY)
    loss.set_ylabel(_label("mean cross-entropy", "train_loss") if own == CROSS_ENTROPY else own)
    kind = next((kind for kind in ("accuracy", "metric") if _measured(record, f"train_{kind}")), None)
    if kind is None:
        accuracy.remove()
    elif kind == "metric":
        _curves(accuracy, record, {f"{name}_metric": style for name, style in split.items()})
        accuracy.set_ylabel(record.config.get("train", {}).get("metric", "metric"))
    else:
        _accuracy(accuracy, record, split)
    for axes in figure.axes:
        _legend(axes)


def _measured(record: RunRecord, name: str) -> bool:
    return any(math.isfinite(row.get(name, math.nan)) for row in record.metrics)


def _accuracy(accuracy: Axes, record: RunRecord, split: Mapping[str, tuple[str, str, str]]) -> None:
    """Accuracy after each epoch, and on the test set; from the lowest in the second half of training on."""
    _curves(accuracy, record, {f"{name}_accuracy": style for name, style in split.items()})
    if (answers := record.evaluation) is not None:
        text = f"{answers.split} ({answers.checkpoint})"
        accuracy.axhline(answers.accuracy, color=GREEN, linestyle="--", linewidth=1.5, label=text)
    late = [row.get(f"{name}_accuracy", np.nan) for row in record.metrics[len(record.metrics) // 2 :] for name in split]
    if len(record.metrics) > 3 and np.isfinite(late).any():
        bottom, top = np.nanmin(late), accuracy.dataLim.y1
        span = max(top - bottom, 0.002)
        accuracy.set_ylim(bottom - 0.1 * span, min(top + 0.1 * span, 1.0 + 0.02 * span))
    accuracy.set_ylabel("accuracy [%]")
    percent_axis(accuracy.yaxis)


@_figure(
    "Solver cost",
    "How often a pass evaluates the field, and in how many steps; a pass solves one batch of images at once.",
    _has_epochs,
)
def solver_cost(record: RunRecord, figure: Figure) -> None:
    """Evaluations of the field per pass and steps per training forward pass, epoch by epoch."""
    work, steps = figure.subplots(1, 2)
    _curves(
        work,
        record,
        {
            "nfe_forward": ("training, forward", BLUE, "o"),
            "nfe_backward": ("training, backward (vector-Jacobian)", PURPLE, "^"),
            "nfe_val": ("validation, forward", VERMILLION, "s"),
        },
    )
    work.set_ylabel(_label("mean per pass", "nfe_forward"))
    _curves(
        steps,
        record,
        {"accepted_steps": ("accepted", BLUE, "o"), "rejected_steps": ("rejected", VERMILLION, "X")},
    )
    steps.set_ylabel(_label("mean per training forward pass", "accepted_steps"))
    if failed := sum(row.get("failed_solves") or 0 for row in record.metrics):
        steps.set_title(f"{failed:,.0f} training solves did not reach their end", color=VERMILLION)
    for axes in (work, steps):
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend above the curves
        _legend(axes, loc="upper left")


@_figure(
    "Confusion matrix",
    "How many images of each true class (rows) were taken for each class (columns); on the diagonal they were "
    "recognised. The colour is the share of the true class.",
    lambda record: record.evaluation is not None and len(record.evaluation.labels) > 0,
)
def confusion_matrix(record: RunRecord, figure: Figure) -> None:
    """The confusion matrix; above 20 classes without numbers, but with a list of the most frequent mistakes."""
    from matplotlib.colors import PowerNorm

    assert record.evaluation is not None
    counts = confusion_counts(record.evaluation, len(record.class_names))
    totals = counts.sum(axis=1, keepdims=True)
    share = 100 * np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    few = len(counts) <= 20
    figure.set_size_inches((8.4, 7.2) if few else (15, 7.4))
    if few:
        matrix = figure.subplots()
    else:
        matrix, mistakes = figure.subplots(1, 2, width_ratios=(2.6, 1))
    image = matrix.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    matrix.grid(False)
    matrix.set_xlabel("predicted class")
    matrix.set_ylabel("true class")
    bar = figure.colorbar(image, ax=matrix, label="share of the true class [%]", shrink=0.8)
    bar.set_ticks([0, 1, 5, 20, 50, 100])
    if few:
        size = 11 if len(counts) <= 12 else 8
        matrix.set_yticks(range(len(counts)), record.class_names)
        matrix.set_xticks(range(len(counts)), record.class_names)
        if max(map(len, record.class_names)) > 3:
            matrix.tick_params(axis="x", rotation=45)
            for label in matrix.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        for (i, j), count in np.ndenumerate(counts):
            if count > 0:
                colour = "white" if share[i, j] > 35 else "black"
                matrix.text(j, i, f"{count}", ha="center", va="center", size=size, color=colour)
        return
    pairs = most_confused(counts, 15)[::-1]
    names = [f"{record.class_names[i]} → {record.class_names[j]}" for i, j, _ in pairs]
    mistakes.barh(range(len(pairs)), [count for _, _, count in pairs], color=VERMILLION)
    mistakes.set_yticks(range(len(pairs)), names)
    mistakes.xaxis.get_major_locator().set_params(integer=True)
    mistakes.set_xlabel("images")
    mistakes.set_title("most frequent mistakes")
    mistakes.grid(False, axis="y")


@_figure(
    "Trajectories",
    "The states of chosen images from s = 0 to s = 1. Left, how far each path is from the straight line between its "
    "ends, as a share of that line; right, the paths in the plane of their two main directions (PCA), from the ring to "
    "the dot. Each true class has its colour.",
    lambda record: record.trajectories is not None and bool(_finite(_flat_states(record.trajectories)).any()),
)
def trajectories(record: RunRecord, figure: Figure) -> None:
    """How far the paths bend over s, and the paths in the plane of their first two principal components."""
    paths = record.trajectories
    assert paths is not None
    z = _flat_states(paths)
    classes = sorted(set(paths.labels.tolist()))
    images = record.images if record.images is not None and len(record.images) == len(z) else None
    figure.set_size_inches(12, 5 if images is None else 6.6)
    top: Figure | SubFigure = figure
    if images is not None:
        parts = figure.subfigures(2, 1, height_ratios=(4, 1.25))
        assert isinstance(parts, np.ndarray)
        top, bottom = parts
        _show_images(bottom, images, paths.labels.tolist(), classes, record.class_names)
    bent, plane = top.subplots(1, 2)
    plane_paths, explained = _principal_plane(z)
    for label, path, projected in zip(paths.labels.tolist(), z, plane_paths, strict=True):
        line = look(classes.index(label), marker="", linewidth=1.8, alpha=0.9)
        bent.plot(paths.s, bend(path), **line)
        plane.plot(*projected.T, **line)
        plane.plot(*projected[0], marker="o", color="black", fillstyle="none", markersize=9)
        plane.plot(*projected[-1], marker="o", color=line["color"], markersize=7)
    for place, label in enumerate(classes[:14]):
        plane.plot([], [], **look(place, marker=""), label=record.class_names[label])
    if len(classes) > 14:
        plane.plot([], [], " ", label=f"and {len(classes) - 14} more")
    plane.legend(title="true class", loc="center left", bbox_to_anchor=(1.01, 0.5))
    plane.set_aspect("equal", adjustable="datalim")
    bent.set_xlabel("s")
    bent.set_ylabel("distance from the straight line / ‖z(1) − z(0)‖")
    bent.set_ylim(bottom=0)
    plane.set_xlabel(f"principal component 1 ({100 * explained[0]:.0f} % of the variance)")
    plane.set_ylabel(f"principal component 2 ({100 * explained[1]:.0f} %)")


def _show_images(
    figure: SubFigure, images: np.ndarray, labels: list[int], classes: list[int], class_names: tuple[str, ...]
) -> None:
    """The first images, each in a frame of its class's colour and dash."""
    row = figure.subplots(1, min(len(images), 12), squeeze=False)[0]
    for axes, image, label in zip(row, images, labels, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.set_title(class_names[label], size=10)
        frame = look(classes.index(label), visible=True, linewidth=3)
        del frame["marker"]
        for spine in axes.spines.values():
            spine.set(**frame)


def bend(path: np.ndarray) -> np.ndarray:
    """How far the points of a path (T, D) are from the straight line through its ends, (T,), over the ends' distance.

    Zero everywhere for a path whose ends are the same point; NaN where the path is not finite.
    """
    finite = _finite(path)
    bent = np.where(finite, 0.0, np.nan)
    if finite.any():
        moved = path[finite] - path[finite][0]
        way, length = moved[-1], np.linalg.norm(moved[-1])
        if length > 0:
            along = moved @ way / length**2
            bent[finite] = np.linalg.norm(moved - along[:, None] * way, axis=1) / length
    return bent


def _flat_states(paths: Trajectories) -> np.ndarray:
    """The states as vectors, (n, T, D), float64."""
    z = paths.z
    return z.reshape(*z.shape[:2], math.prod(z.shape[2:])).astype(np.float64)


def _finite(z: np.ndarray) -> np.ndarray:
    """Which states have no NaN or infinity in them."""
    return np.isfinite(z).all(axis=-1)


def _principal_plane(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paths (n, T, D) in their principal plane, (n, T, 2), and the share of the variance in its two axes."""
    points = z.reshape(-1, z.shape[-1])
    finite = _finite(points)
    plane, explained = np.full((len(points), 2), np.nan), np.zeros(2)
    centred = points[finite] - points[finite].mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    rank = min(2, len(scale))
    plane[finite] = 0
    plane[finite, :rank] = left[:, :rank] * scale[:rank]
    if scale.any():
        explained[:rank] = scale[:rank] ** 2 / np.sum(scale**2)
    peak = np.nanargmax(np.abs(plane), axis=0)  # the decomposition leaves the signs open
    plane *= np.where(plane[peak, [0, 1]] < 0, -1, 1)
    return plane.reshape(*z.shape[:2], 2), explained


@_figure(
    "Initial point",
    "The state that every solve starts from: one number per channel, the same for all pixels and all images.",
    lambda record: record.initial_point is not None and len(record.initial_point) > 1,
    (10, 4),
)
def initial_point(record: RunRecord, figure: Figure) -> None:
    """The shared start, channel by channel."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    values = np.asarray(record.initial_point, dtype=float)
    axes.bar(range(len(values)), values, width=0.8, color=BLUE)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.8, len(values) - 0.2)
    axes.set_xlabel("channel")
    axes.set_ylabel("initial point z(0)")
    axes.set_title(f"Euclidean norm {np.linalg.norm(values):.3g}", loc="right", color="#555555")
