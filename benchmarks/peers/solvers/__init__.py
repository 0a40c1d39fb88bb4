"""The libraries that are measured, one adapter each."""

from .base import AbstractSolver, Case, Outcome
from .ours import HomoJL
from .with_diffrax import Diffrax
from .with_torchdeq import TorchDEQ
from .with_torchdiffeq import TorchDiffEq
from .with_torchode import TorchODE

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
