"""Memory and time of a long solve's gradient by how its states are kept.

    python benchmarks/checkpoints.py [--steps 1000 10000] [--states 30] [--batch 256] [--width 64] [--repetitions 3]

A two-layer network as the field, the state (batch, width) in float32, RK4 steps of equal size, the loss at the end.
Each way runs in a process of its own: its memory is the peak of the resident set during forward and backward pass over
what it was before, after a short solve has brought in what is loaded once. The ways take turns; time is the median over
the repetitions, both passes together. `DirectAdjoint` is left out where its graph would take more than --limit GiB.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rows import head, row

WAYS = ("direct", "all states", "few states")
EVALUATIONS = 4  # of a step of RK4
SAVED = 5  # tensors of the hidden width that an evaluation's graph keeps, about


def peak_and_now() -> tuple[int, int]:
    """Peak and present resident set of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return sizes["VmHWM"], sizes["VmRSS"]


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(way: str, steps: int, states: int, batch: int, width: int) -> None:
    """Print time, memory, evaluations and a digest of the gradient of one solve."""
    import torch

    import homojl as hj

    torch.manual_seed(0)

    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, width)
            )

        def forward(self, t, y):
            return torch.tanh(self.layers(y)) - 0.1 * y

    field, y0 = Field(), torch.randn(batch, width)
    adjoints = {
        "direct": hj.DirectAdjoint(),
        "all states": hj.CheckpointAdjoint(),
        "few states": hj.CheckpointAdjoint(max_states=states),
    }

    def gradient(n: int) -> tuple[hj.Stats, list[torch.Tensor]]:
        y = y0.clone().requires_grad_()
        problem = hj.ODEProblem(field, y, (0.0, 10.0))
        solution = hj.solve(problem, hj.RK4(step_size=10.0 / n), adjoint=adjoints[way], backend="pytorch")
        return solution.stats, torch.autograd.grad(solution.value.square().sum(), [y, *field.parameters()])

    gradient(3)
    forget_peak()
    before = peak_and_now()[1]
    started = time.perf_counter()
    stats, gradients = gradient(steps)
    seconds = time.perf_counter() - started
    digest = [float(g.double().square().sum().sqrt()) for g in gradients]
    answer = {
        "seconds": seconds,
        "bytes": peak_and_now()[0] - before,
        "evaluations": (stats.nfe + stats.nfe_backward) / stats.n_accepted,
        "digest": digest,
    }
    print(json.dumps(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--states", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--limit", type=float, default=4.0, help="GiB that a graph may take")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.steps[0], args.states, args.batch, args.width)
        return
    sizes = ["--states", str(args.states), "--batch", str(args.batch), "--width", str(args.width)]
    for steps in args.steps:
        graph = steps * EVALUATIONS * SAVED * args.batch * args.width * 4 / 2**30
        ways = [way for way in WAYS if way != "direct" or graph <= args.limit]
        results: dict[str, list[dict]] = {way: [] for way in ways}
        for _ in range(args.repetitions):
            for way in ways:
                command = [sys.executable, __file__, "--measure", way, "--steps", str(steps), *sizes]
                results[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        reference = results[ways[0]]
        what = f"{steps} steps, states of {args.batch} x {args.width}, {args.states} of them kept"
        over = f"over {ways[0]}"
        head(what, "memory [MiB]", over, "time [s]", over, "evaluations a step", "gradient off by")
        for way in ways:
            memory = statistics.median(r["bytes"] for r in results[way])
            seconds = statistics.median(r["seconds"] for r in results[way])
            memory_ratio = memory / statistics.median(r["bytes"] for r in reference)
            time_ratio = seconds / statistics.median(r["seconds"] for r in reference)
            pairs = zip(results[way][0]["digest"], reference[0]["digest"], strict=True)
            difference = max(abs(a - b) / b for a, b in pairs)
            spent = (f"{memory / 2**20:.1f}", f"{memory_ratio:.3f}", f"{seconds:.2f}", f"{time_ratio:.2f}")
            row(way, *spent, f"{results[way][0]['evaluations']:.2f}", f"{difference:.1e}")


if __name__ == "__main__":
    main()
