"""Losses and metrics by name, and what chooses the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from homojl import own
from homojl.errors import ConfigError
from homojl.results.records import SELECTORS
from homojl.training.config import LOSSES as LOSS_NAMES, TrainConfig

Tensor = torch.Tensor
Function = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Function] = dict(zip(LOSS_NAMES, (F.cross_entropy, F.mse_loss, F.l1_loss), strict=True))


@dataclass(frozen=True)
class Criteria:
    """What training minimises, and what it measures beside.

    Attributes:
        loss: outputs, targets -> 0-d, the mean over the batch.
        measures: "accuracy", "none", or the name of `metric`.
        metric: outputs, targets -> a number, the mean over the batch; None where accuracy or nothing is measured.
        select: of `TrainConfig`.
        usual: whether the loss is cross-entropy and the metric accuracy.
    """

    loss: Function
    measures: str
    metric: Callable[[Tensor, Tensor], Tensor | float] | None
    select: str
    usual: bool

    @staticmethod
    def of(config: TrainConfig, loss: Function | None = None, metric: Function | None = None) -> Criteria:
        """The configured ones.

        Args:
            loss, metric: functions of the same process, where the configuration names such.

        Raises:
            ConfigError: a name whose code cannot be loaded, or that of a function that was given in another process.
        """
        if loss is None:
            loss = LOSSES[config.loss] if config.loss in LOSSES else own.load(config.loss)
        if config.metric not in ("accuracy", "none") and metric is None:
            metric = LOSSES[config.metric] if config.metric in LOSSES else own.load(config.metric)
        usual = config.loss == "cross_entropy" and config.metric == "accuracy"
        return Criteria(loss, config.metric, metric, config.select, usual)

    def checked_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch.

        Raises:
            ConfigError: it is no tensor of one number.
        """
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"the loss must be one number as a tensor, the mean over the batch, got {got}")
        return loss.reshape(())

    def correct(self, outputs: Tensor, targets: Tensor) -> int:
        """How many samples are classified correctly; 0 where accuracy is not measured."""
        return int((outputs.argmax(dim=1) == targets).sum()) if self.measures == "accuracy" else 0

    def measured(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric's value; 0 where there is none."""
        return 0.0 if self.metric is None else float(self.metric(outputs, targets))

    def score(self, loss: float, accuracy: float, metric: float) -> float:
        """The number that epochs are compared by; larger is better."""
        name, sign = SELECTORS[self.select]
        return sign * {"val_accuracy": accuracy, "val_loss": loss, "val_metric": metric}[name]


@dataclass(frozen=True)
class Validated:
    """Means over the validation split; NaN for what is not measured.

    Attributes:
        nfe: evaluations per forward pass.
    """

    loss: float = math.nan
    accuracy: float = math.nan
    metric: float = math.nan
    nfe: float = math.nan
