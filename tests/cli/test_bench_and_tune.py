"""homojl bench and homojl tune as a person runs them."""

from __future__ import annotations

import shlex
import shutil

import pytest
from click.testing import CliRunner

from homojl.benchmark.hdf5 import read_bench
from homojl.results.tuning import read_tuning
from homojl_cli import tune
from tests.command import assert_one_line_error, homojl, homojl_process


@pytest.mark.slow
def test_bench_writes_a_table_a_file_and_figures(tmp_path, no_julia):
    result = homojl_process(
        "bench", "--quick", "--problem", "layer", "--solver", "homojl-pytorch,homojl-julia", "--threads", 1,
        "--out", tmp_path / "b", env=no_julia,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("homojl-julia is missing: ")
    assert any(line.startswith("  homojl-pytorch, direct, dopri5 at 0.001") for line in lines)
    assert (tmp_path / "b" / "bench.md").read_text("utf-8") in result.stdout
    arrays, _ = read_bench(tmp_path / "b" / "bench.h5")
    assert list(arrays["/measurements/variant"]) == ["", "direct", "checkpoint"]
    assert (arrays["/measurements/seconds"] > 0).all()
    assert (arrays["/measurements/gradient_error"][1:] < 0.5).all()
    assert {p.name for p in (tmp_path / "b" / "figures").iterdir()} == {"layer.png", "layer.svg"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bench", "--problem", "vanderpool"], ["did you mean 'vanderpol'"]),
        (["bench", "--solver", "torchdifeq"], ["did you mean 'torchdiffeq'"]),
        (["bench", "--threads", "0"], ["--threads"]),
        (["tune", "none"], ["none is not a run"]),
        (["tune", "none", "--tolerances", "small"], ["--tolerances"]),
    ],
    ids=" ".join,
)
def test_bad_input(args, words, tmp_path):
    assert_one_line_error(homojl(*args, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_those_of_what_there_is():
    from homojl.benchmark.experiments import MAKERS
    from homojl.benchmark.names import PROBLEMS
    from homojl.benchmark.names import SOLVERS as NAMES
    from homojl.benchmark.solvers import SOLVERS

    assert list(PROBLEMS) == list(MAKERS)
    assert list(NAMES) == list(SOLVERS)


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
    arrays, attributes = read_tuning(run / "tune.h5")
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
