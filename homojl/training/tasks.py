"""Tasks: batches to train on, of an image dataset or of any iterable, and their validation."""

from __future__ import annotations

import abc
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from homojl.data.augment import augment, iterate_batches
from homojl.data.datasets import ImageDataset
from homojl.errors import ConfigError
from homojl.models import AbstractImplicitModel
from homojl.results.records import Evaluation
from homojl.training.config import ExperimentConfig
from homojl.training.criteria import Criteria, Validated
from homojl.training.evaluation import Answers, classified, evaluate, gathered, prepare
from homojl.training.experiment import steps_per_epoch
from homojl.training.form import BATCHES, ModelForm
from homojl.training.position import augmentation_seed, torch_seed
from homojl.training.ranks import ALONE, Ranks

Tensor = torch.Tensor


class AbstractTask(abc.ABC):
    """Batches to train on, what is made of the model's outputs, and validation.

    Attributes:
        config: of the run.
        criteria: loss and metric.
        steps: of an epoch.
        form: of the images and classes, or `BATCHES`.
        class_names: of the classes; empty where there are none.
        validation_samples: how many; 0: there is no validation.
    """

    form: ModelForm = BATCHES
    class_names: tuple[str, ...] = ()

    def __init__(self, config: ExperimentConfig, criteria: Criteria, steps: int, validation_samples: int) -> None:
        self.config, self.criteria = config, criteria
        self.steps, self.validation_samples = steps, validation_samples

    @abc.abstractmethod
    def batches(self, model: AbstractImplicitModel, epoch: int, first: int) -> Iterator[tuple[Any, Tensor]]:
        """The batches of an epoch from the `first` on: inputs on the model's device, as it takes them, and targets.

        What is random in a batch depends on the seed and the step alone; PyTorch's global generators are seeded for the
        step before it is asked for.
        """

    @abc.abstractmethod
    def validate(self, model: AbstractImplicitModel, ranks: Ranks) -> Validated:
        """Answer the validation split in evaluation mode; the model's mode is put back afterwards."""


class ImageTask(AbstractTask):
    """An image dataset, with the configured split and augmentation."""

    def __init__(self, config: ExperimentConfig, data: ImageDataset, criteria: Criteria) -> None:
        self._data = data
        self._train, self._val = data.split(config.data.val_fraction, config.train.seed)
        super().__init__(config, criteria, steps_per_epoch(data, config), len(self._val))
        self.form = ModelForm.of(data)
        self.class_names = self.form.class_names

    def batches(self, model: AbstractImplicitModel, epoch: int, first: int) -> Iterator[tuple[Any, Tensor]]:
        config, data = self.config, self._data
        device = next(model.parameters()).device
        order = iterate_batches(
            len(self._train),
            config.train.batch_size,
            seed=config.train.seed,
            epoch=epoch,
            first_batch=first,
            drop_last=True,
        )
        for step, batch in enumerate(order, epoch * self.steps + first):
            index = self._train[batch]
            generator = torch.Generator().manual_seed(augmentation_seed(config.train.seed, step))
            pixels = augment(
                data.x_train[index].to(device), pad=config.data.pad, flip=config.data.flip, generator=generator
            )
            yield prepare(pixels, self.form, model), data.y_train[index].to(device)

    def validate(self, model: AbstractImplicitModel, ranks: Ranks) -> Validated:
        answers = evaluate(
            model,
            self.form,
            self._data.x_train[self._val],
            self._data.y_train[self._val],
            batch_size=self.config.train.eval_batch_size,
            split="val",
            solver=self.config.solver,
            checkpoint="",
            ranks=ranks,
        )
        criteria, nfe = self.criteria, float(answers.nfe.mean())
        if criteria.usual:
            return Validated(answers.loss, answers.accuracy, math.nan, nfe)
        logits, labels = moved((torch.from_numpy(answers.logits), torch.from_numpy(answers.labels)), model)
        return Validated(
            criteria.checked_loss(logits, labels).item(),
            answers.accuracy if criteria.measures == "accuracy" else math.nan,
            math.nan if criteria.metric is None else criteria.measured(logits, labels),
            nfe,
        )


class BatchTask(AbstractTask):
    """Any iterable of batches (inputs, targets), such as a DataLoader.

    Inputs may be any nest of tensors that the model takes as its one argument. An iterable is gone through once for
    each epoch, with PyTorch's global generators seeded for the epoch before it begins, so that a DataLoader shuffles
    alike in a run that goes on. An iterator, which can be gone through once alone, goes on from epoch to epoch; a run
    that goes on then has other batches than one that was not stopped.

    Args:
        data, validation: the iterables; without a validation the last epoch is the best.
        steps: batches in an epoch; None: as many as there are.
        class_names: of the classes, where the outputs are classes.

    Raises:
        ConfigError: the number of batches is unknown, or there are none.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: Iterable[Any],
        criteria: Criteria,
        *,
        validation: Iterable[Any] | None = None,
        steps: int | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        if steps is None:
            if isinstance(data, Iterator):
                raise ConfigError("an iterator does not say how many batches it has: give steps_per_epoch")
            steps = len(data) if isinstance(data, Sized) else sum(1 for _ in data)
        if steps < 1:
            raise ConfigError("there is no batch to train on")
        if validation is not None and isinstance(validation, Iterator):
            raise ConfigError("validation must be an iterable that can be gone through for each epoch, got an iterator")
        self._data, self._validation = data, validation
        super().__init__(config, criteria, steps, 0 if validation is None else steps * config.train.batch_size)
        self.class_names = class_names

    def batches(self, model: AbstractImplicitModel, epoch: int, first: int) -> Iterator[tuple[Any, Tensor]]:
        seed = self.config.train.seed
        if isinstance(self._data, Iterator):
            source, skipped = self._data, 0
        else:
            torch.manual_seed(augmentation_seed(seed, epoch))
            source, skipped = iter(self._data), first
        source = itertools.islice(source, skipped, skipped + self.steps - first)
        for step in itertools.count(epoch * self.steps + first):
            torch.manual_seed(torch_seed(seed, step))
            try:
                batch = next(source)
            except StopIteration:
                return
            yield moved(batch, model)

    def validate(self, model: AbstractImplicitModel, ranks: Ranks) -> Validated:
        assert self._validation is not None
        return self.measure(model, self._validation, ranks)[0]

    @torch.no_grad()
    def measure(
        self, model: AbstractImplicitModel, data: Iterable[Any], ranks: Ranks = ALONE
    ) -> tuple[Validated, list[Answers]]:
        """Means over the samples of batches, and the answers to each.

        Raises:
            ConfigError: there is no batch.
        """
        answers = gathered(
            model, (moved(batch, model) for batch in itertools.islice(data, ranks.rank, None, ranks.size)), ranks
        )
        if not answers:
            raise ConfigError("there is no batch to measure on")
        sums = np.zeros(3)
        for answer in answers:
            outputs, targets = moved(
                (answer.outputs, answer.targets), model
            )  # where a loss may have tensors of its own
            loss = self.criteria.checked_loss(outputs, targets).item()
            right = self.criteria.correct(outputs, targets) / len(targets)
            sums += len(targets) * np.array([loss, right, self.criteria.measured(outputs, targets)])
        loss, accuracy, metric = (sums / sum(len(answer.targets) for answer in answers)).tolist()
        nfe = float(np.mean([n for answer in answers for n in answer.nfe]))
        accuracy = accuracy if self.criteria.measures == "accuracy" else math.nan
        return Validated(loss, accuracy, math.nan if self.criteria.metric is None else metric, nfe), answers

    def evaluation(
        self, model: AbstractImplicitModel, data: Iterable[Any], checkpoint: str
    ) -> tuple[Validated, Evaluation | None]:
        """What the model answers to test batches; as an `Evaluation` too where it classifies."""
        started = time.perf_counter()
        measured, answers = self.measure(model, data)
        seconds = time.perf_counter() - started
        if self.criteria.measures != "accuracy":
            return measured, None
        size = max(len(answer.targets) for answer in answers)
        return measured, classified(
            model,
            answers,
            split="test",
            solver=self.config.solver,
            checkpoint=checkpoint,
            seconds=seconds,
            batch_size=size,
        )


def moved(batch: Any, model: AbstractImplicitModel) -> tuple[Any, Tensor]:
    """A batch on the model's device.

    Raises:
        ConfigError: it is no pair of inputs and targets.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ConfigError(
            f"a batch must be a pair (inputs, targets), got {_described(batch)}; for tensors x and y of all samples "
            "give torch.utils.data.TensorDataset(x, y)"
        )
    device = next(model.parameters()).device
    inputs, targets = pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tuple(batch))
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise ConfigError(
            f"the targets of a batch must be a tensor with a row for each sample, got {_described(targets)}"
        )
    return inputs, targets


def _described(x: Any) -> str:
    if isinstance(x, tuple | list):
        return f"{type(x).__name__} of {len(x)}"
    return f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
