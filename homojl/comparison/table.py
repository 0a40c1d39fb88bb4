"""The tables of a comparison, in the form of the papers', as cells that a terminal and Markdown both show."""

from __future__ import annotations

import math

from homojl.comparison.record import Comparison, Row

HEAD = (
    "", "parameters", "test accuracy [%]", "peak memory [MiB]", "inference [ms/image]",
    "evaluations, test", "training", "backward", "epochs",
)  # fmt: skip


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line for each row, as under `HEAD`; what did not finish says so in the place of its accuracy."""
    return [_cells(row) for row in comparison.rows]


def _cells(row: Row) -> tuple[str, ...]:
    missing = len(row.runs) - len(row.finished)
    if not row.finished:
        return (row.label, "", f"{row.runs[0].status}", *[""] * (len(HEAD) - 3))
    accuracy = spread(100 * row.mean("test_accuracy"), 100 * row.sd("test_accuracy"), 2)
    if missing:
        accuracy += f" ({len(row.finished)} of {len(row.runs)} runs)"
    parameters = sorted(set(row.values("parameters")))
    return (
        row.label,
        " to ".join(f"{int(n):,}" for n in dict.fromkeys((parameters[0], parameters[-1]))),
        accuracy,
        spread(row.mean("peak_memory"), math.nan, 0),
        spread(1e3 * row.mean("inference_seconds"), 1e3 * row.sd("inference_seconds"), 3),
        spread(row.mean("test_nfe"), row.sd("test_nfe"), 1),
        spread(row.mean("nfe_forward"), row.sd("nfe_forward"), 1),
        spread(row.mean("nfe_backward"), row.sd("nfe_backward"), 1),
        spread(row.mean("epochs"), math.nan, 2),
    )


MEASURED_HEAD = (
    "", "settings", "batch size", "accuracy [%]", "inference [ms/image]", "evaluations", "failed solves",
)  # fmt: skip


def measured_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line for each row and measurement, means over the seeds, as under `MEASURED_HEAD`."""
    lines: list[tuple[str, ...]] = []
    for row in comparison.rows:
        names = dict.fromkeys(m["name"] for run in row.finished for m in run.measurements)
        for name in names:
            found = [m for run in row.finished for m in run.measurements if m["name"] == name]
            n = len(found)
            lines.append(
                (
                    row.label,
                    name,
                    str(found[0]["batch_size"]),
                    f"{100 * sum(m['accuracy'] for m in found) / n:.2f}",
                    f"{1e3 * sum(m['seconds'] / m['images'] for m in found) / n:.3f}",
                    f"{sum(m['nfe'] for m in found) / n:.1f}",
                    str(sum(m["failed_solves"] for m in found)),
                )
            )
    return lines


def plain_table(comparison: Comparison) -> str:
    """Both tables in columns."""
    text = _columns([HEAD, *cells(comparison)])
    measured = measured_cells(comparison)
    if measured:
        text += "\n" + _columns([MEASURED_HEAD, *measured])
    for run in comparison.runs:
        if run.record is None:
            text += f"{run.planned.label}, seed {run.planned.seed}: {run.status}: {run.message}\n"
    return text


def spread(mean: float, sd: float, digits: int) -> str:
    """A mean with its standard deviation, where there is one."""
    text = f"{mean:,.{digits}f}"
    return text if math.isnan(sd) else f"{text} ± {sd:,.{digits}f}"


def _columns(lines: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + "\n"
        for line in lines
    )
