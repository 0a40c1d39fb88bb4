"""What a page says of its runs: curves, phases, settings and the confusion matrix, as values for the template."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from homojl.results.answers import ALL_CLASSES
from homojl.results.facts import ABSENT, total
from homojl.results.hdf5 import run_names
from homojl.results.page.charts import Line, bar, line_chart
from homojl.results.records import METRICS, RunRecord
from homojl.results.tables import Table
from homojl.results.wording import duration, flat, number


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """One run of a page.

    Attributes:
        name: what the page calls it.
        record: its evaluation is on the test set, or, where the run has none, on another split, or None.
        worst: images to show, as positions among those evaluated, (n,), int64.
        images: they themselves, (n, H, W) or (n, H, W, 3), uint8.
        notes: sentences on what the reader must know before anything else.
    """

    name: str
    record: RunRecord
    worst: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    images: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1), dtype=np.uint8))
    notes: tuple[str, ...] = ()


# ---- curves


@dataclass(frozen=True)
class Curves:
    """A chart to be drawn: one quantity, or two that belong together, of every run.

    Attributes:
        quantities: metric -> what the legend calls it.
        zero: whether the scale starts at zero.
        factor: that values are shown times.
    """

    title: str
    unit: str
    quantities: dict[str, str]
    zero: bool = True
    factor: float = 1.0


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its legend says which quantities are there, and whether each is dashed."""

    title: str
    unit: str
    svg: Markup
    legend: tuple[tuple[bool, str], ...]


LEARNING = (
    Curves("Loss", "nat", {"val_loss": "validation", "train_loss": "training"}, zero=False),
    Curves("Accuracy", "%", {"val_accuracy": "validation", "train_accuracy": "training"}, zero=False, factor=100),
    Curves("Learning rate", "", {"lr": "of the epoch's last step"}),
)
SOLVES = (
    Curves("Evaluations per forward pass", "", {"nfe_forward": "training step", "nfe_val": "validation"}),
    Curves(
        "Work of a backward pass",
        "",
        {"nfe_backward": "vector-Jacobian products", "nfe_recomputed": "evaluations for it"},
    ),
    Curves("Steps of a forward solve", "", {"accepted_steps": "accepted", "rejected_steps": "rejected"}),
    Curves("Failed solves", "per epoch", {"failed_solves": "in training"}),
    Curves("Initial point", "", {"initial_point_norm": "its norm", "initial_point_loss": "mean |z* - z(0)|²"}),
)
COST = (
    Curves("Training speed", "images/s", {"images_per_second": "training alone"}),
    Curves("Peak memory", "MiB", {"peak_memory": "so far"}),
)


def charts(curves: Sequence[Curves], runs: Sequence[ReportedRun]) -> list[Chart]:
    """Every chart that has something to show; a quantity that is zero or missing in all runs is left out."""
    return [chart for each in curves if (chart := _chart(each, runs)) is not None]


def _chart(curves: Curves, runs: Sequence[ReportedRun]) -> Chart | None:
    lines, legend = [], []
    for dashed, (name, what) in enumerate(curves.quantities.items()):
        found = [_line(curves, name, what, bool(dashed), place, run) for place, run in enumerate(runs)]
        if any(value for line in found for _, value in line.points):
            lines += found
            legend.append((bool(dashed), what))
    if not lines:
        return None
    label = f"{curves.title} over the epochs. {' '.join(_in_words(line, curves.unit) for line in lines)}"
    return Chart(
        curves.title, curves.unit, line_chart(lines, label=label, unit=curves.unit, zero=curves.zero), tuple(legend)
    )


def _line(curves: Curves, name: str, what: str, dashed: bool, place: int, run: ReportedRun) -> Line:
    rows = run.record.metrics
    values = [curves.factor * row.get(name, math.nan) for row in rows]
    return Line(f"{run.name}, {what}", place, dashed, [row["epoch"] for row in rows], values)


def _in_words(line: Line, unit: str) -> str:
    """A line as text, for screen readers."""
    points = line.points
    if not points:
        return ""
    (_, first), (_, last) = points[0], points[-1]
    return f"{line.name}: from {first:.4g} to {last:.4g} {unit}".rstrip() + "."


# ---- phases


@dataclass(frozen=True)
class Phase:
    """A part of training; `kind` is its class in the style sheet, `seconds` finds it in the lines of metrics."""

    kind: str
    name: str
    seconds: Callable[[list[dict[str, Any]]], float]


TIMED = (
    Phase("data", "Data: choosing, moving, augmenting", lambda m: total(m, "data_seconds")),
    Phase("solve", "Forward: the solve", lambda m: total(m, "solve_seconds")),
    Phase(
        "ends",
        "Forward: encoder, decoder, loss",
        lambda m: max(0.0, total(m, "forward_seconds") - total(m, "solve_seconds")),
    ),
    Phase("backward", "Backward", lambda m: total(m, "backward_seconds")),
    Phase("optimizer", "Optimiser and initial point", lambda m: total(m, "optimizer_seconds")),
    Phase("validation", "Validation", lambda m: total(m, "validation_seconds")),
)


@dataclass(frozen=True)
class PhaseTable:
    """Where time went in every run.

    Attributes:
        bars: one for each run; empty for a run without these metrics.
        rows: class in the style sheet, name, and a text for each run.
    """

    bars: tuple[Markup, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def phases(runs: Sequence[ReportedRun]) -> PhaseTable:
    """The phases of training; times of the longest run fill a bar."""
    seconds = [[phase.seconds(run.record.metrics) for phase in TIMED] for run in runs]
    sums = [sum(values) for values in seconds]
    whole = max((s for s in sums if s > 0), default=math.nan)
    bars, texts = [], []
    for run, values, all_of_it in zip(runs, seconds, sums, strict=True):
        measured = all_of_it > 0
        words = [f"{duration(s)} ({100 * s / all_of_it:.1f} %)" if measured else "not measured" for s in values]
        texts.append(words)
        parts = [(p.kind, f"{p.name}: {w}", s) for p, w, s in zip(TIMED, words, values, strict=True)]
        label = f"Phases of {run.name}: " + "; ".join(text for _, text, _ in parts)
        bars.append(bar(parts, whole=whole, label=label) if measured else Markup())
    rows = [(phase.kind, phase.name, tuple(row)) for phase, row in zip(TIMED, zip(*texts, strict=True), strict=True)]
    return PhaseTable(tuple(bars), tuple(rows))


# ---- settings


@dataclass(frozen=True)
class Setting:
    """One line of a table of settings: a text for each run, and whether they differ."""

    key: str
    values: tuple[str, ...]
    differs: bool


def settings(tables: Sequence[dict[str, Any]]) -> dict[str, list[Setting]]:
    """Nested tables side by side: section -> its lines; what stands above the sections is in section ""."""
    flattened = [dict(flat(table)) for table in tables]
    sections: dict[str, list[Setting]] = {}
    for key in dict.fromkeys(key for table in flattened for key in table):
        section, _, name = key.rpartition(".")
        values = tuple(table.get(key, ABSENT) or "none" for table in flattened)
        sections.setdefault(section, []).append(Setting(name, values, len(set(values)) > 1))
    return sections


def subject(records: Iterable[RunRecord]) -> str:
    """Models and datasets of the runs, each once: "homoode and deq on digits"."""
    models, datasets = (dict.fromkeys(names) for names in zip(*map(run_names, records), strict=True))
    return f"{_listed(list(models))} on {_listed(list(datasets))}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def numbers(metrics: list[dict[str, Any]]) -> Table:
    """All lines of metrics."""
    head = [name if metric.unit == "1" else f"{name} [{metric.unit}]" for name, metric in METRICS.items()]
    rows = [[ABSENT if math.isnan(v := row.get(name, math.nan)) else number(v) for name in METRICS] for row in metrics]
    return Table(head, rows, words=0, titles=[metric.description for metric in METRICS.values()])


# ---- the confusion matrix


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix.

    Attributes:
        count: images.
        right: whether it is of right answers.
        shade: how strong its colour is, 0 to 1: the root of its share of the true class, so that few show.
        tooltip: the cell in words.
    """

    count: int
    right: bool
    shade: float
    tooltip: str


def confusion_rows(counts: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, list[Cell], str]]:
    """Each class with its cells and its accuracy in words; none where there are too many classes."""
    if len(counts) > ALL_CLASSES:
        return []
    rows = []
    for i, name in enumerate(names):
        total_images, cells = int(counts[i].sum()), []
        for j, other in enumerate(names):
            count = int(counts[i, j])
            share = count / total_images if total_images else 0.0
            words = f"{name} taken for {other}: {count:,} of {total_images:,} images ({100 * share:.1f} %)"
            cells.append(Cell(count, i == j, round(math.sqrt(share), 3), words))
        accuracy = f"{100 * counts[i, i] / total_images:.1f} %" if total_images else "no images"
        rows.append((name, cells, accuracy))
    return rows


def confusion_picture(counts: np.ndarray) -> np.ndarray:
    """A confusion matrix (K, K) as a picture (K, K, 4): right answers blue, wrong ones orange, the rest clear.

    Its colours are seen on a light page and on a dark one.
    """
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    picture = np.empty((*counts.shape, 4), dtype=np.uint8)
    picture[..., :3] = (0xE0, 0x6C, 0x10)
    picture[np.arange(len(counts)), np.arange(len(counts)), :3] = (0x1F, 0x86, 0xC7)
    picture[..., 3] = np.where(counts > 0, np.round(70 + 185 * np.sqrt(share)), 0)
    return picture


def data_uri(image: np.ndarray) -> str:
    """A picture (H, W), (H, W, 3) or (H, W, 4), uint8, as a PNG inside a URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
