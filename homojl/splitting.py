"""Operator splitting: a fixed point with known parts, lowered to the fixed point of another map.

An equilibrium z = prox(W z + bias) with I - W monotone is where 0 lies in (I - W) z - bias + N(z), prox being the
projection whose normal cone N is. Each splitting method iterates a map of its own with the same solution, so it is
lowered to a `FixedPointProblem` of that map: every adjoint then differentiates the method's fixed point, and the
implicit one solves its linear system by the same splitting, transposed.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from homojl.algorithms import AbstractSplitting, ForwardBackward
from homojl.errors import ConfigError
from homojl.marks import PerSample, Shared, unmarked
from homojl.problems import FixedPointProblem

Tensor = torch.Tensor


class AbstractMonotoneMap(abc.ABC):
    """f(z, *args) = proximal(affine(z, *args)), where affine(z) = W z + bias and I - W is strongly monotone.

    Weights and biases come in `args`, never from the map itself, so that what is computed from the model's parameters
    is computed once for each solve. A tensor there that does not belong to the samples has the first dimension 1.
    """

    @abc.abstractmethod
    def affine(self, z: Tensor, *args: Any) -> Tensor:
        """W z + bias, z's shape."""

    @abc.abstractmethod
    def proximal(self, y: Tensor) -> Tensor:
        """The projection onto a closed convex set that is the map's nonlinearity, y's shape."""

    @abc.abstractmethod
    def resolvent(self, alpha: float, *args: Any) -> tuple[Any, ...]:
        """What `resolve` takes after u, computed once for each solve; differentiable with respect to `args`."""

    @abc.abstractmethod
    def resolve(self, u: Tensor, *resolvent: Any) -> Tensor:
        """(I + alpha (I - W))^-1 (u + alpha bias), u's shape."""

    def __call__(self, z: Tensor, *args: Any) -> Tensor:
        return self.proximal(self.affine(z, *args))


@dataclass(frozen=True, eq=False)
class Lowered:
    """A split problem.

    Attributes:
        problem: the fixed point of the method's own iteration.
        recover: from that fixed point to the equilibrium; differentiable.
        evaluations: of the operator that `recover` costs.
    """

    problem: FixedPointProblem
    recover: Callable[[Tensor], Tensor]
    evaluations: int


def lower(problem: FixedPointProblem, algorithm: AbstractSplitting) -> Lowered:
    """The problem that the method iterates on.

    Raises:
        ConfigError: if the problem's map does not show its parts.
    """
    f, alpha = problem.f, algorithm.alpha
    if not isinstance(f, AbstractMonotoneMap):
        raise ConfigError(
            f"{algorithm.name} needs a map that shows its parts, a homojl.splitting.AbstractMonotoneMap, got "
            f"{type(f).__name__}; Anderson() takes any map"
        )
    args = unmarked(problem.args)
    if isinstance(algorithm, ForwardBackward):

        def forward_backward(z: Tensor, *args: Any) -> Tensor:
            return f.proximal(torch.lerp(z, f.affine(z, *args), alpha))

        lowered = FixedPointProblem(forward_backward, problem.z0, _marked(problem, args), problem.params)
        return Lowered(lowered, lambda z: z, 0)

    resolvent = f.resolvent(alpha, *args)

    def project(u: Tensor, *resolvent: Any) -> tuple[Tensor, Tensor]:
        reflected = 2 * f.resolve(u, *resolvent) - u
        return f.proximal(reflected), reflected

    def peaceman_rachford(u: Tensor, *resolvent: Any) -> Tensor:
        z, reflected = project(u, *resolvent)
        return 2 * z - reflected

    return Lowered(
        FixedPointProblem(peaceman_rachford, problem.z0, _marked(problem, resolvent), problem.params),
        lambda u: project(u, *resolvent)[0],
        1,
    )


def _marked(problem: FixedPointProblem, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Which arguments have a row for each sample: a map that shows its parts says so by their first dimension."""
    count = len(problem.z0)
    return tuple(
        a if not isinstance(a, Tensor) else PerSample(a) if len(a) == count and count > 1 else Shared(a) for a in args
    )
