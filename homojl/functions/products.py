"""Products of a function's Jacobian with vectors: reverse mode once for rows, twice for columns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from homojl.errors import ConfigError
from homojl.solution import Stats

Tensor = torch.Tensor

_forward_mode = threading.Lock()  # PyTorch's forward mode has one level for all threads


def inside_functorch() -> bool:
    """Whether one of `torch.func`'s transforms is at work."""
    return _functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether one of `torch.func`'s transforms, or a level of forward mode, is at work."""
    return forward_ad._current_level >= 0 or inside_functorch()


def dense_zeros(x: Tensor) -> Tensor:
    """Zeros for a gradient with respect to x, dense for a sparse matrix too, as PyTorch's own gradients may be."""
    return torch.zeros_like(x) if x.layout == torch.strided else x.new_zeros(x.shape, layout=torch.strided)


class Linearisation:
    """A function linearised at a point; what is recorded there once serves any number of products.

    Args:
        function: from the state alone.
        at: the state.
        stats: what counts the products; None: nothing does.

    Attributes:
        value: the function's there, with its graph.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], at: Tensor, stats: Stats | None = None) -> None:
        self._function = function
        self._stats = Stats() if stats is None else stats
        self._record(at, math_kernel=False)
        self._pulled: tuple[Tensor, Tensor] | None = None  # the product with a cotangent, and that cotangent

    def _record(self, at: Tensor, *, math_kernel: bool) -> None:
        kernel = sdpa_kernel(SDPBackend.MATH) if math_kernel else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), kernel:
            self.at = (at.clone() if at.is_inference() else at.detach()).requires_grad_()
            # A view, since hooks of modules, as those that count operations, may not be on a leaf in `autograd.grad`.
            self.value = self._function(self.at.view_as(self.at))

    def pull(self, cotangent: Tensor) -> Tensor:
        """cotangent^T (df/dz), of z's shape."""
        self._stats.n_vjp += 1
        return self._pulled_by(cotangent)

    def _pulled_by(self, cotangent: Tensor) -> Tensor:
        if not self.value.requires_grad:
            return torch.zeros_like(self.at)
        grad = _derivative(self.value, self.at, cotangent)
        return torch.zeros_like(self.at) if grad is None else grad

    def push(self, v: Tensor) -> Tensor:
        """(df/dz) v, of z's shape.

        The product with a cotangent is linear in it; differentiating that by the cotangent gives this one.

        Raises:
            ConfigError: if an operation of the function has neither a second derivative nor forward mode.
        """
        self._stats.n_jvp += 1
        reason: RuntimeError | ConfigError | None = None
        for attempt in range(2):
            try:
                if self._pulled is None:
                    self._pulled = self._transposed()
                pulled, cotangent = self._pulled
                if not pulled.requires_grad:
                    return torch.zeros_like(self.at)
                pushed = _derivative(pulled, cotangent, v)
                return torch.zeros_like(self.at) if pushed is None else pushed
            except (RuntimeError, ConfigError) as error:
                self._pulled, reason = None, error
                if attempt == 0:  # fused attention has no second derivative; its plain form has
                    self._record(self.at, math_kernel=True)
        assert reason is not None
        return self._by_forward_mode(v, reason)

    def _transposed(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            cotangent = torch.zeros_like(self.value, requires_grad=True)
            if not self.value.requires_grad:
                return torch.zeros_like(self.at), cotangent
            pulled = _derivative(self.value, self.at, cotangent, again=True)
        return torch.zeros_like(self.at) if pulled is None else pulled, cotangent

    def _by_forward_mode(self, v: Tensor, reason: Exception) -> Tensor:
        with _forward_mode, torch.no_grad():
            try:
                return torch.func.jvp(self._function, (self.at.detach(),), (v,))[1].to(v.dtype)
            except (RuntimeError, NotImplementedError):
                why = str(reason).splitlines()[0]
                raise ConfigError(
                    f"the products with f's Jacobian that this method needs cannot be computed: {why}; use a method "
                    "without them, such as Anderson(), Broyden() or Tsit5()"
                ) from reason

    def matrix(self) -> Tensor:
        """The Jacobian on states as flat vectors of n real numbers in the order of their elements, (n, n).

        A complex state's real and imaginary parts are neighbours. All rows in one pass where PyTorch can vectorise it.
        """
        basis = real_basis(self.at)
        self._stats.n_jvp += len(basis)
        if not self.value.requires_grad:
            return basis.new_zeros(len(basis), len(basis), dtype=self.at.dtype.to_real())
        try:
            (rows,) = torch.autograd.grad(
                self.value, self.at, basis, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        except (RuntimeError, NotImplementedError, ValueError):
            rows = torch.stack([self._pulled_by(unit) for unit in basis])
        if rows is None:
            return basis.new_zeros(len(basis), len(basis), dtype=self.at.dtype.to_real())
        return (torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows).reshape(len(basis), -1)


def _derivative(output: Tensor, at: Tensor, cotangent: Tensor, *, again: bool = False) -> Tensor | None:
    """The derivative of one output by one tensor, its graph kept; None: there is no dependence."""
    return _run([output], [cotangent], [at], True, again)[0]


def _run(
    outputs: list[Tensor], cotangents: list[Tensor], wrt: list[Tensor], keep: bool, again: bool
) -> Sequence[Tensor | None]:
    """`torch.autograd.grad` without its checks, which take longer than a small derivative, and load SymPy."""
    run = torch.autograd.Variable._execution_engine.run_backward
    grads: Sequence[Tensor | None] = run(
        tuple(outputs), tuple(cotangents), keep, again, tuple(wrt), True, accumulate_grad=False
    )
    return grads


class Flattened(Linearisation):
    """A linearisation of a batch as that of one row of numbers, (1, N)."""

    def __init__(self, of: Linearisation, shape: torch.Size) -> None:
        self._of, self._shape = of, shape

    def push(self, v: Tensor) -> Tensor:
        return self._of.push(v.view(self._shape)).reshape(1, -1)

    def pull(self, cotangent: Tensor) -> Tensor:
        return self._of.pull(cotangent.view(self._shape)).reshape(1, -1)


def real_basis(y: Tensor) -> Tensor:
    """The unit vectors of y's space over the real numbers: (n, *shape of y)."""
    n = y.numel() * (2 if y.is_complex() else 1)
    eye = torch.eye(n, dtype=y.dtype.to_real(), device=y.device)
    return torch.view_as_complex(eye.view(n, *y.shape, 2)) if y.is_complex() else eye.view(n, *y.shape)


def gradients(
    outputs: list[Tensor], wrt: list[Tensor], cotangents: list[Tensor], *, again: bool = False
) -> list[Tensor | None]:
    """sum_i cotangents[i]^T d outputs[i] / d wrt[j] for every j; None where there is no dependence.

    Args:
        outputs, wrt, cotangents: tensors.
        again: whether the gradients are to be differentiated again.
    """
    places = [i for i, w in enumerate(wrt) if w.requires_grad]
    found: list[Tensor | None] = [None] * len(wrt)
    if not all(o.requires_grad for o in outputs):
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        outputs, cotangents = [o for o, _ in pairs], [c for _, c in pairs]
    if outputs and places:
        for i, grad in zip(places, _run(outputs, cotangents, [wrt[i] for i in places], again, again), strict=True):
            found[i] = grad
    return found
