"""Loggers of a run's numbers: TensorBoard's event files, Weights & Biases, and trackio, which has the same calls."""

from __future__ import annotations

import importlib
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from homojl.errors import ConfigError, DataError
from homojl.training.callbacks import Callback, Numbers, Start

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def scalars(group: str, numbers: Numbers) -> dict[str, float]:
    """The finite numbers under `group/NAME`, but for the step that they are logged at."""
    return {f"{group}/{name}": value for name, value in numbers.items() if name != "step" and math.isfinite(value)}


class _Service(Callback):
    """Logs every step's numbers as `step/NAME` and every line of metrics as `epoch/NAME`.

    Args:
        project: that the run is filed under.
        options: of the service's `init`, such as `mode="offline"`.

    Raises:
        ConfigError: the service's package is not installed.
    """

    package: ClassVar[str]

    def __init__(self, project: str = "homojl", **options: Any) -> None:
        _check_installed(type(self).__name__, self.package, self.package)
        self._options = {"project": project, **options}
        self._service: Any = None

    def started(self, start: Start) -> None:
        self._service = importlib.import_module(self.package)
        self._service.init(config=start.config.to_dict(), **{"name": start.run.resolve().name, **self._options})

    def step(self, step: int, numbers: Numbers) -> None:
        self._service.log(scalars("step", numbers), step=step)

    def line(self, metrics: Numbers, best: bool) -> None:
        self._service.log(scalars("epoch", metrics), step=int(metrics["step"]))

    def ended(self, complete: bool) -> None:
        if self._service is not None:
            self._service.finish()
            self._service = None


class WandB(_Service):
    __doc__ = _Service.__doc__
    package = "wandb"


class Trackio(_Service):
    __doc__ = _Service.__doc__
    package = "trackio"


class TensorBoard(Callback):
    """Writes every step's numbers as `step/NAME` and every line of metrics as `epoch/NAME`, over the steps.

    The files lie in `RUN/tensorboard`. A resumed run goes on in a file of its own, whose start has TensorBoard drop
    what a killed run wrote beyond its last checkpoint.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        check_tensorboard()
        self._writer: SummaryWriter | None = None

    def started(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = start.run / "tensorboard"
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


def check_tensorboard() -> None:
    """Refuse `--tensorboard` before work starts.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    _check_installed("--tensorboard", "tensorboard", "'homojl[tensorboard]'")


def _check_installed(what: str, package: str, name: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{what} needs {package}, which is not installed: pip install {name}")
