"""A run's numbers as TensorBoard's event files, beside the run's own metrics."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from homojl.errors import ConfigError, DataError
from homojl.training.callbacks import Callback, Numbers, Start
from homojl.training.loggers import scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in the run's


class TensorBoard(Callback):
    """Writes every step's numbers as `step/NAME` and every line of metrics as `epoch/NAME`, over the steps.

    The files lie in `RUN/tensorboard`. A resumed run goes on in a file of its own, whose start has TensorBoard drop
    what a killed run wrote beyond its last checkpoint.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        check_installed()
        self._writer: SummaryWriter | None = None

    def started(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = start.run / FOLDER
        try:
            self._writer = SummaryWriter(str(folder), purge_step=start.step + 1)
        except OSError as error:
            raise DataError(f"cannot write to {folder}: {error.strerror}") from error

    def step(self, step: int, numbers: Numbers) -> None:
        self._add("step", step, numbers)

    def line(self, metrics: Numbers, best: bool) -> None:
        self._add("epoch", int(metrics["step"]), metrics)
        if self._writer is not None:
            self._writer.flush()

    def ended(self, complete: bool) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, group: str, step: int, numbers: Numbers) -> None:
        assert self._writer is not None, "training has started"
        for name, value in scalars(group, numbers).items():
            self._writer.add_scalar(name, value, step)


def check_installed() -> None:
    """Refuse before work starts.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs tensorboard, which is not installed: pip install 'homojl[tensorboard]'")
