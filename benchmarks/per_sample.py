"""A batch in which one sample is stiff: what steps of every sample's own save, and what they cost.

    python benchmarks/per_sample.py [--batch 64] [--stiffness 100] [--repetitions 3]

Van der Pol's oscillator from (2, 0) over [0, 10], 20 save times, float64, tolerance 1e-5, mu between 0.5 and 1.5 but
for one sample with mu = `stiffness`. Printed are the evaluations of the field for each sample (rows that it saw, over
the batch), and the median wall time of a solve without gradient, the solvers in turn in one process; with
`--stiffness 1` what steps of one's own cost where they save nothing. torchode and torchdiffeq are run where installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rows import head, row

import homojl as hj

Tensor = torch.Tensor
TOLERANCE = 1e-5


class VanDerPol:
    """The field at the rows it is given, which it counts."""

    def __init__(self) -> None:
        self.calls = self.rows = 0

    def __call__(self, t: Tensor, y: Tensor, mu: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(y)
        position, speed = y.unbind(dim=1)
        return torch.stack([speed, mu * (1 - position**2) * speed - position], dim=1)


def solvers(y0: Tensor, ts: Tensor, mu: Tensor) -> dict[str, Callable[[VanDerPol], Tensor]]:
    """Name -> a solve with the given field that returns the states, (T, B, 2)."""
    algorithm = hj.Tsit5(rtol=TOLERANCE, atol=TOLERANCE, max_steps=10**6)

    def own(batch: str) -> Callable[[VanDerPol], Tensor]:
        def run(field: VanDerPol) -> Tensor:
            problem = hj.ODEProblem(field, y0, ts, args=(mu,))
            return hj.solve(problem, algorithm, batch=batch, backend="pytorch").ys

        return run

    found = {"homojl, per sample": own("per-sample"), "homojl, joint": own("joint")}
    try:
        import torchode
    except ImportError:
        pass
    else:

        def with_torchode(field: VanDerPol) -> Tensor:
            term = torchode.ODETerm(field, with_args=True)
            control = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
            adjoint = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), control)
            problem = torchode.InitialValueProblem(y0=y0, t_eval=ts.expand(len(y0), -1))
            return adjoint.solve(problem, args=mu).ys.transpose(0, 1)

        found["torchode, per sample"] = with_torchode
    try:
        import torchdiffeq
    except ImportError:
        pass
    else:

        def with_torchdiffeq(field: VanDerPol) -> Tensor:
            f = lambda t, y: field(t, y, mu)  # noqa: E731
            return torchdiffeq.odeint(f, y0, ts, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")

        found["torchdiffeq, joint"] = with_torchdiffeq
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--stiffness", type=float, default=100.0, help="mu of one sample")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()

    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(options.batch, 1)
    ts = torch.linspace(0.0, 10.0, 20, dtype=torch.float64)
    mu = torch.linspace(0.5, 1.5, options.batch, dtype=torch.float64)
    mu[options.batch // 3] = options.stiffness
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}, one of them with mu "
          f"{options.stiffness:g}")  # fmt: skip

    precise = hj.Dopri8(rtol=1e-11, atol=1e-11, max_steps=10**6)
    with torch.no_grad():
        reference = hj.solve(
            hj.ODEProblem(VanDerPol(), y0, ts, args=(mu,)), precise, batch="per-sample", backend="pytorch"
        ).ys
        runs = solvers(y0, ts, mu)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        fields, errors = {}, {}
        for _ in range(options.repetitions):
            for name, run in runs.items():
                fields[name], started = VanDerPol(), time.perf_counter()
                ys = run(fields[name])
                seconds[name].append(time.perf_counter() - started)
                errors[name] = (ys - reference).abs().max().item()
    joint = fields["homojl, joint"].rows / options.batch
    head("", "calls", "evaluations for each sample", "over joint", "error", "time [ms]", "for each call [us]")
    for name, field in fields.items():
        rows, wall = field.rows / options.batch, statistics.median(seconds[name])
        spent = (f"{1e3 * wall:.1f}", f"{1e6 * wall / field.calls:.1f}")
        row(name, field.calls, f"{rows:.1f}", f"{rows / joint:.3f}", f"{errors[name]:.1e}", *spent)


if __name__ == "__main__":
    main()
