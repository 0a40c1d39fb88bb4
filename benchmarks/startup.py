"""Whole processes over one of `import torch`: commands that compute nothing, a first solve, and a training run.

The training run is one epoch on the digits: what it takes until it has printed its accuracy, and until it has drawn its
figures, both less its seconds of training; and then its evaluation.

python benchmarks/startup.py

Each takes turns with `import torch`; the ratio is the median of 11 pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import head, row

RUNS = 11
SOLVE = """
import homojl as hj, torch
hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(3), (0.0, 1.0)), hj.Tsit5(), backend="pytorch")
"""
HOMOJL = ("-m", "homojl_cli")
TORCH = ("-c", "import torch")
PROCESSES = {
    "import homojl": ("-c", "import homojl"),
    "homojl --help": (*HOMOJL, "--help"),
    "homojl models": (*HOMOJL, "models"),
    "homojl datasets": (*HOMOJL, "datasets"),
    "homojl info": (*HOMOJL, "info"),
    "homojl train --set train.epochs=-1": (*HOMOJL, "train", "--set", "train.epochs=-1"),
    "import torch and a first solve": ("-c", SOLVE),
}
SETTINGS = ("train.epochs=1", "model.channels=4", "train.threads=1")
TRAIN = (*HOMOJL, "train", "--preset", "homoode-digits", *(word for text in SETTINGS for word in ("--set", text)))


def seconds(*arguments: str) -> float:
    """Wall time of a Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def train(folder: Path) -> tuple[float, float]:
    """Seconds until a training run has printed its accuracy and until it has ended, less those of its training."""
    started, said = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, *TRAIN, "--out", str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("test accuracy"):
                said = time.perf_counter() - started
    ended = time.perf_counter() - started
    assert said, "it has printed no accuracy"
    training = sum(json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines())
    return said - training, ended - training


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    """Print a median of seconds, and of what they are over those of `import torch`."""
    ratios = [own / torch for own, torch in pairs]
    spent = f"{statistics.median(own for own, _ in pairs):.3f}"
    row(name, spent, f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}")


def main() -> None:
    for arguments in (TORCH, *PROCESSES.values()):
        seconds(*arguments)  # reads files that the system then keeps in memory
    head("", "seconds", "over those of import torch", "from, to")
    for name, arguments in PROCESSES.items():
        show(name, [(seconds(*arguments), seconds(*TORCH)) for _ in range(RUNS)])

    pairs: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder) / "first")
        for number in range(RUNS):
            run, torch = Path(folder) / str(number), seconds(*TORCH)
            said, ended = train(run)
            evaluated = seconds(*HOMOJL, "evaluate", str(run))
            for name, own in (("accuracy printed", said), ("figures drawn", ended), ("homojl evaluate", evaluated)):
                pairs.setdefault(name, []).append((own, torch))
    for name, found in pairs.items():
        show(name, found)


if __name__ == "__main__":
    main()
