"""The base of all layers: a module around a solve, whose failure does not stop training, with a report on each call."""

from __future__ import annotations

import abc
import contextlib
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint, ImplicitAdjoint
from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    memory_of,
)
from homojl.errors import ConfigError, ConvergenceWarning
from homojl.marks import PerSample, Shared
from homojl.names import BATCHES
from homojl.nn.remembered import RememberedStep, with_memory
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solution import EquilibriumSolution, PathSolution, Solution, Stats, Status
from homojl.solving import solve
from homojl.splitting import AbstractMonotoneMap

Tensor = torch.Tensor
Algorithm = AbstractODEAlgorithm | AbstractFixedPointAlgorithm
Adjoint = AbstractODEAdjoint | AbstractFixedPointAdjoint
_WITHIN_AUTOCAST: ContextVar[str | None] = ContextVar("device type of the autocast around a layer", default=None)
_KEPT: ContextVar[list[Any] | None] = ContextVar("solutions that somebody wants", default=None)
LATE = 16  # terms for the loss that wait to be collected, at most


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a layer's last solve did: numbers alone, no graph and no module.

    Attributes:
        training: whether the layer was in training mode.
        status: the worst status among the samples.
        message: one line on what happened and what to try; empty on success.
        stats: what it cost; its backward fields are filled once a gradient has been taken.
        converged: which samples reached their end, (B,), bool on the CPU; of an ODE's joint solve (1,).
        residuals: norm(f(z) - z) / norm(f(z)) of each sample, (B,), float64 on the CPU; None for an ODE.
        iterations: of each sample, (B,), int64 on the CPU: iterations of an equilibrium, accepted steps of an ODE.
    """

    training: bool
    status: Status
    message: str
    stats: Stats
    converged: Tensor
    residuals: Tensor | None
    iterations: Tensor

    @property
    def nfe(self) -> int:
        """Evaluations of the block or field in the forward pass."""
        return self.stats.nfe

    @property
    def nfe_backward(self) -> int:
        """Evaluations and vector-Jacobian products in the backward pass; 0 before it."""
        return self.stats.nfe_backward + self.stats.n_vjp

    @property
    def residual(self) -> float:
        """The largest residual; nan for an ODE."""
        return float("nan") if self.residuals is None or not len(self.residuals) else float(self.residuals.max())

    @property
    def unconverged(self) -> int:
        """Samples that did not reach their end."""
        return int((~self.converged).sum())

    def __repr__(self) -> str:
        mode = "training" if self.training else "evaluation"
        residual = "" if self.residuals is None else f", residual {self.residual:.2g}"
        ended = f"{len(self.converged) - self.unconverged} of {len(self.converged)} converged"
        return f"<{self.stats.algorithm} in {mode}: {self.nfe} evaluations, {ended}{residual}>"


class AbstractLayer(nn.Module, abc.ABC):
    """A module around a solve.

    A solve that does not reach its end gives what it has reached, and one `ConvergenceWarning` for each layer and mode;
    `last` says what happened in every call. Nothing is solved under `torch.compile`: the graph breaks around the layer.
    Under `torch.export` the solve is written out, which takes equal steps or a fixed number of iterations.
    Under `torch.autocast` the layer works in float32 unless `precision` says otherwise.

    Args:
        algorithm, adjoint: for the layer's kind of problem.
        backend: where to solve, as of `homojl.solve`.
        precision: in which the block or field is evaluated: "full", "bfloat16" or "float16".
        strict: raise a SolveError where a solve does not reach its end, forward or backward.

    Attributes:
        algorithm, adjoint, backend, precision, strict: may be changed on a trained layer.
        last: of the last call; None before the first.
        remembered: what the algorithm's `StepMemory` has learned in training mode; None without one.
        part: where the samples given in training mode are part of a larger batch, the position of the first of them in
            it, and its size: random numbers are drawn for the larger one. None: they are all.

    Raises:
        ConfigError: for an algorithm or an adjoint of the other kind.
    """

    kinds: tuple[type, type]
    what: str

    def __init__(
        self,
        algorithm: Algorithm,
        adjoint: Adjoint,
        *,
        backend: str,
        precision: str,
        strict: bool,
        batch: str = "joint",
    ) -> None:
        super().__init__()
        for role, given, kind in zip(("algorithm", "adjoint"), (algorithm, adjoint), self.kinds, strict=True):
            if not isinstance(given, kind):
                name = type(self).__name__
                raise ConfigError(f"{name} solves {self.what}: its {role} must be one for that, got {given!r}")
        if batch not in BATCHES:
            raise ConfigError(f"batch must be 'joint' or 'per-sample', got {batch!r}")
        self.algorithm, self.adjoint = algorithm, adjoint
        self.backend, self.precision, self.strict, self.batch = backend, precision, strict, batch
        memory = memory_of(algorithm)
        self.remembered = None if memory is None else RememberedStep(memory)
        self.last: Report | None = None
        self.part: tuple[int, int] | None = None
        self._terms: deque[Tensor] = deque(maxlen=LATE)
        self._warned: set[bool] = set()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Solve; see the class."""
        if torch.compiler.is_exporting():
            return self._value(self._written_out(self.problem(*inputs, **options)))
        if torch.compiler.is_compiling():
            return _eagerly(self, inputs, options)
        return self._entered(*inputs, **options)

    @abc.abstractmethod
    def problem(self, *inputs: Any, **options: Any) -> ODEProblem | FixedPointProblem:
        """What is solved for these inputs, which are those of the layer."""

    @abc.abstractmethod
    def _written_out(self, problem: Any) -> Any:
        """The solution's value by a fixed number of operations."""

    def _value(self, solved: Any) -> Any:
        """The layer's value from the solution's."""
        return solved

    def _algorithm_now(self) -> Algorithm:
        """The algorithm with what this layer has learned for it, such as the remembered first step."""
        return with_memory(self.algorithm, self.remembered, learns=self.training)

    def _solved(self, *inputs: Any, **options: Any) -> Any:
        return self._value(self._solve(self.problem(*inputs, **options)).value)

    def _entered(self, *inputs: Any, **options: Any) -> Any:
        tensors = [x for x in pytree.tree_leaves((inputs, options)) if isinstance(x, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device):
            return self._solved(*inputs, **options)
        inputs, options = pytree.tree_map(_full, (inputs, options))
        within = _WITHIN_AUTOCAST.set(device)
        try:
            with torch.autocast(device, enabled=False):
                return self._solved(*inputs, **options)
        finally:
            _WITHIN_AUTOCAST.reset(within)

    def _solve(self, problem: ODEProblem | FixedPointProblem) -> Solution | EquilibriumSolution:
        """Solve, report and warn."""
        late = self.last is not None and self.last.stats.unconverged_backward
        adjoint: Any = self.adjoint
        if isinstance(adjoint, ImplicitAdjoint) and adjoint.throw and not self.strict:
            adjoint = replace(adjoint, throw=False)
        splits = isinstance(problem.f, AbstractMonotoneMap)  # which solvers take apart
        if (device := _WITHIN_AUTOCAST.get()) is not None and self.precision == "full" and not splits:
            problem = replace(problem, f=_OutsideAutocast(problem.f, device))
        solution = solve(
            problem,
            self._algorithm_now(),
            adjoint=adjoint,
            backend=self.backend,
            batch=self.batch,
            precision=self.precision,
            throw=self.strict,
        )
        assert not isinstance(solution, PathSolution)
        self.last = _report(solution, self.training)
        if (kept := _KEPT.get()) is not None:
            kept.append(solution)
        if not solution.status.ok or late:
            self._warn(late)
        return solution

    def _warn(self, late: int) -> None:
        last = self.last
        if last is None or _KEPT.get() is not None or self.training in self._warned:
            return
        self._warned.add(self.training)
        name, mode = type(self).__name__, "training" if self.training else "evaluation"
        if last.status.ok:
            what = f"the linear system of the gradient was not solved for {late} sample(s)"
        else:
            what = f"{last.unconverged} of {len(last.converged)} did not converge: {last.message}"
        _warn_caller(
            f"{name} in {mode}: {what}. What was reached is used. This is said once; layer.last tells of every call, "
            "and strict=True raises"
        )

    def _add_term(self, term: Tensor) -> None:
        """Have `regularization` hand out something to add to the loss."""
        self._terms.append(term)

    def regularization(self) -> Tensor | None:
        """What the calls since the last time add to the loss, 0-d; None: nothing."""
        terms = list(self._terms)
        self._terms.clear()
        return torch.stack(terms).sum() if terms else None

    def project_(self) -> None:
        """Put the parameters back where the layer is well posed; layers that need it do so in each call."""

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files have no graphs.
        return {**self.__dict__, "_terms": deque(maxlen=LATE)}

    def extra_repr(self) -> str:
        parts = [f"{self.algorithm}", f"adjoint={self.adjoint}"]
        parts += [f"batch={self.batch!r}"] if self.batch != "joint" else []
        parts += [f"precision={self.precision!r}"] if self.precision != "full" else []
        parts += ["strict=True"] if self.strict else []
        return ", ".join(parts)


def regularization(model: nn.Module) -> Tensor:
    """The sum of what the layers of a model add to the loss for the calls since the last time, 0-d; handed out once.

    Add it to the loss of each step; without such layers it is zero.
    """
    found = [term for layer in _layers(model).values() if (term := layer.regularization()) is not None]
    if found:
        return torch.stack([term.to(found[0].device, found[0].dtype) for term in found]).sum()
    like = next(model.parameters(), None)
    return torch.zeros(()) if like is None else like.new_zeros(())


def reports(model: nn.Module) -> dict[str, Report]:
    """What each layer of a model did when it was last called, by the layer's name in the model."""
    return {name: layer.last for name, layer in _layers(model).items() if layer.last is not None}


@contextlib.contextmanager
def solutions() -> Iterator[list[Solution | EquilibriumSolution]]:
    """The solutions of all solves of layers in the body, in their order: with their graphs, unlike reports.

    Nothing is warned of in the body, since whoever has the solutions has their status.
    """
    found: list[Solution | EquilibriumSolution] = []
    token = _KEPT.set(found)
    try:
        yield found
    finally:
        _KEPT.reset(token)


class _Handles:
    """What `watch` returns."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """End the watch."""
        for handle in self._handles:
            handle.remove()


def watch(model: nn.Module, log: Callable[[str, Report], None]) -> _Handles:
    """Have `log(name, report)` called after every call of each layer of a model, as for TensorBoard or another logger.

    Args:
        model: with layers of `homojl.nn`.
        log: gets the layer's name in the model, and its `last`.

    Returns:
        What has `remove()` to end it.
    """

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(layer: nn.Module, _inputs: Any, _value: Any) -> None:
            assert isinstance(layer, AbstractLayer)
            if layer.last is not None:
                log(name, layer.last)

        return after

    return _Handles([layer.register_forward_hook(hook(name)) for name, layer in _layers(model).items()])


def per_sample(tree: Any, rows: int) -> Any:
    """The tensors of an argument that have a row for each sample, marked as that."""

    def mark(x: Any) -> Any:
        return PerSample(x) if isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows else x

    return pytree.tree_map(mark, tree, is_leaf=lambda x: isinstance(x, PerSample | Shared))


def unmarked(args: Any) -> Any:
    """Arguments without `PerSample` and `Shared`."""

    def is_marked(x: Any) -> bool:
        return isinstance(x, PerSample | Shared)

    return pytree.tree_map(lambda x: x.value if is_marked(x) else x, args, is_leaf=is_marked)


def _layers(model: nn.Module) -> dict[str, AbstractLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AbstractLayer)}


def _warn_caller(message: str) -> None:
    """Warn at the line that called the network."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("homojl", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, ConvergenceWarning, stacklevel=level)


class _OutsideAutocast:
    """A function without autocast, in a backward pass within it too."""

    def __init__(self, function: Callable[..., Any], device: str) -> None:
        self._function, self._device = function, device

    def __call__(self, *args: Any) -> Any:
        with torch.autocast(self._device, enabled=False):
            return self._function(*args)


def _full(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x


def _report(solution: Solution | EquilibriumSolution, training: bool) -> Report:
    assert isinstance(solution.stats, Stats)
    ended = (training, solution.status, solution.message, solution.stats)
    if isinstance(solution, EquilibriumSolution):
        return Report(*ended, solution.converged, solution.residuals, solution.iterations)
    if solution.samples is None:
        steps = torch.tensor([solution.stats.n_accepted])
        return Report(*ended, torch.tensor([solution.status.ok]), None, steps)
    converged = torch.tensor([status.ok for status in solution.samples.statuses], dtype=torch.bool)
    return Report(*ended, converged, None, solution.samples.n_accepted)


def _eagerly(layer: AbstractLayer, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Leave the compiler."""
    return torch.compiler.disable(AbstractLayer._entered)(layer, *inputs, **options)
