"""The implicit function theorem as a function of autograd's: first derivatives, further ones, and `torch.func`'s.

A solved state z depends on the tensors t that a user's function holds by A dz = F_t dt, where F is the function that
the state solves and A is made of F_z. Everything else follows from that one equation: the gradient solves A^T g = v and
passes g^T F_t on; a tangent solves A dz = F_t dt; and the solution of such a linear system has derivatives of the same
kind, with A or A^T again. Both are custom functions that save all they use, recompute with what was saved, and have
rules for `vmap` and forward mode.
"""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch.autograd import forward_ad

from homojl.errors import ConfigError
from homojl.functions import AbstractMap, DerivedMap, MapFunction
from homojl.functions.products import Linearisation, gradients, inside_functorch, transformed

Tensor = torch.Tensor
Grads = list[Tensor | None]
Level = tuple[int, tuple[int | None, ...]]


def refuse_transforms(what: str, instead: str) -> None:
    if transformed():
        raise ConfigError(f"{what} does not go through torch.func's transforms or forward mode; use {instead}")


def refuse_batched(cotangent: Tensor | None, what: str, instead: str) -> None:
    if cotangent is not None and " Batched" in str(torch._C._dispatch_keys(cotangent)):
        raise ConfigError(f"is_grads_batched and vectorize do not go with {what}; use {instead}")


def pulled(function: Callable[[Sequence[Tensor]], Tensor], primals: Sequence[Tensor], cotangent: Tensor) -> Grads:
    """cotangent^T d function / d primals, differentiable where anything in it is; None where nothing depends."""
    if inside_functorch():
        try:
            return list(torch.func.vjp(lambda *x: function(x), *primals)[1](cotangent))
        except RuntimeError as error:
            raise ConfigError(f"f does not go through torch.func's transforms: {_line(error)}") from error
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # What a transform that has ended had hold of says that it requires a gradient; its views do not.
        views = [x.view_as(x) for x in primals]
        again = again and any(x.requires_grad for x in (*views, cotangent.view_as(cotangent)))
        aliases = [x if x.requires_grad else x.detach().requires_grad_() for x in views]
        return gradients([function(aliases)], aliases, [cotangent], again=again)


def pushed(
    function: Callable[[Sequence[Tensor]], Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], like: Tensor
) -> Tensor:
    """(d function / d primals) tangents, of the form `like`; by reverse mode twice, since `pulled` is linear."""

    def paired(c: Sequence[Tensor]) -> Tensor:
        products = zip(pulled(function, primals, c[0]), tangents, strict=True)
        # The gradient by a complex number is that by its real part and i times that by its imaginary one.
        return sum(((p.conj() * t).sum().real for p, t in products if p is not None), start=0.0 * c[0].sum())

    (tangent,) = pulled(paired, [torch.zeros_like(like)], torch.ones((), dtype=like.dtype, device=like.device))
    return torch.zeros_like(like) if tangent is None else tangent


def is_continuous(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


class AbstractRelation(abc.ABC):
    """What a solved state satisfies.

    Args:
        f: the user's function, probed, or gathered where it is `transformed`.
        transformed: whether one of `torch.func`'s transforms is at work, so that f's own tensors are of another level
            than those that it is to be evaluated with.

    Attributes:
        sign: F is f times this.
        levels: of `torch.vmap`, the outermost first: their sizes, and the mapped dimension of each of f's tensors.
        rows: those of the batch that take part in gradients, (b,); None: all.
    """

    sign: ClassVar[float] = 1.0

    def __init__(self, f: MapFunction, *, transformed: bool) -> None:
        self.f, self.transformed = f, transformed
        self.levels: tuple[Level, ...] = ()
        self.rows: Tensor | None = None

    @abc.abstractmethod
    def find(self, z0: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The state, no view of z0."""

    @abc.abstractmethod
    def solve(self, f: AbstractMap, at: Linearisation, right: Tensor, *, transposed: bool) -> Tensor:
        """A x = right or A^T x = right, where f is linearised at the state; all of them at `rows`."""

    def map(self, tensors: Sequence[Tensor]) -> AbstractMap:
        """The function at tensors that no transform has hold of."""
        if not self.levels:
            return self.f.rebuilt(tensors)
        # Of the whole batch, whose rows cannot be taken apart.
        return DerivedMap(lambda z, _: self._at(self.levels, z, tensors), separates=False)

    def evaluate(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """F at tensors of any kind; zero in rows that take no part."""
        if self.f.hidden:
            raise ConfigError("a tensor of params that f does not show has first derivatives only; pass it in args")
        return self.sign * self._whole(self._at(self.levels, self.part(z), tensors), z)

    def _at(self, levels: Sequence[Level], z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        if not levels:
            f = self.f.rebuilt(tensors)
            return f.unwatched(z) if inside_functorch() else f.watched(z, self.rows)
        (size, dims), *others = levels
        try:
            mapped = torch.vmap(lambda z, *t: self._at(others, z, t), in_dims=(0, *dims))
            return mapped(z.unflatten(0, (size, -1)), *tensors).flatten(0, 1)
        except RuntimeError as error:
            raise ConfigError(f"f does not go through torch.vmap: {_line(error)}") from error

    def part(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x[self.rows]

    def _whole(self, x: Tensor, like: Tensor) -> Tensor:
        return x if self.rows is None else torch.zeros_like(like).index_copy(0, self.rows, x)

    def mapped(self, size: int, dims: tuple[int | None, ...]) -> AbstractRelation:
        """Inside one level of `torch.vmap`, whose elements become rows."""
        inner = copy.copy(self)
        inner.levels = ((size, dims), *self.levels)
        return inner

    def first_gradients(self, z: Tensor, cotangent: Tensor, tensors: Sequence[Tensor]) -> Grads:
        """By each of the tensors: one evaluation serves the linear system and the gradient behind it."""
        f, wrt = self.f.again(tensors)
        self.f.stats.nfe_backward += 1
        self.f.stats.n_vjp += 1
        at = f.linearised(self.part(z), self.rows)
        f.look_behind(at.value, at.at)
        g = self.solve(f, at, self.part(cotangent), transposed=True)
        f.add_counts()
        return self.f.spread(gradients([at.value], wrt, [self.sign * g]), tensors)

    def solved(self, right: Tensor, z: Tensor, tensors: Sequence[Tensor], transposed: bool) -> Tensor:
        """A x = right or A^T x = right, (B, ...), at tensors that no transform has hold of."""
        f = self.map(tensors)
        self.f.stats.nfe_backward += 1
        at = f.linearised(self.part(z), self.rows)
        return self._whole(self.solve(f, at, self.part(right), transposed=transposed), z)


def differentiable(relation: AbstractRelation, z0: Tensor) -> Tensor:
    """The state, as a function of all tensors that the relation's f depends on; z0 has a gradient of zero."""
    f = relation.f
    if relation.transformed:
        try:
            alone = f.rebuilt([x.detach() for x in f.tensors]).unwatched(z0.detach())
        except RuntimeError as error:
            raise ConfigError(f"f does not go through torch.func's transforms: {_line(error)}") from error
        if alone.requires_grad:
            raise ConfigError("f depends on tensors that torch.func's transforms would miss; pass them in args")
    value: Tensor = _State.apply(relation, z0, *f.tensors)
    f.release()
    return value


class _State(torch.autograd.Function):
    """z(t)"""

    @staticmethod
    def forward(relation: AbstractRelation, z0: Tensor, *tensors: Tensor) -> Tensor:
        return relation.find(z0, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.relation, z0, *tensors = inputs
        ctx.save_for_backward(output, z0, *ctx.relation.f.to_save(tensors))
        ctx.save_for_forward(output, z0, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        z, z0, *saved = ctx.saved_tensors
        relation, started = ctx.relation, time.perf_counter()
        tensors = relation.f.restored(saved)
        grads: Grads = [None] * len(tensors)
        wanted = [i for i in range(len(tensors)) if ctx.needs_input_grad[2 + i]]
        refuse_batched(cotangent, "equilibria", "torch.func.jacrev")
        if cotangent is not None and wanted:
            if relation.transformed or torch.is_grad_enabled() or transformed():
                g = _Solved.apply(relation, True, cotangent, z, *tensors)
                function = _of_some(lambda t: relation.evaluate(z, t), tensors, wanted)
                for i, grad in zip(wanted, pulled(function, [tensors[i] for i in wanted], g), strict=True):
                    grads[i] = grad
            else:
                grads = relation.first_gradients(z, cotangent, tensors)
        relation.f.stats.seconds_backward += time.perf_counter() - started
        return None, torch.zeros_like(z0) if ctx.needs_input_grad[1] else None, *grads

    @staticmethod
    def jvp(ctx: Any, _: None, z0_tangent: Tensor | None, *tangents: Tensor | None) -> Tensor:
        z, _z0, *tensors = (forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors)
        with forward_ad._set_fwd_grad_enabled(True):  # which autograd turns off here, though jvp may be inside another
            right = _pushed_by(lambda t: ctx.relation.evaluate(z, t), tensors, tangents, z)
            tangent: Tensor = _Solved.apply(ctx.relation, False, right, z, *tensors)
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], relation: AbstractRelation, z0: Tensor, *tensors: Tensor) -> Any:
        size, inner = info.batch_size, relation.mapped(info.batch_size, tuple(in_dims[2:]))
        value = _State.apply(inner, _as_rows(z0, in_dims[1], size), *tensors)
        return value.unflatten(0, (size, -1)), 0


class _Solved(torch.autograd.Function):
    """The x with A x = right or A^T x = right, as a function of the right-hand side, of z and of t."""

    @staticmethod
    def forward(relation: AbstractRelation, transposed: bool, right: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        return relation.solved(right, z, tensors, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.relation, ctx.transposed, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, *at = ctx.saved_tensors
        w = _Solved.apply(ctx.relation, not ctx.transposed, cotangent, *at)
        # dA = -dF_z, so that what is left are the derivatives of left^T F_z right.
        left, right = (x, w) if ctx.transposed else (w, x)
        wanted = [i for i in range(len(at)) if ctx.needs_input_grad[3 + i]]
        grads: Grads = [None] * len(at)
        if wanted:
            function = _of_some(lambda a: _products(ctx.relation, a, left, True), at, wanted)
            for i, grad in zip(wanted, pulled(function, [at[i] for i in wanted], right), strict=True):
                grads[i] = grad
        return None, None, w, *grads

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, tangent: Tensor | None, *tangents: Tensor | None) -> Tensor:
        x, *at = (forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors)
        with forward_ad._set_fwd_grad_enabled(True):
            right = _pushed_by(lambda a: _products(ctx.relation, a, x, ctx.transposed), at, tangents, x)
            right = right if tangent is None else right + tangent
            solved: Tensor = _Solved.apply(ctx.relation, ctx.transposed, right, *at)
        return solved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], relation: AbstractRelation, transposed: bool, *inputs: Tensor) -> Any:
        size, inner = info.batch_size, relation.mapped(info.batch_size, tuple(in_dims[4:]))
        right, z = (_as_rows(x, dim, size) for x, dim in zip(inputs[:2], in_dims[2:4], strict=True))
        return _Solved.apply(inner, transposed, right, z, *inputs[2:]).unflatten(0, (size, -1)), 0


def _products(relation: AbstractRelation, at: Sequence[Tensor], v: Tensor, transposed: bool) -> Tensor:
    """F_z^T v or F_z v at the state and tensors `at`."""
    z, *tensors = at
    if not transposed:
        return pushed(lambda x: relation.evaluate(x[0], tensors), [z], [v], z)
    (product,) = pulled(lambda x: relation.evaluate(x[0], tensors), [z], v)
    return torch.zeros_like(z) if product is None else product


def _of_some(
    function: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor], places: Sequence[int]
) -> Callable[[Sequence[Tensor]], Tensor]:
    """As a function of the tensors in some places, the others as they are."""

    def of_some(some: Sequence[Tensor]) -> Tensor:
        filled = list(tensors)
        for i, x in zip(places, some, strict=True):
            filled[i] = x
        return function(filled)

    return of_some


def _pushed_by(
    function: Callable[[Sequence[Tensor]], Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    like: Tensor,
) -> Tensor:
    """(d function / d primals) tangents, where None is no tangent."""
    given = {i: t for i, t in enumerate(tangents) if t is not None and is_continuous(primals[i])}
    function = _of_some(function, primals, list(given))
    return pushed(function, [primals[i] for i in given], list(given.values()), like)


def _as_rows(x: Tensor, dim: int | None, size: int) -> Tensor:
    """A batch of batches as one, (size B, ...)."""
    whole = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return whole.flatten(0, 1)


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0]
