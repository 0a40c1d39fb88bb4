"""A vector field together with everything it depends on, and its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from homojl.adjoints.inputs import Inputs, check_dependencies, check_form, gradients, jacobian_vector_product
from homojl.algorithms import (
    AbstractErrorControlled,
    AbstractJacobianBased,
    AbstractODEAlgorithm,
    ErrorNorm,
    note_first_step,
    with_first_step,
)
from homojl.backends.base import (
    AbstractBackend,
    AbstractRightHandSideJVP,
    EventCondition,
    Integration,
    OpenField,
    RightHandSide,
    real_basis,
)
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor


class Field(Inputs):
    """What an adjoint needs to know of an `ODEProblem`'s field."""

    def __init__(self, problem: ODEProblem, stats: Stats) -> None:
        super().__init__(problem.f, problem.args, problem.params)
        self._stats = stats
        self._problem = problem
        self._like = problem.y0
        self._checked = False

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y, *args) as the problem states it, its first result checked against the state's form."""
        dy = self._f(t, y, *self._args)
        if not self._checked:
            self._check_form(dy)
            self._checked = True
        return dy

    def evaluate_detached(self, t: Tensor, y: Tensor) -> Tensor:
        """The value alone, for solves whose gradient is computed by other means.

        The first call also finds out whether the field depends on tensors that this gradient would miss.
        """
        if self._checked:
            return self._f(t, y, *self._args)
        args, leaves = self.leaves()
        with torch.enable_grad():
            dy = self._f(t, y.detach(), *args)
        self._check_form(dy)
        check_dependencies("f", dy, leaves, instead="DirectAdjoint()")
        self._checked = True
        return dy.detach()

    def integrate(
        self,
        backend: AbstractBackend,
        algorithm: AbstractODEAlgorithm,
        evaluate: RightHandSide,
        *,
        keep_states: bool = False,
    ) -> Integration:
        """The problem's forward solve, the backend calling `evaluate` or, where the field is its own, the field."""
        problem, args = self._problem, self._args
        event = None
        if problem.event is not None:
            happens = problem.event.condition
            event = EventCondition(lambda t, y: happens(t, y, *args), problem.event.direction)
        rhs = self.on(backend, evaluate)
        if backend.opens and rhs is evaluate:
            rhs = OpenField(evaluate, self._f, tuple(args), self._count_vjp)
        result = backend.integrate(
            rhs,
            problem.y0,
            problem.ts,
            with_first_step(algorithm, problem.ts),
            error_norm=algorithm.norm if isinstance(algorithm, AbstractErrorControlled) else ErrorNorm(),
            keep_states=keep_states,
            jvp=self.jvp if isinstance(algorithm, AbstractJacobianBased) else None,
            event=event,
            discontinuities=problem.discontinuities,
        )
        note_first_step(algorithm, problem.ts, result)
        return result

    @property
    def discontinuities(self) -> tuple[float, ...]:
        return self._problem.discontinuities

    def _count_vjp(self, evaluations: int) -> None:
        self._stats.n_vjp += evaluations

    @property
    def jvp(self) -> FieldJVP:
        """The products of the field's Jacobian with vectors."""
        return FieldJVP(self._f, self._args, self._stats)

    def vjp_jvp(
        self, t: Tensor, y: Tensor, cotangent: Tensor, v: Tensor, w: Tensor, *, inputs: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """How what `vjp` returns changes where y changes by v and the cotangent by w.

        The change of cotangent^T df/d(y, *inputs) is the gradient of cotangent^T (df/dy) v + w^T f.
        """
        args, wrt = self.leaves()
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self._f(t, y, *args)
            total = (dy * w.conj()).real.sum() if dy.is_complex() else (dy * w).sum()
            if dy.requires_grad:
                (pulled,) = torch.autograd.grad(dy, y, cotangent, create_graph=True, allow_unused=True)
                if pulled is not None:
                    total = total + ((pulled * v.conj()).real.sum() if dy.is_complex() else (pulled * v).sum())
        self._stats.nfe_backward += 1
        self._stats.n_vjp += 2
        self._stats.n_jvp += 1
        change = jacobian_vector_product(lambda z: self._f(t, z, *args), y, v)
        return change, gradients([total], [y, *wrt] if inputs else [y], [torch.ones_like(total)])

    def vjp(self, t: Tensor, y: Tensor, cotangent: Tensor, *, inputs: bool) -> tuple[Tensor, list[Tensor]]:
        """f(t, y, *args), and cotangent^T df/d(y, *inputs): shapes of y and of each input; y alone if not `inputs`.

        Gradients that vanish identically come as zeros.
        """
        args, wrt = self.leaves()
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self._f(t, y, *args)
        self._stats.nfe_backward += 1
        self._stats.n_vjp += 1
        wrt = [y, *wrt] if inputs else [y]
        return dy.detach(), gradients([dy], wrt, [cotangent])

    def replay(self, args: list[Any]) -> RightHandSide:
        """A right-hand side with the given arguments that counts as part of the backward pass."""

        def count(_: Tensor) -> None:
            self._stats.n_vjp += 1

        def rhs(t: Tensor, y: Tensor) -> Tensor:
            self._stats.nfe_backward += 1
            dy = self._f(t, y, *args)
            if dy.requires_grad:
                dy.register_hook(count)
            return dy

        return rhs

    def _check_form(self, dy: Tensor) -> None:
        check_form("f", dy, "y0", self._like)


class FieldJVP(AbstractRightHandSideJVP):
    """Of a problem's field by automatic differentiation, the whole Jacobian at once where PyTorch can vectorise it."""

    def __init__(self, f: Callable[..., Tensor], args: Sequence[Any], stats: Stats) -> None:
        self._f, self._args, self._stats = f, args, stats
        self._vectorises = True

    def __call__(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        self._stats.n_jvp += 1
        # Forward-mode differentiation of 0-d tensors and plain numbers may return float64.
        return jacobian_vector_product(lambda z: self._f(t, z, *self._args), y, v).to(y.dtype)

    def matrix(self, t: Tensor, y: Tensor) -> Tensor:
        if self._vectorises:
            try:
                with torch.no_grad():
                    columns = self._columns(t, y.detach())
            except (NotImplementedError, RuntimeError, ValueError):
                self._vectorises = False
            else:
                self._stats.n_jvp += len(columns)
                return columns.mT
        return super().matrix(t, y)

    def _columns(self, t: Tensor, y: Tensor) -> Tensor:
        def push(v: Tensor) -> Tensor:
            return torch.func.jvp(lambda z: self._f(t, z, *self._args), (y,), (v,))[1]

        columns = torch.func.vmap(push)(real_basis(y)).to(y.dtype)
        return (torch.view_as_real(columns.resolve_conj()) if y.is_complex() else columns).reshape(len(columns), -1)
