"""A vector field together with everything it depends on, and its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from homojl.algorithms import AbstractImplicit, AbstractODEAlgorithm
from homojl.backends.base import AbstractBackend, RightHandSide, RightHandSideJVP
from homojl.errors import ConfigError
from homojl.problems import ODEProblem
from homojl.solution import Stats

Tensor = torch.Tensor


class Field:
    """What an adjoint needs to know of an `ODEProblem`'s field.

    Attributes:
        inputs: the tensors other than the state that receive gradients: those of `args`, then `params`.
    """

    def __init__(self, problem: ODEProblem, stats: Stats) -> None:
        self._f, self._stats = problem.f, stats
        self._like = problem.y0
        self._args = list(problem.args)
        self._slots = [i for i, a in enumerate(self._args) if isinstance(a, Tensor) and a.requires_grad]
        self._params = tuple(p for p in problem.params if p.requires_grad)
        self._checked = False
        self.inputs: tuple[Tensor, ...] = (*(self._args[i] for i in self._slots), *self._params)

    def on(self, backend: AbstractBackend, evaluate: RightHandSide) -> RightHandSide:
        """What the backend is to integrate: `evaluate`, or the function itself where it is that backend's own."""
        if getattr(self._f, "native_to", None) == backend.name:
            return self._f.bind(tuple(self._args))
        return evaluate

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
        leaves = self._detached_args()
        with torch.enable_grad():
            dy = self._f(t, y.detach(), *self._filled(leaves))
        self._check_form(dy)
        self._check_dependencies(dy, leaves)
        self._checked = True
        return dy.detach()

    def requires_grad(self, t: float) -> bool:
        """Whether a gradient may be wanted: of y0, of the inputs, or of a tensor that the field uses unlisted."""
        if self._like.requires_grad or self.inputs:
            return True
        with torch.enable_grad():
            like = self._like.detach()
            return self._f(torch.full((), t, dtype=like.dtype, device=like.device), like, *self._args).requires_grad

    def jvp_for(self, algorithm: AbstractODEAlgorithm, stats: Stats) -> RightHandSideJVP | None:
        """The Jacobian-vector product, counted, where the algorithm needs one."""
        if not isinstance(algorithm, AbstractImplicit):
            return None

        def jvp(t: Tensor, y: Tensor, v: Tensor) -> Tensor:
            stats.n_jvp += 1
            return jacobian_vector_product(lambda z: self._f(t, z, *self._args), y, v)

        return jvp

    def leaves(self) -> tuple[list[object], list[Tensor]]:
        """The arguments with detached copies where they receive gradients, and those copies with the params."""
        leaves = self._detached_args()
        return self._filled(leaves), [*leaves, *self._params]

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

    def replay(self, args: list[object]):
        """A right-hand side with the given arguments that counts as part of the backward pass."""

        def rhs(t: Tensor, y: Tensor) -> Tensor:
            self._stats.nfe_backward += 1
            self._stats.n_vjp += 1
            return self._f(t, y, *args)

        return rhs

    def _detached_args(self) -> list[Tensor]:
        return [self._args[i].detach().requires_grad_() for i in self._slots]

    def _filled(self, leaves: list[Tensor]) -> list[object]:
        args = list(self._args)
        for i, leaf in zip(self._slots, leaves, strict=True):
            args[i] = leaf
        return args

    def _check_form(self, dy: Tensor) -> None:
        check_form("f", dy, "y0", self._like)

    def _check_dependencies(self, dy: Tensor, leaves: list[Tensor]) -> None:
        known = {id(t) for t in (*leaves, *self._params)}
        boundary = {p.grad_fn for p in self._params if p.grad_fn is not None}
        missed = [v for v in _graph_leaves(dy, boundary) if id(v) not in known]
        if missed:
            shapes = ", ".join(str(tuple(v.shape)) for v in missed[:4])
            raise ConfigError(
                f"f depends on {len(missed)} tensor(s) that require gradients (shape {shapes}) but are neither in "
                "args nor in params, so this adjoint would miss them: pass params=tuple(module.parameters()) or "
                "args=(x,), or use DirectAdjoint()"
            )


def check_form(function: str, value: object, name: str, like: Tensor) -> None:
    """Raise a ConfigError unless what a function returned has the form of the tensor `like`, called `name`."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{function} must return a torch.Tensor, got {type(value).__name__}")
    if value.shape != like.shape or value.dtype != like.dtype or value.device != like.device:
        raise ConfigError(
            f"{function} must return what {name} is: shape {tuple(like.shape)}, {like.dtype}, {like.device}; "
            f"got shape {tuple(value.shape)}, {value.dtype}, {value.device}"
        )


def jacobian_vector_product(function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """(d function / dz) v, detached; z's shape and dtype.

    Forward-mode differentiation, or where an operation lacks it reverse mode twice.
    """
    try:
        with torch.no_grad():
            return torch.func.jvp(function, (z.detach(),), (v,))[1]
    except (NotImplementedError, RuntimeError):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            cotangent = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(function(z), z, cotangent, create_graph=True, allow_unused=True)
            if pulled is None or not pulled.requires_grad:
                return torch.zeros_like(z)
            return torch.autograd.grad(pulled, cotangent, v)[0]


def gradients(outputs: list[Tensor], wrt: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """sum_i cotangents[i]^T d outputs[i] / d wrt[j] for every j, zeros where there is no dependence."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(w) for w in wrt]
    outputs, cotangents = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outputs, wrt, cotangents, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wrt, strict=True)]


def _graph_leaves(tensor: Tensor, boundary: set[object]) -> Iterator[Tensor]:
    """The leaves that the tensor was computed from, not looking behind the nodes of `boundary`."""
    if tensor.grad_fn is None:
        if tensor.requires_grad:
            yield tensor
        return
    seen, stack = set(boundary), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)
