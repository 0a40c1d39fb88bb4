"""Figures of a comparison, in colours, dashes and markers that tell its rows apart with any colour vision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homojl.comparison.record import Comparison, Row, RunResult, training_seconds
from homojl.results.style import legend_beside, log_axis, look, new_figure, percent_axis, write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS: dict[str, tuple[str, str]] = {
    "learning_curves": (
        "Learning curves",
        "Training and validation loss and validation accuracy, one line for each run; seeds of a row look the same.",
    ),
    "evaluations": (
        "Evaluations over training",
        "What a training forward pass evaluates, and the vector-Jacobian products of a backward pass.",
    ),
    "accuracy_and_cost": (
        "Accuracy and cost of inference",
        "Each run on the test set: its accuracy against the evaluations of a forward pass and the time per image.",
    ),
    "variation": (
        "Along the variation",
        "Test accuracy and evaluations on the test set against the setting that varies; a dot for each run, lines "
        "through the means.",
    ),
    "measurements": (
        "Trained models with other settings",
        "Time per image, evaluations and memory of the same trained models; a dot for each run, lines through the "
        "means.",
    ),
}
"""Title and caption by the stem of the file."""


def draw_comparison(comparison: Comparison, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw every figure that the comparison has the data for, as `write_figures`."""
    if comparison.first is None:
        return []
    drawers = {"learning_curves": _learning_curves, "evaluations": _evaluations, "accuracy_and_cost": _cost}
    if comparison.plan.experiment.x is not None:
        drawers["variation"] = _variation
    if any(run.measurements for run in comparison.runs):
        drawers["measurements"] = _measurements
    return write_figures(
        {stem: functools.partial(_drawn, stem, draw, comparison) for stem, draw in drawers.items()}, folder, formats
    )


def _drawn(stem: str, draw: Callable[[Comparison, Figure], None], comparison: Comparison) -> Figure:
    plan = comparison.plan
    title = f"{CAPTIONS[stem][0]}: {plan.experiment.title} on {Path(plan.dataset).stem}"
    with new_figure(title, (12, 5)) as figure:
        draw(comparison, figure)
    return figure


def _finished(comparison: Comparison) -> list[tuple[int, Row]]:
    return [(place, row) for place, row in enumerate(comparison.rows) if row.finished]


def _curves(comparison: Comparison, figure: Figure, panels: dict[str, str]) -> list[Axes]:
    """Metrics of all runs over training time, or over epochs where these are the budget."""
    from matplotlib.ticker import MaxNLocator

    timed = comparison.plan.runs[0].config.train.seconds is not None
    all_axes = list(figure.subplots(1, len(panels)))
    for axes, (metric, label) in zip(all_axes, panels.items(), strict=True):
        for place, row in _finished(comparison):
            for number, run in enumerate(row.finished):
                x = np.array(training_seconds(run) if timed else [m["epoch"] for m in run.known.metrics], dtype=float)
                y = np.array([m[metric] for m in run.known.metrics], dtype=float)
                x, y = x[np.isfinite(y)], y[np.isfinite(y)]  # a time budget does not validate at every line
                name = row.label if number == 0 else None
                axes.plot(x, y, **look(place), markevery=max(1, len(x) // 6), linewidth=1.6, markersize=5, label=name)
        axes.set_xlabel("training time [s]" if timed else "epoch")
        axes.set_ylabel(label)
        axes.margins(y=0.08)
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
        if not timed:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    legend_beside(figure, all_axes[0])
    return all_axes


def _learning_curves(comparison: Comparison, figure: Figure) -> None:
    panels = {
        "train_loss": "training cross-entropy [nat]",
        "val_loss": "validation cross-entropy [nat]",
        "val_accuracy": "validation accuracy [%]",
    }
    *losses, accuracy = _curves(comparison, figure, panels)
    for loss in losses:
        loss.set_ylim(0, 1.08 * loss.dataLim.y1)
    percent_axis(accuracy.yaxis)


def _evaluations(comparison: Comparison, figure: Figure) -> None:
    panels = {"nfe_forward": "evaluations per forward pass", "nfe_backward": "products per backward pass"}
    for axes in _curves(comparison, figure, panels):
        axes.set_ylim(0, 1.08 * (axes.dataLim.y1 or 1.0))  # a network without a layer evaluates nothing


def _cost(comparison: Comparison, figure: Figure) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, quantity, factor, label in (
        (panels[0], "test_nfe", 1.0, "evaluations per forward pass"),
        (panels[1], "inference_seconds", 1e3, "time per image [ms]"),
    ):
        for place, row in _finished(comparison):
            x = [factor * value for value in row.values(quantity)]
            axes.plot(x, row.values("test_accuracy"), **look(place, linestyle="none"), markersize=9, label=row.label)
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
    panels[0].set_ylabel("test accuracy [%]")
    percent_axis(panels[0].yaxis)
    legend_beside(figure, panels[0])


def _variation(comparison: Comparison, figure: Figure) -> None:
    x = comparison.plan.experiment.x
    assert x is not None, comparison.plan

    def setting(run: RunResult) -> float:
        return float(run.planned.config.value(x))

    accuracy, work = figure.subplots(1, 2)
    models = list(dict.fromkeys(row.model for row in comparison.rows))
    for place, model in enumerate(models):
        runs = [run for row in comparison.rows if row.model == model for run in row.finished]
        points = [(setting(r), r.answers.accuracy, float(r.answers.nfe.mean())) for r in runs]
        for axes, column in ((accuracy, 1), (work, 2)):
            _through_means(axes, [(point[0], point[column]) for point in points], place, model)
    for axes, label in ((accuracy, "test accuracy [%]"), (work, "evaluations per forward pass on the test set")):
        axes.set_xlabel(x)
        axes.set_ylabel(label)
        values = sorted({setting(run) for run in comparison.runs})
        if values[0] > 0 and values[-1] > 10 * values[0]:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(values, [f"{value:g}" for value in values])
    percent_axis(accuracy.yaxis)
    work.set_ylim(bottom=0)
    legend_beside(figure, accuracy)


def _measurements(comparison: Comparison, figure: Figure) -> None:
    time, work, memory = figure.subplots(1, 3)
    names = list(dict.fromkeys(m["name"] for run in comparison.runs for m in run.measurements))
    sizes = sorted({m["batch_size"] for run in comparison.runs for m in run.measurements})
    sized = all(set(settings) == {"train"} for settings in comparison.plan.experiment.measurements.values())
    for place, row in _finished(comparison):
        found = [m for run in row.finished for m in run.measurements]
        x = [m["batch_size"] if sized else names.index(m["name"]) for m in found]
        _through_means(
            time, list(zip(x, [1e3 * m["seconds"] / m["images"] for m in found], strict=True)), place, row.label
        )
        _through_means(work, list(zip(x, [m["nfe"] for m in found], strict=True)), place, row.label)
        _through_means(memory, list(zip(x, [m["memory"] for m in found], strict=True)), place, row.label)
    panels = ((time, "time per image [ms]"), (work, "evaluations per forward pass"), (memory, "memory [MiB]"))
    for axes, label in panels:
        axes.set_ylabel(label)
        if sized:
            axes.set_xlabel("images at a time")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
        else:
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    time.set_yscale("log")
    log_axis(time.yaxis)
    work.set_ylim(bottom=0)
    legend_beside(figure, time)


def _through_means(axes: Axes, points: list[tuple[float, float]], place: int, label: str) -> None:
    """A dot for each point, and a line through the mean at each x."""
    if not points:
        return
    x = np.array([point[0] for point in points], dtype=float)
    y = np.array([point[1] for point in points], dtype=float)
    at = np.unique(x)
    axes.plot(at, [y[x == value].mean() for value in at], **look(place), label=label)
    axes.plot(x, y, **look(place, linestyle="none"), markersize=4, alpha=0.6)
