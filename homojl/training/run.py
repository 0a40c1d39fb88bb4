"""A run's folder: what lies where, and how it is read back."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from homojl.environment import environment
from homojl.errors import CheckpointError, ConfigError, HomoJLError
from homojl.files import (
    LOCK,
    atomic_write,
    file_meant,
    locked,
    make_folder,
    parse_json,
    read_text,
    remove_leftovers,
    replace_file,
)
from homojl.own import is_given, is_own, name_given, short
from homojl.results.records import RESULTS, Evaluation, RunRecord
from homojl.training.config import ExperimentConfig, is_whole, read_toml
from homojl.training.metrics_file import MetricsFile
from homojl.training.weights import check_weights, checked_form, load_weights, start_from

if TYPE_CHECKING:
    import torch

    from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm
    from homojl.models import AbstractImplicitModel
    from homojl.training.form import ModelForm
    from homojl.training.predict import Predictions
    from homojl.training.ranks import Ranks

CONFIG = "config.toml"  # a folder that has it is a run

TEST = "test.json"  # what was measured on test batches that are no images of classes

_CONTENTS = {
    *(CONFIG, "environment.json", "metrics.jsonl", "checkpoints"),
    *(RESULTS, TEST, "report.md", "report.html", "figures", "tune.h5", "tensorboard", LOCK),
}


class LoadedModel(NamedTuple):
    """A model with a checkpoint's weights, in evaluation mode, its form, and the checkpoint's header."""

    model: AbstractImplicitModel
    form: ModelForm
    header: dict[str, Any]


class Run:
    """A run on disk.

    ```
    config.toml          resolved, complete          metrics.jsonl   one line per epoch or part of a time budget
    environment.json     versions, device, commit    checkpoints/    last.safetensors, best.safetensors
    results.h5           see docs/hdf5.md            report.md       figures/
    report.html          of `homojl report`          tune.h5         of `homojl tune`
    tensorboard/         of `homojl train --tensorboard`      lock   while it is trained: by which process
    checkpoints/start.safetensors      of `homojl train --from`: what it started from
    ```
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._given: AbstractImplicitModel | None = None

    # ---- making and opening

    @staticmethod
    def create(path: Path | str, config: ExperimentConfig, *, overwrite: bool = False) -> Run:
        """Make the folder of a new run.

        Raises:
            ConfigError: if there is something already and `overwrite` is not set, or it is no run.
            BusyError: if what is there is being trained.
        """
        run = Run(path)
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            if not overwrite:
                raise ConfigError(
                    f"{run.path} is not empty; continue it with `homojl train --resume {run.path}`, replace it "
                    "with --overwrite, or choose another --out"
                )
            if not run.path.is_dir() or not {file_meant(p) for p in run.path.iterdir()} <= _CONTENTS:
                raise ConfigError(f"{run.path} holds more than a run's files, so --overwrite leaves it alone")
        try:
            run._clear()
            (run.path / "checkpoints").mkdir(parents=True)
            for name, text in (
                ("environment.json", json.dumps(environment(), indent=2) + "\n"),
                ("metrics.jsonl", ""),
                (CONFIG, config.file_text()),  # last: a folder that has it is a run
            ):
                with atomic_write(run.path / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {run.path}: {error.strerror}") from None
        return run

    @staticmethod
    def open(path: Path | str) -> Run:
        """Open an existing run.

        Raises:
            CheckpointError: if there is none at that path.
        """
        run = Run(path)
        if not (run.path / CONFIG).is_file():
            raise CheckpointError(f"{run.path} is not a run: it has no config.toml")
        return run

    def give(self, model: torch.nn.Module) -> None:
        """Give the run its model again, if that was given in Python; loading a checkpoint replaces its weights.

        Raises:
            ConfigError: the run has its model by name, or was given another.
        """
        from homojl.training.experiment import as_model

        wanted = self.config.model.name
        if not is_given(wanted) or name_given(model) != wanted:
            raise ConfigError(f"the model of {self.path} is {wanted}, got {name_given(model)}")
        self._given = as_model(model, self.config)

    def started_from(self, model: torch.nn.Module) -> list[str]:
        """Copy the weights that training starts from into this run's folder, so that it needs the other run no more.

        Returns:
            Names of the weights of `model` that are not among them, and stay as they were drawn.

        Raises:
            CheckpointError: there is no such run, or none of its weights fits.
        """
        from homojl.training.checkpoint import read_checkpoint, write_checkpoint

        if self.config.train.start is None:
            return []
        source = Run.open(self.config.train.start).best_checkpoint
        tensors, header = read_checkpoint(source)
        left = start_from(model, tensors, source)
        kept = {name: t for name, t in tensors.items() if name.startswith("model.")}
        write_checkpoint(self.start_checkpoint, kept, header)
        return left

    def extend(self, epochs: int) -> None:
        """Raise the budget of epochs; resuming the run trains them.

        Raises:
            ConfigError: it has had as many, or its budget is in seconds, or it ended for want of improvement.
            BusyError: it is being trained.
        """
        train = self.config.train
        if train.seconds is not None:
            raise ConfigError(f"the budget of {self.path} is {train.seconds:g} seconds; --epochs is for one in epochs")
        if epochs < train.epochs:
            raise ConfigError(f"{self.path} has a budget of {train.epochs} epochs; --epochs {epochs} would be fewer")
        lines = self.metrics
        if train.patience is not None and lines and lines[-1]["epoch"] < train.epochs and self._stale(train.patience):
            raise ConfigError(
                f"{self.path} ended since validation had not improved for {train.patience} lines; start another run "
                f"from its weights with --from {self.path}"
            )
        config = replace(self.config, train=replace(train, epochs=epochs))
        with self.locked(), atomic_write(self.path / CONFIG) as temporary:
            temporary.write_text(config.file_text(), encoding="utf-8")
        self.__dict__.pop("config", None)

    def _stale(self, patience: int) -> bool:
        """Whether the last checkpoint stands where patience has run out."""
        from homojl.training.checkpoint import read_checkpoint

        if not self.last_checkpoint.exists():
            return False
        return bool(read_checkpoint(self.last_checkpoint)[1]["position"].get("stale", 0) >= patience)

    def _clear(self) -> None:
        """Remove what lies in the folder, if there is one."""
        if not self.path.exists():
            return
        with locked(self.path):
            (self.path / CONFIG).unlink(missing_ok=True)  # first: what a kill leaves is no run
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that trains this run, and clear away what a killed one left half-written.

        Raises:
            BusyError: another process trains it.
            DataError: the folder cannot be written to.
        """
        with locked(self.path):
            make_folder(self.path / "checkpoints")
            for folder in (self.path, self.path / "checkpoints"):
                remove_leftovers(folder)
            yield

    # ---- what is in it

    @cached_property
    def config(self) -> ExperimentConfig:
        """The resolved configuration."""
        path = self.path / CONFIG
        values = read_toml(path)
        if not is_whole(read_text(path)):
            raise CheckpointError(f"{path} is cut short: its last line is missing")
        return ExperimentConfig.from_dict(values)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and commit at the start of the run."""
        return _read_json(self.path / "environment.json")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """One dict per completed epoch, or part of a time budget, with the keys of `homojl.results.records.METRICS`.

        What was not measured is NaN.
        """
        return self.metrics_file.rows

    @property
    def test(self) -> dict[str, Any] | None:
        """Loss, metric and checkpoint on test batches that have no classes; None: they were not measured."""
        path = self.path / TEST
        if not path.exists():
            return None
        return {key: math.nan if value is None else value for key, value in _read_json(path).items()}

    def write_test(self, values: dict[str, Any]) -> None:
        """Write what `test` reads."""
        plain = {key: None if value != value else value for key, value in values.items()}
        replace_file(self.path / TEST, (json.dumps(plain, indent=2) + "\n").encode())

    def predict(self, inputs: Any, *, batch_size: int | None = None) -> Predictions:
        """What the model of the best epoch says of pictures, or of other inputs.

        Args:
            inputs: the path of a picture, or several; images uint8 (N, C, H, W), or one (C, H, W); of a run on batches,
                what its model takes.
            batch_size: inputs per forward pass; None: the run's own.

        Raises:
            CheckpointError, ConfigError, DataError: no such model, or no such pictures.
            SolveError: a solve does not reach its end.
        """
        from homojl.training.predict import predict

        model, form, header = self.load_model("best")
        names = form.class_names if form.images else header["class_names"]
        return predict(model, form, self.config.train, names, inputs, batch_size=batch_size)

    def __repr__(self) -> str:
        try:
            config = self.config
            what = f"{short(config.model.name)} on {short(config.data.dataset)}, {self.metrics[-1]['epoch']:g} epochs"
        except (HomoJLError, IndexError):
            what = "no epoch yet"
        return f"<Run {self.path}: {what}>"

    @property
    def model(self) -> AbstractImplicitModel:
        """The model of the best epoch on the validation split, in evaluation mode, on the CPU."""
        return self.load_model("best")[0]

    @property
    def metrics_file(self) -> MetricsFile:
        """The file of the metrics."""
        return MetricsFile(self.path / "metrics.jsonl")

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def start_checkpoint(self) -> Path:
        """A copy of the best checkpoint of the run that this one started from; there is none where it did not."""
        return self.path / "checkpoints" / "start.safetensors"

    @property
    def results_path(self) -> Path:
        return self.path / RESULTS

    def load_model(
        self, which: str = "best", *, into: AbstractImplicitModel | None = None, ranks: Ranks | None = None
    ) -> LoadedModel:
        """The model of checkpoint "best" or "last", its form, and the checkpoint's header.

        Args:
            into: a model built for this run, to be given the weights instead of another one that would be built.
            ranks: the processes that each load it, where there are several; process 0 alone reads the file.

        Raises:
            CheckpointError: if it is missing, damaged or of another model.
        """
        from homojl.training.checkpoint import read_checkpoint
        from homojl.training.experiment import build_model, state_form

        path = self.best_checkpoint if which == "best" else self.last_checkpoint
        if into is None and is_given(self.config.model.name):
            if self._given is None:
                raise ConfigError(
                    f"the model of {self.path} was given in Python: give it again, "
                    f"hj.load_run({str(self.path)!r}, model=...)"
                )
            into = copy.deepcopy(self._given)
        tensors, header = read_checkpoint(path) if ranks is None else ranks.from_main(read_checkpoint, path)
        form = checked_form(path, header, self.config)
        if into is None:
            state = state_form(self.config, form)
            check_weights(tensors, state, path)
            into = build_model(self.config, form, state=state)
        load_weights(into, tensors, path)
        into.set_origin(trained_on={"class_names": form.class_names, "mean": form.mean, "std": form.std})
        return LoadedModel(into.eval(), form, header)

    def export_model(
        self, path: Path | str, *, algorithm: AbstractODEAlgorithm | AbstractFixedPointAlgorithm | None = None
    ) -> float:
        """Write the model of the best epoch as a program of `torch.export`, which PyTorch runs without homojl.

        Args:
            path: such as "model.pt2".
            algorithm: to solve by, with equal steps or a fixed number of iterations, such as `RK4(step_size=0.25)` or
                `Anderson(max_steps=15)`; None: the run's own, where it is of that kind.

        Returns:
            The largest difference between the program's logits and the model's, over the largest logit.

        Raises:
            ConfigError: for an algorithm that decides by numbers how long to go on.
            SolveError: if the program's logits are not the model's.
        """
        from homojl.training.exporting import export_model

        model, form, _ = self.load_model("best")
        if algorithm is not None:
            model.algorithm = algorithm
        return export_model(model, form, path)

    def record(self, evaluation: Evaluation | None = None, *, loaded: LoadedModel | None = None) -> RunRecord:
        """Everything known of the run, for `homojl.results`.

        Args:
            loaded: what `load_model("best")` gave, where it was asked already.
        """
        from homojl.models import count_parameters
        from homojl.training.checkpoint import read_checkpoint
        from homojl.training.experiment import initial_point

        if loaded is None and is_given(self.config.model.name):
            tensors, header = read_checkpoint(self.best_checkpoint)
            checked_form(self.best_checkpoint, header, self.config)
            names, parameters, point = header["class_names"], header["parameters"], header["initial_point"]
            start = None if point is None else tensors[point]
        else:
            model, form, header = loaded or self.load_model("best")
            names = form.class_names if form.images else header["class_names"]
            parameters, found = count_parameters(model), initial_point(model)
            start = None if found is None else found.value.detach()
        return RunRecord(
            config=self.config.to_dict(),
            environment=self.environment,
            metrics=self.metrics,
            class_names=tuple(names) or _numbered(evaluation),
            test=self.test,
            parameters=parameters,
            evaluation=evaluation,
            initial_point=None if start is None else start.flatten().cpu().numpy(),
        )


def load_run(path: Path | str, *, model: torch.nn.Module | None = None) -> Run:
    """Open a run: `.config`, `.metrics`, `.model`, `.environment`, `.predict`.

    Args:
        model: of a run that was given its model in Python: one that is built alike.

    Raises:
        CheckpointError: if there is no run at that path.
        ConfigError: the run has its model by name, or was given another.
    """
    run = Run.open(path)
    if model is not None:
        run.give(model)
    return run


def new_folder(config: ExperimentConfig) -> Path:
    """runs/<model>-<dataset>-<time>, which is not there yet."""
    dataset = config.data.dataset
    dataset = short(dataset) if is_own(dataset) else Path(dataset).stem
    name = f"{short(config.model.name)}-{dataset}-{datetime.now():%Y%m%d-%H%M%S}".replace("<", "").replace(">", "")
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    """A table from a run's file."""
    try:
        values = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: it is no table")
    return values


def _numbered(evaluation: Evaluation | None) -> tuple[str, ...]:
    """Numbers as names of classes that have none."""
    return () if evaluation is None else tuple(str(i) for i in range(evaluation.logits.shape[1]))
