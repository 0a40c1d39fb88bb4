"""Loggers that are services: Weights & Biases, and trackio, which has the same calls."""

from __future__ import annotations

import importlib
import math
from importlib.util import find_spec
from typing import Any, ClassVar

from homojl.errors import ConfigError
from homojl.training.callbacks import Callback, Numbers, Start


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
        if find_spec(self.package) is None:
            raise ConfigError(
                f"{type(self).__name__} needs {self.package}, which is not installed: pip install {self.package}"
            )
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
