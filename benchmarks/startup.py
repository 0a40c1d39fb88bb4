"""Time of `import homojl` and of `homojl --help`, each in fresh processes: median of 11.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 11


def main() -> None:
    code = "import time; t = time.perf_counter(); import homojl; print(time.perf_counter() - t)"
    imports = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(RUNS)
    ]
    helps = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "homojl_cli", "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - started)
    for name, times in (("import homojl", imports), ("homojl --help", helps)):
        print(f"{name:<15} {statistics.median(times):.3f} s (from {min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
