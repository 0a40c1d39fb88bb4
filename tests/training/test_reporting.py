"""What a report gathers of real runs: the stored answers on the test set, or else those on the validation split."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from homojl.data import load_dataset
from homojl.errors import CheckpointError
from homojl.results.answers import losses
from homojl.results.page import page
from homojl.training import outcome
from homojl.training.config import ExperimentConfig, merge
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run, publish
from homojl.training.reporting import gather, gather_run
from homojl.training.run import Run
from tests.training.conftest import TINY

pytestmark = pytest.mark.slow


def made(folder, **sections) -> Run:
    return Run.create(folder, ExperimentConfig.from_dict(merge(TINY, {"train": {"epochs": 1}}, sections)))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Run:
    run = made(tmp_path_factory.mktemp("runs") / "evaluated")
    train_run(run)
    publish(run, evaluate_run(run))
    return run


@pytest.fixture
def splits(monkeypatch) -> list[str]:
    """The splits that are answered from now on."""
    answered, original = [], outcome.evaluate

    def evaluate(*args, split: str, **options):
        answered.append(split)
        return original(*args, split=split, **options)

    monkeypatch.setattr(outcome, "evaluate", evaluate)
    return answered


def test_the_stored_answers_are_shown_and_nothing_is_answered_again(evaluated, splits):
    before = {path: path.read_bytes() for path in evaluated.path.rglob("*") if path.is_file()}
    run = gather_run(evaluated, "r", samples=5)
    assert splits == []
    assert {path: path.read_bytes() for path in evaluated.path.rglob("*") if path.is_file()} == before
    assert run.notes == ()
    evaluation, data = run.record.evaluation, load_dataset("digits")
    assert evaluation.split == "test"
    by_loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(evaluation.logits), data.y_test, reduction="none"
    ).argsort(descending=True)
    assert run.worst.tolist() == by_loss[:5].tolist()
    for position, image in zip(run.worst, run.images, strict=True):
        assert np.array_equal(image, data.x_test[position, 0].numpy())


def test_without_an_evaluation_the_validation_split_is_answered_and_the_test_set_left_alone(tmp_path, splits):
    run = made(tmp_path / "young", train={"epochs": 3})
    assert not train_run(run, should_stop=lambda: len(run.metrics) == 1)
    splits.clear()
    shown = gather_run(run, "r", samples=4)
    assert splits == ["val"]
    assert not run.results_path.exists()
    assert "1 of 3 epochs" in shown.notes[0]
    assert "test set has not been answered" in shown.notes[1]
    evaluation, data = shown.record.evaluation, load_dataset("digits")
    assert evaluation.accuracy == run.metrics[-1]["val_accuracy"]
    for position, image in zip(shown.worst, shown.images, strict=True):
        assert np.array_equal(image, data.x_train[evaluation.index[position], 0].numpy())
    assert losses(evaluation)[shown.worst[0]] == losses(evaluation).max()


def test_failed_solves_are_noted_first(tmp_path):
    run = made(tmp_path / "failing", solver={"max_steps": 1, "rtol": 1e-6, "atol": 1e-6})
    train_run(run)
    publish(run, evaluate_run(run))
    shown = gather_run(run, "r", samples=2)
    assert run.metrics[-1]["failed_solves"] == run.metrics[-1]["step"]
    assert shown.notes[0].startswith(f"{run.metrics[-1]['step']} solves in training did not reach their end")
    assert "2 of 2 solves did not reach their end (2 MAX_STEPS)" in shown.notes[1]
    assert "Failed solves" in page([shown])


def test_a_missing_dataset_is_said_and_spoils_nothing_else(evaluated, tmp_path, splits):
    data = load_dataset("digits")
    arrays = {"x_train": data.x_train[:200, 0], "y_train": data.y_train[:200], "x_test": data.x_test[:50, 0],
              "y_test": data.y_test[:50]}  # fmt: skip
    np.savez(tmp_path / "mine.npz", **{name: part.numpy() for name, part in arrays.items()})
    run = made(tmp_path / "r", data={"dataset": str(tmp_path / "mine.npz")})
    train_run(run)
    (tmp_path / "mine.npz").unlink()
    shown = gather_run(run, "r", samples=4)
    assert any("No answers and no images are shown" in note and "mine.npz" in note for note in shown.notes)
    assert shown.record.evaluation is None
    assert "not evaluated" in page([shown])


def test_a_report_without_images_needs_no_dataset(evaluated, monkeypatch):
    monkeypatch.setattr("homojl.training.reporting.matching_data", None)
    shown = gather_run(evaluated, "r", samples=0)
    assert (len(shown.worst), shown.notes) == (0, ())
    assert shown.record.evaluation.split == "test"


def test_runs_of_one_name_are_told_apart_by_their_paths(evaluated, tmp_path):
    other = tmp_path / "elsewhere" / "evaluated"
    shutil.copytree(evaluated.path, other)
    shown = gather([evaluated.path, other], samples=0)
    assert [run.name for run in shown] == [str(evaluated.path), str(other)]
    assert [run.name for run in gather([other], samples=0)] == ["evaluated"]
    with pytest.raises(CheckpointError, match="is not a run"):
        gather([tmp_path])
