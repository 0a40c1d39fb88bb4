"""homojl bench and homojl tune as a person runs them."""

from __future__ import annotations

import shlex
import shutil

import pytest
from click.testing import CliRunner

from homojl.results.measurements import SCHEMA as BENCH
from homojl.results.tuning import SCHEMA as TUNING
from homojl_cli import tune
from tests.command import assert_one_line_error, homojl, homojl_process


def test_bench_writes_a_table_and_a_file(tmp_path, no_julia):
    result = homojl_process(
        "bench", "--quick", "--problem", "equilibrium", "--backend", "pytorch,julia", "--threads", 1,
        "--out", tmp_path / "b", env=no_julia,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("julia is left out: ")
    assert [line.split()[:2] for line in lines[3:6]] == [
        ["problem", "solved"], ["equilibrium", "homojl-pytorch"], ["equilibrium", "homojl-pytorch,"],
    ]  # fmt: skip
    arrays, _ = BENCH.load(tmp_path / "b" / "bench.h5")
    assert list(arrays["/measurements/variant"]) == ["", "ImplicitAdjoint"]
    assert lines[-2:] == [str(tmp_path / "b" / "bench.h5"), str(tmp_path / "b" / "bench.md")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bench", "--problem", "vanderpool"], ["did you mean 'vanderpol'"]),
        (["bench", "--backend", "pytroch"], ["did you mean 'pytorch'"]),
        (["bench", "--threads", "0"], ["--threads"]),
        (["tune", "none"], ["none is not a run"]),
        (["tune", "none", "--tolerances", "small"], ["--tolerances"]),
    ],
    ids=" ".join,
)
def test_bad_input(args, words, tmp_path):
    assert_one_line_error(homojl(*args, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tune_prints_options_that_train_takes(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    arguments = [str(run), "--algorithms", "bosh3,dopri5,rk4", "--tolerances", "1e-1,1e-3", "--within", "2"]
    result = CliRunner().invoke(tune.command, arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[1].startswith("Dopri8 at 1e-06, reference")
    assert lines[2].startswith("Bosh3, as configured")
    assert max(map(len, lines[: 1 + 2 + 2 * 2 + 4])) <= 80
    arrays, attributes = TUNING.load(run / "tune.h5")
    assert attributes["within"] == pytest.approx(0.02)
    (chosen,) = arrays["/chosen"].nonzero()[0]
    if "as configured: " in lines[-1]:  # nothing was cheaper
        return
    assert lines[-1] == f"homojl train --config {run}/config.toml {arrays['/settings'][chosen]}"
    evaluated = homojl(*shlex.split(lines[-2])[1:])
    assert f"{arrays['/algorithm'][chosen]} (" in evaluated.stdout, evaluated.stderr
    assert (run / "figures" / "tune.png").stat().st_size > 1000
    again = homojl(*shlex.split(lines[-1])[1:], "--epochs", 1, "--quiet", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
