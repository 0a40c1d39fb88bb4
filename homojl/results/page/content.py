"""What a page says of its runs: figures, curves, phases and settings, as plain values for the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from homojl.results.hdf5 import run_names
from homojl.results.page.charts import Line, bar, line_chart
from homojl.results.records import METRICS, SELECTORS, Evaluation, RunRecord, best_line
from homojl.results.wording import duration, flat, number, percent, wilson

SPLITS = {"test": "test set", "val": "validation split", "train": "training images"}
ABSENT = "–"


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


@dataclass(frozen=True)
class Fact:
    """One of the first figures of a run: a value, a few words on it, and a number to sort by, NaN without one."""

    label: str
    value: str
    detail: str
    order: float


def facts(record: RunRecord) -> list[Fact]:
    """The figures that a reader looks for first; the same labels for every run."""
    answers = record.evaluation
    return [
        _test_accuracy(answers, record.test),
        _validation(record),
        *_answer_facts(answers),
        _failed_solves(record),
        _parameters(record),
        _training_time(record.metrics),
        _peak_memory(record.metrics),
    ]


def _test_accuracy(answers: Evaluation | None, test: dict[str, Any] | None) -> Fact:
    if test is not None:
        metric = "" if math.isnan(test["metric"]) else f"metric {number(test['metric'])}; "
        return Fact("Test accuracy", f"loss {number(test['loss'])}", f"{metric}{test['checkpoint']}", math.nan)
    if answers is None or answers.split != "test":
        return Fact("Test accuracy", "not evaluated", "homojl evaluate RUN does it", math.nan)
    n, right = len(answers.labels), int(np.sum(answers.labels == answers.predictions))
    low, high = wilson(right, n)
    detail = f"{right:,} of {n:,} right; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return Fact("Test accuracy", percent(answers.accuracy), detail, answers.accuracy)


def _validation(record: RunRecord) -> Fact:
    """Of the best epoch: its accuracy, or where another number chose it that."""
    label, metrics = "Validation accuracy", record.metrics
    select = record.config.get("train", {}).get("select", "highest accuracy")
    name, which = SELECTORS[select][0], select.partition(" ")[0]
    best = best_line(metrics, select)
    if best is None:
        return Fact(label, "not measured", "no validation split" if metrics else "no epoch completed yet", math.nan)
    detail = f"the {which}, after epoch {best['epoch']:.4g} of {metrics[-1]['epoch']:.4g}"
    if name == "val_accuracy":
        return Fact(label, percent(best[name]), detail, best[name])
    return Fact(label, f"{name.removeprefix('val_')} {number(best[name])}", detail, math.nan)


def _answer_facts(answers: Evaluation | None) -> Iterable[Fact]:
    if answers is None:
        yield from (Fact(label, ABSENT, "", math.nan) for label in ("Loss", "Evaluations"))
        return
    where = f"on the {SPLITS[answers.split]}"
    yield Fact("Loss", f"{number(answers.loss)} nat", f"mean cross-entropy {where}", answers.loss)
    nfe = answers.nfe
    spread = f", {nfe.min():,} to {nfe.max():,}" if nfe.min() < nfe.max() else ""
    detail = f"per forward pass {where}{spread}"
    yield Fact("Evaluations", f"{nfe.mean():.1f}", detail, float(nfe.mean()))


def _failed_solves(record: RunRecord) -> Fact:
    failed = sum(row.get("failed_solves", 0) for row in record.metrics)
    steps = record.metrics[-1]["step"] if record.metrics else 0
    detail = f"of {steps:,} in training"
    if (answers := record.evaluation) is not None:
        ended = sum(answers.status.get(name, 0) for name in ("SUCCESS", "EVENT"))
        solves = sum(answers.status.values())
        detail += f"; {solves - ended:,} of {solves:,} on the {SPLITS[answers.split]}"
    return Fact("Failed solves", f"{failed:,}", detail, float(failed))


def _parameters(record: RunRecord) -> Fact:
    point = record.initial_point
    detail = "" if point is None else f"and {len(point):,} of the shared initial point"
    return Fact("Parameters", f"{record.parameters:,}", detail, float(record.parameters))


def _training_time(metrics: list[dict[str, Any]]) -> Fact:
    seconds = total(metrics, "seconds")
    if not seconds > 0:
        return Fact("Training time", ABSENT, "", math.nan)
    epochs = metrics[-1]["epoch"]
    return Fact(
        "Training time", duration(seconds), f"{duration(seconds / epochs)} an epoch, {epochs:.4g} in all", seconds
    )


def _peak_memory(metrics: list[dict[str, Any]]) -> Fact:
    peak, start = highest(metrics, "peak_memory"), highest(metrics, "start_memory")
    if math.isnan(peak):
        return Fact("Peak memory", ABSENT, "", math.nan)
    detail = "" if math.isnan(start) else f"{start:,.0f} MiB of it before the first step"
    return Fact("Peak memory", f"{peak:,.0f} MiB", detail, peak)


def total(metrics: list[dict[str, Any]], name: str) -> float:
    """The sum of a metric over the lines that have it; NaN where none has."""
    values = [row[name] for row in metrics if math.isfinite(row.get(name, math.nan))]
    return float(sum(values)) if values else math.nan


def highest(metrics: list[dict[str, Any]], name: str) -> float:
    """The largest value of a metric; NaN where no line has one."""
    return max((float(row[name]) for row in metrics if math.isfinite(row.get(name, math.nan))), default=math.nan)


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
    """A line for those who do not see it."""
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


PHASES = (
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
    seconds = [[phase.seconds(run.record.metrics) for phase in PHASES] for run in runs]
    sums = [sum(values) for values in seconds]
    whole = max((s for s in sums if s > 0), default=math.nan)
    bars, texts = [], []
    for run, values, all_of_it in zip(runs, seconds, sums, strict=True):
        measured = all_of_it > 0
        words = [f"{duration(s)} ({100 * s / all_of_it:.1f} %)" if measured else "not measured" for s in values]
        texts.append(words)
        parts = [(p.kind, f"{p.name}: {w}", s) for p, w, s in zip(PHASES, words, values, strict=True)]
        label = f"Phases of {run.name}: " + "; ".join(text for _, text, _ in parts)
        bars.append(bar(parts, whole=whole, label=label) if measured else Markup())
    rows = [(phase.kind, phase.name, tuple(row)) for phase, row in zip(PHASES, zip(*texts, strict=True), strict=True)]
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


def numbers(metrics: list[dict[str, Any]]) -> list[list[str]]:
    """The lines of metrics as texts, in the order of `METRICS`."""
    return [[ABSENT if math.isnan(v := row.get(name, math.nan)) else number(v) for name in METRICS] for row in metrics]
