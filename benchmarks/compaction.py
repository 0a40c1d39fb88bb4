"""Time and evaluations of trained models by the images of a batch, with and without converged samples leaving it.

    python benchmarks/compaction.py RUN [RUN ...] [--sizes 1,8,64,512] [--images 512] [--rounds 2]

Each run answers its first test images by its own solver; the time is that of the process's CPU, per image, the best of
the rounds, in which the two take turns. An ODE model solves a batch as one system, so that both are the same there.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from rows import head, row

from homojl.backends.pytorch import rows, samples
from homojl.training.outcome import evaluate_run
from homojl.training.run import Run

NEVER = 2.0  # no part of a batch is as large


def answered(run: Run, size: int, images: int, compact: bool) -> tuple[float, float]:
    """Milliseconds of CPU time per image, and evaluations per forward pass."""
    samples.COMPACT_AT = rows.COMPACT_AT if compact else NEVER  # type: ignore[misc]  # the library has no such setting
    started = time.process_time()
    answers = evaluate_run(run, limit=images, batch_size=size, throw=False)
    return 1e3 * (time.process_time() - started) / images, float(answers.nfe.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--sizes", default="1,8,64,512")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head("run", "images a batch", "ms/image, with compaction", "without", "evaluations, with", "without")
    for path in options.runs:
        run = Run.open(path)
        answered(run, 64, 64, True)  # warms up
        for size in map(int, options.sizes.split(",")):
            best = {True: (math.inf, math.nan), False: (math.inf, math.nan)}
            for _ in range(options.rounds):
                for compact in best:
                    best[compact] = min(best[compact], answered(run, size, options.images, compact))
            (with_ms, with_nfe), (without_ms, without_nfe) = best[True], best[False]
            row(path, size, f"{with_ms:.3f}", f"{without_ms:.3f}", f"{with_nfe:.1f}", f"{without_nfe:.1f}")


if __name__ == "__main__":
    main()
