"""The tables of a comparison, and its report in Markdown beside the published figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from homojl.comparison.figures import CAPTIONS, draw_comparison
from homojl.comparison.hdf5 import write_comparison
from homojl.comparison.published import CLAIMS, PUBLISHED, SOURCE
from homojl.comparison.record import Comparison, Row
from homojl.files import replace_file
from homojl.results.report import figure_sections, settings_table
from homojl.results.tables import Table, code, escape_markdown
from homojl.results.wording import flat

_MEANING = """\
- **Test accuracy**: mean and, over more than one seed, standard deviation (n - 1). The epoch is chosen on the
  validation split; the test set is used once, at the end.
- **Peak memory** is that of each run's own process, with libraries and images, in training and validation.
- **ms per image**: the wall time of the forward passes on the test set, divided by its images.
- **Evaluations**: of the model's field or map per forward pass, on the test set and in training, and
  vector-Jacobian products per backward pass, the last two at the end of training. An ODE model solves a batch as one
  system. In a fixed point, samples that have converged leave the batch: late evaluations are of few samples.
"""


def publish_comparison(comparison: Comparison, *, command: Sequence[str] = ()) -> None:
    """Write comparison.h5, report.md and, where matplotlib is installed, the figures into the comparison's folder."""
    folder = comparison.plan.folder
    write_comparison(folder / "comparison.h5", comparison)
    figures = draw_comparison(comparison, folder / "figures") if find_spec("matplotlib") else []
    write_comparison_report(folder / "report.md", comparison, figures, command)


# ---- tables


def results_table(comparison: Comparison) -> Table:
    """One line for each row; what did not finish says so in the place of its accuracy."""
    head = (
        "", "parameters", "test accuracy [%]", "peak memory [MiB]", "ms per image",
        "evaluations, test", "training", "backward", "epochs",
    )  # fmt: skip
    rows = []
    for row in comparison.rows:
        if not row.finished:
            rows.append((row.label, "", row.runs[0].status, *[""] * (len(head) - 3)))
            continue
        parameters = sorted(set(row.values("parameters")))
        numbers = (
            _spread(row, "peak_memory", 0, sd=False),
            _spread(row, "inference_seconds", 3, 1e3),
            *(_spread(row, name, 1) for name in ("test_nfe", "nfe_forward", "nfe_backward")),
            _spread(row, "epochs", 2, sd=False),
        )
        count = " to ".join(f"{int(n):,}" for n in dict.fromkeys((parameters[0], parameters[-1])))
        missing = "" if len(row.finished) == len(row.runs) else f" ({len(row.finished)} of {len(row.runs)} runs)"
        rows.append((row.label, count, _accuracy(row) + missing, *numbers))
    return Table(head, rows)


def measured_table(comparison: Comparison) -> Table:
    """One line for each row and measurement, means over the seeds."""
    head = (
        "", "settings", "batch size", "accuracy [%]", "time [ms/image]", "evaluations", "memory [MiB]", "failed solves"
    )  # fmt: skip
    rows = []
    for row in comparison.rows:
        measured = [m for run in row.finished for m in run.measurements]
        for name in dict.fromkeys(m["name"] for m in measured):
            found = [m for m in measured if m["name"] == name]
            n = len(found)
            rows.append(
                (
                    row.label,
                    name,
                    str(found[0]["batch_size"]),
                    f"{100 * sum(m['accuracy'] for m in found) / n:.2f}",
                    f"{1e3 * sum(m['seconds'] / m['images'] for m in found) / n:.3f}",
                    f"{sum(m['nfe'] for m in found) / n:.1f}",
                    f"{sum(m['memory'] for m in found) / n:.0f}",
                    str(sum(m["failed_solves"] for m in found)),
                )
            )
    return Table(head, rows, words=2)


def plain_tables(comparison: Comparison) -> str:
    """Both tables for a terminal, and a line for each run that did not finish."""
    measured = measured_table(comparison)
    text = results_table(comparison).text() + ("\n" + measured.text() if measured.rows else "")
    for run in comparison.runs:
        if run.record is None:
            text += f"{run.planned.label}, seed {run.planned.seed}: {run.status}: {run.message}\n"
    return text


def _accuracy(row: Row) -> str:
    return _spread(row, "test_accuracy", 2, 100)


def _spread(row: Row, name: str, digits: int, factor: float = 1.0, *, sd: bool = True) -> str:
    """The mean of a quantity with its standard deviation, where there is one."""
    return _with_deviation(factor * row.mean(name), factor * row.sd(name) if sd else math.nan, digits)


def _with_deviation(mean: float, sd: float, digits: int) -> str:
    text = f"{mean:,.{digits}f}"
    return text if math.isnan(sd) else f"{text} ± {sd:,.{digits}f}"


# ---- the report


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
    experiment = comparison.plan.experiment
    sections = [f"# {escape_markdown(f'{experiment.title} on {_dataset(comparison)}')}\n"]
    if experiment.source:
        sections.append(f"Source: {escape_markdown(experiment.source)}\n")
    sections += [
        results_table(comparison).markdown(),
        _first(comparison),
        *_measured(comparison),
        *_failures(comparison),
        "## Beside the published figures\n",
        *_published(comparison),
        "## Budget, split and seeds\n",
        _conditions(comparison).markdown(),
        *figure_sections(Path(path).parent, figures, CAPTIONS),
        "## What the numbers mean\n",
        _MEANING,
        "## Settings in which the rows differ\n",
        _settings(comparison),
        *_origin(comparison, command),
    ]
    replace_file(path, "\n".join(sections).encode())


def _dataset(comparison: Comparison) -> str:
    return Path(comparison.plan.dataset).stem


def _measured(comparison: Comparison) -> Iterable[str]:
    measured = measured_table(comparison)
    if measured.rows:
        yield "## The trained models with other settings\n"
        images = comparison.plan.experiment.images
        yield (
            f"On the first {images:,} test images at most, after one batch to warm up; what sets train.batch_size is a "
            "training step of so many images. Memory is that of the peak, beside what was taken before.\n"
        )
        yield measured.markdown()


def _failures(comparison: Comparison) -> Iterable[str]:
    failed = [run for run in comparison.runs if run.record is None]
    if failed:
        yield "## Runs that did not finish\n"
        rows = [(run.planned.label, str(run.planned.seed), run.status, run.message) for run in failed]
        yield Table(("Run", "Seed", "", "Why"), rows).markdown()


def _origin(comparison: Comparison, command: Sequence[str]) -> Iterable[str]:
    if command:
        yield f"## How to reproduce it\n\n```bash\nhomojl {shlex.join(command[1:])}\n```\n"
        yield "Each run's folder in `runs/` has its complete `config.toml`, metrics and report.\n"
    if comparison.first is not None:
        environment = comparison.first.finished[0].known.environment
        yield "## Environment\n"
        yield settings_table({key: value for key, value in environment.items() if key != "command"}).markdown()


def _first(comparison: Comparison) -> str:
    """A sentence on the row with the highest accuracy, and whether its seeds separate it from the next."""
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


def _published(comparison: Comparison) -> Iterable[str]:
    figures = PUBLISHED.get(comparison.plan.dataset, ())
    if not figures:
        yield f"We know of none on {escape_markdown(_dataset(comparison))}.\n"
        return
    rows: list[tuple[str, ...]] = []
    for row in comparison.rows:
        ours = (row.label, "", "did not finish")
        if row.finished:
            ours = (row.label, f"{int(row.mean('parameters')):,}", _accuracy(row))
        theirs = [p for p in figures if p.model == row.model]
        for number, p in enumerate(theirs):
            accuracy = _with_deviation(p.accuracy, math.nan if p.sd is None else p.sd, 1)
            rows.append((*(ours if number == 0 else ("", "", "")), p.name, p.parameters, accuracy))
        if not theirs:
            rows.append((*ours, "none known to us", "", ""))
    rows += [("", "", "", p.name, p.parameters, f"{p.accuracy:.1f}") for p in figures if p.model is None]
    head = ("Ours", "parameters", "test accuracy [%]", "Published", "parameters", "test accuracy [%]")
    yield Table(head, rows).markdown()
    yield f"{SOURCE}\n"
    for model in dict.fromkeys(row.model for row in comparison.rows):
        if model in CLAIMS:
            yield f"{CLAIMS[model]}\n"


def _conditions(comparison: Comparison) -> Table:
    """Budget, split, seeds and device, and in what they differ from the published runs."""
    plan = comparison.plan
    config = plan.runs[0].config
    seeds = sorted({run.seed for run in plan.runs})
    budget, schedule = f"{config.train.epochs} epochs for each run", "follow the epochs"
    if config.train.seconds is not None:
        budget = f"{config.train.seconds:g} s of training for each run, validation not counted"
        schedule = "follow the budget"
    threads = sorted({str(run.config.train.threads) for run in plan.runs})
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
    return Table(("", "Ours", "Published"), rows)


def _settings(comparison: Comparison) -> str:
    """Settings with more than one value, by row."""
    configs = {run.label: dict(flat(run.config.to_dict())) for run in comparison.plan.runs}
    varied = []
    for key in dict.fromkeys(key for config in configs.values() for key in config):
        values = [config.get(key, "") for config in configs.values()]
        if key != "train.seed" and len(set(values)) > 1:
            varied.append((code(key), *values))
    return Table(("", *configs), varied).markdown() if varied else "In none.\n"
