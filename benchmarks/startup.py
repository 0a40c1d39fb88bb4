"""Whole processes of commands that compute nothing and of a first solve, over one of `import torch`.

python benchmarks/startup.py

Each takes turns with `import torch`; the ratio is the median of 11 pairs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 11
SOLVE = """
import homojl as hj, torch
hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(3), (0.0, 1.0)), hj.Tsit5(), backend="pytorch")
"""
HOMOJL = ("-m", "homojl_cli")
PROCESSES = {
    "import homojl": ("-c", "import homojl"),
    "homojl --help": (*HOMOJL, "--help"),
    "homojl models": (*HOMOJL, "models"),
    "homojl datasets": (*HOMOJL, "datasets"),
    "homojl info": (*HOMOJL, "info"),
    "homojl train --set train.epochs=-1": (*HOMOJL, "train", "--set", "train.epochs=-1"),
    "import torch and a first solve": ("-c", SOLVE),
}


def seconds(*arguments: str) -> float:
    """Wall time of a Python process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    for arguments in (("-c", "import torch"), *PROCESSES.values()):
        seconds(*arguments)  # reads files that the system then keeps in memory
    for name, arguments in PROCESSES.items():
        pairs = [(seconds(*arguments), seconds("-c", "import torch")) for _ in range(RUNS)]
        ratios = [own / torch for own, torch in pairs]
        print(
            f"{name:<36} {statistics.median(own for own, _ in pairs):.3f} s, {statistics.median(ratios):.3f} of import "
            f"torch (from {min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
