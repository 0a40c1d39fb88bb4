"""homojl's own solves measured: a table, a file that describes itself, and files of earlier versions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from homojl.bench import bench_table, cases, run_bench, write_bench
from homojl.environment import environment
from homojl.errors import ConfigError
from homojl.names import BENCH_PROBLEMS
from homojl.results.measurements import SCHEMA, Measurement
from homojl.results.schema import DatasetSpec, Records, Schema, text
from tests.results.netcdf import assert_netcdf

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def measured() -> list[Measurement]:
    said: list[str] = []
    found = run_bench(problems=["equilibrium", "kaps"], backends=["pytorch"], quick=True, say=said.append)
    assert said == ["equilibrium", "kaps"]
    return found


def test_every_solve_is_timed_and_near_its_reference(measured):
    assert [(m.problem, m.method, m.variant) for m in measured] == [
        ("equilibrium", "Anderson", ""),
        ("equilibrium", "Anderson", "ImplicitAdjoint"),
        ("kaps", "Kvaerno5", ""),
        ("kaps", "Dopri5", ""),
    ]
    for m in measured:
        assert m.repetitions == 3
        assert 0 < m.seconds_min <= m.seconds <= m.seconds_max
        assert m.nfe > 0
        assert m.steps > 0
    assert [m.error < limit for m, limit in zip(measured, (1e-3, 1e-3, 1e-4, 1e-4), strict=True)] == [True] * 4


@pytest.mark.parametrize("problem", BENCH_PROBLEMS)
def test_every_problem_has_cases_of_both_sizes(problem):
    assert len(cases(problem, quick=True, seed=0)) == len(cases(problem, quick=False, seed=0)) > 0


def test_the_columns_are_the_measurements():
    columns = SCHEMA.records["/measurements"].columns
    assert sorted(columns) == sorted(field.name for field in dataclasses.fields(Measurement))


def test_the_file_holds_what_was_measured_and_describes_itself(measured, tmp_path):
    files = write_bench(tmp_path / "b", measured, environment(), quick=True, seed=3)
    assert [file.name for file in files] == ["bench.h5", "bench.md"]
    arrays, attributes = SCHEMA.load(files[0])
    assert attributes == {"quick": 1, "seed": 3}
    for name in SCHEMA.records["/measurements"].columns:
        np.testing.assert_array_equal(arrays[f"/measurements/{name}"], [getattr(m, name) for m in measured])
    assert_netcdf(files[0])
    with h5py.File(files[0]) as file:
        for name in SCHEMA.entries:
            assert file[name].attrs["unit"]
            assert file[name].attrs["description"]
    written = files[1].read_text("utf-8")
    assert "Small sizes" in written
    assert bench_table(measured).markdown() in written


def test_a_file_with_the_bars_and_peers_of_before_is_read(measured, tmp_path):
    entries = {"/leak/resident": DatasetSpec("float64", ("part",), "MiB", "memory")}
    libraries = Records("solver", {"name": text("of a solver", str)}, "the libraries")
    before = Schema.of_records(
        "homojl-bench", 1, "all", {**SCHEMA.records, "/solvers": libraries}, entries=entries,
        attributes=SCHEMA.attributes["/"],
    )  # fmt: skip
    records = {"/measurements": measured, "/solvers": ["torchode"]}
    before.save(tmp_path / "b.h5", records, parts={"/leak/resident": [1.0]}, attributes={"quick": 0, "seed": 0})
    arrays, _ = SCHEMA.load(tmp_path / "b.h5")
    assert list(arrays["/measurements/problem"]) == [m.problem for m in measured]


def test_columns_without_a_number_are_left_out(measured):
    row = dataclasses.replace(measured[0], seconds=math.nan, message="it failed")
    assert "time [ms]" not in bench_table([row]).head
    assert bench_table([row]).rows[0][-1] == "it failed"


def test_unknown_names():
    with pytest.raises(ConfigError, match="unknown backend 'pytroch'; did you mean 'pytorch'"):
        run_bench(backends=["pytroch"])


def test_the_docs_show_the_schema_and_every_problem():
    page = DOCS.read_text("utf-8")
    assert SCHEMA.describe() in page
    assert all(f"`{name}`" in page for name in BENCH_PROBLEMS)
