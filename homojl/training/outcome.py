"""The results of a finished run: answers on the test set, results.h5, report.md, figures."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homojl.data.datasets import ImageDataset
from homojl.errors import ConfigError, DataError
from homojl.files import remove_file
from homojl.names import FIGURE_FORMATS
from homojl.results.hdf5 import read_run, write_results
from homojl.results.plots import FIGURES, draw_all
from homojl.results.records import METRICS, Evaluation, RunRecord, Trajectories
from homojl.results.report import write_report
from homojl.training.config import with_solver
from homojl.training.evaluation import evaluate, trace
from homojl.training.experiment import load_data, placed, resolve_device, solve_as, steps_per_epoch
from homojl.training.form import ModelForm
from homojl.training.ranks import ALONE, Ranks
from homojl.training.run import LoadedModel, Run


def evaluate_run(
    run: Run,
    *,
    split: str = "test",
    which: str = "best",
    throw: bool = False,
    batch_size: int | None = None,
    limit: int | None = None,
    data: ImageDataset | None = None,
    loaded: LoadedModel | None = None,
    ranks: Ranks = ALONE,
    **solver: object,
) -> Evaluation:
    """Answer a split with a run's checkpoint.

    Args:
        split: "test", "val" or "train".
        which: "best" on the validation split, or "last".
        throw: whether a solve that does not reach its end raises; otherwise it is counted in the result's `status`.
        batch_size: images per forward pass; None: the run's own.
        limit: how many of the first images to answer; None: all.
        data: the run's dataset where it is loaded already.
        loaded: what `run.load_model(which)` gave, where it was asked already; it then solves with these settings.
        ranks: the processes that share the work; each returns the whole.
        solver: settings of `SolverConfig` to use instead of the run's; None leaves one as it is.
    """
    if split not in ("test", "val", "train"):
        raise ConfigError(f"split must be test, val or train, got {split!r}")
    config = with_solver(run.config, **solver)
    model, form, header = loaded or run.load_model(which, ranks=ranks)
    solve_as(model, config.solver)
    placed(model, config)
    model.throw = throw
    data = matching_data(run, form) if data is None else data
    images, labels, index = (part[:limit] for part in split_of(run, data, split))
    epochs = header["position"]["step"] / steps_per_epoch(data, config)
    return evaluate(
        model,
        form,
        images,
        labels,
        batch_size=batch_size or config.train.eval_batch_size,
        split=split,
        solver=config.solver,
        checkpoint=f"{which}, epoch {epochs:.4g}",
        index=index,
        ranks=ranks,
    )


def trace_images(
    run: Run,
    count: int,
    *,
    data: ImageDataset | None = None,
    loaded: LoadedModel | None = None,
    **solver: object,
) -> tuple[Trajectories, np.ndarray]:
    """The states that the first `count` test images pass through, with the best checkpoint; and those images.

    Args:
        data: the run's dataset where it is loaded already.
        loaded: what `run.load_model("best")` gave, where it was asked already; it then solves with these settings.
        solver: settings of `SolverConfig` to use instead of the run's; None leaves one as it is.
    """
    config = with_solver(run.config, **solver)
    model, form, _ = loaded or run.load_model("best")
    solve_as(model, config.solver)
    data = matching_data(run, form) if data is None else data
    if not 1 <= count <= len(data.x_test):
        raise ConfigError(f"trajectories must be between 1 and {len(data.x_test)}, got {count}")
    model.to(resolve_device(run.config.train.device))
    images = data.x_test[:count].permute(0, 2, 3, 1).squeeze(-1)  # (n, H, W) or (n, H, W, 3)
    return trace(model, form, data.x_test, data.y_test, torch.arange(count)), images.numpy()


def publish(run: Run, evaluation: Evaluation) -> None:
    """Write results.h5, report.md and, where matplotlib is installed, the figures into the run's folder."""
    illustrate(run, store(run, evaluation))


def sentence_on_test(evaluation: Evaluation | None, test: dict[str, Any] | None = None) -> str:
    """The result on the test set in a line or two; empty where there is none."""
    if evaluation is None:
        if test is None:
            return ""
        metric = "" if math.isnan(test["metric"]) else f", metric {test['metric']:.4g}"
        return f"test loss {test['loss']:.4g}{metric} ({test['checkpoint']})"
    text = (
        f"test accuracy {100 * evaluation.accuracy:.2f} % on {len(evaluation.labels)} images "
        f"({evaluation.checkpoint}; {evaluation.nfe.mean():.1f} evaluations per pass)"
    )
    return f"{text}\n{evaluation.failed}" if evaluation.failed else text


def store(run: Run, evaluation: Evaluation | None, *, loaded: LoadedModel | None = None) -> RunRecord:
    """Write results.h5 and report.md, and return what they hold; with them a run is complete.

    Figures of other answers are removed.

    Args:
        loaded: what `run.load_model("best")` gave, where it was asked already.

    Raises:
        DataError: a file cannot be written or removed.
    """
    record = run.record(evaluation, loaded=loaded)
    if not _has_figures_of(run, record):  # removed first: whatever is killed now, those that are there are right
        for path in _figures(run, record):
            remove_file(path)
    write_results(run.results_path, record)
    write_report(run.path / "report.md", record, _figures(run, record))
    return record


def illustrate(run: Run, record: RunRecord) -> None:
    """Draw as PNG those figures of what was stored that are not there, and have report.md show all.

    Where matplotlib is not installed nothing is done.
    """
    folder = run.path / "figures"
    missing = [stem for stem, kind in FIGURES.items() if kind.has(record) and not (folder / f"{stem}.png").is_file()]
    if missing and find_spec("matplotlib"):
        draw_all(record, folder, stems=missing)
        write_report(run.path / "report.md", record, _figures(run, record))


def _figures(run: Run, record: RunRecord) -> list[Path]:
    """The files in the run's folder that show what the record holds, in the order in which they are drawn."""
    stems = [stem for stem, kind in FIGURES.items() if kind.has(record)]
    paths = (run.path / "figures" / f"{stem}.{name}" for stem in stems for name in FIGURE_FORMATS)
    return [path for path in paths if path.is_file()]


def _has_figures_of(run: Run, record: RunRecord) -> bool:
    """Whether figures drawn of what results.h5 holds show the record too: all but times is the same."""
    try:
        before = read_run(run.path)
    except DataError:  # damaged, or of another version
        return False
    if before is None or before.evaluation is None or record.evaluation is None:
        return False
    a, b = before.evaluation, record.evaluation
    pairs = [
        (before.initial_point, record.initial_point),
        *((getattr(a, name), getattr(b, name)) for name in ("index", "labels", "predictions")),
        *zip(_columns(before), _columns(record), strict=True),
    ]
    return (before.class_names, a.accuracy, a.checkpoint) == (record.class_names, b.accuracy, b.checkpoint) and all(
        x is y or np.array_equal(x, y, equal_nan=True) for x, y in pairs
    )


def _columns(record: RunRecord) -> list[np.ndarray]:
    """The metrics, an array for each."""
    return [np.array([row.get(name, np.nan) for row in record.metrics], dtype=float) for name in METRICS]


def matching_data(run: Run, form: ModelForm, *, download: bool = True) -> ImageDataset:
    """The run's dataset.

    Args:
        download: whether to download what is missing.

    Raises:
        DataError: if it is not there, or not the one that the run was trained on.
    """
    data = load_data(run.config, download=download)
    if ModelForm.of(data) != form:
        raise DataError(f"the dataset {run.config.data.dataset!r} is not the one that {run.path} was trained on")
    return data


def split_of(run: Run, data: ImageDataset, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels and positions of the run's "test", "val" or "train" split.

    Raises:
        ConfigError: if the run has none of that name.
    """
    if split == "test":
        return data.x_test, data.y_test, torch.arange(len(data.x_test))
    train_index, val_index = data.split(run.config.data.val_fraction, run.config.train.seed)
    index = val_index if split == "val" else train_index
    if len(index) == 0:
        raise ConfigError(f"{run.path} has no {split} split: data.val_fraction is {run.config.data.val_fraction}")
    return data.x_train[index], data.y_train[index], index
