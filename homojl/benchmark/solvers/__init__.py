"""The libraries that are measured, one adapter each."""

from homojl.benchmark.solvers.base import AbstractSolver, Case, Outcome
from homojl.benchmark.solvers.ours import HomoJL
from homojl.benchmark.solvers.with_diffrax import Diffrax
from homojl.benchmark.solvers.with_torchdeq import TorchDEQ
from homojl.benchmark.solvers.with_torchdiffeq import TorchDiffEq
from homojl.benchmark.solvers.with_torchode import TorchODE

__all__ = ["SOLVERS", "AbstractSolver", "Case", "Outcome"]

SOLVERS: dict[str, AbstractSolver] = {
    solver.name: solver
    for solver in (
        HomoJL("homojl-pytorch", "pytorch"),
        HomoJL("homojl-compiled", "pytorch-compiled"),
        HomoJL("homojl-julia", "julia"),
        TorchDiffEq(),
        TorchODE(),
        Diffrax(),
        TorchDEQ(),
    )
}
"""Every adapter by its name, in the order of the tables; importing them imports no peer."""
