"""What an evaluation leaves in the run's folder: figures are of the answers that are there, or are missing."""

from __future__ import annotations

import dataclasses

import pytest

from homojl.results.hdf5 import read_run
from homojl.training import outcome
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run, illustrate, publish, store
from homojl.training.run import Run

ALL = ["confusion_matrix.png", "initial_point.png", "learning_curves.png", "solver_cost.png"]


@pytest.fixture
def run(tiny, tmp_path) -> Run:
    run = Run.create(tmp_path / "run", tiny)
    train_run(run)
    return run


def figures(run: Run) -> dict[str, int]:
    """When each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((run.path / "figures").glob("*"))}


def links(run: Run) -> list[str]:
    text = (run.path / "report.md").read_text(encoding="utf-8")
    return sorted(line.split("figures/")[1].rstrip(")") for line in text.splitlines() if line.startswith("!["))


def test_a_run_is_complete_before_its_figures(run):
    evaluation = evaluate_run(run)
    record = store(run, evaluation)
    assert (read_run(run.path).evaluation.predictions == evaluation.predictions).all()
    assert (figures(run), links(run)) == ({}, [])
    illustrate(run, record)
    assert list(figures(run)) == links(run) == ALL


def test_figures_of_other_answers_go_before_the_answers_are_written(run, monkeypatch):
    evaluation = evaluate_run(run)
    publish(run, evaluation)
    before = figures(run)
    publish(run, dataclasses.replace(evaluation, seconds=2 * evaluation.seconds))
    assert figures(run) == before
    (run.path / "figures" / "solver_cost.png").unlink()
    publish(run, evaluation)
    assert list(figures(run)) == ALL
    assert {name: time for name, time in figures(run).items() if name != "solver_cost.png"}.items() <= before.items()

    others = dataclasses.replace(evaluation, predictions=(evaluation.predictions + 1) % 10, accuracy=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "write_results", lambda path, record: 1 / 0)  # a kill at this place
        with pytest.raises(ZeroDivisionError):
            publish(run, others)
    assert figures(run) == {}
    publish(run, others)
    assert list(figures(run)) == links(run) == ALL


@pytest.mark.parametrize("damage", [lambda whole: whole[:1000], lambda whole: b""], ids=["cut short", "empty"])
def test_damaged_results_are_written_anew(run, damage):
    evaluation = evaluate_run(run)
    publish(run, evaluation)
    run.results_path.write_bytes(damage(run.results_path.read_bytes()))
    publish(run, evaluation)
    assert read_run(run.path).evaluation.accuracy == evaluation.accuracy
    assert list(figures(run)) == links(run) == ALL
