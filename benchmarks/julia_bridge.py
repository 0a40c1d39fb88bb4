"""What the way through Julia costs, and what it saves: the figures of the README's table on the Julia backend.

    python benchmarks/julia_bridge.py [call] [step] [vanderpol] [first] [--repetitions 7]

- call: one right-hand-side call from Julia into PyTorch and back, beyond the Python function itself.
- step: a HomoODE training step on the Julia backend over the PyTorch one's, same steps.
- vanderpol: time per step of a small system, against torchdiffeq (field in eager PyTorch) and against jitted diffrax
  (field held in Julia). Needs `pip install --group peers`.
- first: the first solve in a new process, imports and Julia's start included, with warm package caches.

Everything is measured in turn in one run, and medians of ratios are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch

import homojl as hj
from homojl.backends.julia import runtime
from homojl.backends.julia.tensors import Callback, StateForm

Tensor = torch.Tensor


def seconds(work, repetitions: int) -> float:
    """The least time of several runs, per run."""
    best = float("inf")
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


# One call after another inside Julia, as a solver makes them.
CALLS = """
function (bridge, callback, n, count, T)
    function timed(f, du, u)
        f(du, u, T(0))
        started = ccall(:clock, Clong, ())  # of the CPU, in microseconds
        for _ in 1:count
            f(du, u, T(0))
        end
        return (ccall(:clock, Clong, ()) - started) / count / 1.0e6
    end
    loans = bridge.Loans([], [])
    try
        return timed(bridge.borrow_function(loans, callback), zeros(T, n), fill(T(0.5), n))
    finally
        foreach(bridge.pydel!, loans.references)
    end
end
"""


def call(repetitions: int) -> None:
    julia = runtime.start()
    calls = julia.jl.seval(CALLS)
    functions = {
        "-y": lambda t, y: -y,
        "tanh": lambda t, y: torch.tanh(y),
    }
    print("a call beyond the Python function itself (float32)")
    for n, count in ((512, 20_000), (1_048_576, 60)):
        cases = {name: (f, (n,)) for name, f in functions.items()}
        if n > 512:
            field, x = homoode_field()
            cases["HomoODE's layer, 64 x 64 x 16 x 16"] = (lambda t, y, field=field, x=x: field(t, y, x, None), x)
        for name, (f, like) in cases.items():
            y = torch.full(like, 0.5) if isinstance(like, tuple) else torch.empty_like(like).fill_(0.5)
            repeat = count if isinstance(like, tuple) else 4
            callback = Callback(f, StateForm(y), timed=True)
            extra, share = [], []
            with torch.no_grad():
                t = torch.zeros(())
                for _ in range(repetitions):
                    started = time.process_time()
                    for _ in range(repeat):
                        f(t, y)
                    alone = (time.process_time() - started) / repeat
                    through = calls(julia.bridge, callback, y.numel(), repeat, julia.jl.Float32)
                    extra.append(through - alone)
                    share.append((through - alone) / through)
            print(
                f"  {n:>9,} elements, {name:<36} {1e6 * statistics.median(extra):8.2f} us, "
                f"{100 * statistics.median(share):5.1f} % of the call"
            )


def homoode_field() -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    model = hj.create_model("homoode", input_shape=(3, 32, 32), n_classes=10, channels=64).eval()
    with torch.no_grad():
        return model.layer.field, model.encode(torch.randn(64, 3, 32, 32))


def step(repetitions: int) -> None:
    torch.manual_seed(0)
    model = hj.create_model("homoode", input_shape=(3, 32, 32), n_classes=10, channels=64, dropout=0.0).train()
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    evaluations = {}

    def train(backend: str) -> None:
        model.backend = backend
        logits, solution = model(images, return_solution=True)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        model.zero_grad()
        evaluations[backend] = (solution.stats.nfe, solution.stats.n_accepted)

    ratios = []
    for i in range(repetitions + 1):
        times = {backend: seconds(lambda backend=backend: train(backend), 1) for backend in ("pytorch", "julia")}
        if i:
            ratios.append(times["julia"] / times["pytorch"])
    print(
        f"HomoODE training step, Julia over PyTorch: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} .. {max(ratios):.3f}); evaluations and accepted steps {evaluations}"
    )


MU, BATCH, SAVES, TOLERANCE = 2.0, 256, 200, 1e-5

VAN_DER_POL = """
function f!(du, u, p, t)
    @inbounds @simd for i in axes(u, 2)
        x, v = u[1, i], u[2, i]
        du[1, i] = v
        du[2, i] = 2 * (1 - x * x) * v - x
    end
    return nothing
end
"""


def vanderpol(repetitions: int) -> None:
    import diffrax
    import jax
    import jax.numpy as jnp
    import torchdiffeq

    torch.manual_seed(0)
    y0 = torch.randn(BATCH, 2)
    ts = torch.linspace(0, 10, SAVES)
    calls = [0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        x, v = y.unbind(-1)
        return torch.stack([v, MU * (1 - x * x) * v - x], -1)

    algorithm = hj.Dopri5(rtol=TOLERANCE, atol=TOLERANCE)
    times = tuple(ts.tolist())

    def ours(f, backend):
        solution = hj.solve(hj.ODEProblem(f, y0, times), algorithm, backend=backend)
        return solution.ys, solution.stats.n_accepted + solution.stats.n_rejected

    def torchdiffeqs():
        calls[0] = 0
        ys = torchdiffeq.odeint(field, y0, ts, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
        return ys, (calls[0] - 2) / 6

    def jax_field(t, y, args):
        x, v = y[..., 0], y[..., 1]
        return jnp.stack([v, MU * (1 - x * x) * v - x], -1)

    @jax.jit
    def jitted(start):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(jax_field),
            diffrax.Dopri5(),
            t0=0.0,
            t1=10.0,
            dt0=None,
            y0=start,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0, 10, SAVES)),
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        )

    start = jnp.asarray(y0.numpy())

    def diffraxs():
        solution = jitted(start)
        return solution.ys.block_until_ready(), int(solution.stats["num_steps"])

    held = hj.JuliaField(VAN_DER_POL)
    solvers = {
        "torchdiffeq": torchdiffeqs,
        "diffrax, jitted": diffraxs,
        "homojl, PyTorch": lambda: ours(field, "pytorch"),
        "homojl, Julia, eager field": lambda: ours(field, "julia"),
        "homojl, Julia, field in Julia": lambda: ours(held, "julia"),
    }
    with torch.no_grad():
        steps = {name: solver()[1] for name, solver in solvers.items()}
        rounds = [
            {name: seconds(solver, 3) / steps[name] for name, solver in solvers.items()} for _ in range(repetitions)
        ]
    print(f"Van der Pol, batch {BATCH}, mu {MU:g}, {SAVES} save times, dopri5 at {TOLERANCE:g}, float32")
    for name in solvers:
        print(
            f"  {name:<30} {steps[name]:7.0f} steps {1e6 * statistics.median(r[name] for r in rounds):9.1f} us a step"
        )
    for name, peer in (
        ("homojl, Julia, eager field", "torchdiffeq"),
        ("homojl, Julia, field in Julia", "diffrax, jitted"),
        ("homojl, PyTorch", "torchdiffeq"),
    ):
        print(f"  {name} over {peer}: {statistics.median(r[name] / r[peer] for r in rounds):.3f}")


FIRST = """
import time
started = time.perf_counter()
import torch, homojl as hj
y0 = torch.ones(3)
hj.solve(hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), hj.{algorithm}(), backend="julia")
print(time.perf_counter() - started)
"""


def first(repetitions: int) -> None:
    for algorithm in ("Tsit5", "Dopri5", "Rodas5P", "TRBDF2", "FBDF"):
        code = FIRST.format(algorithm=algorithm)
        taken = [
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
            for _ in range(max(1, repetitions // 3))
        ]
        print(f"first solve in a new process, {algorithm}: {statistics.median(taken):.1f} s")


def main() -> None:
    parts = {"call": call, "step": step, "vanderpol": vanderpol, "first": first}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; nothing: all")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; Julia {runtime.find().version}", flush=True)
    for name in options.parts or parts:
        parts[name](options.repetitions)


if __name__ == "__main__":
    main()
