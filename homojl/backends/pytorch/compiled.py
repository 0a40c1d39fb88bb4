"""Steps compiled as a whole: the field, the stages and the error estimate of a step in one graph of `torch.compile`."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep, AbstractODEAlgorithm
from homojl.backends.base import ErrorNorm, OpenField, RightHandSide
from homojl.backends.pytorch.backend import TorchBackend
from homojl.backends.pytorch.schemes import ExplicitScheme
from homojl.errors import ConfigError
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor


class CompiledBackend(TorchBackend):
    """The PyTorch backend with compiled steps, for explicit methods: the same steps to rounding, for less time each.

    The first solve of a field with states of one shape compiles, which takes seconds to a minute and a C++ compiler;
    the field must be one graph (no data-dependent branches, no calls out of PyTorch). What is not such a step, as the
    backward solve of a continuous adjoint or an equilibrium, runs as in the PyTorch backend.

    Args:
        cuda_graphs: replay each step as a CUDA graph, for states on a GPU. It has not been run on one.
    """

    name: ClassVar[str] = "pytorch-compiled"
    opens: ClassVar[bool] = True

    def __init__(self, *, cuda_graphs: bool = False) -> None:
        self._cuda_graphs = cuda_graphs

    def scheme(self, rhs: RightHandSide, y0: Tensor, algorithm: AbstractODEAlgorithm, norm: ErrorNorm):
        explicit = isinstance(algorithm, AbstractAdaptive | AbstractFixedStep) and isinstance(
            algorithm.tableau, ButcherTableau
        )
        plain = getattr(algorithm, "grid", None) is None and not y0.is_complex()
        if not isinstance(rhs, OpenField) or not explicit or not plain:
            return super().scheme(rhs, y0, algorithm, norm)
        return CompiledScheme(rhs, y0, algorithm, norm, cuda_graphs=self._cuda_graphs and y0.is_cuda)


class _Stages(tuple):
    """The stages of a compiled step, which come with its error ratio."""

    ratio: Tensor | None


class CompiledScheme(ExplicitScheme):
    """An explicit Runge-Kutta method whose step from one field is one compiled function."""

    def __init__(
        self, field: OpenField, y0: Tensor, algorithm: AbstractODEAlgorithm, norm: ErrorNorm, *, cuda_graphs: bool
    ) -> None:
        super().__init__(algorithm.tableau)
        self._field, self._cuda_graphs, self._started = field, cuda_graphs, False
        tolerances = None
        if algorithm.tableau.b_error is not None and norm.function is None and isinstance(algorithm, AbstractAdaptive):
            tolerances = algorithm.rtol, algorithm.atol, norm.parts
        form = y0.shape, y0.stride(), y0.dtype, y0.device, y0.requires_grad, torch.is_grad_enabled()
        key = algorithm.tableau, tolerances, form, cuda_graphs
        self._compiled = _compiled(field.function, key, algorithm.tableau, tolerances, cuda_graphs)

    def step(self, rhs, t, h, y, k_first=None, *, last_stage=True):
        if not self._started:
            self._started = True
            if k_first is None:  # the problem's function is checked at its first evaluation
                return self._eager(rhs, t, h, y)
        times = torch.tensor([t, h], dtype=torch.float64, device=y.device)
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            y_next, ratio, *ks = self._compiled(self._field.function, self._field.args, times, y, k_first)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"the field cannot be compiled: {reason}; use backend='pytorch'") from error
        if self._cuda_graphs:  # the next replay writes into the same memory
            y_next, ratio, ks = y_next.clone(), ratio.clone(), [k.clone() for k in ks]
        evaluations = self.tableau.stages - (k_first is not None)
        rhs.count(evaluations)
        if y_next.requires_grad:
            y_next.register_hook(lambda _: self._field.on_backward(evaluations))
        ks = _Stages(ks)
        ks.ratio = ratio
        return y_next, ks

    def _eager(self, rhs: RightHandSide, t: float, h: float, y: Tensor) -> tuple[Tensor, _Stages]:
        y_next, ks = super().step(rhs, t, h, y)
        ks = _Stages(ks)
        ks.ratio = None
        return y_next, ks

    def known_ratio(self, ks):
        return None if ks.ratio is None else ks.ratio.item()


_steps: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


def _compiled(function: Callable[..., Tensor], key: object, tableau: ButcherTableau, tolerances, cuda_graphs: bool):
    """The compiled step for a field, kept for the next solve of that field.

    Functions made anew each time, such as lambdas, share what was compiled where their code is the same; what they
    enclose is checked at every call.
    """
    plain = getattr(function, "__func__", function)
    owner = getattr(plain, "__code__", plain)
    kept = _steps.setdefault(owner, {})
    if key not in kept:
        step = _step_function(tableau, tolerances)
        # torch.compile counts recompilations by code object; these are different functions.
        step = types.FunctionType(
            step.__code__.replace(co_name=f"step_{len(kept)}"), step.__globals__, None, None, step.__closure__
        )
        options = {"triton.cudagraphs": True} if cuda_graphs else {}
        kept[key] = torch.compile(step, fullgraph=True, options=options)
    return kept[key]


def _step_function(tableau: ButcherTableau, tolerances: tuple | None) -> Callable[..., tuple]:
    """A step as a function of tensors: (function, args, (t, h), y, k_first) -> (y_next, ratio or None, *stages)."""

    def step(function, args, times, y, k_first):
        t, h = times[0], times[1]

        def combine(start: Tensor | None, weights, ks):
            for weight, k in zip(weights, ks, strict=False):
                if weight != 0.0:
                    term = (h * weight).to(y.dtype) * k
                    start = term if start is None else start + term
            return start

        ks = [function(t.to(y.dtype), y, *args) if k_first is None else k_first]
        for i in range(1, tableau.stages - tableau.fsal):
            ks.append(function((t + tableau.c[i] * h).to(y.dtype), combine(y, tableau.a[i], ks), *args))
        y_next = combine(y, tableau.b, ks)
        if tableau.fsal:
            ks.append(function((t + h).to(y.dtype), y_next, *args))
        if tolerances is None:
            return y_next, None, *ks
        rtol, atol, parts = tolerances
        with torch.no_grad():
            error = combine(None, tableau.b_error, ks) / (atol + rtol * torch.maximum(y.abs(), y_next.abs()))
            pieces = [error.reshape(-1)] if parts is None else [error[start:stop] for start, stop in parts]
            ratio = torch.stack([piece.square().mean().sqrt() for piece in pieces]).amax()
        return y_next, ratio, *ks

    return step
