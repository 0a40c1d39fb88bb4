"""A run as one page of Markdown: its results, its settings, and how to make it again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from homojl.files import replace_file
from homojl.results.answers import class_heading, class_table, confusion_counts, mistake_table
from homojl.results.facts import MEANING, answer_time, facts, solver_text
from homojl.results.hdf5 import config_text, run_names
from homojl.results.plots import FIGURES
from homojl.results.records import METRICS, Evaluation, RunRecord
from homojl.results.tables import Table, code, escape_markdown, facts_table
from homojl.results.wording import flat, number


def write_report(path: str | Path, record: RunRecord, figures: Sequence[str | Path] = ()) -> None:
    """Write the report, whole or not at all.

    Args:
        figures: files to show, as `draw_all` returns them; links are relative to the report's folder.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    answers = record.evaluation
    config = config_text(record.config)
    measured_anew = ", ".join(code(name) for name, metric in METRICS.items() if not metric.repeatable)
    captions = {stem: (kind.title, kind.caption) for stem, kind in FIGURES.items()}
    sections = [
        f"# {escape_markdown(' on '.join(run_names(record)))}\n",
        facts_table(_summary(record)).markdown(),
        "## After the last epoch\n",
        _last_epoch(record),
        *([] if answers is None else _classes(record, answers)),
        *figure_sections(Path(path).parent, [Path(f) for f in figures], captions),
        "## What the numbers mean\n",
        "".join(f"- {text}\n" for text in MEANING),
        "## How to reproduce it\n",
        "```bash\nhomojl train --config config.toml\n```\n",
        "`config.toml` lies beside this report and is printed below. On the same machine, with the same versions, "
        f"backend and number of threads, it gives the same numbers, except time and memory: {measured_anew}.\n",
        "## Environment\n",
        settings_table(record.environment).markdown(),
        "## Configuration\n",
        _code_block(config, "toml"),
    ]
    replace_file(path, "\n".join(sections).encode())


def settings_table(values: Mapping[str, object]) -> Table:
    """A nested table of settings, one a line."""
    return facts_table((code(key), value) for key, value in flat(values))


def _summary(record: RunRecord) -> Iterable[tuple[str, str]]:
    """The lines of the first table."""
    for fact in facts(record):
        yield fact.label, f"{fact.value} ({fact.detail})" if fact.detail else fact.value
    if (answers := record.evaluation) is not None:
        yield "Checkpoint", answers.checkpoint
        yield f"Time on the {answers.split} set", answer_time(answers)
    yield "Solver", solver_text(record)


def _last_epoch(record: RunRecord) -> str:
    if not record.metrics:
        return "No epoch has been completed yet.\n"
    rows = []
    for name, value in record.metrics[-1].items():
        metric = METRICS[name]
        rows.append((code(name), number(value), "" if metric.unit == "1" else metric.unit, metric.description))
    return Table(("Metric", "Value", "Unit", "Meaning"), rows).markdown()


def _classes(record: RunRecord, answers: Evaluation) -> Iterable[str]:
    """Accuracy of each class, or of the worst ones, and the most frequent mistakes."""
    counts = confusion_counts(answers, len(record.class_names))
    yield f"## {class_heading(counts)}\n"
    yield class_table(counts, record.class_names).markdown()
    mistakes = mistake_table(counts, record.class_names)
    if mistakes.rows:
        yield "## The most frequent mistakes\n"
        yield mistakes.markdown()


def figure_sections(folder: Path, paths: Sequence[Path], captions: Mapping[str, tuple[str, str]]) -> Iterable[str]:
    """Each figure once, with its caption and links to its other formats; nothing without a figure.

    Args:
        folder: that links are relative to.
        captions: title and caption by the stem of the file.
    """
    if paths:
        yield "## Figures\n"
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


def _code_block(text: str, language: str) -> str:
    """A fenced block, with a fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
