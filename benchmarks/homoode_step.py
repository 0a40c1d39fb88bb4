"""One CIFAR-10-shaped HomoODE training step: its time against that of its evaluations alone, and its memory.

    python benchmarks/homoode_step.py [--repetitions 7] [--threads N]

Time: the step (encode, solve, decode, loss, backward; `DirectAdjoint`) over its evaluations times one forward and
backward evaluation of the field, measured in turn in one process; the median of the ratios is printed. 1 would be
a step that is nothing but evaluations.

Memory: the growth of a fresh process's peak resident memory over one step, `CheckpointAdjoint` over `DirectAdjoint`.
The more steps a solve takes, the more is saved.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from rows import head, row

import homojl as hj
from homojl.training.measuring import peak_memory

BATCH, CHANNELS = 64, 64
ADJOINTS = {"direct": hj.DirectAdjoint(), "checkpoint": hj.CheckpointAdjoint()}


def build(adjoint: str, init: str):
    torch.manual_seed(0)
    model = hj.create_model(
        "homoode", input_shape=(3, 32, 32), n_classes=10, channels=CHANNELS, init=init, adjoint=ADJOINTS[adjoint]
    ).train()
    return model, torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))


def training_step(model, images, labels) -> int:
    """One step without the optimiser; returns the evaluations of its forward pass."""
    logits, solution = model(images, return_solution=True)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    model.zero_grad()
    return solution.stats.nfe


def measure_time(repetitions: int, init: str) -> None:
    model, images, labels = build("direct", init)
    with torch.no_grad():
        x = model.encode(images)
    z = torch.randn_like(x)
    mask = torch.ones(BATCH, CHANNELS, 1, 1)
    seed = torch.randn_like(x)
    parameters = list(model.layer.field.parameters())

    def evaluation() -> None:
        z_in, x_in = z.detach().requires_grad_(), x.detach().requires_grad_()
        torch.autograd.grad(model.layer.field(None, z_in, x_in, mask), [z_in, x_in, *parameters], seed)

    ratios, steps, evaluations = [], [], []
    training_step(model, images, labels)
    for _ in range(repetitions):
        started = time.perf_counter()
        nfe = training_step(model, images, labels)
        steps.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(nfe):
            evaluation()
        evaluations.append((time.perf_counter() - started) / nfe)
        ratios.append(steps[-1] / (nfe * evaluations[-1]))
    head("time", "")
    row("training step", f"{statistics.median(steps):.3f} s with {nfe} evaluations")
    row("one evaluation, forward and backward", f"{1e3 * statistics.median(evaluations):.2f} ms")
    row("step over evaluations", f"{statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


def peak_growth(adjoint: str, init: str) -> float:
    """MiB that one step adds to the peak of this process; to be called in a fresh one."""
    model, images, labels = build(adjoint, init)
    training_step(model, images[:2], labels[:2])  # loads libraries and makes their buffers
    before = peak_memory(torch.device("cpu"))
    training_step(model, images, labels)
    return peak_memory(torch.device("cpu")) - before


def measure_memory(init: str) -> None:
    growth = {}
    head("memory", "MiB", "over direct")
    for adjoint in ADJOINTS:
        command = [sys.executable, __file__, "--memory-of", adjoint, "--init", init]
        growth[adjoint] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        row(adjoint, f"{growth[adjoint]:.0f}", f"{growth[adjoint] / growth['direct']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--init", choices=("learned", "zero"), default="learned", help="a zero start takes more steps")
    parser.add_argument("--memory-of", choices=ADJOINTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_growth(options.memory_of, options.init))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {CHANNELS} channels, 32 x 32")
    measure_time(options.repetitions, options.init)
    measure_memory(options.init)


if __name__ == "__main__":
    main()
