"""Time of `import homojl` and of `homojl --help`, and what a training run takes beside its training.

Each in fresh processes; medians. The training run is one epoch on the digits: what it takes until it has printed its
accuracy, and until it has drawn its figures, both less its seconds of training and over the time of `import torch`.

python benchmarks/startup.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 11
TRAIN = (
    "--preset",
    "homoode-digits",
    "--set",
    "train.epochs=1",
    "--set",
    "model.channels=4",
    "--set",
    "train.threads=1",
)


def timed(*arguments: str) -> float:
    """Seconds of a Python process from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - started


def train(folder: Path) -> tuple[float, float]:
    """Seconds until a training run has printed its accuracy and until it has ended, less those of its training."""
    started, said = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "homojl_cli", "train", *TRAIN, "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("test accuracy"):
                said = time.perf_counter() - started
    ended = time.perf_counter() - started
    seconds = sum(json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines())
    return said - seconds, ended - seconds


def main() -> None:
    code = "import time; t = time.perf_counter(); import homojl; print(time.perf_counter() - t)"
    imports = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(RUNS)
    ]
    helps = [timed("-m", "homojl_cli", "--help") for _ in range(RUNS)]
    for name, times in (("import homojl", imports), ("homojl --help", helps)):
        print(f"{name:<32} {statistics.median(times):.3f} s (from {min(times):.3f} to {max(times):.3f})")

    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "first")  # files are compiled and in the cache from here on
        for run in range(RUNS):
            torch = timed("-c", "import torch")
            said, ended = train(Path(folder) / str(run))
            evaluated = timed("-m", "homojl_cli", "evaluate", str(Path(folder) / str(run)))
            for name, seconds in (("accuracy printed", said), ("figures drawn", ended), ("evaluated", evaluated)):
                ratios.setdefault(name, []).append(seconds / torch)
    for name, found in ratios.items():
        text = f"{statistics.median(found):.2f} (from {min(found):.2f} to {max(found):.2f})"
        print(f"{name + ', over import torch':<32} {text}")


if __name__ == "__main__":
    main()
