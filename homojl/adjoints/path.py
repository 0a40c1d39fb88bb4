"""Derivatives of a residual along a path, and the gradient of its root by the implicit function theorem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from homojl.adjoints.inputs import jacobian_vector_product
from homojl.backends.pytorch.gmres import gmres
from homojl.errors import ConfigError, SolveError
from homojl.layout import Layout
from homojl.solution import Stats

Tensor = torch.Tensor


class Linearised:
    """Jacobian-vector products (z, v) -> (dr/dz) v, many of them at one point.

    The vector-Jacobian product at a point is linear in its cotangent; recorded once, each product costs one pass
    through that graph, and the residual is not evaluated again. Points are compared by value, since a solver may write
    all of them into one buffer; the last one is kept.
    """

    def __init__(self, r: Callable[[Tensor], Tensor]) -> None:
        self._r = r
        self._z: Tensor | None = None
        self._pulled: tuple[Tensor, Tensor] | None = None  # the product, and the cotangent that it is linear in

    def __call__(self, z: Tensor, v: Tensor) -> Tensor:
        if self._z is None or not torch.equal(z, self._z):
            self._record(z)
        if self._pulled is None:
            return jacobian_vector_product(self._r, z, v)
        pulled, cotangent = self._pulled
        return torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]

    def _record(self, z: Tensor) -> None:
        self._z, self._pulled = z.detach().clone(), None
        with torch.enable_grad():
            leaf = self._z.detach().requires_grad_()
            cotangent = torch.zeros_like(leaf, requires_grad=True)
            try:
                value = self._r(leaf)
                (pulled,) = torch.autograd.grad(value, leaf, cotangent, create_graph=True)
            except RuntimeError:  # an operation without a second derivative, or no dependence on z at all
                return
        self._pulled = (pulled, cotangent) if pulled.requires_grad else None


def differentiable_root(
    r: Callable[..., Tensor], root: Tensor, args: tuple[Any, ...], *, dense: bool, krylov_steps: int, stats: Stats
) -> Tensor:
    """The root z of r(z, *args) = 0 as a function of everything else that r depends on.

    One more evaluation of r records how it depends on its arguments and on whatever it holds. In the backward pass the
    cotangent g becomes the w with (dr/dz)^T w = g, and -w is passed on to that evaluation. The derivative dr/dz must
    be regular at the root; where the path started from has no influence on it.

    Args:
        r: residual, the problem's.
        root: detached, z0's form.
        args: further arguments of r.
        dense: whether the linear system is solved by a factorisation, else by GMRES on vector-Jacobian products.
        krylov_steps: most of those products.
        stats: where the backward pass counts.

    Returns:
        The root's value; without a graph where r depends on nothing that requires a gradient.

    Raises:
        SolveError: in the backward pass, if the linear system cannot be solved.
        ConfigError: in the backward pass, if it is to be differentiated again.
    """
    if not torch.is_grad_enabled():
        return root
    residual = r(root, *args)
    stats.nfe_backward += 1
    if not residual.requires_grad:
        return root
    layout = Layout([root])

    def solve(cotangent: Tensor | None) -> Tensor | None:
        if cotangent is None:
            return None
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack this solve
            raise ConfigError("a root gives first derivatives only")
        started = time.perf_counter()
        with torch.enable_grad():
            z = root.detach().requires_grad_()
            image = r(z, *args)
        stats.nfe_backward += 1

        def transposed(w: Tensor) -> Tensor:
            stats.n_vjp += 1
            (product,) = torch.autograd.grad(
                image, z, layout.unpack(w)[0], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return layout.pack([product], root.dtype)

        rhs = layout.pack([cotangent], root.dtype)
        w = _solve_densely(transposed, rhs) if dense else _solve_by_krylov(transposed, rhs, krylov_steps)
        stats.seconds_backward += time.perf_counter() - started
        return layout.unpack(w)[0].clone()

    # The value is the root's to the last bit, the gradient that of -r.
    value = root - (residual - residual.detach())
    value.register_hook(solve)
    return value


def _solve_densely(transposed: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
    matrix = torch.stack([transposed(unit) for unit in torch.eye(rhs.numel(), dtype=rhs.dtype, device=rhs.device)])
    w, info = torch.linalg.solve_ex(matrix.T, rhs)
    if info.item() != 0 or not torch.isfinite(w).all().item():
        raise SolveError("the derivative of r is singular or not finite at the root, which then has no gradient")
    return w


def _solve_by_krylov(transposed: Callable[[Tensor], Tensor], rhs: Tensor, steps: int) -> Tensor:
    rtol = math.sqrt(torch.finfo(rhs.dtype).eps)
    w, left = gmres(transposed, rhs, steps=steps, rtol=rtol)
    if not left <= rtol:
        raise SolveError(
            f"GMRES left {left:.1e} of the gradient's linear system after {steps} products; raise krylov_steps"
        )
    return w
