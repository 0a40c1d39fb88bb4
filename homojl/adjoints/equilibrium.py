"""Gradients of equilibria with respect to the arguments and the parameters.

| adjoint | gradient of | keeps | cost beyond one evaluation and product |
|---|---|---|---|
| `ImplicitAdjoint` | the exact equilibrium, to the tolerance | the equilibrium | a linear solve, of products |
| `PhantomAdjoint` | a few damped iterations from there | their graphs | an evaluation and a product for each |
| `OneStepAdjoint` | one iteration from there | its graph | none |
| `UnrolledAdjoint` | the computed iterate | every iteration's graph | a product for every evaluation |

Only the last has a gradient with respect to the initial guess other than zero.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from homojl.adjoints.inputs import (
    Inputs,
    check_dependencies,
    check_form,
    gradients,
    jacobian_vector_product,
    rows_of,
)
from homojl.algorithms import AbstractFixedPointAlgorithm, Homotopy, NewtonKrylov, PseudoTransient
from homojl.algorithms.checks import require
from homojl.backends.base import AbstractBackend, FixedPoint
from homojl.backends.pytorch.backend import TorchBackend
from homojl.draws import draw_rows
from homojl.errors import ConfigError, SolveError
from homojl.names import did_you_mean
from homojl.problems import FixedPointProblem
from homojl.solution import Stats

Tensor = torch.Tensor
Recorded = tuple[Tensor, Tensor, list[Tensor]]  # f(z) with its graph, that z, and all that the graph starts from

_SOME_ROWS = (
    "{} of {} samples, the others having converged; pass tensors with a row for each sample in args, so that the same "
    "rows of them are taken, rather than from f itself"
)


class RowMap(Inputs):
    """What an adjoint needs to know of a `FixedPointProblem`'s map: at some rows of the batch, with their arguments."""

    def __init__(self, problem: FixedPointProblem, stats: Stats) -> None:
        super().__init__(problem.f, problem.args, problem.params)
        self.stats = stats
        self._like = problem.z0
        self._rows: Tensor | None = None
        self._row_args = self._args
        self._checked = False
        self._gradients_wanted = torch.is_grad_enabled()

    def evaluate(self, z: Tensor, rows: Tensor | None) -> Tensor:
        """f(z, *args) as the problem states it, its first result checked against the state's form."""
        return self._called(z, self._args_of(rows), rows)

    def _called(self, z: Tensor, args: Sequence[Any], rows: Tensor | None) -> Tensor:
        try:
            fz = self._f(z, *args)
        except (RuntimeError, IndexError) as error:
            if rows is not None:
                error.add_note(f"f was given {_SOME_ROWS.format(len(rows), len(self._like))}")
            raise
        if not self._checked:
            check_form("f", fz, "z0", self._like)
            self._checked = True
        if fz.shape != z.shape:
            some = _SOME_ROWS.format(len(z), len(self._like))
            raise ConfigError(f"f returned the shape {tuple(fz.shape)} for {some}")
        return fz

    def evaluate_detached(self, z: Tensor, rows: Tensor | None) -> Tensor:
        """The value alone; the first call also finds out whether f depends on tensors that a gradient would miss."""
        if self._checked or not self._gradients_wanted:
            return self.evaluate(z, rows)
        fz, _, known = self.recorded(z, rows)
        check_dependencies("f", fz, known, instead="UnrolledAdjoint()")
        return fz.detach()

    def recorded(self, z: Tensor, rows: Tensor | None) -> Recorded:
        """f with a graph of its own; the z, and the counterparts of `inputs`, that it starts from."""
        args, known = self.leaves()
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            fz = self._called(z, self._chosen(args, rows), rows)
        return fz, z, [z, *known]

    def jvp(self, z: Tensor, v: Tensor, rows: Tensor | None) -> Tensor:
        """(df/dz) v."""
        args = self._args_of(rows)
        return jacobian_vector_product(lambda z: self._f(z, *args), z, v)

    def count_products(self, fz: Tensor) -> Tensor:
        """The same, counted as a vector-Jacobian product when a gradient passes through it."""

        def count(_: Tensor) -> None:
            self.stats.n_vjp += 1

        if fz.requires_grad:
            fz.register_hook(count)
        return fz

    def _args_of(self, rows: Tensor | None) -> list[Any]:
        if rows is None:
            return self._args
        if rows is not self._rows:
            self._rows, self._row_args = rows, self._chosen(self._args, rows)
        return self._row_args

    def _chosen(self, args: Sequence[Any], rows: Tensor | None) -> list[Any]:
        return rows_of(args, rows, len(self._like))


class _NoGradient(torch.autograd.Function):
    """The value, with a gradient of zero for the initial guess."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z0: Tensor) -> Tensor:
        ctx.form = z0.shape, z0.dtype, z0.device
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.form
        return cotangent, torch.zeros(shape, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class AbstractFixedPointAdjoint(abc.ABC):
    """Base of every way to differentiate an equilibrium."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def find(
        self,
        problem: FixedPointProblem,
        algorithm: AbstractFixedPointAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
    ) -> FixedPoint:
        """Solve the problem on the backend; the returned value carries gradients where any are wanted."""


@dataclass(frozen=True, kw_only=True)
class UnrolledAdjoint(AbstractFixedPointAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed. PyTorch backend only.

    `Relaxation` chooses its steps by values alone; their sizes are held constant. Memory grows with the number of
    evaluations. Gradients reach every tensor the map uses, listed or not, and may be differentiated again.
    """

    def find(
        self,
        problem: FixedPointProblem,
        algorithm: AbstractFixedPointAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
    ) -> FixedPoint:
        if not backend.records:
            raise ConfigError(
                f"{self.name} passes through the operations of the PyTorch backend, not the {backend.name} one; "
                "use backend='pytorch' or ImplicitAdjoint()"
            )
        if isinstance(algorithm, Homotopy | NewtonKrylov | PseudoTransient):
            raise ConfigError(f"{self.name} cannot pass through {algorithm.name}; use ImplicitAdjoint()")
        rows = RowMap(problem, stats)

        def f(z: Tensor, which: Tensor | None) -> Tensor:
            return rows.count_products(rows.evaluate(z, which))

        return backend.find_fixed_point(f, problem.z0, algorithm)


@dataclass(frozen=True, kw_only=True)
class PhantomAdjoint(AbstractFixedPointAdjoint):
    """The gradient of a few damped iterations from the equilibrium, recorded in the forward pass; inexact and cheap.

    The value is the equilibrium's own. Gradients reach every tensor the map uses, listed or not.

    Attributes:
        steps: how many iterations z <- (1 - damping) f(z) + damping z.
        damping: in [0, 1).

    References: Geng, Zhang, Bai, Wang, Lin (2021), arXiv 2111.05177.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        require(0 <= self.damping < 1, f"damping must lie in [0, 1), got {self.damping}")

    def find(
        self,
        problem: FixedPointProblem,
        algorithm: AbstractFixedPointAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
    ) -> FixedPoint:
        rows = RowMap(problem, stats)
        with torch.no_grad():
            f = rows.on(backend, rows.evaluate)
            result = backend.find_fixed_point(f, problem.z0, algorithm, jvp=rows.jvp)
        if not torch.is_grad_enabled():
            return result
        z = result.value
        for _ in range(self.steps):
            stats.nfe_backward += 1
            fz = rows.count_products(rows.evaluate(z, None))
            z = fz if self.damping == 0.0 else torch.lerp(fz, z, self.damping)
        # The value to the last bit, the gradient of the iterations.
        value = result.value + (z - z.detach()) if z.requires_grad else result.value
        return replace(result, value=_NoGradient.apply(value, problem.z0) if problem.z0.requires_grad else value)


@dataclass(frozen=True, kw_only=True)
class OneStepAdjoint(PhantomAdjoint):
    """The Jacobian-free gradient: that of one evaluation at the equilibrium.

    References: Fung et al. (2022), arXiv 2103.12803.
    """

    steps: int = 1
    damping: float = 0.0

    def __post_init__(self) -> None:
        require((self.steps, self.damping) == (1, 0.0), "OneStepAdjoint has no options; use PhantomAdjoint()")


@dataclass(frozen=True, kw_only=True)
class ImplicitAdjoint(AbstractFixedPointAdjoint):
    """The implicit function theorem: constant memory, and no trace of how the equilibrium was found.

    For a cotangent v the backward pass solves g = (df/dz)^T g + v for every sample, itself a fixed point, on the same
    backend; then g^T df/d(args, params) are the gradients. Each sample's v is scaled to length 1 first, so that the
    tolerances mean the same whatever the loss is divided by.

    Attributes:
        algorithm: for the linear system; None: the forward solve's. One that the solve's backend lacks is PyTorch's.
        throw: raise a SolveError where the linear system is not solved; else its best iterate is used and
            `stats.unconverged_backward` counts those samples.

    References: Bai, Kolter, Koltun (2019), arXiv 1909.01377, Theorem 1.
    """

    algorithm: AbstractFixedPointAlgorithm | None = None
    throw: bool = True

    def __post_init__(self) -> None:
        ok = self.algorithm is None or isinstance(self.algorithm, AbstractFixedPointAlgorithm)
        require(ok, f"algorithm must be one for fixed points such as Anderson(), got {self.algorithm!r}")

    def find(
        self,
        problem: FixedPointProblem,
        algorithm: AbstractFixedPointAlgorithm,
        backend: AbstractBackend,
        stats: Stats,
    ) -> FixedPoint:
        rows = RowMap(problem, stats)
        solve = _Equilibrium(self, rows, algorithm, backend)
        if not (torch.is_grad_enabled() and (problem.z0.requires_grad or rows.inputs)):
            return solve.forward(problem.z0)
        value = _Implicit.apply(solve, problem.z0, *rows.inputs)
        return replace(solve.result, value=value)


@dataclass(eq=False)
class _Equilibrium:
    """What the forward pass of the implicit adjoint hands to its backward pass."""

    adjoint: ImplicitAdjoint
    rows: RowMap
    algorithm: AbstractFixedPointAlgorithm
    backend: AbstractBackend
    result: FixedPoint = field(init=False)  # once autograd has run the forward pass

    def forward(self, z0: Tensor) -> FixedPoint:
        with torch.no_grad():
            f = self.rows.on(self.backend, self.rows.evaluate_detached)
            return self.backend.find_fixed_point(f, z0.detach(), self.algorithm, jvp=self.rows.jvp)

    def gradients(self, z: Tensor, cotangent: Tensor) -> list[Tensor]:
        """With respect to each of `rows.inputs`, where z is the equilibrium and `cotangent` the loss's gradient."""
        stats, rows = self.rows.stats, self.rows
        graph = rows.recorded(z, None)
        stats.nfe_backward += 1
        norm = torch.linalg.vector_norm(cotangent.flatten(1), dim=1)
        norm = torch.where(norm > 0, norm, torch.ones_like(norm)).view(-1, *[1] * (z.ndim - 1))
        v = cotangent / norm
        # The rows at work, the map recorded there, and their part of v; the graph of all serves to the end.
        state: tuple[Tensor | None, Recorded, Tensor] = (None, graph, v)

        def at(which: Tensor | None) -> tuple[Recorded, Tensor]:
            nonlocal state
            if which is not state[0]:
                chosen = graph, v
                if which is not None:
                    stats.nfe_backward += 1
                    chosen = rows.recorded(z.index_select(0, which), which), v.index_select(0, which)
                state = which, *chosen
            return state[1], state[2]

        def transposed(g: Tensor, which: Tensor | None) -> Tensor:
            (fz, start, _), _ = at(which)
            stats.n_vjp += 1
            return _pulled(fz, start, g)

        def f(g: Tensor, which: Tensor | None) -> Tensor:
            return transposed(g, which) + at(which)[1]

        algorithm = self.adjoint.algorithm or self.algorithm
        backend = self.backend if self.backend.supports(algorithm, v.device) else TorchBackend()
        result = backend.find_fixed_point(f, v, algorithm, jvp=lambda _, w, which: transposed(w, which))
        missed = int((~result.converged).sum())
        stats.unconverged_backward += missed
        if missed and self.adjoint.throw:
            raise SolveError(
                f"the linear system of {self.adjoint.name} was not solved: {result.message}; "
                "or use PhantomAdjoint(), or ImplicitAdjoint(throw=False)"
            )
        fz, _, (_, *known) = graph
        stats.n_vjp += 1
        return gradients([fz], known, [result.value * norm])


def _pulled(fz: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """g^T dfz/dz; the graph is kept."""
    if not fz.requires_grad:
        return torch.zeros_like(g)
    return torch.autograd.grad(fz, z, g, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


class _Implicit(torch.autograd.Function):
    """The equilibrium as a function of the map's inputs; z0 only takes part to receive its zero."""

    @staticmethod
    def forward(ctx: Any, solve: _Equilibrium, z0: Tensor, *inputs: Tensor) -> Tensor:
        result = solve.forward(z0)
        # A converged start is its own equilibrium: autograd wants an output that is not the input.
        value = result.value.clone() if result.value.data_ptr() == z0.data_ptr() else result.value
        solve.result = replace(result, value=value.detach())
        ctx.solve = solve
        ctx.save_for_backward(value, z0)
        ctx.set_materialize_grads(False)
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        solve = ctx.solve
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack this solve
            raise ConfigError(
                f"{solve.adjoint.name} gives first derivatives only; use UnrolledAdjoint() for second ones"
            )
        if cotangent is None:
            return (None,) * (2 + len(solve.rows.inputs))
        started = time.perf_counter()
        value, z0 = ctx.saved_tensors
        grads = solve.gradients(value, cotangent) if solve.rows.inputs else []
        solve.rows.stats.seconds_backward += time.perf_counter() - started
        return None, torch.zeros_like(z0), *grads


def jacobian_regularization(
    f: Any,
    z: Tensor,
    args: tuple[Any, ...] = (),
    *,
    probes: int = 1,
    generator: torch.Generator | None = None,
    part: tuple[int, int] | None = None,
) -> Tensor:
    """Hutchinson's estimate of norm(df/dz)_F^2 at the equilibrium of each sample, (B,); differentiable.

    Added to the loss, it keeps the map contractive and its solves short.

    Args:
        f: map f(z, *args).
        z: where, (B, ...); taken as a constant.
        args: further arguments of f.
        probes: random vectors to average over.
        generator: of those, on z's device.
        part: of which larger batch the samples are a part, as in `homojl.draws.draw_rows`; None: they are all.

    References: Hutchinson (1990); Bai, Koltun, Kolter (2021), arXiv 2106.14342.
    """
    require(probes >= 1, f"probes must be at least 1, got {probes}")

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, dtype=z.dtype, device=z.device, generator=generator)

    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = f(z, *args)
        total = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
        for _ in range(probes):
            probe = draw_rows(draw, z.shape, part)
            (product,) = torch.autograd.grad(
                fz, z, probe, create_graph=True, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            total = total + product.flatten(1).square().sum(1)
    return total / probes


FIXED_POINT_ADJOINTS: dict[str, type[AbstractFixedPointAdjoint]] = {
    "implicit": ImplicitAdjoint,
    "phantom": PhantomAdjoint,
    "one-step": OneStepAdjoint,
    "unrolled": UnrolledAdjoint,
}


def fixed_point_adjoint(name: str) -> AbstractFixedPointAdjoint:
    """The adjoint of a name such as "implicit", with its default options.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in FIXED_POINT_ADJOINTS:
        raise ConfigError(f"unknown adjoint {name!r}; {did_you_mean(name, FIXED_POINT_ADJOINTS)}")
    return FIXED_POINT_ADJOINTS[name]()
