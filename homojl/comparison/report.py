"""A comparison as one page of Markdown: the table, the published figures beside it, and what differs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from homojl.comparison.figures import CAPTIONS
from homojl.comparison.published import CLAIMS, PUBLISHED, SOURCE
from homojl.comparison.record import Comparison
from homojl.comparison.table import HEAD, MEASURED_HEAD, cells, measured_cells, spread
from homojl.files import replace_file
from homojl.results.report import figure_sections, markdown_table
from homojl.results.schema import escape_markdown
from homojl.results.wording import flat

_MEANING = """\
- **Test accuracy**: mean and, over more than one seed, standard deviation (n - 1). The epoch is chosen on the
  validation split; the test set is used once, at the end.
- **Peak memory** is that of each run's own process, with libraries and images, in training and validation.
- **Inference** is the wall time of the forward passes on the test set, divided by its images.
- **Evaluations**: of the model's field or map per forward pass, on the test set and in training, and
  vector-Jacobian products per backward pass, the last two at the end of training. An ODE model solves a batch as one
  system. In a fixed point, samples that have converged leave the batch: late evaluations are of few samples.
"""


def write_comparison_report(
    path: str | Path, comparison: Comparison, figures: Sequence[Path] = (), command: Sequence[str] = ()
) -> None:
    """Write the report, whole or not at all.

    Args:
        figures: files to show; links are relative to the report's folder.
        command: what was called, to be shown.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    plan, experiment = comparison.plan, comparison.plan.experiment
    sections = [f"# {escape_markdown(f'{experiment.title} on {Path(plan.dataset).stem}')}\n"]
    if experiment.source:
        sections.append(f"Source: {escape_markdown(experiment.source)}\n")
    sections += [markdown_table(HEAD, _escaped(cells(comparison))), _first(comparison)]
    measured = measured_cells(comparison)
    if measured:
        sections += [
            "## The trained models with other settings\n",
            f"On the first {experiment.images:,} test images at most, after one batch to warm up.\n",
            markdown_table(MEASURED_HEAD, _escaped(measured)),
        ]
    failures = [run for run in comparison.runs if run.record is None]
    if failures:
        rows = [(r.planned.label, str(r.planned.seed), r.status, r.message) for r in failures]
        sections += ["## Runs that did not finish\n", markdown_table(("Run", "Seed", "", "Why"), _escaped(rows))]
    sections += ["## Beside the published figures\n", *_published(comparison)]
    sections += ["## Budget, split and seeds\n", *_conditions(comparison)]
    if figures:
        sections += ["## Figures\n", *figure_sections(Path(path).parent, list(figures), CAPTIONS)]
    sections += [
        "## What the numbers mean\n",
        _MEANING,
        "## Settings in which the rows differ\n",
        _settings(comparison),
    ]
    if command:
        sections += ["## How to reproduce it\n", f"```bash\nhomojl {shlex.join(command[1:])}\n```\n"]
        sections.append("Each run's folder in `runs/` has its complete `config.toml`, metrics and report.\n")
    if comparison.first is not None:
        facts = flat(comparison.first.finished[0].known.environment)
        sections += [
            "## Environment\n",
            markdown_table(
                ("", ""), [(f"`{key}`", escape_markdown(value)) for key, value in facts if key != "command"]
            ),
        ]
    replace_file(path, "\n".join(sections).encode())


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[escape_markdown(cell) for cell in row] for row in rows]


def _first(comparison: Comparison) -> str:
    """Which row has the highest accuracy, and whether the seeds tell it from the next."""
    rows = sorted((r for r in comparison.rows if r.finished), key=lambda r: -r.mean("test_accuracy"))
    if len(rows) < 2:
        return ""
    gap = 100 * (rows[0].mean("test_accuracy") - rows[1].mean("test_accuracy"))
    seeds = ""
    if all(len(row.finished) > 1 for row in rows[:2]):
        apart = min(rows[0].values("test_accuracy")) > max(rows[1].values("test_accuracy"))
        seeds = "; every seed of the one is above all of the other" if apart else "; their seeds overlap"
    first, second = (escape_markdown(row.label) for row in rows[:2])
    return f"First by test accuracy: **{first}**, {gap:.2f} points before {second}{seeds}.\n"


def _published(comparison: Comparison) -> list[str]:
    plan = comparison.plan
    figures = PUBLISHED.get(plan.dataset, ())
    if not figures:
        return [f"We know of none on {escape_markdown(Path(plan.dataset).stem)}.\n"]
    rows = []
    for row in comparison.rows:
        accuracy = "did not finish"
        if row.finished:
            accuracy = spread(100 * row.mean("test_accuracy"), 100 * row.sd("test_accuracy"), 2)
        ours = (escape_markdown(row.label), f"{int(row.mean('parameters')):,}" if row.finished else "", accuracy)
        theirs = [p for p in figures if p.model == row.model]
        for number, p in enumerate(theirs):
            published = spread(p.accuracy, float("nan") if p.sd is None else p.sd, 1)
            rows.append((*(ours if number == 0 else ("", "", "")), p.name, p.parameters, published))
        if not theirs:
            rows.append((*ours, "none known to us", "", ""))
    rows += [("", "", "", p.name, p.parameters, f"{p.accuracy:.1f}") for p in figures if p.model is None]
    claims = [CLAIMS[model] for model in dict.fromkeys(row.model for row in comparison.rows) if model in CLAIMS]
    head = ("Ours", "parameters", "test accuracy [%]", "Published", "parameters", "test accuracy [%]")
    return [markdown_table(head, rows), f"{SOURCE}\n", *(f"{claim}\n" for claim in claims)]


def _conditions(comparison: Comparison) -> list[str]:
    """What ours were made with, and in what that differs from the published runs."""
    plan = comparison.plan
    config = plan.runs[0].config
    seeds = sorted({run.seed for run in plan.runs})
    timed = config.train.seconds is not None
    if timed:
        budget = f"{config.train.seconds:g} s of training for each run, validation not counted"
    else:
        budget = f"{config.train.epochs} epochs for each run"
    threads = sorted({str(run.config.train.threads) for run in plan.runs})
    schedule = "follow the budget" if timed else "follow the epochs"
    fraction = config.data.val_fraction
    rows = [
        ("Budget", f"{budget}; learning rates {schedule}", "HomoODE 300 epochs; monDEQ paper 40 epochs on CIFAR-10"),
        (
            "Split",
            f"{100 * fraction:g} % of the training images are kept for validation, by the seed, alike for all rows",
            "no validation split that we know of",
        ),
        ("Seeds", f"{len(seeds)}: {', '.join(map(str, seeds))}", "3 runs, where a deviation is given"),
        ("Device", f"{config.train.device}, {', '.join(threads)} CPU threads for each run", "not compared"),
    ]
    return [markdown_table(("", "Ours", "Published"), rows)]


def _settings(comparison: Comparison) -> str:
    """Settings with more than one value, by row."""
    configs = {run.label: run.config.to_dict() for run in comparison.plan.runs}
    keys = dict.fromkeys((s, k) for config in configs.values() for s, values in config.items() for k in values)
    varied = []
    for section, key in keys:
        values = [config[section].get(key) for config in configs.values()]
        if (section, key) != ("train", "seed") and any(value != values[0] for value in values):
            shown = ["" if v is None else escape_markdown(str(v)) for v in values]
            varied.append((f"`{section}.{key}`", *shown))
    if not varied:
        return "In none.\n"
    return markdown_table(("", *map(escape_markdown, configs)), varied)
