"""homojl report and homojl train --tensorboard, as a person runs them."""

from __future__ import annotations

import shutil

import pytest

from tests.command import SMALL, assert_one_line_error, homojl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    result = homojl("train", "--epochs", 1, "--tensorboard", "--out", folder, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_report_lies_in_the_run_and_the_run_can_still_be_replaced(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = homojl("report", copy)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{copy / 'report.html'}\n", "")
    text = (copy / "report.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("data:image/png;base64,") == 24
    replaced = homojl("train", "--epochs", 1, "--quiet", "--out", copy, "--overwrite", *SMALL)
    assert replaced.returncode == 0, replaced.stderr
    assert not (copy / "report.html").exists()


def test_several_runs_go_where_they_are_told(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "results.h5").unlink()
    result = homojl("report", run, other, "--out", tmp_path / "both.html", "--samples", 3)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("other: The test set has not been answered.")
    assert (tmp_path / "both.html").read_text("utf-8").count("data:image/png;base64,") == 6
    here = homojl("report", run, other, "--samples", 0, cwd=tmp_path)
    assert here.stdout == "report.html\n"
    assert not list(tmp_path.rglob("*.tmp"))


def test_mistakes_are_one_line(run, tmp_path):
    assert_one_line_error(homojl("report", tmp_path), "is not a run")
    assert_one_line_error(homojl("report", run, "--out", tmp_path / "no" / "r.html"), "cannot write", "No such file")
    assert_one_line_error(homojl("report"), "RUN")
    assert_one_line_error(homojl("report", run, "--samples", "-1"), "--samples")


def test_tensorboards_files_lie_in_the_run(run):
    assert [path.name.partition(".")[0] for path in (run / "tensorboard").iterdir()] == ["events"]
