"""`homojl.train`: trains a model on data, each given in Python or by name, and makes a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from homojl.data.datasets import ImageDataset
from homojl.errors import ConfigError
from homojl.models import AbstractImplicitModel
from homojl.own import allow, is_own, name_given
from homojl.results.records import Evaluation
from homojl.training.callbacks import Callback, TerminalProgress
from homojl.training.checkpoint import read_checkpoint
from homojl.training.config import ExperimentConfig, assembled
from homojl.training.criteria import Criteria
from homojl.training.experiment import (
    as_model,
    backend_name,
    build_model,
    load_data,
    resolve_device,
    resolved,
    steps_per_epoch as batches_of,
)
from homojl.training.form import ModelForm
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run, illustrate, sentence_on_test, store
from homojl.training.run import CONFIG, Run, new_folder
from homojl.training.tasks import AbstractTask, BatchTask, ImageTask
from homojl.training.weights import start_from

Function = Callable[[Any, Any], torch.Tensor]


def train(
    model: str | nn.Module,
    data: str | ImageDataset | Iterable[Any],
    *,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    loss: str | Function | None = None,
    metric: str | Callable[[Any, Any], Any] | None = None,
    select: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    patience: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    steps_per_epoch: int | None = None,
    class_names: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model, evaluate its best epoch on the test set, and leave a run folder, as `homojl train` does.

    Args:
        model: a name, as of `homojl train --model`, or a module, which is trained in place. A module is called with a
            batch's inputs; layers of `homojl.nn` in it count their evaluations and add their terms to the loss.
        data: a name, as of `--dataset`, an `ImageDataset`, or any iterable of batches (inputs, targets), such as a
            DataLoader; see `homojl.training.tasks.BatchTask`.
        validation, test: likewise, beside batches alone; an image dataset has its own. Without a validation the last
            epoch is the best.
        loss: outputs, targets -> 0-d, the mean over the batch; or "cross_entropy", the default, "mse" or "l1".
        metric: outputs, targets -> a number, the mean over the batch; or "accuracy", the default beside cross-entropy,
            "none", the default beside another loss, "mse" or "l1".
        select: what the best epoch has: "highest accuracy", "lowest loss", "highest metric" or "lowest metric"; None:
            the accuracy where there is one, else the loss.
        epochs, lr, seed, patience: as `train.epochs`, `optim.lr`, `train.seed` and `train.patience` of the settings.
        settings: further ones, by section, as in a run's config.toml: `{"optim": {"name": "adamw"}}`.
        steps_per_epoch: batches in an epoch; None: as many as `data` has.
        class_names: of the classes of batches; by default their numbers.
        callbacks: what is told how it goes.
        out: the run's folder; None: runs/<model>-<data>-<time>.
        overwrite: replace the run that is there.
        resume: go on with the run that is there, with as many epochs as are given now; begin where there is none.
        quiet: print nothing.

    Returns:
        The run; its `.model` has the best epoch's weights, the module that was given the last one's.

    Raises:
        ConfigError, DataError: before work starts.
        SolveError: if the loss is no longer finite; the last checkpoint stays.
    """
    budget = {"epochs": epochs, "seed": seed, "patience": patience} | _criteria(loss, metric, select)
    for name in (model, data, loss, metric):
        if isinstance(name, str) and is_own(name):  # named here, so it may be run
            allow(name)
    config = _configured(model, data, budget, lr, settings)
    images = load_data(config) if isinstance(data, str) else data if isinstance(data, ImageDataset) else None
    if images is not None and (validation is not None or test is not None):
        raise ConfigError("validation and test are for batches; an image dataset has its own")
    if isinstance(model, str) and images is None:
        raise ConfigError("a model by name is made for images: give batches a module of your own")
    run = _opened(out, config, epochs, overwrite=overwrite, resume=resume)
    config = run.config
    given = [None if isinstance(function, str) else function for function in (loss, metric)]
    criteria = Criteria.of(config.train, *given)
    task: AbstractTask
    if images is not None:
        task = ImageTask(config, images, criteria)
    else:
        assert not isinstance(data, str | ImageDataset)
        task = BatchTask(
            config, data, criteria, validation=validation, steps=steps_per_epoch, class_names=tuple(class_names)
        )
    if isinstance(model, str):
        built = build_model(config, task.form)
    else:
        run.give(model)
        built = as_model(model, config)
    shown = () if quiet else (TerminalProgress(),)
    train_run(run, data=task, model=built, callbacks=[*shown, *callbacks])
    _conclude(run, task, images, test, quiet=quiet)
    return run


def check_start(config: ExperimentConfig) -> tuple[ImageDataset, AbstractImplicitModel]:
    """Load the data and build everything once, so that what cannot work is refused before a run is made.

    Returns:
        The dataset and the model, with which `train` can begin.

    Raises:
        ConfigError, DataError, BackendUnavailable: whatever would stop the run at its start.
    """
    resolve_device(config.train.device)
    backend_name(config)
    data = load_data(config)
    model = build_model(config, ModelForm.of(data))
    batches_of(data, config)
    if config.train.start is not None:
        path = Run.open(config.train.start).best_checkpoint
        start_from(model, read_checkpoint(path)[0], path)
    return data, model


def _configured(
    model: object,
    data: object,
    budget: dict[str, Any],
    lr: float | None,
    settings: Mapping[str, Mapping[str, Any]] | None,
) -> ExperimentConfig:
    """The complete configuration; what is given by itself wins over `settings`."""
    train = budget | _form(model, data)
    wanted: dict[str, dict[str, Any]] = {
        "model": {"name": model if isinstance(model, str) else name_given(model)},
        "data": {"dataset": data if isinstance(data, str) else name_given(data)},
        "optim": {} if lr is None else {"lr": lr},
        "train": {key: value for key, value in train.items() if value is not None},
    }
    return assembled({section: dict(values) for section, values in (settings or {}).items()}, wanted)


def _criteria(loss: object, metric: object, select: str | None) -> dict[str, Any]:
    """Loss, metric and what chooses the best epoch, as settings; None where the configuration is to say."""
    if metric is None and loss is not None:
        metric = "accuracy" if loss == "cross_entropy" else "none"
    if select is None and metric not in (None, "accuracy"):
        select = "lowest loss"
    names = {"loss": loss, "metric": metric}
    return {key: x if x is None or isinstance(x, str) else name_given(x) for key, x in names.items()} | {
        "select": select
    }


def _form(model: object, data: object) -> dict[str, Any]:
    """Settings that follow from a given model and given data: the batch size and the type of numbers."""
    size = getattr(data, "batch_size", None)
    form: dict[str, Any] = {"batch_size": size} if isinstance(size, int) else {}
    if isinstance(model, nn.Module) and (first := next(model.parameters(), None)) is not None:
        form["dtype"] = str(first.dtype).removeprefix("torch.")
    return form


def _opened(
    out: str | Path | None, config: ExperimentConfig, epochs: int | None, *, overwrite: bool, resume: bool
) -> Run:
    """The run to train: a new one, or the one that is there.

    Raises:
        ConfigError: it is that of another model, dataset or loss, or there is a run and nothing was said of it.
    """
    folder = new_folder(config) if out is None else Path(out)
    if not resume or not (folder / CONFIG).exists():
        return Run.create(folder, resolved(config), overwrite=overwrite)
    run = Run.open(folder)
    for what in ("model.name", "data.dataset", "train.loss", "train.metric"):
        section, _, key = what.partition(".")
        was, now = (getattr(getattr(c, section), key) for c in (run.config, config))
        if was != now:
            raise ConfigError(f"{folder} was made with {what} = {was!r}, now it is {now!r}")
    if epochs is not None and epochs > run.config.train.epochs:
        run.extend(epochs)
    return run


def _conclude(
    run: Run, task: AbstractTask, images: ImageDataset | None, test: Iterable[Any] | None, *, quiet: bool
) -> None:
    """Answer the test set with the best epoch, where there is one, and write what a finished run has."""
    evaluation: Evaluation | None = None
    if images is not None:
        evaluation = evaluate_run(run, data=images)
    elif test is not None:
        assert isinstance(task, BatchTask), task
        loaded = run.load_model("best")
        loaded.model.to(resolve_device(run.config.train.device)).throw = False
        checkpoint = f"best, epoch {loaded.header['position']['step'] / task.steps:.4g}"
        measured, evaluation = task.evaluation(loaded.model, test, checkpoint)
        if evaluation is None:
            run.write_test({"loss": measured.loss, "metric": measured.metric, "checkpoint": checkpoint})
    record = store(run, evaluation)
    if not quiet:
        text = sentence_on_test(evaluation, record.test)
        print(f"{text}\n{run.path}" if text else run.path, flush=True)
    illustrate(run, record)
