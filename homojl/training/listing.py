"""The runs in a folder and what their files say of them; loads neither PyTorch nor anybody's code."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from homojl.errors import ConfigError, DataError, HomoJLError
from homojl.names import did_you_mean
from homojl.own import short
from homojl.results.records import METRICS, RESULTS, SELECTORS, best_line
from homojl.training.config import read_toml
from homojl.training.run import CONFIG, Run

COLUMNS = {"val_accuracy": "val acc", "test_accuracy": "test acc", "val_loss": "val loss", "nfe_forward": "nfe"}
"""What is shown of every run, and its title."""


@dataclass(frozen=True)
class ListedRun:
    """A run as its files say.

    Attributes:
        path: of its folder.
        model, dataset: names.
        epochs: done, of how many.
        changed: when it was last written to, in seconds since 1970.
        numbers: the metrics of its best epoch, and test_accuracy where it has been evaluated.
    """

    path: Path
    model: str
    dataset: str
    epochs: str
    changed: float
    numbers: dict[str, float]


def find_runs(folder: Path) -> list[ListedRun]:
    """The runs in a folder and below it; one that is damaged is listed without numbers.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    paths = []
    for where, below, files in os.walk(folder):
        if CONFIG in files:
            paths.append(Path(where))
            below.clear()
        below.sort()
    return [_listed(path) for path in paths]


def sorted_runs(runs: Sequence[ListedRun], by: str | None, *, lowest: bool = False) -> list[ListedRun]:
    """Runs in the order of a metric, the highest first unless the lowest is wanted, those without it last.

    Args:
        by: a name of `METRICS`, or "test_accuracy"; None: by time, the latest last.

    Raises:
        ConfigError: there is no such metric.
    """
    if by is None:
        return sorted(runs, key=lambda run: run.changed)
    known = [*METRICS, "test_accuracy"]
    if by not in known:
        raise ConfigError(f"unknown metric {by!r}; {did_you_mean(by, known)}")

    def place(run: ListedRun) -> tuple[bool, float]:
        value = run.numbers.get(by, math.nan)
        return math.isnan(value), value if lowest else -value

    return sorted(runs, key=place)


def _listed(path: Path) -> ListedRun:
    run = Run(path)
    changed = max((p.stat().st_mtime for p in (path / CONFIG, path / "metrics.jsonl") if p.exists()), default=0.0)
    try:
        values = read_toml(path / CONFIG)
        model, dataset = short(values["model"]["name"]), Path(short(values["data"]["dataset"])).stem
        train = values["train"]
        lines = run.metrics
        done = f"{lines[-1]['epoch'] if lines else 0:.4g}"
        budget = f"/{train['epochs']}" if "seconds" not in train else ""
        best = best_line(lines, train.get("select", next(iter(SELECTORS)))) or (lines[-1] if lines else {})
    except (HomoJLError, KeyError, TypeError, ValueError) as error:
        return ListedRun(path, "damaged", type(error).__name__, "-", changed, {})
    return ListedRun(path, model, dataset, f"{done}{budget}", changed, dict(best) | _tested(path))


def _tested(path: Path) -> dict[str, float]:
    """The accuracy on the test set, where results.h5 has it."""
    if not (path / RESULTS).is_file():
        return {}

    from homojl.results.hdf5 import read_run

    try:
        record = read_run(path)
    except DataError:
        return {}
    return {} if record is None or record.evaluation is None else {"test_accuracy": record.evaluation.accuracy}
