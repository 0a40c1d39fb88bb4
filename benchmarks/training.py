"""What people do all day beside the peers: training steps of small neural ODEs, systems without gradients, ensembles.

    python benchmarks/training.py [--work short,long,vanderpol,layer,ensemble,first] [--samples 100000]
                                  [--repetitions 15]

- short: a training step of a neural ODE (2-64-64-2, tanh), batch 256, 20 save times on [0, 2], mean square loss against
  given states at all of them, Dopri5 at 1e-5, and its forward pass alone; long: the same on [0, 20], 100 save times.
- vanderpol: a batch of 256 over [0, 20], 50 save times, without gradients.
- layer: HomoODE's vector field, 64 channels of 14 x 14, batch 16, forward and backward, Dopri5 at 1e-3.
- ensemble: Lorenz systems with parameters of their own over [0, 1], each with steps of its own, forward and with the
  gradient by all parameters; diffrax under `vmap`. Errors are means over samples, against a solve at 1e-10 in float64.
- first: CPU time of the first compiled solve of the neural ODE in a new process, beyond `import torch`: of a field that
  no process has compiled before, and of one that is found again.

All but the last in one process with one thread. The solvers take turns; printed are the medians of the CPU time of one
call, which other work on the machine disturbs least, and their ratios over the peer's. diffrax and torchdiffeq are run
where installed. "compile" is the time that the first call took.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import head, row

os.environ.update(OMP_NUM_THREADS="1", NPROC="1", XLA_FLAGS="--xla_cpu_multi_thread_eigen=false")

import torch
from torch import nn

import homojl as hj

Tensor = torch.Tensor
Work = dict[str, Callable[[], Any]]
COMPILED = "pytorch-compiled"


def take_turns(what: str, work: Work, repetitions: int, over: str) -> None:
    """Print the median CPU time of each, and its ratio over one of them."""
    head(what, "CPU time [ms]", f"over {over}'s", "first call [s]")
    first, seconds = {}, {name: list[float]() for name in work}
    for name, call in work.items():
        started = time.perf_counter()
        call()
        first[name] = time.perf_counter() - started
        call()
    for _ in range(repetitions):
        for name, call in work.items():
            started, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - started < 0.02:
                call()
                calls += 1
            seconds[name].append((time.process_time() - started) / calls)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    for name, median in medians.items():
        ratio = f"{median / medians[over]:.2f}" if over in medians else ""
        row(name, f"{1e3 * median:.3f}", ratio, f"{first[name]:.1f}")


class Network(nn.Module):
    """A neural ODE's field."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self.net(y)
        return value


def neural_ode(end: float, saves: int) -> tuple[Work, Work]:
    """Forward passes and training steps."""
    field, y0, ts = Network(), torch.randn(256, 2), torch.linspace(0, end, saves)
    target, algorithm = torch.randn(saves, 256, 2), hj.Dopri5(rtol=1e-5, atol=1e-5)
    problem = hj.ODEProblem(field, y0, ts)

    def forward(backend: str) -> None:
        with torch.no_grad():
            hj.solve(problem, algorithm, backend=backend)

    def train(backend: str, adjoint: Any) -> None:
        ys = hj.solve(problem, algorithm, adjoint=adjoint, backend=backend).ys
        (ys - target).square().mean().backward()
        field.zero_grad()

    alone: Work = {"eager": lambda: forward("pytorch"), "compiled": lambda: forward(COMPILED)}
    steps: Work = {
        "eager, Direct": lambda: train("pytorch", hj.DirectAdjoint()),
        "compiled, Direct": lambda: train(COMPILED, hj.DirectAdjoint()),
        "compiled, Checkpoint": lambda: train(COMPILED, hj.CheckpointAdjoint()),
    }
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return alone, steps
    weights = [jnp.asarray(p.detach().numpy()) for p in field.parameters()]
    start, times, wanted = (jnp.asarray(x.numpy()) for x in (y0, ts, target))

    def f(t: Any, y: Any, w: Any) -> Any:
        y = jnp.tanh(y @ w[0].T + w[1])
        return jnp.tanh(y @ w[2].T + w[3]) @ w[4].T + w[5]

    def solve(w: Any) -> Any:
        control, save = diffrax.PIDController(rtol=1e-5, atol=1e-5), diffrax.SaveAt(ts=times)
        term, method = diffrax.ODETerm(f), diffrax.Dopri5()
        return diffrax.diffeqsolve(
            term, method, times[0], times[-1], None, start, w, saveat=save, stepsize_controller=control
        ).ys

    integrate = jax.jit(solve)
    gradient = jax.jit(jax.value_and_grad(lambda w: ((solve(w) - wanted) ** 2).mean()))
    alone["diffrax"] = lambda: jax.block_until_ready(integrate(weights))
    steps["diffrax"] = lambda: jax.block_until_ready(gradient(weights))
    return alone, steps


def van_der_pol() -> Work:
    """Solves without gradients."""
    y0, ts, mu, end = torch.randn(256, 2), torch.linspace(0, 20, 50), torch.tensor(2.0), 20.0

    def field(t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, mu * (1 - x * x) * v - x], -1)

    problem, algorithm = hj.ODEProblem(field, y0, ts, args=(mu,)), hj.Dopri5(rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def forward(backend: str) -> None:
        hj.solve(problem, algorithm, backend=backend)

    work: Work = {"eager": lambda: forward("pytorch"), "compiled": lambda: forward(COMPILED)}
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return work

    def f(t: Any, y: Any, mu: Any) -> Any:
        return jnp.stack([y[..., 1], mu * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], -1)

    control, save = diffrax.PIDController(rtol=1e-5, atol=1e-5), diffrax.SaveAt(ts=jnp.asarray(ts.numpy()))

    def solve(y: Any, mu: Any) -> Any:
        term, method = diffrax.ODETerm(f), diffrax.Dopri5()
        return diffrax.diffeqsolve(term, method, 0.0, end, None, y, mu, saveat=save, stepsize_controller=control).ys

    compiled, start, number = jax.jit(solve), jnp.asarray(y0.numpy()), jnp.float32(2.0)
    work["diffrax"] = lambda: jax.block_until_ready(compiled(start, number))
    return work


def layer() -> Work:
    """HomoODE's field forward and backward."""
    from peers.problems import layer_problem

    problem = layer_problem(batch=16, channels=64, size=14)
    field = problem.torch_field(problem.batch)
    y0 = torch.from_numpy(problem.y0).clone().requires_grad_()
    ts, weights = torch.from_numpy(problem.ts), torch.from_numpy(problem.cotangent)
    inputs = [y0, *(field.parameters() if isinstance(field, nn.Module) else ())]

    def ours(adjoint: Any, backend: str) -> None:
        problem, algorithm = hj.ODEProblem(field, y0, ts), hj.Dopri5(rtol=1e-3, atol=1e-3)
        value = hj.solve(problem, algorithm, adjoint=adjoint, backend=backend).value
        torch.autograd.grad(value, inputs, weights)

    work: Work = {
        "eager, Direct": lambda: ours(hj.DirectAdjoint(), "pytorch"),
        "eager, Checkpoint": lambda: ours(hj.CheckpointAdjoint(), "pytorch"),
        "compiled, Direct": lambda: ours(hj.DirectAdjoint(), COMPILED),
    }
    try:
        import torchdiffeq
    except ImportError:
        return work

    def theirs() -> None:
        value = torchdiffeq.odeint(field, y0, ts, rtol=1e-3, atol=1e-3, method="dopri5")[-1]
        torch.autograd.grad(value, inputs, weights)

    return work | {"torchdiffeq": theirs}


def ensemble(samples: int) -> tuple[Work, Work]:
    """Forward passes, and with the gradient; the errors are printed."""
    y0 = torch.randn(samples, 3) + torch.tensor([0.0, 0.0, 20.0])
    parameters = torch.tensor([10.0, 28.0, 8 / 3]) * (1 + 0.1 * torch.randn(samples, 3))

    def field(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
        (x, v, z), (s, r, b) = y.unbind(-1), p.unbind(-1)
        return torch.stack([s * (v - x), x * (r - z) - v, x * v - b * z], -1)

    def solve(p: Tensor, tolerance: float = 1e-5, dtype: torch.dtype = torch.float32) -> Tensor:
        problem = hj.ODEProblem(field, y0.to(dtype), (0.0, 1.0), args=(hj.PerSample(p.to(dtype)),))
        algorithm = hj.Dopri5(rtol=tolerance, atol=tolerance)
        value: Tensor = hj.solve(
            problem, algorithm, batch="per-sample", backend=COMPILED, adjoint=hj.CheckpointAdjoint()
        ).value
        return value

    def derive() -> None:
        p = parameters.clone().requires_grad_()
        torch.autograd.grad(solve(p).square().sum(), p)

    exact = solve(parameters, 1e-10, torch.float64)
    print(f"  compiled: error {(solve(parameters) - exact).abs().mean().item():.1e}")
    alone: Work = {"compiled": lambda: solve(parameters)}
    steps: Work = {"compiled": derive}
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return alone, steps

    def f(t: Any, y: Any, p: Any) -> Any:
        (x, v, z), (s, r, b) = y, p
        return jnp.stack([s * (v - x), x * (r - z) - v, x * v - b * z])

    def one(y: Any, p: Any) -> Any:
        term, method, control = diffrax.ODETerm(f), diffrax.Dopri5(), diffrax.PIDController(rtol=1e-5, atol=1e-5)
        solution = diffrax.diffeqsolve(term, method, 0.0, 1.0, None, y, p, stepsize_controller=control, max_steps=256)
        return solution.ys[-1]

    start, given = jnp.asarray(y0.numpy()), jnp.asarray(parameters.numpy())
    integrate = jax.jit(jax.vmap(one))
    gradient = jax.jit(jax.grad(lambda p, y: (jax.vmap(one)(y, p) ** 2).sum()))
    error = abs(torch.from_numpy(jax.device_get(integrate(start, given)).copy()) - exact).mean().item()
    print(f"  diffrax: error {error:.1e}")
    alone["diffrax"] = lambda: jax.block_until_ready(integrate(start, given))
    steps["diffrax"] = lambda: jax.block_until_ready(gradient(given, start))
    return alone, steps


_FIRST = """
import time, torch
from training import Network
started = time.process_time()
import homojl as hj
problem = hj.ODEProblem(Network(), torch.randn(256, 2), torch.linspace(0, 2, 20))
hj.solve(problem, hj.Dopri5(rtol=1e-5, atol=1e-5), backend="pytorch-compiled")
print(time.process_time() - started + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))
"""


def first_solves() -> None:
    """Print what the first solve of a process takes, the compiler included."""
    with tempfile.TemporaryDirectory() as cache:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": path}
        for what in ("compiled anew", "found again"):
            code = "import resource" + _FIRST
            ran = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            row(what, f"{float(ran.stdout.split()[-1]):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", default="short,long,vanderpol,layer,ensemble,first")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    few = math.ceil(options.repetitions / 5)
    for name in options.work.split(","):
        if name in ("short", "long"):
            alone, steps = neural_ode(2.0, 20) if name == "short" else neural_ode(20.0, 100)
            take_turns(f"{name}: forward pass", alone, options.repetitions, "diffrax")
            take_turns(f"{name}: training step", steps, options.repetitions, "diffrax")
        elif name == "vanderpol":
            take_turns(name, van_der_pol(), options.repetitions, "diffrax")
        elif name == "layer":
            take_turns("layer: forward and backward", layer(), options.repetitions, "torchdiffeq")
        elif name == "first":
            head("the first solve of a process", "CPU time [s]")
            first_solves()
        else:
            alone, steps = ensemble(options.samples)
            take_turns(f"ensemble of {options.samples}: forward pass", alone, few, "diffrax")
            take_turns("ensemble: with the gradient", steps, few, "diffrax")


if __name__ == "__main__":
    main()
