"""Whether thousands of solves with gradient leave anything behind, adjoint by adjoint.

    python benchmarks/leak.py [--solves 10000] [--warm 2000]

Each adjoint repeats one small solve and its gradient in a process of its own. Printed is by how much the process grew
from the solve --warm to the last one: its resident memory, what Python's allocator holds (tracemalloc), and the objects
that the garbage collector knows, all after a collection. What a few solves leave once, as caches, is before --warm.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tracemalloc

from peers.memory import gradients_to_repeat, resident
from rows import head, row


def measure(adjoint: str, warm: int, solves: int) -> None:
    """Print resident MiB, traced bytes and objects after so many solves, and after all."""
    import torch

    torch.set_num_threads(1)
    gradient, found = gradients_to_repeat()[adjoint], []
    tracemalloc.start()
    for i in range(1, solves + 1):
        gradient()
        if i in (warm, solves):
            found.append((resident(), tracemalloc.get_traced_memory()[0], len(gc.get_objects())))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solves", type=int, default=10_000)
    parser.add_argument("--warm", type=int, default=2000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.warm, args.solves)
        return
    what = f"growth from solve {args.warm:,} to {args.solves:,}"
    head(what, "resident before [MiB]", "after", "growth", "Python's [bytes]", "objects")
    sizes = ["--solves", str(args.solves), "--warm", str(args.warm)]
    for adjoint in gradients_to_repeat():
        command = [sys.executable, __file__, "--measure", adjoint, *sizes]
        before, after = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        grown = [b - a for a, b in zip(before, after, strict=True)]
        row(adjoint, f"{before[0]:.2f}", f"{after[0]:.2f}", f"{grown[0]:.2f}", *grown[1:])


if __name__ == "__main__":
    main()
