"""Memory, measured in processes of their own: what one solve takes, and whether many solves leave something behind.

    python -m peers.memory peak SOLVER VARIANT STEPS SEED THREADS
    python -m peers.memory leak SOLVES

from within benchmarks/; each prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.errors import HomoJLError

if TYPE_CHECKING:
    from homojl.adjoints import AbstractODEAdjoint


class MeasurementFailed(HomoJLError):
    """The process that was to measure ended early; the message is its last line."""


def peak_of_steps(solver: str, variant: str, steps: int, *, seed: int, threads: int) -> float:
    """MiB that one gradient through `steps` equal steps adds to the peak resident memory of a fresh process.

    Raises:
        MeasurementFailed: if that process fails.
    """
    mebibytes: float = _in_process("peak", solver, variant, str(steps), str(seed), str(threads))
    return mebibytes


def leak(solves: int) -> list[float]:
    """Resident memory in MiB after each fiftieth of `solves` small solves with gradients, in a fresh process.

    The solves are those of `gradients_to_repeat` in turn.

    Raises:
        MeasurementFailed: if that process fails.
    """
    resident: list[float] = _in_process("leak", str(solves))
    return resident


def _in_process(*arguments: str) -> Any:
    assert __package__ is not None
    place = Path(__file__).parents[__package__.count(".") + 1]  # from which this package has its name
    command = [sys.executable, "-m", f"{__package__}.memory", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise MeasurementFailed(lines[-1] if lines else f"exit code {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


# ---- what those processes do


def gradients_to_repeat() -> dict[str, Callable[[], None]]:
    """A small solve with its gradient for each adjoint of an ODE, and for an equilibrium's: what may leave nothing."""
    import torch

    import homojl as hj

    torch.manual_seed(0)
    field = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    y0, weights = torch.randn(2, 4, requires_grad=True), tuple(field.parameters())
    algorithm, iteration = hj.Bosh3(rtol=1e-2, atol=1e-2), hj.Anderson(rtol=1e-3)

    def ode(adjoint: AbstractODEAdjoint) -> None:
        problem = hj.ODEProblem(lambda t, y: field(y), y0, (0.0, 0.5), params=weights)
        value = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch").value
        torch.autograd.grad(value.sum(), [y0, *weights])

    def equilibrium() -> None:
        problem = hj.FixedPointProblem(lambda z: 0.5 * field(z), torch.ones(2, 4), params=weights)
        value = hj.solve(problem, iteration, adjoint=hj.ImplicitAdjoint(), backend="pytorch").value
        torch.autograd.grad(value.sum(), weights)

    adjoints = (hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.BacksolveAdjoint(), hj.GaussAdjoint())
    return {adjoint.name: partial(ode, adjoint) for adjoint in adjoints} | {"ImplicitAdjoint": equilibrium}


def resident() -> float:
    """Resident memory of this process in MiB, after what can be given back has been."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) / 1024


def _peak(solver: str, variant: str, steps: int, seed: int, threads: int) -> float:
    import torch

    from homojl.training.measuring import peak_memory

    from .experiments import steps_case
    from .solvers import SOLVERS
    from .solvers.base import Solve
    from .threads import use_threads

    use_threads(threads)

    def ready(count: int) -> Solve:
        return SOLVERS[solver].variants(steps_case(count, seed))[variant]()

    small = 100 if variant == "30 states" else 2  # loads libraries and makes their buffers
    ready(small)()
    solve = ready(steps)
    before = resident()
    try:  # the peak so far is forgotten
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        before = max(before, peak_memory(torch.device("cpu")))
    solve()
    return max(0.0, peak_memory(torch.device("cpu")) - before)


def _leak(solves: int) -> list[float]:
    import torch

    torch.set_num_threads(1)
    gradients, every = itertools.cycle(gradients_to_repeat().values()), max(1, solves // 50)
    found = []
    for i in range(solves):
        next(gradients)()
        if (i + 1) % every == 0:
            found.append(resident())
    return found


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "leak":
        print(json.dumps(_leak(int(given[0]))))
    else:
        print(json.dumps(_peak(given[0], given[1], *map(int, given[2:]))))
