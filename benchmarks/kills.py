"""Trainings killed at random moments, then resumed: do they end as the undisturbed one?

    python benchmarks/kills.py --runs 100                    the figures of docs/robustness.md

Each run is a short `homojl train` on the digits in a process of its own. It gets SIGKILL at a moment drawn evenly from
the time between the making of its folder and its end, is resumed, killed again with probability one half, and so on
until it ends. Then weights, optimiser, position, metrics and the answers on the test set are compared bit by bit with
those of a run that nobody disturbed; only times and memory may differ. Nothing half-written may be left. Needs the
group `test`.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from homojl.results.hdf5 import read_results  # noqa: E402
from homojl.training.run import Run  # noqa: E402
from tests.training.test_loop import assert_same_end  # noqa: E402

SETTINGS = {
    "model.channels": 8, "solver.algorithm": "bosh3", "solver.rtol": 1e-2, "solver.atol": 1e-2,
    "solver.first_step": "remember", "data.val_fraction": 0.2, "initial_point.every": 3, "train.epochs": 12,
    "train.threads": 1, "train.device": "cpu", "train.checkpoint_seconds": 0,
}  # fmt: skip
FINISHED = {"config.toml", "environment.json", "metrics.jsonl", "checkpoints", "results.h5", "report.md", "figures"}


def start(folder: Path) -> subprocess.Popen[str]:
    """`homojl train`: a new run, or from where a killed one stands."""
    if (folder / "config.toml").exists():
        arguments = ["--resume", str(folder)]
    else:
        assignments = [f"--set={key}={value}" for key, value in SETTINGS.items()]
        arguments = ["--out", str(folder), "--overwrite", "--dataset", "digits", *assignments]
    command = [sys.executable, "-m", "homojl_cli", "train", "--quiet", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_work(process: subprocess.Popen[str], folder: Path) -> None:
    """Until the process has loaded its libraries: the folder of its new run is there, or that of an old one its own."""
    old = (folder / "config.toml").exists()
    while process.poll() is None:
        if folder.exists() and (not old or f"process {process.pid} " in holder(folder)):
            return
        time.sleep(0.002)


def holder(folder: Path) -> str:
    try:
        return (folder / "lock").read_text()
    except OSError:
        return ""


def killed_and_resumed(folder: Path, span: float, rng: Random) -> list[str]:
    """Where a run stood at each kill."""
    places: list[str] = []
    while True:
        process = start(folder)
        wait_for_work(process, folder)
        if not places or rng.random() < 0.5:
            time.sleep(rng.uniform(0, span))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
        if process.returncode == 0 and places:
            return places
        if process.returncode == 0:  # it was quicker than the moment that was drawn for it
            (folder / "config.toml").unlink()
            continue
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"homojl train ended with {process.returncode}: {errors}")
        places.append(place(folder))


def place(folder: Path) -> str:
    if not (folder / "config.toml").exists():
        return "before it was a run"
    if not (folder / "checkpoints" / "last.safetensors").exists():
        return "before the first checkpoint"
    lines = (folder / "metrics.jsonl").read_text(errors="replace").count("\n")
    if lines < SETTINGS["train.epochs"]:
        return "in training"
    return "after training" if not (folder / "results.h5").exists() else "after its results"


def assert_same(straight: Path, folder: Path) -> None:
    """Everything that a run repeats is the same to the bit, and nothing else lies in the folder."""
    assert_same_end(Run.open(straight), Run.open(folder))
    ours, theirs = (read_results(path / "results.h5").evaluation for path in (straight, folder))
    assert ours is not None
    assert theirs is not None
    for name in ("predictions", "labels", "logits", "nfe"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert (ours.loss, ours.accuracy) == (theirs.loss, theirs.accuracy)
    assert {path.name for path in folder.iterdir()} == FINISHED
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="homojl-kills-") as name:
        straight = Path(name) / "straight"
        process = start(straight)
        wait_for_work(process, straight)
        began = time.monotonic()
        if process.wait():
            sys.exit(process.communicate()[1])
        span = time.monotonic() - began
        print(f"undisturbed: {span:.1f} s from its folder to its end", flush=True)
        places: Counter[str] = Counter()
        same, worst = 0, 0
        for number in range(options.runs):
            folder = Path(name) / f"run{number}"
            kills = killed_and_resumed(folder, span, Random(f"{options.seed} {number}"))
            places.update(kills)
            worst = max(worst, len(kills))
            try:
                assert_same(straight, folder)
                same += 1
            except AssertionError as error:
                print(f"run {number}, killed {', '.join(kills)}: {error}", flush=True)
        print(f"{same} of {options.runs} runs ended bit for bit as the undisturbed one")
        counts = ", ".join(f"{count} {where}" for where, count in places.most_common())
        print(f"{places.total()} kills, at most {worst} of one run: {counts}")
    sys.exit(same < options.runs)


if __name__ == "__main__":
    main()
