"""Says which files the tests cover too little of: python tools/coverage_bars.py REPORT.json

The report is that of `coverage json`; the bar of the whole stands in pyproject.toml. Exits with 1 if a file is below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PERCENT = 80  # of each file's lines


def below(report: dict[str, dict[str, dict[str, dict[str, float]]]]) -> dict[str, float]:
    """Per cent of its lines that ran, of each file where they are fewer than `PERCENT`."""
    covered = {name: file["summary"]["percent_covered"] for name, file in report["files"].items()}
    return {name: percent for name, percent in sorted(covered.items()) if percent < PERCENT}


if __name__ == "__main__":
    found = below(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for name, percent in found.items():
        print(f"{name}: {percent:.1f} %, at least {PERCENT} % are wanted")
    sys.exit(bool(found))
