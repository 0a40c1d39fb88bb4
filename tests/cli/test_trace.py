"""homojl trace."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from homojl import gallery
from homojl.errors import ConfigError
from homojl_cli.trace import command


def trace(*args: object):
    return CliRunner().invoke(command, [str(a) for a in args])


def test_without_a_problem_it_lists_the_gallery():
    result = trace()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == gallery.names()


def test_several_velocities_and_a_figure(tmp_path):
    result = trace("--problem", "fold", "--velocity", "1,5,10", "--backend", "pytorch", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("v = ")]
    assert len(rows) == 3
    assert all("SUCCESS" in row and row.endswith("-2.01103") for row in rows)
    assert (tmp_path / "path.png").is_file()
    assert (tmp_path / "path.svg").is_file()


def test_another_start_homotopy_predictor_and_tolerance():
    result = trace(
        "--problem", "himmelblau", "--start", "2,-3", "--homotopy", "newton", "--predictor", "tsit5", "--rtol", "1e-9",
        "--max-step", "0.2", "--backend", "pytorch",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "-0.127961, -1.95371" in result.output


def test_a_path_that_does_not_arrive_exits_with_1():
    result = trace("--problem", "fold", "--algorithm", "naturalparameter", "--backend", "pytorch")
    assert result.exit_code == 1
    assert "FOLD" in result.output
    assert "ArcLength() follows the path round it" in result.output


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--problem", "fol"], "did you mean 'fold'"),
        (["--problem", "fold", "--algorithm", "arc"], "path algorithm"),
        (["--problem", "fold", "--velocity", "-1"], "velocity"),
        (["--problem", "fold", "--max-step", "0"], "max_step"),
        (["--problem", "fold", "--algorithm", "naturalparameter", "--velocity", "2"], "velocity"),
    ],
)
def test_what_does_not_exist_is_named(args, error):
    result = trace(*args, "--backend", "pytorch")
    assert isinstance(result.exception, ConfigError)
    assert error in str(result.exception)


@pytest.mark.parametrize("args", [["--velocity", "fast"], ["--start", "1,2"], ["--homotopy", "tanh"]])
def test_what_cannot_be_read_is_a_usage_error(args):
    assert trace("--problem", "fold", *args).exit_code == 2
