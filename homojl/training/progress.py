"""What a run shows while it works: nothing, plain lines, or a bar."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homojl.training.config import TrainConfig


class Progress:
    """Shows nothing; the base of what does."""

    def start_epoch(self, epoch: int, config: TrainConfig, batches: int, done: int) -> None:
        """An epoch of `batches` steps begins, of which `done` were taken before a resume."""

    def step(self, numbers: dict[str, str]) -> None:
        """A step is done; `numbers` are the figures since the last line of metrics."""

    def measured(self, step: int, numbers: dict[str, float]) -> None:
        """What that step alone measured, under the names of `METRICS`; `step` counts from 1 over the whole run."""

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """A line of metrics is there: an epoch is done, or a part of a time budget."""

    def close(self) -> None:
        """The loop has ended, or was ended; take away what is on the screen."""


class LineProgress(Progress):
    """A line of text for each line of metrics, on stdout."""

    def __init__(self) -> None:
        self._epochs = ""

    def start_epoch(self, epoch: int, config: TrainConfig, batches: int, done: int) -> None:
        self._epochs = "" if config.seconds is not None else f"/{config.epochs}"

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        m = metrics
        epoch = f"{m['epoch']:>{len(self._epochs) - 1}}" if self._epochs else f"{m['epoch']:.2f}"
        validation = "" if m["val_loss"] != m["val_loss"] else (
            f"  val loss {m['val_loss']:.4f} acc {100 * m['val_accuracy']:.2f} %"
        )  # fmt: skip
        print(
            f"epoch {epoch}{self._epochs}  loss {m['train_loss']:.4f} "
            f"acc {100 * m['train_accuracy']:.2f} %{validation}  evaluations {m['nfe_forward']:.1f} forward "
            f"{m['nfe_backward']:.1f} backward  {m['images_per_second']:.0f} images/s  "
            f"{m['peak_memory']:.0f} MiB",
            flush=True,
        )


class TerminalProgress(LineProgress):
    """The same, and on a terminal also a bar for each epoch with the figures so far on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None  # tqdm's, from the first epoch on

    def start_epoch(self, epoch: int, config: TrainConfig, batches: int, done: int) -> None:
        from tqdm import tqdm

        super().start_epoch(epoch, config, batches, done)
        self.close()
        self._bar = tqdm(
            total=batches,
            initial=done,
            desc=f"epoch {epoch}{self._epochs}",
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def step(self, numbers: dict[str, str]) -> None:
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update()

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        self._bar.clear()
        super().end_epoch(metrics)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
