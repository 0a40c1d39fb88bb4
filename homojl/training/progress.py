"""What a run shows while it works: nothing, plain lines, or a bar."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows nothing; the base of what does."""

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """An epoch of `batches` steps begins, of which `done` were taken before a resume."""

    def step(self, numbers: dict[str, str]) -> None:
        """A step is done; `numbers` are the epoch's figures so far."""

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """An epoch is done."""

    def close(self) -> None:
        """The loop has ended, or was ended; take away what is on the screen."""


class TerminalProgress(Progress):
    """A line per epoch on stdout; on a terminal also a bar with the epoch's figures so far on stderr."""

    def __init__(self) -> None:
        self._bar = None
        self._epochs = 0

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        from tqdm import tqdm

        self._epochs = epochs
        self._bar = tqdm(
            total=batches,
            initial=done,
            desc=f"epoch {epoch}/{epochs}",
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def step(self, numbers: dict[str, str]) -> None:
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update()

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        self.close()
        m = metrics
        validation = "" if m["val_loss"] != m["val_loss"] else (
            f"  val loss {m['val_loss']:.4f} acc {100 * m['val_accuracy']:.2f} %"
        )  # fmt: skip
        print(
            f"epoch {m['epoch']:>{len(str(self._epochs))}}/{self._epochs}  loss {m['train_loss']:.4f} "
            f"acc {100 * m['train_accuracy']:.2f} %{validation}  evaluations {m['nfe_forward']:.1f} forward "
            f"{m['nfe_backward']:.1f} backward  {m['images_per_second']:.0f} images/s  "
            f"{m['peak_memory']:.0f} MiB",
            flush=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
