"""What evaluations in bfloat16 and float16 cost in accuracy, and save in time, beside a float32 state.

    python benchmarks/precision.py [--part trajectories equilibria gradients speed] [--batch 4] [--size 8]

Everything against float64: solves by Dopri8 at 1e-9, equilibria by Anderson's method at 1e-9.

- trajectories: HomoODE's layer (64 channels) from 0 to 1 at its initial weights, and a network of two layers of 64 tanh
  units, fitted to Van der Pol's oscillator, from 0 to 5; Dopri5. Printed are the root mean square of error / (1 + |y|)
  at the end and the steps, by tolerance.
- equilibria: the layer at rest, by Anderson's method and Broyden's; relative error, evaluations and status.
- gradients: of the layer's solve by every adjoint at 1e-3, and of the equilibrium at 1e-2; relative error of dL/dx and
  of dL/dweights for a random cotangent. In full precision what is seen is the tolerance's own error.
- speed: an evaluation of the layer forward, and with its backward pass, over float32's; medians in turn.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings

import torch
from peers.problems import LayerField, layer_problem
from rows import head, row

import homojl as hj
from homojl.functions.evaluated import Autocast
from homojl.precision import PRECISIONS

Tensor = torch.Tensor
warnings.filterwarnings("ignore", "a tolerance below")  # what it warns of is measured here


class Fitted(torch.nn.Module):
    """A network fitted to the field of Van der Pol's oscillator, mu 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)
        )
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        for _ in range(600):
            y = (torch.rand(256, 2) - 0.5) * torch.tensor([5.0, 8.0])
            x, v = y.unbind(1)
            loss = (self.net(y) - torch.stack([v, 2 * (1 - x * x) * v - x], 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def doubled(field: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(field).double()


@torch.no_grad()
def trajectories(name: str, field: torch.nn.Module, y0: Tensor, end: float) -> None:
    exact = doubled(field)
    reference = hj.solve(
        hj.ODEProblem(exact, y0.double(), (0.0, end)), hj.Dopri8(rtol=1e-9, atol=1e-9), backend="pytorch"
    ).value
    start = torch.zeros(()), y0
    expected = exact(start[0].double(), start[1].double())
    rounding = []
    for precision in PRECISIONS[1:]:
        found = Autocast(field, getattr(torch, precision), "cpu")(*start)
        rounding.append(f"{precision} {((found - expected).norm() / expected.norm()).item():.1e}")
    print(f"\n{name}: relative error of an evaluation {', '.join(rounding)}")
    head(f"{name}: error at the end, steps", *PRECISIONS)
    for tolerance in (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5):
        cells = []
        for precision in PRECISIONS:
            algorithm = hj.Dopri5(rtol=tolerance, atol=tolerance, max_steps=1000)
            problem = hj.ODEProblem(field, y0, (0.0, end))
            solution = hj.solve(problem, algorithm, backend="pytorch", precision=precision, throw=False)
            error = (solution.value - reference) / (1 + reference.abs())
            steps = solution.stats.n_accepted + solution.stats.n_rejected
            cells.append(f"{error.square().mean().sqrt().item():.1e}, {steps}")
        row(f"{tolerance:g}", *cells)


def at_rest(field: LayerField, z0: Tensor) -> hj.FixedPointProblem:
    return hj.FixedPointProblem(
        lambda z, x: field.field(None, z, x), z0, args=(field.x,), params=tuple(field.field.parameters())
    )


@torch.no_grad()
def equilibria(field: LayerField, z0: Tensor) -> None:
    tight = hj.Anderson(rtol=1e-9, atol=1e-12, max_steps=1000)
    reference = hj.solve(at_rest(doubled(field), z0.double()), tight, backend="pytorch").value
    head("HomoODE's layer at rest: relative error, evaluations", *PRECISIONS)
    for method in (hj.Anderson, hj.Broyden):
        for tolerance in (1e-1, 1e-2, 3e-3, 1e-3, 1e-4):
            cells = []
            for precision in PRECISIONS:
                algorithm = method(rtol=tolerance, atol=1e-12, max_steps=100)
                found = hj.solve(at_rest(field, z0), algorithm, backend="pytorch", precision=precision, throw=False)
                error = ((found.value - reference).norm() / reference.norm()).item()
                cells.append(f"{error:.1e}, {found.stats.nfe}{'' if found.status.ok else ', not reached'}")
            row(f"{method.__name__} at {tolerance:g}", *cells)


def gradients(field: LayerField, y0: Tensor, z0: Tensor) -> None:
    weights = torch.randn(y0.shape, generator=torch.Generator().manual_seed(1))

    def errors(found: list[Tensor], expected: list[Tensor]) -> str:
        of_x = ((found[0] - expected[0]).norm() / expected[0].norm()).item()
        flat = [torch.cat([g.double().flatten() for g in grads[1:]]) for grads in (found, expected)]
        return f"{of_x:.1e}, {((flat[0] - flat[1]).norm() / flat[1].norm()).item():.1e}"

    def of_ode(field: LayerField, y0: Tensor, algorithm, **options) -> list[Tensor]:
        problem = hj.ODEProblem(field, y0, (0.0, 1.0))
        value = hj.solve(problem, algorithm, backend="pytorch", **options).value
        return torch.autograd.grad(value, [field.x, *field.field.parameters()], weights.to(value))

    def of_rest(field: LayerField, z0: Tensor, algorithm, **options) -> list[Tensor]:
        value = hj.solve(at_rest(field, z0), algorithm, backend="pytorch", **options).value
        return torch.autograd.grad(value, [field.x, *field.field.parameters()], weights.to(value))

    head("relative error of dL/dx, dL/dweights", *PRECISIONS)
    exact = of_ode(doubled(field), y0.double(), hj.Dopri8(rtol=1e-9, atol=1e-9), adjoint=hj.CheckpointAdjoint())
    for adjoint in (hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint(seminorm=True)):
        cells = [
            errors(of_ode(field, y0, hj.Dopri5(rtol=1e-3, atol=1e-3), adjoint=adjoint, precision=p), exact)
            for p in PRECISIONS
        ]
        row(type(adjoint).__name__, *cells)
    tight = hj.Anderson(rtol=1e-9, atol=1e-12, max_steps=1000)
    exact = of_rest(doubled(field), z0.double(), tight)
    loose = hj.Anderson(rtol=1e-2, atol=1e-12, max_steps=100)
    cells = [
        errors(of_rest(field, z0, loose, adjoint=hj.ImplicitAdjoint(throw=False), precision=p), exact)
        for p in PRECISIONS
    ]
    row("ImplicitAdjoint", *cells)


def speed(field: LayerField, y0: Tensor) -> None:
    start, t = y0.clone().requires_grad_(), torch.zeros(())
    inputs = [start, *field.parameters()]
    fields = {"full": field, **{p: Autocast(field, getattr(torch, p), "cpu") for p in PRECISIONS[1:]}}

    def forward(f) -> None:
        with torch.no_grad():
            f(t, start)

    def both(f) -> None:
        torch.autograd.grad(f(t, start).sum(), inputs)

    shape = " x ".join(map(str, y0.shape))
    what = f"an evaluation of the layer, {shape}, {torch.get_num_threads()} threads"
    head(what, "float32 [ms]", *(f"{precision}, over" for precision in PRECISIONS[1:]))
    for what, work in (("forward", forward), ("forward and backward", both)):
        taken: dict[str, list[float]] = {p: [] for p in PRECISIONS}
        for repetition in range(8):
            for precision, f in fields.items():
                started = time.perf_counter()
                work(f)
                if repetition:  # the first one chooses kernels
                    taken[precision].append(time.perf_counter() - started)
        medians = {p: statistics.median(seconds) for p, seconds in taken.items()}
        row(what, f"{1e3 * medians['full']:.1f}", *(f"{medians[p] / medians['full']:.2f}" for p in PRECISIONS[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("trajectories", "equilibria", "gradients", "speed")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=8)
    args = parser.parse_args()
    shape = {"batch": args.batch, "channels": 64, "size": args.size}
    layer, rest = layer_problem(**shape), layer_problem(**shape, equilibrium=True)
    field = layer.torch_field(args.batch)
    y0, z0 = torch.from_numpy(layer.y0), torch.from_numpy(rest.y0)
    if "trajectories" in args.part:
        trajectories("HomoODE's layer", field, y0, 1.0)
        fitted = Fitted()
        trajectories("a network fitted to Van der Pol's oscillator", fitted, 2 * torch.randn(64, 2), 5.0)
    if "equilibria" in args.part:
        equilibria(field, z0)
    if "gradients" in args.part:
        gradients(field, y0, z0)
    if "speed" in args.part:
        speed(field, y0)


if __name__ == "__main__":
    main()
