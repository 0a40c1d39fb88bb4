"""The most important figures of a run, as the Markdown report and the HTML page both show them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from homojl.results.records import SELECTORS, Evaluation, RunRecord, best_line
from homojl.results.wording import duration, flat, number, percent, plain, wilson

SPLITS = {"test": "test set", "val": "validation split", "train": "training images"}
ABSENT = "–"

MEANING = (
    "**Accuracy** is the share of images whose class got the largest logit. The 95 % interval (Wilson) says how "
    "far chance in the choice of that many test images can move it; it does not cover what another seed changes.",
    "**Loss** is the mean cross-entropy in nat: -ln of the probability that the model gave the true class. "
    "Guessing among K classes costs ln K.",
    "**Evaluations** count how often a solve called the model's vector field, rejected steps included. A batch is "
    "solved as one system, so its images share the number.",
    "**Training** numbers are means over the epoch while the weights changed, with dropout and augmentation where "
    "they are used; validation and test numbers have neither.",
    "A model is chosen on the **validation** split, which is part of the training data. The test set has no part "
    "in training or choice.",
)
"""What the numbers of a report mean, a paragraph each, in Markdown."""


@dataclass(frozen=True)
class Fact:
    """One figure: its value as text, a few words on it, and a number to sort by; NaN: none."""

    label: str
    value: str
    detail: str
    order: float


def facts(record: RunRecord) -> list[Fact]:
    """The figures, in the same order for every run; the validation figure is the one that chose the best epoch."""
    return [
        _test(record),
        _validation(record),
        *_answer_facts(record),
        _failed_solves(record),
        _parameters(record),
        _training_time(record.metrics),
        _peak_memory(record.metrics),
    ]


def solver_text(record: RunRecord) -> str:
    """The solver's settings; where there is an evaluation, those that it used, in which "auto" is resolved."""
    answers, section = record.evaluation, dict(record.config.get("solver", {}))
    section.pop("training", None)  # what is in there is not how answers were found
    settings = {key.removesuffix(".name").rpartition(".")[2]: value for key, value in flat(section)}
    settings |= {} if answers is None else {key: plain(value) for key, value in answers.solver.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())


def answer_time(answers: Evaluation) -> str:
    """How long the answers took."""
    return f"{duration(answers.seconds)}, {1e3 * answers.seconds / len(answers.labels):.3g} ms an image"


def _test(record: RunRecord) -> Fact:
    answers, own = record.evaluation, record.test
    if own is not None:  # of a task without classes
        name = "metric" if math.isfinite(own["metric"]) else "loss"
        return Fact(f"Test {name}", number(own[name]), own["checkpoint"], own[name])
    if answers is None or answers.split != "test":
        return Fact("Test accuracy", "not evaluated", "homojl evaluate RUN does it", math.nan)
    n, right = len(answers.labels), int(np.sum(answers.labels == answers.predictions))
    low, high = wilson(right, n)
    detail = f"{right:,} of {n:,} right; 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return Fact("Test accuracy", percent(answers.accuracy), detail, answers.accuracy)


def _validation(record: RunRecord) -> Fact:
    """The validation figure that chose the best epoch."""
    select, metrics = record.config.get("train", {}).get("select", "highest accuracy"), record.metrics
    name, best = SELECTORS[select][0], best_line(metrics, select)
    label = f"Validation {name.removeprefix('val_')}"
    if best is None:
        return Fact(label, "not measured", "no validation split" if metrics else "no epoch completed yet", math.nan)
    shown = percent(best[name]) if name == "val_accuracy" else number(best[name])
    which = select.partition(" ")[0]
    return Fact(label, shown, f"the {which}, after epoch {best['epoch']:.4g} of {metrics[-1]['epoch']:.4g}", best[name])


def _answer_facts(record: RunRecord) -> Iterable[Fact]:
    answers, own = record.evaluation, record.test
    if answers is None:
        if own is not None and math.isfinite(own["metric"]):
            yield Fact("Loss", number(own["loss"]), "mean on the test set", own["loss"])
        else:
            yield Fact("Loss", ABSENT, "", math.nan)
        yield Fact("Evaluations", ABSENT, "", math.nan)
        return
    where = f"on the {SPLITS[answers.split]}"
    yield Fact("Loss", f"{number(answers.loss)} nat", f"mean cross-entropy {where}", answers.loss)
    nfe = answers.nfe
    spread = f", {nfe.min():,} to {nfe.max():,}" if nfe.min() < nfe.max() else ""
    detail = f"per forward pass {where}{spread}"
    yield Fact("Evaluations", f"{nfe.mean():.1f}", detail, float(nfe.mean()))


def _failed_solves(record: RunRecord) -> Fact:
    failed = sum(row.get("failed_solves", 0) for row in record.metrics)
    steps = record.metrics[-1].get("step", math.nan) if record.metrics else 0
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
    detail = f"{duration(seconds / epochs)} an epoch, {epochs:.4g} in all"
    return Fact("Training time", duration(seconds), detail, seconds)


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
