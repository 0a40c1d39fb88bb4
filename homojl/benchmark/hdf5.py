"""A benchmark as one HDF5 file; docs/benchmarks.md has its schema."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from homojl.benchmark.bars import bars_of
from homojl.benchmark.record import QUANTITIES, Report
from homojl.results.schema import Entry, Schema

_ROW, _BAR, _SOLVER = ("measurement",), ("bar",), ("solver",)
_TEXTS = {
    "experiment": "batch, precision, layer, equilibrium, trajectory, steps or accuracy",
    "group": "what was measured together, its solves in turn",
    "problem": "name of the problem",
    "dtype": "type of the state's numbers",
    "solver": "name of the solver, as in /solvers",
    "variant": "adjoint or function that was used; empty where there is one",
    "method": "name of the method, as homojl has it",
    "message": "why numbers are missing; empty if none are",
}

SCHEMA = Schema(
    "homojl-bench",
    1,
    groups={
        "/": "solvers measured side by side on the same problems",
        "/measurements": "one element for each solve by one solver; NaN where not measured",
        "/bars": "figures that homojl holds itself to",
        "/solvers": "the libraries",
        "/leak": "memory over many solves with gradients",
    },
    entries={
        **{f"/measurements/{name}": Entry("text", _ROW, "1", text) for name, text in _TEXTS.items()},
        **{f"/measurements/{name}": Entry("float64", _ROW, q.unit, q.description) for name, q in QUANTITIES.items()},
        "/bars/name": Entry("text", _BAR, "1", "name of the figure"),
        "/bars/value": Entry("float64", _BAR, "1", "as measured; NaN: not measured; memory growth in MiB"),
        "/bars/limit": Entry("float64", _BAR, "1", "what it must not exceed; NaN: there to compare with"),
        "/bars/meaning": Entry("text", _BAR, "1", "what was divided by what, or where the worst case is"),
        "/solvers/name": Entry("text", _SOLVER, "1", "as --solver takes it"),
        "/solvers/package": Entry("text", _SOLVER, "1", "distribution on PyPI"),
        "/solvers/version": Entry("text", _SOLVER, "1", "of the package; empty where it is missing"),
        "/solvers/missing": Entry("text", _SOLVER, "1", "why it was not measured; empty if it was"),
        "/leak/resident": Entry("float64", ("part",), "MiB", "resident memory after each fiftieth of the solves"),
        "/environment": Entry("text", (), "1", "versions, processor, threads and command, JSON"),
    },
    attributes={
        "/": {
            "quick": "1: small sizes, 0: those of the bars",
            "seed": "of starts and weights",
        },
        "/leak": {"solves": "how many solves"},
    },
)


def write_bench(path: str | Path, report: Report) -> None:
    """Write a benchmark, whole or not at all.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    bars = bars_of(report)
    parts: dict[str, object] = {
        "/bars/name": [bar.name for bar in bars],
        "/bars/value": [bar.value for bar in bars],
        "/bars/limit": [bar.limit for bar in bars],
        "/bars/meaning": [bar.meaning for bar in bars],
        "/environment": json.dumps(report.environment),
    }
    for name in ("name", "package", "version", "missing"):
        parts[f"/solvers/{name}"] = [getattr(library, name) for library in report.libraries]
    if report.measurements:
        for name in (*_TEXTS, *QUANTITIES):
            parts[f"/measurements/{name}"] = [getattr(m, name) for m in report.measurements]
    attributes: dict[str, dict[str, object]] = {"/": {"quick": int(report.quick), "seed": report.seed}}
    if report.leak:
        parts["/leak/resident"] = report.leak
        attributes["/leak"] = {"solves": report.leak_solves}
    arrays, _ = SCHEMA.arrays(parts)
    SCHEMA.write(path, arrays, attributes)


def read_bench(path: str | Path) -> tuple[dict[str, np.ndarray | str], dict[str, object]]:
    """The datasets by name and the attributes of the root of what `write_bench` wrote.

    Raises:
        DataError: no such file, not a whole file of this schema, or one of a later version.
    """

    def build(file: h5py.File) -> tuple[dict[str, np.ndarray | str], dict[str, object]]:
        return SCHEMA.datasets(file), {key: file.attrs[key] for key in SCHEMA.attributes["/"]}

    return SCHEMA.read(path, build)
