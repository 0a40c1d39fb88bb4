"""Compiled solves, and steps compiled as a whole: field, stages and error estimate in one graph of `torch.compile`."""

from __future__ import annotations

import functools
import itertools
import logging
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, TypeGuard

import torch

from homojl.algorithms import (
    AbstractAdaptive,
    AbstractFixedPointAlgorithm,
    AbstractFixedStep,
    AbstractODEAlgorithm,
    ErrorNorm,
)
from homojl.algorithms.tableaus import ButcherTableau
from homojl.backends.base import FixedPoint, Integration, Task
from homojl.backends.pytorch.ahead import Ahead
from homojl.backends.pytorch.backend import TorchBackend
from homojl.backends.pytorch.fixed_point import METHODS, each_sample, find_fixed_point
from homojl.backends.pytorch.native import EVALUATIONS, STATES
from homojl.backends.pytorch.native.operations import Postponed
from homojl.backends.pytorch.steps import AbstractStepper, ExplicitStepper, Number, Step
from homojl.errors import ConfigError
from homojl.functions import AbstractMap, VectorField

try:
    from torch._inductor.custom_graph_pass import CustomGraphPass
except ImportError:  # PyTorch before 2.6, which takes any callable
    CustomGraphPass = object  # type: ignore[assignment, misc]

Tensor = torch.Tensor
_log = logging.getLogger(__name__)

StepFunction = Callable[..., tuple[Any, ...]]


class CompiledBackend(TorchBackend):
    """The PyTorch backend with compiled solves, for explicit methods: the same steps to rounding, for less time each.

    Of small states on the CPU whole solves are compiled, with their gradients: `native` has what that takes. The first
    solve of a field with states of one shape compiles for some seconds, unless another process has done so before; it
    needs a C++ compiler.

    Fields that have other operations, events, jumps and states elsewhere have their steps compiled one by one, in some
    seconds to a minute; the field must be one graph (no data-dependent branches, no calls out of PyTorch). What is not
    such a step, as the backward solve of a continuous adjoint, runs as in the PyTorch backend.

    Of small states, several steps are then computed at a time where no gradient is recorded. The last of them may turn
    out not to be needed: `stats.nfe` counts the evaluations of the steps that the solve has tried.

    Of equilibria the iterations of `Anderson` and `Broyden` between two evaluations of the map are compiled, once for
    all maps, for float32 and float64 on the CPU.

    Args:
        cuda_graphs: replay each step as a CUDA graph, for states on a GPU. It has not been run on one.
    """

    name: ClassVar[str] = "pytorch-compiled"

    def __init__(self, *, cuda_graphs: bool = False) -> None:
        self._cuda_graphs = cuda_graphs

    def integrate(self, task: Task, y0: Tensor) -> Integration:
        alone = task.each and torch.is_grad_enabled()  # a replay has the gradient, if there is one
        if task.event is None and not task.jumps and task.starts is None and not (task.each and task.keep_states):
            try:
                with torch.no_grad() if alone else nullcontext():
                    whole = self._whole(task, y0)
            except Postponed:  # nothing can be compiled now
                return TorchBackend().integrate(task, y0)
            if whole is not None:
                return whole
        return super().integrate(task, y0)

    def integrate_whole(self, task: Task, y0: Tensor) -> Integration | None:
        try:
            return self._whole(task, y0, keep=STATES)
        except Postponed:
            return None

    @staticmethod
    def _whole(task: Task, y0: Tensor, *, keep: int = EVALUATIONS) -> Integration | None:
        if not _is_explicit(task.algorithm) or not isinstance(task.f, VectorField):
            return None
        from homojl.backends.pytorch.native import ensemble, joint, whole  # they load what traces fields

        kind = ensemble.EnsembleSolver if task.each else joint.JointSolver
        return whole.integrate(kind, _owner(task.f.f), task, y0, keep)

    def find_fixed_point(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        from homojl.backends.pytorch.native.equilibrium import methods_for

        methods = {**METHODS, **methods_for(z0)}
        return find_fixed_point(f, z0, algorithm, functools.partial(each_sample, methods=methods))

    def stepper(self, task: Task, y0: Tensor) -> AbstractStepper:
        f = task.f
        watched = torch._C._len_torch_dispatch_stack() > 0  # PyTorch compiles nothing where a mode sees all operations
        if not _is_explicit(task.algorithm) or not isinstance(f, VectorField) or not f.opens:
            return super().stepper(task, y0)
        if y0.is_complex() or watched:
            return super().stepper(task, y0)
        return CompiledStepper(f, task, y0, cuda_graphs=self._cuda_graphs and y0.is_cuda)


def _is_explicit(algorithm: AbstractODEAlgorithm) -> TypeGuard[AbstractAdaptive | AbstractFixedStep]:
    return algorithm.explicit and algorithm.grid is None


class CompiledStepper(ExplicitStepper):
    """An explicit Runge-Kutta method whose step from one field is one compiled function.

    Args:
        field: the task's.
        task: the solve.
        y0: what the states look like.
        cuda_graphs: whether steps are CUDA graphs.
    """

    def __init__(self, field: VectorField, task: Task, y0: Tensor, *, cuda_graphs: bool) -> None:
        algorithm, norm = task.algorithm, task.norm
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
        self._step = _compiled(field.f, ("step", *key), step, cuda_graphs)
        self._ahead: Ahead | None = None
        if (
            isinstance(algorithm, AbstractAdaptive)
            and not cuda_graphs
            and known
            and Ahead.serves(y0, algorithm)
            and _owner(field.f) not in _alone
        ):
            control = algorithm.controller, algorithm.max_step
            # A field's numbers are compiled in: PyTorch 2.13 gets them wrong as inputs of a loop in a graph.
            attempts = Ahead.function(step, algorithm)
            run = _compiled(field.f, ("ahead", control, *key), attempts, dynamic=False)
            self._ahead = Ahead(run, task.ts[-1], self._tolerances)

    def step(self, f: Any, t: Number, h: Number, y: Tensor, first: Tensor | None = None, *, last: bool = True) -> Step:
        # The problem's function is checked at its first evaluation, and may turn out to be more than its operations.
        plain = _owner(self._field.f) in _plain
        if (first is None and not self._started) or not self._field.opens or plain:
            self._started = True
            return super().step(f, t, h, y, first, last=last)
        self._started = True
        evaluations = self.tableau.stages - (first is not None)
        self._field.calls += evaluations
        if self._ahead is not None and first is not None:
            try:
                attempt = self._ahead.attempt(self._field, t, h, y, first)
                return Step(t, h, y, attempt.y_next, attempt.ks, ratio=attempt.ratio)
            except Exception as error:
                if not _is_of_compiler(error):
                    raise
                if WRITES_BY_INDEX in str(error):
                    return self._step_by_step(t, h, y, first, last=last)
                # A loop in a graph allows less than a step does.
                _log.info("steps are compiled one by one: %s", error)
                _alone.add(_owner(self._field.f))
                self._ahead = None
        try:
            with _reported_in_one_line():
                step = self._step_alone(t, h, y, first)
        except _WritesByIndex:
            return self._step_by_step(t, h, y, first, last=last)
        if step.y_next.requires_grad:
            stats = self._field.stats  # a graph must not hold the field

            def count(_: Tensor) -> None:
                stats.n_vjp += evaluations

            step.y_next.register_hook(count)
        return step

    def _step_by_step(self, t: Number, h: Number, y: Tensor, first: Tensor | None, *, last: bool) -> Step:
        """As the PyTorch backend does it, from now on, for a field of that code."""
        _log.info("steps are not compiled: %s", WRITES_BY_INDEX)
        _plain.add(_owner(self._field.f))
        self._field.calls -= self.tableau.stages - (first is not None)
        return super().step(t=t, h=h, f=self._field, y=y, first=first, last=last)

    def _step_alone(self, t: float, h: float, y: Tensor, first: Tensor | None) -> Step:
        numbers = torch.tensor([t, h, *self._tolerances], dtype=torch.float64, device=y.device)
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        y_next, ratio, *ks = self._step(self._field.f, self._field.args, numbers, y, first)
        if self._cuda_graphs:  # the next replay writes into the same memory
            y_next, ratio, ks = y_next.clone(), ratio.clone(), [k.clone() for k in ks]
        return Step(t, h, y, y_next, ks, ratio=None if ratio is None else ratio.item())

    def side_by_side(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor] | None:
        blocks = [step.ks for step in steps if isinstance(step.ks, Tensor)]  # of the steps looked ahead at
        if len(blocks) < len(steps):
            return super().side_by_side(steps)
        return torch.stack([step.y for step in steps]), torch.stack(blocks)


def _is_of_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


WRITES_BY_INDEX = "an operation, or its gradient, writes by index"


class _WritesByIndex(Exception):
    """PyTorch's compiler met what `_RefuseWritesByIndex` refuses."""


class _RefuseWritesByIndex(CustomGraphPass):
    """Refuses graphs that write where a tensor of indices says, as the gradient of `y[:, order]` does.

    PyTorch 2.13's compiler joins such a loop on the CPU with others that read what it has not written yet: the
    values are wrong.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
            fixed = name in ("select_scatter", "slice_scatter", "diagonal_scatter", "as_strided_scatter")
            if not fixed and any(what in name for what in ("scatter", "index_put", "index_add", "index_copy", "put_")):
                raise RuntimeError(WRITES_BY_INDEX)

    def uuid(self) -> str:
        return "homojl: refuses writes by index, 1"


@contextmanager
def _reported_in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not _is_of_compiler(error):
            raise
        reason = str(error).strip().splitlines()[0]
        if WRITES_BY_INDEX in str(error):
            raise _WritesByIndex from None
        raise ConfigError(f"the field cannot be compiled: {reason}; use backend='pytorch'") from error


_functions: weakref.WeakKeyDictionary[Any, dict[Any, StepFunction]] = weakref.WeakKeyDictionary()
_count = itertools.count()
_alone: weakref.WeakSet[Any] = weakref.WeakSet()  # the owners of fields whose steps are only compiled one by one
_plain: weakref.WeakSet[Any] = weakref.WeakSet()  # of fields whose steps are not compiled


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
        options: dict[str, Any] = {"triton.cudagraphs": True} if cuda_graphs else {"cpp_wrapper": True}
        options["joint_custom_pre_pass"] = _RefuseWritesByIndex()
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
