"""What a benchmark leaves: exact in HDF5, bars from the right rows, and docs that show the schema."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from homojl.benchmark.bars import bars_of
from homojl.benchmark.experiments import ACCURACY_SAVES, Group, groups_of
from homojl.benchmark.figures import draw_bench
from homojl.benchmark.hdf5 import SCHEMA, read_bench, write_bench
from homojl.benchmark.magnification import magnification
from homojl.benchmark.measure import measure
from homojl.benchmark.names import PROBLEMS
from homojl.benchmark.problems import system_problem
from homojl.benchmark.record import QUANTITIES, Library, Measurement, Report
from homojl.benchmark.solvers import SOLVERS, Case
from homojl.benchmark.table import markdown
from homojl.environment import environment
from tests.results.netcdf import assert_netcdf

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
ROW = Measurement("batch", "vanderpol, batch 256", "vanderpol", "float32", "torchdiffeq", "", "dopri5", tolerance=1e-5,
                  batch=256.0, seconds=0.4, steps=200.0, nfe=1202.0, error=1e-4, repetitions=3.0)  # fmt: skip


@pytest.fixture
def report() -> Report:
    rows = [
        replace(ROW, solver="homojl-pytorch", seconds=0.06, steps=100.0),
        replace(ROW, solver="homojl-compiled", seconds=0.01, steps=100.0),
        ROW,
        replace(ROW, solver="diffrax", message="it failed", seconds=math.nan),
        replace(ROW, experiment="accuracy", problem="linear", solver="homojl-pytorch", error=3e-5),
        replace(ROW, experiment="accuracy", problem="lorenz", solver="homojl-pytorch", error=5e-3),
    ]
    libraries = [Library("torchdiffeq", "torchdiffeq", "0.2.5"), Library("torchode", "torchode", missing="not there")]
    return Report(environment(), True, 0, libraries, rows, leak=[100.0] * 50 + [103.0] * 50, leak_solves=1000)


def test_bars_divide_the_right_figures(report):
    bars = {bar.name: bar for bar in bars_of(report)}
    assert bars["step, eager"].value == pytest.approx((0.06 / 100) / (0.4 / 200))
    assert bars["step, eager"].verdict == "missed"
    assert (bars["step, compiled"].value, bars["step, compiled"].verdict) == (pytest.approx(0.05), "met")
    assert bars["step, diffrax"].verdict == "not measured"
    assert bars["layer"].verdict == "not measured"
    assert bars["error, exact answers"].value == pytest.approx(3.0)
    sensitive = bars["error, sensitive systems"]
    assert sensitive.value == pytest.approx(500 / magnification("lorenz", ACCURACY_SAVES))
    assert sensitive.verdict == "missed"
    assert "lorenz, dopri5 at 1e-05, 500 times the tolerance" in sensitive.meaning
    assert (bars["memory growth"].value, bars["memory growth"].verdict) == (3.0, "missed")


def test_the_file_holds_what_was_measured_and_describes_itself(report, tmp_path):
    write_bench(tmp_path / "b.h5", report)
    arrays, attributes = read_bench(tmp_path / "b.h5")
    assert attributes == {"quick": 1, "seed": 0}
    for name in QUANTITIES:
        expected = [getattr(m, name) for m in report.measurements]
        np.testing.assert_array_equal(arrays[f"/measurements/{name}"], expected)
    assert list(arrays["/measurements/message"]) == ["", "", "", "it failed", "", ""]
    assert list(arrays["/solvers/missing"]) == ["", "not there"]
    assert_netcdf(tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5") as file:
        for name in SCHEMA.entries:
            assert file[name].attrs["unit"]
            assert file[name].attrs["description"]


def test_the_table_has_ratios_and_says_what_failed_and_what_is_missing(report):
    text = markdown(report)
    assert "Small sizes" in text
    assert "| torchode    | missing | not there |" in text
    line = next(line for line in text.splitlines() if line.startswith("| homojl-pytorch "))
    assert [cell.strip() for cell in line.split("|")[4:6]] == ["60", "0.15"]
    assert "it failed" in text


def test_figures(report, tmp_path):
    files = draw_bench(report, tmp_path, ["svg"])
    assert {path.name for path in files} == {"batch_size.svg", "accuracy.svg"}
    assert "mathdefault" not in files[0].read_text("utf-8")


def test_every_experiment_has_its_figure(report, tmp_path):
    report.measurements += [
        replace(ROW, experiment=experiment, group=f"{experiment}: forward", method=method, variant=variant, steps=n,
                nfe=6 * n, error=1 / n, seconds=n / 1e3, memory=n / 10)
        for experiment in ("precision", "steps", "layer", "equilibrium", "trajectory")
        for method, variant in (("dopri5", "direct"), ("tsit5", "checkpoint"))
        for n in (100.0, 1000.0)
    ]  # fmt: skip
    files = draw_bench(report, tmp_path, ["svg"])
    others = {"work_precision", "steps", "layer", "equilibrium", "trajectory"}
    assert {path.stem for path in files} == {"batch_size", "accuracy"} | others
    texts = {path.stem: path.read_text("utf-8") for path in files}
    assert "largest error" in texts["work_precision"]
    assert "memory [MiB]" in texts["steps"]


def test_a_solve_that_fails_is_told_and_the_others_are_measured(tmp_path):
    problem = system_problem("linear", batch=2, saves=3, dtype="float64")
    broken = replace(problem, torch_field=lambda rows: None)
    group = Group("batch", "two", (Case(broken, "dopri5", 1e-3), Case(problem, "dopri5", 1e-3)))
    said: list[str] = []
    rows = measure(group, [SOLVERS["homojl-pytorch"]], repetitions=2, patience=9.0, threads=1, seed=0, say=said.append)
    assert [bool(row.message) for row in rows] == [True, False]
    assert rows[1].repetitions == 2
    assert rows[1].seconds_min <= rows[1].seconds <= rows[1].seconds_max
    assert 0 < rows[1].error < 1e-2
    assert "failed" in said[0]


def test_every_problem_has_groups_of_both_sizes():
    for quick in (True, False):
        for name in PROBLEMS:
            groups = groups_of(name, quick=quick, seed=0)
            assert groups or name == "leak"
            assert all(group.cases for group in groups)


def test_the_docs_show_the_schema_and_every_problem():
    text = DOCS.read_text("utf-8")
    assert SCHEMA.describe() in text
    for name in (*PROBLEMS, *SOLVERS):
        assert f"`{name}`" in text
