"""The content of `homojl report`, gathered from runs: metrics, answers, and images to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from homojl.data.datasets import ImageDataset
from homojl.errors import HomoJLError
from homojl.own import is_given
from homojl.results.answers import hardest
from homojl.results.hdf5 import read_run
from homojl.results.page import ReportedRun
from homojl.results.records import Evaluation, RunRecord
from homojl.training.outcome import evaluate_run, matching_data
from homojl.training.run import Run


def gather(paths: Sequence[str | Path], samples: int = 24) -> list[ReportedRun]:
    """The runs in the folders `paths`, ready to be written side by side; see `gather_run`."""
    return [gather_run(Run.open(path), name, samples) for path, name in zip(paths, _names(paths), strict=True)]


def gather_run(run: Run, name: str, samples: int = 24) -> ReportedRun:
    """All that a report says of a run.

    The answers are those on the test set that the run's results.h5 holds. The test set is not answered here: a run that
    has not been evaluated answers its validation split. Nothing is downloaded; what is missing becomes a note.

    Args:
        name: what the report calls the run.
        samples: how many images of the highest loss to show; 0: none, and then a run that has been evaluated is
            reported without its dataset.

    Raises:
        CheckpointError, DataError: no run, or a damaged one.
    """
    stored = read_run(run.path)
    loaded = None if is_given(run.config.model.name) else run.load_model("best")  # it is there in its own process alone
    record = run.record(loaded=loaded)
    evaluation = None if stored is None else stored.evaluation
    notes = [*_progress_notes(run, record, stored)]
    data: ImageDataset | None = None
    if loaded is not None and (samples or evaluation is None):
        try:
            data = matching_data(run, loaded.form, download=False)
            if evaluation is None and record.metrics and np.isfinite(record.metrics[-1]["val_accuracy"]):
                evaluation = evaluate_run(run, split="val", data=data, loaded=loaded)
        except HomoJLError as error:
            what = "images" if evaluation is not None else "answers and no images"
            notes.append(f"No {what} are shown: {error}")
    if evaluation is not None and evaluation.failed:
        notes.append(f"In the answers shown, {evaluation.failed}.")
    worst = np.empty(0, dtype=np.int64)
    reported = ReportedRun(name, replace(record, evaluation=evaluation), notes=tuple(notes), worst=worst)
    if data is None or evaluation is None or not samples:
        return reported
    worst = hardest(evaluation, samples)
    return replace(reported, worst=worst, images=_images(data, evaluation, worst))


def _names(paths: Sequence[str | Path]) -> list[str]:
    """The folders' names, or the paths as they were given where two names are the same."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _progress_notes(run: Run, record: RunRecord, stored: RunRecord | None) -> list[str]:
    """Sentences on training that has not come to its end, that failed solves, or that went on after its evaluation."""
    notes = []
    done = record.metrics[-1]["epoch"] if record.metrics else 0
    budget = run.config.train
    if budget.seconds is None and done < budget.epochs:
        why = " If validation no longer improved, it has." if budget.patience is not None else ""
        notes.append(
            f"Training has not ended: {done:.4g} of {budget.epochs} epochs; homojl train --resume goes on.{why}"
        )
    failed = sum(row["failed_solves"] for row in record.metrics)
    if failed:
        notes.append(f"{failed:,} solves in training did not reach their end; their gradients were used all the same.")
    if run.test is not None:
        pass  # on data without classes, of which there is no more to say than that
    elif stored is None or stored.evaluation is None:
        notes.append("The test set has not been answered. What is said of answers is on the validation split.")
    elif len(stored.metrics) < len(record.metrics):
        notes.append(f"The answers are from before the end of training ({stored.evaluation.checkpoint}).")
    return notes


def _images(data: ImageDataset, evaluation: Evaluation, worst: np.ndarray) -> np.ndarray:
    """The images at positions `worst` of an evaluation, (n, H, W) or (n, H, W, 3), uint8."""
    pixels = data.x_test if evaluation.split == "test" else data.x_train
    images = pixels[evaluation.index[worst]].permute(0, 2, 3, 1).numpy()
    return images[..., 0] if images.shape[-1] == 1 else images
