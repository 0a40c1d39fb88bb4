"""homojl beside its peers: bars from the right rows, ratios, and solves that fail."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers.bars import bars_of
from benchmarks.peers.experiments import ACCURACY_SAVES, MAKERS, Group
from benchmarks.peers.magnification import magnification
from benchmarks.peers.measure import measure
from benchmarks.peers.problems import system_problem
from benchmarks.peers.solvers import SOLVERS, Case
from benchmarks.peers.tables import group_table
from homojl.results.measurements import Measurement

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
ROW = Measurement("batch", "vanderpol, batch 256", "vanderpol", "float32", "torchdiffeq", "", "dopri5", tolerance=1e-5,
                  batch=256.0, seconds=0.4, steps=200.0, nfe=1202.0, error=1e-4, repetitions=3.0)  # fmt: skip


ROWS = [
    replace(ROW, solver="homojl-pytorch", seconds=0.06, steps=100.0),
    replace(ROW, solver="homojl-compiled", seconds=0.01, steps=100.0),
    ROW,
    replace(ROW, solver="diffrax", message="it failed", seconds=math.nan),
    replace(ROW, experiment="accuracy", problem="linear", solver="homojl-pytorch", error=3e-5),
    replace(ROW, experiment="accuracy", problem="lorenz", solver="homojl-pytorch", error=5e-3),
]


def test_bars_divide_the_right_figures():
    bars = {bar.name: bar for bar in bars_of(ROWS, [100.0] * 50 + [103.0] * 50)}
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


def test_the_table_has_ratios_and_says_what_failed():
    table = group_table(ROWS[:4])
    first = dict(zip(table.head, table.rows[0], strict=True))
    assert (first["time [ms]"], first["/ peer"], first["per step / peer"]) == ("60", "0.15", "0.3")
    assert [row[-1] for row in table.rows] == ["", "", "", "it failed"]


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
        for name, make in MAKERS.items():
            groups = make(quick, 0)
            assert groups or name == "leak"
            assert all(group.cases for group in groups)


def test_the_docs_have_every_problem_and_solver():
    text = DOCS.read_text("utf-8")
    for name in (*MAKERS, *SOLVERS):
        assert f"`{name}`" in text
