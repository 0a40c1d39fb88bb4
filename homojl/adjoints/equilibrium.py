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
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from homojl.adjoints.implicit_function import AbstractRelation, differentiable, refuse_transforms
from homojl.adjoints.ode import of_nothing
from homojl.algorithms import AbstractFixedPointAlgorithm, Homotopy, NewtonKrylov, PseudoTransient
from homojl.algorithms.checks import require
from homojl.backends.base import AbstractBackend, FixedPoint
from homojl.backends.pytorch.backend import TorchBackend
from homojl.backends.pytorch.gmres import host
from homojl.errors import ConfigError, SolveError
from homojl.functions import AbstractMap, DerivedMap, MapFunction
from homojl.functions.draws import draw_rows
from homojl.functions.products import Linearisation, transformed
from homojl.functions.user import DRAW_ONCE, Mixes
from homojl.names import did_you_mean
from homojl.solution import Stats

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class AbstractFixedPointAdjoint(abc.ABC):
    """Base of every way to differentiate an equilibrium.

    Attributes:
        through_solve: whether gradients pass through the operations of the solve.
    """

    through_solve: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def find(
        self, f: MapFunction, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, backend: AbstractBackend
    ) -> FixedPoint:
        """Solve z = f(z) on the backend; the returned value carries gradients where any are wanted."""


@dataclass(frozen=True, kw_only=True)
class UnrolledAdjoint(AbstractFixedPointAdjoint):
    """Through the operations of the solve: the exact gradient of what was computed. PyTorch backend only.

    `Relaxation` chooses its steps by values alone; their sizes are held constant. Memory grows with the number of
    evaluations. Gradients reach every tensor the map uses, listed or not, and may be differentiated again.
    """

    through_solve: ClassVar[bool] = True

    def find(
        self, f: MapFunction, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, backend: AbstractBackend
    ) -> FixedPoint:
        refuse_transforms(self.name, "ImplicitAdjoint()")
        if not backend.records:
            raise ConfigError(
                f"{self.name} passes through the operations of the PyTorch backend, not the {backend.name} one; "
                "use backend='pytorch' or ImplicitAdjoint()"
            )
        if isinstance(algorithm, Homotopy | NewtonKrylov | PseudoTransient):
            raise ConfigError(f"{self.name} cannot pass through {algorithm.name}; use ImplicitAdjoint()")
        f.counting = torch.is_grad_enabled()
        if z0.numel() == 0:
            return replace(backend.find_fixed_point(f, z0, algorithm), value=of_nothing(f, z0))
        result = backend.find_fixed_point(f, z0, algorithm)
        rows = _sound_rows(f, result) if torch.is_grad_enabled() and result.value.requires_grad else None
        if rows is None:
            return result
        # Those that are not finite would spoil the others' gradients: the sound ones once more by themselves.
        value = result.value.detach()
        if len(rows):
            alone = backend.find_fixed_point(_at_rows(f, rows), z0[rows], algorithm)
            value = value.index_copy(0, rows, alone.value)
        return replace(result, value=value)


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
        self, f: MapFunction, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, backend: AbstractBackend
    ) -> FixedPoint:
        refuse_transforms(self.name, "ImplicitAdjoint()")
        with torch.no_grad():
            result = backend.find_fixed_point(f, z0.detach(), algorithm)
        if not torch.is_grad_enabled():
            return result
        if z0.numel() == 0:
            return replace(result, value=of_nothing(f, z0))
        f.counting, rows = True, _sound_rows(f, result)
        start = z = result.value if rows is None else result.value[rows]
        for _ in range(self.steps if len(z) else 0):
            f.stats.nfe_backward += 1
            fz = f(z, rows)
            z = fz if self.damping == 0.0 else torch.lerp(fz, z, self.damping)
        # The value to the last bit, the gradient of the iterations.
        value = start + (z - z.detach()) if z.requires_grad else start
        value = value if rows is None else result.value.index_copy(0, rows, value)
        if z0.requires_grad:  # a gradient of zero
            value = torch.where(torch.zeros_like(value, dtype=torch.bool), z0, value)
        return replace(result, value=value)


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
    backend; then g^T df/d(args, params) are the gradients. Each sample's v is scaled to length 1 first, or where they
    are much alike the longest, so that the tolerances mean the same whatever the loss is divided by. Samples where f
    was never finite take no part.

    Gradients may be differentiated again, and `torch.func`'s `grad`, `vjp`, `jacrev`, `jvp` and `vmap` go through.

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
        self, f: MapFunction, z0: Tensor, algorithm: AbstractFixedPointAlgorithm, backend: AbstractBackend
    ) -> FixedPoint:
        inside = transformed()
        if inside:
            f.gather()
        elif torch.is_grad_enabled():
            f.probe(z0, instead="UnrolledAdjoint()")
        if not inside and not (torch.is_grad_enabled() and (z0.requires_grad or f.inputs)):
            with torch.no_grad():
                return backend.find_fixed_point(f, z0.detach(), algorithm)
        relation = _Equilibrium(f, self, algorithm, backend, transformed=inside)
        value = differentiable(relation, z0)
        return replace(relation.found[0], value=value)


def _sound_rows(f: MapFunction, result: FixedPoint) -> Tensor | None:
    """The samples where f is finite, (b,), whose gradients the others would spoil; None: all, or f mixes them."""
    sound = torch.isfinite(result.residuals)
    if sound.all():
        return None
    rows = sound.nonzero()[:, 0].to(result.value.device)
    if len(rows) == 0:
        return rows
    try:
        with torch.no_grad():
            return rows if f.separable((result.value,), f(result.value), rows) else None
    except Mixes:
        return None


def _at_rows(f: MapFunction, rows: Tensor) -> AbstractMap:
    """The map of those rows of the batch, (b,), alone."""

    def of(some: Tensor | None) -> Tensor:
        return rows if some is None else rows[some]

    return DerivedMap(lambda z, some: f(z, of(some)), lambda z, some: f.linearised(z, of(some)))


class _Equilibrium(AbstractRelation):
    """z = f(z)

    Args:
        f, adjoint, algorithm, backend: of the solve.
        transformed: as in `AbstractRelation`.

    Attributes:
        found: the forward solve's result, once autograd has run that.
    """

    def __init__(
        self,
        f: MapFunction,
        adjoint: ImplicitAdjoint,
        algorithm: AbstractFixedPointAlgorithm,
        backend: AbstractBackend,
        *,
        transformed: bool,
    ) -> None:
        super().__init__(f, transformed=transformed)
        self._adjoint, self._algorithm, self._backend = adjoint, algorithm, backend
        self.found: list[FixedPoint] = []

    def find(self, z0: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        f = self.map(tensors) if self.transformed else self.f
        result = self._backend.find_fixed_point(f, z0.detach(), self._algorithm)
        if not self.transformed:
            self.rows = _sound_rows(self.f, result)
        value = result.value
        # Autograd wants an output that is no input, as a start that is the answer or what f returns as it is.
        # Nor a view, which could not be written into.
        if value._is_view() or any(
            value.data_ptr() == x.data_ptr() for x in (z0, *tensors) if x.layout == torch.strided
        ):
            value = value.clone()
        self.found.append(replace(result, value=value.detach()))
        return value

    def solve(self, f: AbstractMap, at: Linearisation, right: Tensor, *, transposed: bool) -> Tensor:
        if len(right) == 0:
            return right.clone()
        self._check_sameness(at)
        stats, throw = self.f.stats, self._adjoint.throw
        rows = right.reshape(len(right), -1)
        size = torch.linalg.vector_norm(rows, dim=1)
        coupled, one_scale = self._coupled(f, at, size)
        if one_scale:
            size = torch.linalg.vector_norm(size).expand(len(size)) if coupled else size.max().expand(len(size))
        finite = torch.isfinite(size)
        size = torch.where(size > 0, size, torch.ones_like(size)).view(-1, *[1] * (right.ndim - 1))
        finite = finite.view_as(size)
        v = torch.where(finite, right / size, torch.zeros_like(right))
        algorithm = self._adjoint.algorithm or self._algorithm
        backend = self._backend if self._backend.supports(algorithm, v.device) else TorchBackend()
        system = _LinearMap(f, at, v, self.rows, transposed=transposed, coupled=coupled, stats=stats)
        with torch.no_grad():
            result = backend.find_fixed_point(system, v, algorithm)
        missed = int((~result.converged).sum())
        stats.unconverged_backward += missed
        if missed and throw:
            raise SolveError(
                f"the linear system of {self._adjoint.name} was not solved: {result.message}; "
                "or use PhantomAdjoint(), or ImplicitAdjoint(throw=False)"
            )
        # What is not finite stays so, which a scaler of the loss looks for.
        return torch.where(finite, result.value * size, torch.full_like(v, torch.nan))

    def _coupled(self, f: AbstractMap, at: Linearisation, size: Tensor) -> tuple[bool, bool]:
        """Whether samples are known to depend on each other, and whether their cotangents are to have one scale.

        If they depend on each other they must; where it is not known, and the cotangents' norms `size`, (b,), are much
        alike, they may, and nothing has to be asked before samples part.
        """
        if self.levels or not isinstance(f, MapFunction):
            return True, True
        if f.mixes or f.separates is not None or len(size) == 1:
            return f.mixes, f.mixes
        sizes = host(size)
        if 0 < sizes.max() < np.inf and sizes.min() > 0.01 * sizes.max():
            return False, True
        # Two of them tell whether they depend on each other.
        with contextlib.suppress(Mixes):
            some = torch.arange(min(2, len(size) // 2), device=size.device)
            f.separable((at.at.detach(),), at.value.detach(), some)
        return f.mixes, f.mixes

    def _check_sameness(self, at: Linearisation) -> None:
        """Raise a ConfigError where f is far from what the solve saw."""
        dtype = torch.promote_types(at.at.dtype, torch.float32)  # not every device has float64
        found = self.found[0].residuals.to(dtype).to(at.at.device)
        found = found if self.rows is None else found.index_select(0, self.rows)
        if len(found) != len(at.at):  # elements of a transform, which share one equilibrium
            return
        z, fz = (x.detach().reshape(len(found), -1).to(dtype) for x in (at.at, at.value))
        norm, left = torch.linalg.vector_norm(fz, dim=1), torch.linalg.vector_norm(fz - z, dim=1)
        rounding = min(10 * self.f.eps**0.5, 0.1)
        algorithm = self._algorithm
        allowed = 10 * (algorithm.atol + (found + algorithm.rtol) * norm) + rounding * norm
        if bool((left > allowed).any()):
            worst = int((left - allowed).argmax())
            raise ConfigError(
                f"f is not deterministic: at the equilibrium of sample {worst} norm(f(z) - z) is "
                f"{float(left[worst]):.2g}, where the solve found {float(found[worst] * norm[worst]):.2g}; {DRAW_ONCE}"
            )


class _Transposed(Linearisation):
    """A linearisation with columns for rows."""

    def __init__(self, at: Linearisation) -> None:
        self._of = at

    def push(self, v: Tensor) -> Tensor:
        return self._of.pull(v)

    def pull(self, cotangent: Tensor) -> Tensor:
        return self._of.push(cotangent)


class _LinearMap(AbstractMap):
    """x -> J x + v, or J^T x + v, with the Jacobian J at the equilibrium.

    Args:
        f: the map.
        at: its linearisation there.
        v: (b, ...).
        rows: those of the batch that this is about, (b,); None: all.
        transposed: whether it is J^T.
        coupled: whether samples depend on each other.
        stats: what counts evaluations of f.
    """

    def __init__(
        self,
        f: AbstractMap,
        at: Linearisation,
        v: Tensor,
        rows: Tensor | None,
        *,
        transposed: bool,
        coupled: bool,
        stats: Stats,
    ) -> None:
        self.calls, self._f, self._rows, self._whole, self._v = 0, f, rows, at, v
        self._turned = _Transposed if transposed else lambda at: at
        self.mixes, self._stats = coupled, stats
        self._some: Tensor | None = None  # the rows at work, the map linearised there, and their part of v
        self._part = self._turned(at), v

    def _at(self, some: Tensor | None) -> tuple[Linearisation, Tensor]:
        if some is not self._some:
            self._some = some
            if some is None:
                self._part = self._turned(self._whole), self._v
            else:
                self._stats.nfe_backward += 1
                z, rows = self._whole.at.detach()[some], some if self._rows is None else self._rows[some]
                self._part = self._turned(self._f.linearised(z, rows)), self._v.index_select(0, some)
        return self._part

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.calls += 1
        at, v = self._at(rows)
        return at.push(x) + v

    def linearised(self, x: Tensor, rows: Tensor | None = None) -> Linearisation:
        return self._at(rows)[0]

    def separable(self, inputs: tuple[Tensor, ...], value: Tensor, staying: Tensor) -> bool:
        at = self._whole
        return self._rows is not None or self._f.separable((at.at.detach(),), at.value.detach(), staying)


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
        part: of which larger batch the samples are a part, as of `homojl.functions.draws.draw_rows`; None: all of it.

    References: Hutchinson (1990); Bai, Koltun, Kolter (2021), arXiv 2106.14342.
    """
    require(probes >= 1, f"probes must be at least 1, got {probes}")

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, dtype=z.dtype, device=z.device, generator=generator)

    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = f(z.clone(), *args)
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
