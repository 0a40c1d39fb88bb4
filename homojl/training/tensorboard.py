"""A run's numbers as TensorBoard's event files, beside the run's own metrics."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.errors import ConfigError, DataError
from homojl.training.progress import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from homojl.training.config import TrainConfig

FOLDER = "tensorboard"  # in the run's


class TensorBoard(Progress):
    """Writes every step's numbers as `step/NAME` and every line of metrics as `epoch/NAME`, over the steps.

    A resumed run goes on in a file of its own, whose start has TensorBoard drop what a killed run wrote beyond its last
    checkpoint.

    Args:
        run: the run's folder; the files lie in `run/tensorboard`.
        shown: what the run shows besides.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, run: Path, shown: Progress) -> None:
        check_installed()
        self._folder, self._shown = run / FOLDER, shown
        self._writer: SummaryWriter | None = None

    def start_epoch(self, epoch: int, config: TrainConfig, batches: int, done: int) -> None:
        self._shown.start_epoch(epoch, config, batches, done)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self._folder), purge_step=(epoch - 1) * batches + done + 1)
            except OSError as error:
                raise DataError(f"cannot write to {self._folder}: {error.strerror}") from error

    def step(self, numbers: dict[str, str]) -> None:
        self._shown.step(numbers)

    def measured(self, step: int, numbers: dict[str, float]) -> None:
        self._shown.measured(step, numbers)
        self._add("step", step, numbers)

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        self._shown.end_epoch(metrics)
        self._add("epoch", metrics["step"], metrics)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self._shown.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, group: str, step: int, numbers: dict[str, float]) -> None:
        """Write the finite ones."""
        assert self._writer is not None, "an epoch has begun"
        for name, value in numbers.items():
            if math.isfinite(value) and name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, step)


def check_installed() -> None:
    """Refuse before work starts.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs tensorboard, which is not installed: pip install 'homojl[tensorboard]'")
