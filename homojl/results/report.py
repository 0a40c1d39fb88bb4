"""A run as one page of Markdown: what came out, what made it, how to make it again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from homojl.files import replace_file
from homojl.results.hdf5 import config_text, run_names
from homojl.results.plots import FIGURES, confusion_counts, most_confused
from homojl.results.records import METRICS, SELECTORS, Evaluation, RunRecord, best_line
from homojl.results.schema import escape_markdown
from homojl.results.wording import duration, flat, number, percent, plain, wilson

_ALL_CLASSES = 20  # up to so many, every class gets its line
_WORST = 10

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


def write_report(path: str | Path, record: RunRecord, figures: Sequence[str | Path] = ()) -> None:
    """Write the report, whole or not at all.

    Args:
        figures: files to show, as `draw_all` returns them; links are relative to the report's folder.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    answers = record.evaluation
    sections = [
        f"# {escape_markdown(' on '.join(run_names(record)))}\n",
        markdown_table(("", ""), _summary(record)),
        "## After the last epoch\n",
        _last_epoch(record),
    ]
    if answers is not None:
        sections += _classes(record, answers)
    if figures:
        captions = {stem: (kind.title, kind.caption) for stem, kind in FIGURES.items()}
        sections += ["## Figures\n", *figure_sections(Path(path).parent, [Path(f) for f in figures], captions)]
    config = config_text(record.config)
    sections += [
        "## What the numbers mean\n",
        "".join(f"- {text}\n" for text in MEANING),
        "## How to reproduce it\n",
        "```bash\nhomojl train --config config.toml\n```\n",
        "`config.toml` lies beside this report and is printed below. On the same machine, with the same "
        "versions, backend and number of threads, it gives the same numbers, except time and memory: "
        + ", ".join(f"`{name}`" for name, metric in METRICS.items() if not metric.repeatable)
        + ".\n",
        "## Environment\n",
        markdown_table(("", ""), [(f"`{key}`", escape_markdown(value)) for key, value in flat(record.environment)]),
        "## Configuration\n",
        _code_block(config, "toml"),
    ]
    replace_file(path, "\n".join(sections).encode())


def _summary(record: RunRecord) -> list[tuple[str, str]]:
    """The lines of the first table."""
    answers, rows = record.evaluation, []
    if record.test is not None:
        for name in ("loss", "metric"):
            if math.isfinite(record.test[name]):
                rows.append((f"Test {name}", f"**{number(record.test[name])}** ({record.test['checkpoint']})"))
    elif answers is None:
        rows.append(("Test accuracy", "not evaluated yet: `homojl evaluate RUN`"))
    else:
        n, right = len(answers.labels), int(np.sum(answers.labels == answers.predictions))
        low, high = wilson(right, n)
        rows += [
            (
                f"{answers.split.capitalize()} accuracy",
                f"**{percent(answers.accuracy)}** of {n:,} images ({right:,} right; 95 % interval "
                f"{100 * low:.2f} to {100 * high:.2f} %)",
            ),
            (f"{answers.split.capitalize()} loss", f"{number(answers.loss)} nat"),
        ]
    rows.append((f"Validation {_selected(record)[0].removeprefix('val_')}", _validation(record)))
    parameters = f"{record.parameters:,}"
    if record.initial_point is not None:
        parameters += f", and {len(record.initial_point):,} numbers of the shared initial point"
    rows.append(("Trained parameters", parameters))
    if answers is not None:
        choice = ""
        if answers.checkpoint.startswith("best"):
            choice = (
                f", the {_selected(record)[1]} {_selected(record)[0].removeprefix('val_')} on the validation split"
                if _validated(record)
                else ", the last one; there is no validation split"
            )
        rows += [
            ("Checkpoint", escape_markdown(answers.checkpoint) + choice),
            (
                "Evaluations of the field",
                f"{np.mean(answers.nfe):.1f} per forward pass, averaged over the {answers.split} images "
                f"({answers.nfe.min():,} to {answers.nfe.max():,})",
            ),
            ("Solves", ", ".join(f"{count:,} {name}" for name, count in answers.status.items() if count)),
            (
                f"Time on the {answers.split} set",
                f"{duration(answers.seconds)} ({1e3 * answers.seconds / n:.3g} ms per image)",
            ),
        ]
    seconds = [row["seconds"] for row in record.metrics if math.isfinite(row.get("seconds", math.nan))]
    if seconds:
        epochs = record.metrics[-1]["epoch"]
        mean = f"{duration(sum(seconds) / epochs)} per epoch"
        rows.append(("Training time", f"{mean}, {duration(sum(seconds))} for {epochs:,.4g}"))
    # What an evaluation says is what was really used: "auto" has become a backend's name there.
    solver = {**record.config.get("solver", {}), **({} if answers is None else answers.solver)}
    settings = ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in solver.items())
    rows.append(("Solver", escape_markdown(settings)))
    return rows


def _selected(record: RunRecord) -> tuple[str, str]:
    """What chose the best epoch: the metric's name, and "highest" or "lowest"."""
    select = record.config.get("train", {}).get("select", "highest accuracy")
    return SELECTORS[select][0], select.partition(" ")[0]


def _validated(record: RunRecord) -> bool:
    return any(math.isfinite(row.get(_selected(record)[0], math.nan)) for row in record.metrics)


def _validation(record: RunRecord) -> str:
    """The best and the last validation, by what chose the best epoch."""
    if not _validated(record):
        return "no validation split" if record.metrics else "no epoch completed yet"
    name, which = _selected(record)
    show = percent if name == "val_accuracy" else number
    best, last = (
        best_line(record.metrics, record.config.get("train", {}).get("select", "highest accuracy")),
        record.metrics[-1],
    )
    assert best is not None, "some line is validated"
    text = f"{show(best[name])} after epoch {best['epoch']:.4g}, the {which}"
    if best is last or not math.isfinite(last.get(name, math.nan)):
        return text
    return f"{text}; {show(last[name])} after the last, {last['epoch']:.4g}"


def _last_epoch(record: RunRecord) -> str:
    if not record.metrics:
        return "No epoch has been completed yet.\n"
    rows = []
    for name, value in record.metrics[-1].items():
        metric = METRICS[name]
        unit = "" if metric.unit == "1" else metric.unit
        rows.append((f"`{name}`", number(value), unit, escape_markdown(metric.description)))
    return markdown_table(("Metric", "Value", "Unit", "Meaning"), rows)


def _classes(record: RunRecord, answers: Evaluation) -> list[str]:
    """Accuracy of each class, or of the worst ones, and the most frequent mistakes."""
    counts = confusion_counts(answers, len(record.class_names))
    totals, right = counts.sum(axis=1), np.diag(counts)
    names = [escape_markdown(name) for name in record.class_names]
    shown, heading = list(range(len(names))), "## Accuracy of each class\n"
    if len(names) > _ALL_CLASSES:
        present = [k for k in shown if totals[k]]
        shown = sorted(present, key=lambda k: right[k] / totals[k])[:_WORST]
        heading = f"## The {len(shown)} classes of the lowest accuracy, of {len(names)}\n"
    rows = [
        (
            names[k],
            f"{totals[k]:,}",
            f"{right[k]:,}",
            percent(right[k] / totals[k]) if totals[k] else "no images",
        )
        for k in shown
    ]
    sections = [heading, markdown_table(("Class", "Images", "Right", "Accuracy"), rows)]
    if pairs := most_confused(counts, _WORST):
        rows = [(names[i], names[j], f"{n:,}", percent(n / totals[i])) for i, j, n in pairs]
        sections += [
            "## The most frequent mistakes\n",
            markdown_table(("True class", "Taken for", "Images", "Share of the true class"), rows),
        ]
    return sections


def figure_sections(folder: Path, paths: list[Path], captions: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    """Each figure once, with its caption and links to its other formats.

    Args:
        folder: that links are relative to.
        captions: title and caption by the stem of the file.
    """
    for stem in dict.fromkeys(path.stem for path in paths):
        links = {
            path.suffix[1:]: quote(Path(os.path.relpath(path, folder)).as_posix())
            for path in paths
            if path.stem == stem
        }
        shown = next((kind for kind in ("png", "svg") if kind in links), None)
        title, caption = captions.get(stem, (stem, ""))
        others = " ".join(f"[{name.upper()}]({link})" for name, link in links.items() if name != shown)
        yield f"### {title}\n"
        if shown:
            yield f"![{title}]({links[shown]})\n"
        if text := " ".join(part for part in (caption, others) if part):
            yield f"{text}\n"


# ---- Markdown


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the cells are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code_block(text: str, language: str) -> str:
    """A fenced block, with a fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
