"""The tables of a benchmark in Markdown, which a terminal shows as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from homojl.benchmark.bars import bars_of
from homojl.benchmark.record import Measurement, Report

MEANING = """\
`time` is the median wall time of a solve, whose repetitions take turns with those of the other solvers; `/ peer` is
that over torchdiffeq's with the same method, tolerance and gradient (`odeint`; for equilibria torchdeq's). `first` is
compiling and the first solve, in no repetition. `error / tol` is the largest |y - reference| / (1 + |reference|) at any
save time over the tolerance, the reference SciPy's DOP853 at 1e-12; of an equilibrium the relative residual over it.
`dL/dy0` is the gradient's relative distance from a float64 solve at 1e-10, of the layer at 1e-8. Evaluations are of the
forward solve.
"""

PEERS = ("torchdiffeq", "torchdeq")


def markdown(report: Report) -> str:
    """Bars, libraries and one table for each group."""
    text = "# Solvers side by side\n\n"
    if report.quick:
        text += "Small sizes (--quick): a look at whether all works, not a measurement.\n\n"
    environment = report.environment
    text += (
        f"{environment['processor']}, {environment['threads']} threads, Python {environment['python']}, torch "
        f"{environment['packages']['torch']}, seed {report.seed}.\n\n"
    )
    rows = [
        (bar.name, _number(bar.value), "" if math.isnan(bar.limit) else f"{bar.limit:g}", bar.verdict, bar.meaning)
        for bar in bars_of(report)
    ]
    text += _table(("bar", "measured", "at most", "", "what it is"), rows) + "\n"
    libraries = [(library.name, library.version or "missing", library.missing) for library in report.libraries]
    text += _table(("solver", "version", ""), libraries) + "\n" + MEANING
    for title in dict.fromkeys(m.group for m in report.measurements):
        text += f"\n## {title}\n\n" + _group_table([m for m in report.measurements if m.group == title])
    return text


def ratio(measurement: Measurement, group: Sequence[Measurement], value: Callable[[Measurement], float]) -> float:
    """A measurement's value over the peer's with the same method, tolerance and gradient; NaN without one."""
    for peer in group:
        same = (peer.method, str(peer.tolerance), peer.gradient) == (
            measurement.method,
            str(measurement.tolerance),
            measurement.gradient,
        )
        if same and peer.solver in PEERS and peer.variant in ("", "odeint", "implicit"):
            return value(measurement) / value(peer)
    return math.nan


def _group_table(group: list[Measurement]) -> str:
    columns: dict[str, Callable[[Measurement], str]] = {
        "solver": lambda m: m.label,
        "method": lambda m: m.method,
        "tolerance": lambda m: _number(m.tolerance),
        "time [ms]": lambda m: _number(1e3 * m.seconds),
        "/ peer": lambda m: _number(ratio(m, group, lambda x: x.seconds)),
        "steps": lambda m: "" if math.isnan(m.steps) else f"{m.steps:,.0f}",
        "per step [us]": lambda m: _number(1e6 * m.seconds_per_step),
        "per step / peer": lambda m: _number(ratio(m, group, lambda x: x.seconds_per_step)),
        "evaluations": lambda m: "" if math.isnan(m.nfe) else f"{m.nfe:,.0f}",
        "error / tol": lambda m: _number(m.error_over_tolerance),
        "dL/dy0": lambda m: _number(m.gradient_error),
        "memory [MiB]": lambda m: _number(m.memory),
        "first [s]": lambda m: _number(m.first_seconds),
        "": lambda m: m.message,
    }
    cells = {name: [cell(m) for m in group] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    return _table(tuple(cells), list(zip(*cells.values(), strict=True)))


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    written = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    written.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(written) + "\n"
