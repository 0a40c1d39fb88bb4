"""Callbacks of training: their base class, and those that show its progress on a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homojl.training.config import ExperimentConfig

Numbers = Mapping[str, float]
MARK = "*"  # of a line that is the best so far
_NAN = math.nan


@dataclass(frozen=True)
class Start:
    """What a callback is told when training begins or goes on.

    Attributes:
        run: the run's folder.
        config: its complete configuration.
        batches: steps in an epoch.
        step: steps taken before, of a run that goes on.
        lines: its lines of metrics so far, with the keys of `homojl.results.records.METRICS`.
    """

    run: Path
    config: ExperimentConfig
    batches: int
    step: int
    lines: Sequence[Numbers]


class Callback:
    """The base of callbacks, whose methods do nothing.

    `step` and `line` may return True: then training ends there, and the run is evaluated as any that has ended. An
    exception that they raise ends training too, and leaves the last checkpoint.
    """

    def started(self, start: Start) -> None:
        """Training begins, or goes on."""

    def step(self, step: int, numbers: Numbers) -> bool | None:
        """A step was taken; what it measured, under the names of `METRICS`. Steps count from 1 over the whole run."""

    def line(self, metrics: Numbers, best: bool) -> bool | None:
        """A line of metrics is written: an epoch has ended, or a part of a time budget.

        Args:
            metrics: with the keys of `METRICS`; NaN where nothing was measured.
            best: whether it is the best so far on the validation split.
        """

    def ended(self, complete: bool) -> None:
        """Training has ended: complete, or stopped, or by an error. Called once for every `started`."""


class LineProgress(Callback):
    """A line of text for each line of metrics, on stdout, under one head; 80 columns."""

    _COLUMNS = (
        ("epoch", 9),
        ("loss", 9),
        ("", 9),
        ("val loss", 10),
        ("val", 11),
        ("evaluations", 13),
        ("per s", 8),
        ("left", 8),
    )

    def started(self, start: Start) -> None:
        budget = start.config.train
        self._epochs = budget.epochs if budget.seconds is None else None
        self._seconds = budget.seconds
        self._spent = math.fsum(_training_seconds(row) for row in start.lines)
        self._begun, self._from = time.monotonic(), (start.lines[-1]["epoch"] if start.lines else 0.0)
        self._head_shown = False

    def line(self, metrics: Numbers, best: bool) -> bool | None:
        if not self._head_shown:
            self._head_shown = True
            name = "metric" if math.isnan(metrics["train_accuracy"]) else "acc"
            titles = [f"{title} {name}".strip() if title in ("", "val") else title for title, _ in self._COLUMNS]
            self._print("".join(f"{title:>{width}}" for title, (_, width) in zip(titles, self._COLUMNS, strict=True)))
        self._spent += _training_seconds(metrics)
        cells = (
            f"{metrics['epoch']:.2f}" if self._epochs is None else f"{metrics['epoch']:g}/{self._epochs}",
            _loss(metrics["train_loss"]),
            _score(metrics["train_accuracy"], metrics["train_metric"]),
            _loss(metrics["val_loss"]),
            _score(metrics["val_accuracy"], metrics["val_metric"]),
            f"{metrics['nfe_forward']:.1f} + {metrics['nfe_backward']:.1f}",
            f"{metrics['images_per_second']:.0f}",
            _clock(self._left(metrics)),
        )
        row = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, self._COLUMNS, strict=True))
        self._print(f"{row} {MARK}" if best and not math.isnan(metrics["val_loss"]) else row)
        return None

    def _left(self, metrics: Numbers) -> float:
        """Seconds to the end of the budget, as the lines since the start went."""
        if self._seconds is not None:
            return max(self._seconds - self._spent, 0.0)
        assert self._epochs is not None
        done = metrics["epoch"] - self._from
        return (time.monotonic() - self._begun) / done * (self._epochs - metrics["epoch"]) if done > 0 else _NAN

    def _print(self, text: str) -> None:
        print(text, flush=True)


class TerminalProgress(LineProgress):
    """As `LineProgress`, and on a terminal also a bar for each epoch, with the figures so far, on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None  # tqdm's, from the first epoch on

    def started(self, start: Start) -> None:
        super().started(start)
        self._batches, self._step = start.batches, start.step
        self._sums: dict[str, float] = {}
        self._count = 0

    def step(self, step: int, numbers: Numbers) -> bool | None:
        if self._bar is None:
            self._open(step)
        self._count += 1
        shown = {"loss": "train_loss", "acc": "train_accuracy", "metric": "train_metric", "nfe": "nfe_forward"}
        for name in shown.values():
            self._sums[name] = self._sums.get(name, 0.0) + numbers[name]
        means = {title: self._sums[name] / self._count for title, name in shown.items()}
        self._bar.set_postfix(
            {title: f"{mean:.4g}" for title, mean in means.items() if not math.isnan(mean)}, refresh=False
        )
        self._bar.update()
        if step % self._batches == 0:
            self._close()
        return None

    def line(self, metrics: Numbers, best: bool) -> bool | None:
        self._sums, self._count = {}, 0
        return super().line(metrics, best)

    def ended(self, complete: bool) -> None:
        self._close()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        super()._print(text)

    def _open(self, step: int) -> None:
        from tqdm import tqdm

        epoch, done = divmod(step - 1, self._batches)
        of = "" if self._epochs is None else f"/{self._epochs}"
        self._bar = tqdm(
            total=self._batches,
            initial=done,
            desc=f"epoch {epoch + 1}{of}",
            bar_format="{desc} {bar} {n_fmt}/{total_fmt}, {remaining} left{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _training_seconds(metrics: Numbers) -> float:
    """Of a line, without its validation: what a time budget counts."""
    validation = metrics["validation_seconds"]
    return metrics["seconds"] - (0.0 if math.isnan(validation) else validation)


def _loss(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def _score(accuracy: float, metric: float) -> str:
    return _loss(metric) if math.isnan(accuracy) else f"{100 * accuracy:.2f} %"


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
