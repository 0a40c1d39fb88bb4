"""homojl trace."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from homojl import gallery
from homojl.errors import ConfigError
from homojl_cli.trace import command
from homojl_cli.train import command as train

pytestmark = pytest.mark.slow


def trace(*args: object):
    return CliRunner().invoke(command, [str(a) for a in args])


def test_without_a_problem_it_lists_the_gallery():
    result = trace()
    assert result.exit_code == 0
    first = [line.split()[0] for line in result.output.splitlines() if line[:1] != " "]  # long ones go on, indented
    assert first == gallery.names()


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One barely trained run of a model of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    small = {
        "homoode": ["model.channels=4"],
        "pcdeq": ["model.form=linear", "model.channels=16"],
        "anode": ["model.filters=4"],
    }
    for model, settings in small.items():
        chosen = [*settings, "train.threads=1", "train.batch_size=256"]
        args = ["--model", model, "--epochs", "1", "--out", str(folder / model), "--device", "cpu", "--quiet"]
        args += ["--backend", "pytorch", *(part for text in chosen for part in ("--set", text))]
        result = CliRunner().invoke(train, args)
        assert result.exit_code == 0, result.output
    return folder


def rows(result) -> list[list[str]]:
    return [line.split() for line in result.output.splitlines() if line.startswith("image ")]


def test_a_homoode_is_read_as_a_zero_path(runs, tmp_path):
    result = trace(runs / "homoode", "--samples", 3, "--velocity", "constant", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = rows(result)
    assert len(found) == 3
    # One channel in a group of the last normalisation: the same velocity at s = 0 and s = 1, and half way at s = 1/2.
    for *_, first, last, middle, _moved, bend, off, _tangent in found:
        assert float(first) == pytest.approx(float(last), rel=1e-2)
        assert float(middle) == pytest.approx(0.5, abs=1e-2)
        assert 0 < float(bend) < 0.5
        assert 0 < float(off) < 2
    head = trace(runs / "homoode", "--samples", 1).output.splitlines()[1]
    assert "norm(H)" not in head, "it is zero by construction"
    assert "lambda" not in head, "it is s"
    assert (tmp_path / "correspondence.png").is_file()
    assert (tmp_path / "correspondence.svg").is_file()


def test_the_paths_of_an_equilibrium_model_lead_to_its_equilibria(runs, tmp_path):
    result = trace(runs / "pcdeq", "--samples", 2, "--rtol", "1e-3", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert [row[3] for row in rows(result)] == ["SUCCESS", "SUCCESS"]
    assert (tmp_path / "path.svg").is_file()


def test_the_appended_channels_of_an_anode(runs):
    result = trace(runs / "anode", "--augmented", "--samples", 2)
    assert result.exit_code == 0, result.output
    assert "its appended channels" in result.output
    assert len(rows(result)) == 2


def test_what_a_run_does_not_take_is_refused(runs):
    assert trace(runs / "pcdeq", "--problem", "fold").exit_code == 2
    assert trace("--problem", "fold", "--augmented").exit_code == 2
    assert isinstance(trace(runs / "homoode", "--augmented").exception, ConfigError)
    assert "velocity" in str(trace(runs / "homoode", "--velocity", "fast").exception)
