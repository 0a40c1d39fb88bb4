"""How far the loss curves of one process and of several lie apart.

    python benchmarks/ranks.py [--processes 2] [--steps 200] [--channels 8] [--dtype float64] [--models homoode,deq,...]
        [--set solver.rtol=1e-10 ...]

The digits that come along, batch 64, augmentation and dropout as configured, on CPUs over gloo. Printed are, for each
model, the largest difference of the loss at any step, the loss at the first and the last one, and the seconds that the
slowest process spent in the steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import head, row

from homojl.training.callbacks import Callback
from homojl.training.config import ExperimentConfig, merge, parse_assignment
from homojl.training.joining import joined
from homojl.training.loop import train_run
from homojl.training.run import Run

MODELS = ("homoode", "node", "anode", "deq", "mondeq", "pcdeq")
STEPS_PER_EPOCH = 20  # 1294 training images


class Recorder(Callback):
    """Keeps the loss of every step, and the seconds that all of them took."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds = 0.0

    def step(self, step: int, numbers: dict[str, float]) -> None:
        self.losses.append(numbers["train_loss"])

    def line(self, metrics: dict[str, float], best: bool) -> None:
        self.seconds += metrics["seconds"] - metrics["validation_seconds"]


def configured(model: str, channels: int, steps: int, dtype: str, assignments: list[str]) -> ExperimentConfig:
    width = {"homoode": channels, "deq": channels, "mondeq": [channels], "pcdeq": [channels]}
    own = {"channels": width[model]} if model in width else {"filters": channels}
    training = {"epochs": -(-steps // STEPS_PER_EPOCH), "dtype": dtype, "device": "cpu", "threads": 1}
    settings = {"model": {"name": model, **own}, "data": {"pad": 1}, "train": training}
    return ExperimentConfig.from_dict(merge(settings, *(parse_assignment(text) for text in assignments)))


def work(folder: str) -> None:
    """Train the run in one of the processes; the first writes what was recorded."""
    recorder = Recorder()
    with joined() as ranks:
        train_run(Run.open(folder), ranks=ranks, callbacks=[recorder])
        if ranks.is_main:
            Path(folder, "losses.json").write_text(json.dumps([recorder.losses, recorder.seconds]))


def measured(folder: Path, config: ExperimentConfig, processes: int) -> tuple[list[float], float]:
    """The loss of every step, and the seconds of all, with that many processes."""
    Run.create(folder, config)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run([*launcher, __file__, "--worker", str(folder)], check=True)
    return tuple(json.loads((folder / "losses.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help=f"rounded up to a multiple of {STEPS_PER_EPOCH}")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as of homojl train")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    seconds = ("seconds, 1 process", f"{options.processes} processes")
    head("model", "largest difference of the loss", "first loss", "last loss", *seconds)
    for model in options.models.split(","):
        config = configured(model, options.channels, options.steps, options.dtype, options.set)
        with tempfile.TemporaryDirectory() as folder:
            one, seconds_one = measured(Path(folder, "one"), config, 1)
            more, seconds_more = measured(Path(folder, "more"), config, options.processes)
        apart = max(abs(a - b) for a, b in zip(one, more, strict=True))
        row(model, f"{apart:.1e}", f"{one[0]:.4f}", f"{one[-1]:.4f}", f"{seconds_one:.1f}", f"{seconds_more:.1f}")


if __name__ == "__main__":
    main()
