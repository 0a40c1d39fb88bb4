"""What every implicit model is: an encoder, a problem and a decoder around one solve."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import nn

from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint
from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    memory_of,
)
from homojl.errors import ConfigError
from homojl.nn.remembered import RememberedStep, with_memory
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, PathSolution, Solution
from homojl.solving import solve

Tensor = torch.Tensor
Algorithm = AbstractODEAlgorithm | AbstractFixedPointAlgorithm
Adjoint = AbstractODEAdjoint | AbstractFixedPointAdjoint


class AbstractImplicitModel(nn.Module, abc.ABC):
    """decode(solve(problem(encode(image)))).

    Models differ in `problem`; what solves it is configuration and may be changed on a trained model.

    Args:
        algorithm, adjoint: for the model's kind of problem; None: the class's defaults.
        backend: where to solve.

    Attributes:
        default_algorithm, default_adjoint: of the class; they also say which kind of problem it states.
        algorithm, adjoint, backend: how, with which gradient and where the problem is solved.
        throw: raise when a solve does not reach its end (the default), or return its last state; the solution's
            status says which.
        batch: whether the steps of an ODE's solve are the batch's or every sample's own: "joint" (the default) or
            "per-sample".
        precision: numbers that the problem's function is evaluated in: "full" (the default), "bfloat16", "float16".
        part: where the images given in training are part of a larger batch, the position of their first in it, and
            its size; random numbers are drawn for the larger one. None: they are all.
        remembered: what the algorithm's `StepMemory` has learned in training mode; None without one. Evaluation uses
            it and leaves it as it is, so that its results do not depend on the order of the batches.

    Raises:
        ConfigError: for an algorithm or an adjoint of the other kind.
    """

    default_algorithm: ClassVar[Algorithm]
    default_adjoint: ClassVar[Adjoint]

    def __init__(
        self, *, algorithm: Algorithm | None = None, adjoint: Adjoint | None = None, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.algorithm = self.default_algorithm if algorithm is None else algorithm
        self.adjoint = self.default_adjoint if adjoint is None else adjoint
        self.backend = backend
        self.throw = True
        self.batch = "joint"
        self.precision = "full"
        self.part: tuple[int, int] | None = None
        memory = memory_of(self.algorithm)
        self.remembered = None if memory is None else RememberedStep(memory)
        ode = self.states_ode()
        kinds: tuple[type, type] = (AbstractODEAlgorithm, AbstractODEAdjoint)
        if not ode:
            kinds = (AbstractFixedPointAlgorithm, AbstractFixedPointAdjoint)
        what = "an ODE" if ode else "a fixed point"
        for role, kind in zip(("algorithm", "adjoint"), kinds, strict=True):
            given, usual = getattr(self, role), getattr(self, f"default_{role}")
            if not isinstance(given, kind):
                raise ConfigError(
                    f"{type(self).__name__} states {what}: its {role} must be one for that, such as {usual.name}(), "
                    f"got {given!r}"
                )

    @classmethod
    def states_ode(cls) -> bool:
        """Whether the model's problem is an ODE; else it is a fixed point."""
        return isinstance(cls.default_algorithm, AbstractODEAlgorithm)

    @abc.abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) -> the condition h that the problem is stated with."""

    @abc.abstractmethod
    def problem(self, h: Tensor) -> ODEProblem | FixedPointProblem:
        """The problem whose solution is the model's representation of h."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Solution z -> logits (B, n_classes)."""

    def solve(self, image: Tensor, *, save_at: tuple[float, ...] | None = None) -> Solution | EquilibriumSolution:
        """Encode the images and solve; `save_at` replaces the save times of an ODE.

        Raises:
            ConfigError: for save times where there is no time.
        """
        if save_at is not None and not self.states_ode():
            raise ConfigError(f"{type(self).__name__} solves for an equilibrium: there are no states in between")
        problem = self.problem(self.encode(image))
        if save_at is not None:
            assert isinstance(problem, ODEProblem), problem
            problem = ODEProblem(problem.f, problem.y0, save_at, problem.args, problem.params)
        return self._solved(problem)

    def forward(
        self, image: Tensor, *, return_solution: bool = False
    ) -> Tensor | tuple[Tensor, Solution | EquilibriumSolution]:
        """Image (B, C, H, W), normalised, of the parameters' dtype -> logits (B, n_classes).

        Args:
            return_solution: also return the solution, with its status and statistics.

        Raises:
            SolveError: if the solve fails and `throw` is set.
        """
        solution = self.solve(image)
        logits = self.decode(solution.value)
        return (logits, solution) if return_solution else logits

    def begin_epoch(self, image: Tensor) -> None:
        """Called in training before the first batch of each epoch, with that batch, normalised."""

    def regularization(self) -> Tensor | None:
        """What the last forward pass in training mode adds to the loss, 0-d, handed out once; None: nothing."""
        return None

    def project_(self) -> None:
        """Put the parameters back where the model is well posed; called after each step of the optimiser."""

    def _algorithm_now(self) -> Algorithm:
        """The algorithm with what this model has learned for it, such as the remembered first step."""
        return with_memory(self.algorithm, self.remembered, learns=self.training)

    def _solved(self, problem: ODEProblem | FixedPointProblem) -> Solution | EquilibriumSolution:
        return self._solved_by(problem, self._algorithm_now(), throw=self.throw)

    def _solved_by(
        self, problem: ODEProblem | FixedPointProblem, algorithm: Algorithm, *, throw: bool
    ) -> Solution | EquilibriumSolution:
        solution = solve(
            problem,
            algorithm,
            adjoint=self.adjoint,
            backend=self.backend,
            batch=self.batch,
            precision=self.precision,
            throw=throw,
        )
        assert not isinstance(solution, PathSolution)
        return solution


def use_channels_last(module: nn.Module) -> None:
    """Put the parameters into the fastest layout for convolutions, on CPU and GPU alike."""
    convert: Any = module.to  # whose annotations leave this use out
    convert(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Trained parameters, without a shared initial point (the papers do not count it)."""
    from homojl.nn.parts import InitialPoint

    points = {id(p) for m in model.modules() if isinstance(m, InitialPoint) for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in points)
