"""Steps compiled as a whole: the field, the stages and the error estimate of a step in one graph of `torch.compile`."""

from __future__ import annotations

import itertools
import logging
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from homojl.algorithms import AbstractAdaptive, AbstractFixedStep, AbstractODEAlgorithm, ErrorNorm
from homojl.backends.base import OpenField, RightHandSide
from homojl.backends.pytorch.ahead import Ahead
from homojl.backends.pytorch.backend import TorchBackend
from homojl.backends.pytorch.evaluations import Counted
from homojl.backends.pytorch.schemes import AbstractScheme, ExplicitScheme, Part, Stages
from homojl.errors import ConfigError
from homojl.tableaus import ButcherTableau

Tensor = torch.Tensor
_log = logging.getLogger(__name__)

StepFunction = Callable[..., tuple[Any, ...]]


class CompiledBackend(TorchBackend):
    """The PyTorch backend with compiled steps, for explicit methods: the same steps to rounding, for less time each.

    The first solve of a field with states of one shape compiles, which takes seconds to a minute and a C++ compiler;
    the field must be one graph (no data-dependent branches, no calls out of PyTorch). What is not such a step, as the
    backward solve of a continuous adjoint or an equilibrium, runs as in the PyTorch backend.

    Of small states, several steps are computed at a time where no gradient is recorded. The last of them may turn out
    not to be needed: `stats.nfe` counts the evaluations of the steps that the solve has tried.

    Args:
        cuda_graphs: replay each step as a CUDA graph, for states on a GPU. It has not been run on one.
    """

    name: ClassVar[str] = "pytorch-compiled"
    opens: ClassVar[bool] = True

    def __init__(self, *, cuda_graphs: bool = False) -> None:
        self._cuda_graphs = cuda_graphs

    def scheme(
        self, rhs: RightHandSide, y0: Tensor, ts: tuple[float, ...], algorithm: AbstractODEAlgorithm, norm: ErrorNorm
    ) -> AbstractScheme:
        explicit = isinstance(algorithm, AbstractAdaptive | AbstractFixedStep) and isinstance(
            algorithm.tableau, ButcherTableau
        )
        plain = getattr(algorithm, "grid", None) is None and not y0.is_complex()
        if not isinstance(rhs, OpenField) or not explicit or not plain:
            return super().scheme(rhs, y0, ts, algorithm, norm)
        return CompiledScheme(rhs, y0, ts[-1], algorithm, norm, cuda_graphs=self._cuda_graphs and y0.is_cuda)


class CompiledStages(Sequence[Tensor]):
    """The stages of a compiled step, one by one or in one tensor, with its error ratio where it has one."""

    def __init__(self, ks: Sequence[Tensor] | Tensor, ratio: float | None = None) -> None:
        self.ks, self.ratio = ks, ratio
        self._len = ks.shape[0] if isinstance(ks, Tensor) else len(ks)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, i: Any) -> Any:
        return self.ks[i]


class CompiledScheme(ExplicitScheme):
    """An explicit Runge-Kutta method whose step from one field is one compiled function.

    Args:
        field: the right-hand side.
        y0: what the states look like.
        end: the time at which the solve ends.
        algorithm, norm: method and error norm.
        cuda_graphs: whether steps are CUDA graphs.
    """

    def __init__(
        self,
        field: OpenField,
        y0: Tensor,
        end: float,
        algorithm: AbstractODEAlgorithm,
        norm: ErrorNorm,
        *,
        cuda_graphs: bool,
    ) -> None:
        tableau = algorithm.explicit_tableau
        super().__init__(tableau)
        self._field, self._cuda_graphs, self._started = field, cuda_graphs, False
        self._tolerances = 0.0, 0.0
        known = False  # whether the step finds its error ratio itself
        if isinstance(algorithm, AbstractAdaptive) and norm.function is None:
            rtol, atol = algorithm.rtol, algorithm.atol
            if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor):
                self._tolerances, known = (float(rtol), float(atol)), True
        form = y0.shape, y0.stride(), y0.dtype, y0.device, y0.requires_grad, torch.is_grad_enabled()
        key = tableau, known, norm.parts, form, cuda_graphs
        step = step_function(tableau, norm if known else None)
        self._step = _compiled(field.function, ("step", *key), step, cuda_graphs)
        self._ahead: Ahead | None = None
        if (
            isinstance(algorithm, AbstractAdaptive)
            and not cuda_graphs
            and known
            and Ahead.serves(y0, algorithm)
            and _owner(field.function) not in _alone
        ):
            control = algorithm.controller, algorithm.max_step
            # A field's numbers are compiled in: PyTorch 2.13 gets them wrong as inputs of a loop in a graph.
            attempts = Ahead.function(step, algorithm)
            run = _compiled(field.function, ("ahead", control, *key), attempts, dynamic=False)
            self._ahead = Ahead(run, end, self._tolerances)

    def step(
        self,
        rhs: RightHandSide,
        t: float,
        h: float,
        y: Tensor,
        k_first: Tensor | None = None,
        *,
        last_stage: bool = True,
    ) -> tuple[Tensor, Stages]:
        if k_first is None and not self._started:  # the problem's function is checked at its first evaluation
            self._started = True
            y_next, ks = super().step(rhs, t, h, y)
            return y_next, CompiledStages(ks)
        self._started = True
        evaluations = self.tableau.stages - (k_first is not None)
        assert isinstance(rhs, Counted), type(rhs)
        rhs.count(evaluations)
        if self._ahead is not None and k_first is not None:
            try:
                attempt = self._ahead.attempt(self._field, t, h, y, k_first)
                return attempt.y_next, CompiledStages(attempt.ks, attempt.ratio)
            except Exception as error:
                if not _is_of_compiler(error):
                    raise
                # A loop in a graph allows less than a step does.
                _log.info("steps are compiled one by one: %s", error)
                _alone.add(_owner(self._field.function))
                self._ahead = None
        with _reported_in_one_line():
            y_next, ks = self._step_alone(t, h, y, k_first)
        if y_next.requires_grad:
            y_next.register_hook(lambda _: self._field.on_backward(evaluations))
        return y_next, ks

    def _step_alone(self, t: float, h: float, y: Tensor, k_first: Tensor | None) -> tuple[Tensor, CompiledStages]:
        numbers = torch.tensor([t, h, *self._tolerances], dtype=torch.float64, device=y.device)
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        y_next, ratio, *ks = self._step(self._field.function, self._field.args, numbers, y, k_first)
        if self._cuda_graphs:  # the next replay writes into the same memory
            y_next, ratio, ks = y_next.clone(), ratio.clone(), [k.clone() for k in ks]
        return y_next, CompiledStages(ks, None if ratio is None else ratio.item())

    def known_ratio(self, ks: Stages) -> float | None:
        assert isinstance(ks, CompiledStages), type(ks)
        return ks.ratio

    def side_by_side(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor] | None:
        stages = [part.ks.ks for part in parts if isinstance(part.ks, CompiledStages)]
        blocks = [ks for ks in stages if isinstance(ks, Tensor)]
        if len(blocks) < len(parts):
            return super().side_by_side(parts)
        return torch.stack([part.y for part in parts]), torch.stack(blocks)


def _is_of_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


@contextmanager
def _reported_in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_of_compiler(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the field cannot be compiled: {reason}; use backend='pytorch'") from error


_functions: weakref.WeakKeyDictionary[Any, dict[Any, StepFunction]] = weakref.WeakKeyDictionary()
_count = itertools.count()
_alone: weakref.WeakSet[Any] = weakref.WeakSet()  # the owners of fields whose steps are only compiled one by one


def _owner(function: Callable[..., Tensor]) -> Any:
    """What lives as long as what is compiled for a function is of use."""
    plain = getattr(function, "__func__", function)
    return getattr(plain, "__code__", plain)


def _compiled(
    function: Callable[..., Tensor],
    key: object,
    steps: StepFunction,
    cuda_graphs: bool = False,
    dynamic: bool | None = None,
) -> StepFunction:
    """`steps`, compiled for a field, kept under a key for the next solve of that field.

    Functions made anew each time, such as lambdas, share what was compiled where their code is the same; what they
    enclose is checked at every call.
    """
    kept = _functions.setdefault(_owner(function), {})
    if key not in kept:
        # torch.compile takes functions of one name for one function whose constants vary; these are different ones.
        code = steps.__code__.replace(co_name=f"{steps.__name__}_{next(_count)}")
        steps = types.FunctionType(code, steps.__globals__, None, None, steps.__closure__)
        options: dict[str, str | int | bool | Callable[..., Any]]
        options = {"triton.cudagraphs": True} if cuda_graphs else {"cpp_wrapper": True}
        kept[key] = torch.compile(steps, fullgraph=True, dynamic=dynamic, options=options)
    return kept[key]


def step_function(tableau: ButcherTableau, norm: ErrorNorm | None) -> StepFunction:
    """A step as a function of tensors.

    (function, args, (t, h, rtol, atol), y, k_first) -> (y_next, error ratio, *stages)

    Args:
        tableau: the method.
        norm: how the error is measured; None: the ratio is None.
    """

    def step(
        function: Callable[..., Tensor], args: tuple[Any, ...], numbers: Tensor, y: Tensor, k_first: Tensor | None
    ) -> tuple[Any, ...]:
        t, h, rtol, atol = numbers.unbind()

        def combine(start: Tensor | None, weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor:
            for weight, k in zip(weights, ks, strict=False):
                if weight != 0.0:
                    term = (h * weight).to(y.dtype) * k
                    start = term if start is None else start + term
            assert start is not None, "a row of weights that are all zero"
            return start

        ks = [function(t.to(y.dtype), y, *args) if k_first is None else k_first]
        for i in range(1, tableau.stages - tableau.fsal):
            ks.append(function((t + tableau.c[i] * h).to(y.dtype), combine(y, tableau.a[i], ks), *args))
        y_next = combine(y, tableau.b, ks)
        if tableau.fsal:
            ks.append(function((t + h).to(y.dtype), y_next, *args))
        if norm is None:
            return y_next, None, *ks
        with torch.no_grad():
            allowed = atol.to(y.dtype) + rtol.to(y.dtype) * torch.maximum(y.abs(), y_next.abs())
            assert tableau.b_error is not None, tableau
            error = combine(None, tableau.b_error, ks) / allowed
            parts = [error.reshape(-1)] if norm.parts is None else [error[start:stop] for start, stop in norm.parts]
            ratio = torch.stack([part.square().mean().sqrt() for part in parts]).amax()
        return y_next, ratio, *ks

    return step
