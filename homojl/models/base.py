"""What every implicit model is: an encoder, a problem and a decoder around one solve."""

from __future__ import annotations

import abc

import torch
from torch import nn

from homojl.adjoints import AbstractODEAdjoint
from homojl.algorithms import AbstractODEAlgorithm
from homojl.problems import ODEProblem
from homojl.solution import Solution
from homojl.solving import solve

Tensor = torch.Tensor


class AbstractImplicitModel(nn.Module, abc.ABC):
    """decode(solve(problem(encode(image)))).

    Models differ in `problem`; what solves it is configuration and may be changed on a trained model.

    Attributes:
        algorithm, adjoint, backend: how, with which gradient and where the problem is solved.
        throw: raise when a solve does not reach its end (the default), or return its last state; the solution's
            status says which.
    """

    def __init__(self, *, algorithm: AbstractODEAlgorithm, adjoint: AbstractODEAdjoint, backend: str = "auto") -> None:
        super().__init__()
        self.algorithm, self.adjoint, self.backend = algorithm, adjoint, backend
        self.throw = True

    @abc.abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) -> the condition h that the problem is stated with."""

    @abc.abstractmethod
    def problem(self, h: Tensor) -> ODEProblem:
        """The problem whose solution is the model's representation of h."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Solution z -> logits (B, n_classes)."""

    def solve(self, image: Tensor, *, save_at: tuple[float, ...] | None = None) -> Solution:
        """Encode the images and solve; `save_at` replaces the problem's save times."""
        problem = self.problem(self.encode(image))
        if save_at is not None:
            problem = ODEProblem(problem.f, problem.y0, save_at, problem.args, problem.params)
        return solve(problem, self.algorithm, adjoint=self.adjoint, backend=self.backend, throw=self.throw)

    def forward(self, image: Tensor, *, return_solution: bool = False) -> Tensor | tuple[Tensor, Solution]:
        """Image (B, C, H, W), normalised, of the parameters' dtype -> logits (B, n_classes).

        Args:
            return_solution: also return the solution, with its status and statistics.

        Raises:
            SolveError: if the solve fails and `throw` is set.
        """
        solution = self.solve(image)
        logits = self.decode(solution.value)
        return (logits, solution) if return_solution else logits


def count_parameters(model: nn.Module) -> int:
    """Trained parameters, without a shared initial point (the papers do not count it)."""
    from homojl.models.blocks import InitialPoint

    points = {id(p) for m in model.modules() if isinstance(m, InitialPoint) for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in points)
