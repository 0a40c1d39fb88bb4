"""Figures of a benchmark: each solver has one colour and marker everywhere, each method its dash."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.benchmark.record import Measurement, Report
from homojl.results.plots import BLUE, DASHES, GREEN, PURPLE, VERMILLION, log_axis, new_figure, style, write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Drawer = Callable[[Figure, list[Measurement]], None]

_LOOKS = {
    "homojl-pytorch": (BLUE, "o"),
    "homojl-compiled": ("#000000", "s"),
    "homojl-julia": (PURPLE, "D"),
    "torchdiffeq": (VERMILLION, "^"),
    "torchode": ("#E69F00", "v"),
    "diffrax": (GREEN, "P"),
    "torchdeq": ("#56B4E9", "X"),
}


def draw_bench(report: Report, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw every figure that there are measurements for, each file whole or not at all.

    Returns:
        The files, a figure's formats in the order given.

    Raises:
        ConfigError: matplotlib is missing, or an unknown format.
        DataError: a file cannot be written.
    """
    drawers: dict[str, tuple[str, str, Drawer]] = {
        "batch": ("batch_size", "A solve of a small system", _batch),
        "precision": ("work_precision", "Work and precision, batch 4, float64", _precision),
        "layer": ("layer", "HomoODE's layer", _bars),
        "equilibrium": ("equilibrium", "HomoODE's layer at rest", _bars),
        "trajectory": ("trajectory", "A long trajectory", _bars),
        "steps": ("steps", "A gradient through many steps", _steps),
        "accuracy": ("accuracy", "Largest error over the tolerance", _accuracy),
    }
    draw = {}
    for experiment, (stem, title, drawer) in drawers.items():
        found = [m for m in report.measurements if m.experiment == experiment and not m.message]
        if drawer is _bars:  # one bar alone says no more than the table
            found = [m for m in found if sum(other.group == m.group for other in found) > 1]
        if found:
            draw[stem] = functools.partial(_drawn, title + (" (--quick)" if report.quick else ""), drawer, found)
    return write_figures(draw, folder, formats)


def _drawn(title: str, drawer: Drawer, found: list[Measurement]) -> Figure:
    with style():
        figure = new_figure(title)
        drawer(figure, found)
    return figure


def _look(solver: str, place: int = 0) -> dict[str, Any]:
    color, marker = _LOOKS[solver]
    return {"color": color, "marker": marker, "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.6}


def _names(found: Sequence[Measurement], attribute: str) -> list[Any]:
    return list(dict.fromkeys(getattr(m, attribute) for m in found))


def _lines(
    axes: Axes,
    found: Sequence[Measurement],
    x: Callable[[Measurement], float],
    y: Callable[[Measurement], float],
    dash_by: str = "method",
) -> None:
    """A line through the points of each solver, variant and method."""
    dashes = _names(found, dash_by)
    for key in dict.fromkeys((m.solver, m.variant, m.method) for m in found):
        points = [(x(m), y(m)) for m in found if (m.solver, m.variant, m.method) == key]
        points = sorted(p for p in points if all(math.isfinite(v) and v > 0 for v in p))
        if points:
            dash = key[1] if dash_by == "variant" else key[2]
            axes.plot(*zip(*points, strict=True), **_look(key[0], dashes.index(dash)))
    if not axes.lines:
        return  # a logarithmic axis cannot be empty
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.1)
    log_axis(axes.xaxis)
    log_axis(axes.yaxis)


def _legend(figure: Figure, found: Sequence[Measurement], dash_by: str = "method") -> None:
    """Colours and dashes apart, beside the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **_look(solver) | {"linestyle": "none"}, label=solver) for solver in _names(found, "solver")
    ]
    dashes = list(_names(found, dash_by))
    if len(dashes) > 1:
        handles += [
            Line2D([], [], color="#555555", linestyle=DASHES[i % len(DASHES)], label=name or "(one way)")
            for i, name in enumerate(dashes)
        ]
    figure.legend(handles=handles, loc="outside right center")


def _batch(figure: Figure, found: list[Measurement]) -> None:
    tolerances = sorted({m.tolerance for m in found}, reverse=True)
    problems = _names(found, "problem")
    figure.set_size_inches(3.6 * len(problems) + 2.4, 3.6 * len(tolerances))
    panels = figure.subplots(len(tolerances), len(problems), squeeze=False)
    for row, tolerance in zip(panels, tolerances, strict=True):
        for axes, problem in zip(row, problems, strict=True):
            chosen = [m for m in found if (m.problem, m.tolerance) == (problem, tolerance)]
            _lines(axes, chosen, lambda m: m.batch, lambda m: 1e3 * m.seconds)
            axes.set_xticks(sorted({m.batch for m in chosen}))
            axes.set_title(f"{problem}, {tolerance:g}")
            axes.set_xlabel("batch")
        row[0].set_ylabel("time of a solve [ms]")
    _legend(figure, found)


def _precision(figure: Figure, found: list[Measurement]) -> None:
    problems = _names(found, "problem")
    figure.set_size_inches(3.6 * len(problems) + 2.4, 7.2)
    panels = figure.subplots(2, len(problems), squeeze=False)
    for column, problem in enumerate(problems):
        chosen = [m for m in found if m.problem == problem]
        time, work = panels[0][column], panels[1][column]
        _lines(time, chosen, lambda m: m.error, lambda m: 1e3 * m.seconds)
        _lines(work, chosen, lambda m: m.error, lambda m: m.nfe)
        time.set_title(problem)
        for axes in (time, work):
            axes.invert_xaxis()
            axes.set_xlabel("largest error")
    panels[0][0].set_ylabel("time of a solve [ms]")
    panels[1][0].set_ylabel("evaluations")
    _legend(figure, found)


def _steps(figure: Figure, found: list[Measurement]) -> None:
    figure.set_size_inches(12, 4.6)
    time, memory = figure.subplots(1, 2)
    _lines(time, found, lambda m: m.steps, lambda m: m.seconds, dash_by="variant")
    _lines(memory, found, lambda m: m.steps, lambda m: m.memory, dash_by="variant")
    time.set_ylabel("forward and backward [s]")
    memory.set_ylabel("memory [MiB]")
    for axes in (time, memory):
        axes.set_xlabel("steps")
    _legend(figure, found, dash_by="variant")


def _bars(figure: Figure, found: list[Measurement]) -> None:
    groups = _names(found, "group")
    most = max(sum(m.group == group for m in found) for group in groups)
    figure.set_size_inches(14, 2.4 + 0.42 * most)
    several = len(_names(found, "method")) > 1
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        chosen = [m for m in found if m.group == group][::-1]
        seconds = [m.seconds for m in chosen]
        axes.barh(range(len(chosen)), seconds, color=[_LOOKS[m.solver][0] for m in chosen])
        axes.set_yticks(range(len(chosen)), [f"{m.label}, {m.method}" if several else m.label for m in chosen])
        for place, value in enumerate(seconds):
            axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=10)
        axes.margins(x=0.15)
        axes.grid(False, axis="y")
        axes.set_xlabel("time [s]")
        axes.set_title(group.rpartition(": ")[2])


def _accuracy(figure: Figure, found: list[Measurement]) -> None:
    problems, solvers = _names(found, "problem"), _names(found, "solver")
    figure.set_size_inches(12, 5)
    axes = figure.subplots()
    for place, solver in enumerate(solvers):
        chosen = [m for m in found if m.solver == solver]
        offset = 0.12 * (place - (len(solvers) - 1) / 2)
        x = [problems.index(m.problem) + offset for m in chosen]
        axes.plot(x, [m.error_over_tolerance for m in chosen], **_look(solver) | {"linestyle": "none"}, label=solver)
    axes.axhline(10, color="black", linewidth=1, linestyle=":")
    axes.set_yscale("log")
    log_axis(axes.yaxis)
    axes.set_xticks(range(len(problems)), problems)
    axes.grid(False, axis="x")
    axes.set_ylabel("largest error / tolerance")
    figure.legend(loc="outside right center")
