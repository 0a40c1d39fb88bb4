"""Solves in which every sample has its own steps, and their gradients.

Both adjoints take the accepted steps once more, round by round, with a graph: rejected tries, and what a field may
return in them, never reach a gradient.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from homojl.adjoints.inputs import Inputs, check_dependencies, check_form, gradients, rows_of
from homojl.adjoints.ode import CheckpointAdjoint, DirectAdjoint
from homojl.adjoints.recomputing import AbstractODEAdjoint
from homojl.algorithms import AbstractAdaptive, ErrorNorm, memory_of, with_first_step
from homojl.backends.pytorch.per_sample import (
    FlatField,
    Round,
    RowsField,
    SampleIntegration,
    flat_field,
    indices,
    integrate_samples,
    states_inside,
    step_rows,
)
from homojl.errors import ConfigError
from homojl.problems import ODEProblem
from homojl.solution import Solution, Stats

Tensor = torch.Tensor

_SOME_ROWS = (
    "f was given {} of {} samples, the others having ended; pass tensors with a row for each sample in args, so that "
    "the same rows of them are taken, rather than from f itself"
)


def solve_per_sample(
    problem: ODEProblem, algorithm: AbstractAdaptive, adjoint: AbstractODEAdjoint, stats: Stats
) -> Solution:
    """`solve` with `batch="per-sample"`, on the PyTorch backend.

    Raises:
        ConfigError: for a problem that has no steps of each sample's own; `check_per_sample` has the methods.
    """
    _check_problem(problem)
    started = time.perf_counter()
    field = _RowField(problem, stats)
    keep_states = field.wanted and isinstance(adjoint, CheckpointAdjoint)
    with torch.no_grad():
        first = with_first_step(algorithm, problem.ts)
        result = integrate_samples(field.checked(adjoint), problem.y0, problem.ts, first, keep_states=keep_states)
    memory = memory_of(algorithm)
    if memory is not None and result.status.ok:
        memory.learn(problem.ts, result.typical_first_step)
    saved = result.saved
    if keep_states:
        saved = _Recomputed.apply(_Solve(field, algorithm, result, problem.y0.ndim), problem.y0, *field.inputs)
    elif field.wanted:
        saved = _replay(field, algorithm, result, problem)
    stats.seconds = time.perf_counter() - started
    samples = result.samples
    most = int((samples.n_accepted + samples.n_rejected).argmax())
    stats.nfe = result.nfe
    stats.n_accepted, stats.n_rejected = int(samples.n_accepted[most]), int(samples.n_rejected[most])
    return Solution(
        ts=torch.tensor(problem.ts, dtype=torch.float64),
        states=(problem.y0, *(result.layout.restore(y) for y in saved.unbind())),
        status=result.status,
        stats=stats,
        message=result.message,
        samples=samples,
    )


_WHAT = "batch='per-sample'"


def check_per_sample(algorithm: object, adjoint: object) -> None:
    """Raise a ConfigError for methods that have no steps of each sample's own."""
    if not isinstance(algorithm, AbstractAdaptive) or algorithm.tableau is None:
        raise ConfigError(f"{_WHAT} needs an adaptive explicit method such as Tsit5(), got {algorithm!r}")
    if not isinstance(adjoint, DirectAdjoint | CheckpointAdjoint):
        raise ConfigError(f"{_WHAT} has gradients by DirectAdjoint() or CheckpointAdjoint(), got {adjoint!r}")
    refused = {
        "a norm of one's own": algorithm.norm != ErrorNorm(),
        "tolerances in tensors": isinstance(algorithm.rtol, Tensor) or isinstance(algorithm.atol, Tensor),
        "an observer": algorithm.observer is not None,
        "a controller's floor": algorithm.step_control.floor > 0,
        "max_states": isinstance(adjoint, CheckpointAdjoint) and adjoint.max_states is not None,
    }
    _refuse(refused)


def _check_problem(problem: ODEProblem) -> None:
    if problem.y0.ndim == 0:
        raise ConfigError(f"{_WHAT} needs a first dimension of y0 that counts samples; write y0[None] for one sample")
    if getattr(problem.f, "native_to", None) is not None:
        raise ConfigError(f"{_WHAT} needs a field in PyTorch, got a {type(problem.f).__name__}")
    refused = {
        "an event": problem.event is not None,
        "discontinuities": bool(problem.discontinuities),
        "gradients with respect to ts": problem.times is not None and torch.is_grad_enabled(),
    }
    _refuse(refused)


def _refuse(refused: dict[str, bool]) -> None:
    for name, asked in refused.items():
        if asked:
            raise ConfigError(f"{_WHAT} does not go with {name}; use batch='joint'")


class _RowField(Inputs):
    """The field at some rows of the batch, with their arguments.

    Attributes:
        stats: what counts the evaluations of gradients.
        wanted: whether a gradient is.
    """

    def __init__(self, problem: ODEProblem, stats: Stats) -> None:
        super().__init__(problem.f, problem.args, problem.params)
        self._like, self.stats, self._recording = problem.y0, stats, torch.is_grad_enabled()
        self.wanted = self._recording and any(t.requires_grad for t in (problem.y0, *self.inputs))

    def given(self, args: Sequence[Any]) -> RowsField:
        """The field with those arguments, of which it takes the rows."""
        count, chosen_for, chosen = len(self._like), None, list(args)

        def f(t: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal chosen_for, chosen
            if rows is not chosen_for:
                chosen_for, chosen = rows, rows_of(args, rows, count)
            try:
                dy = self._f(t, y, *chosen)
            except (RuntimeError, IndexError) as error:
                if rows is not None:
                    error.add_note(_SOME_ROWS.format(len(y), count))
                raise
            if rows is not None and getattr(dy, "shape", None) != y.shape:
                raise ConfigError(f"f returned the shape {tuple(dy.shape)}; {_SOME_ROWS.format(len(y), count)}")
            check_form("f", dy, "y0", y)
            return dy

        return f

    def checked(self, adjoint: AbstractODEAdjoint) -> RowsField:
        """For the forward solve: the first call finds out whether the field depends on tensors that are not listed."""
        plain, asked = self.given(self._args), not self._recording

        def f(t: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal asked
            if asked:
                return plain(t, y, rows)
            asked = True
            args, leaves = self.leaves()
            with torch.enable_grad():
                dy = self.given(args)(t, y, rows)
            if isinstance(adjoint, CheckpointAdjoint):
                check_dependencies("f", dy, leaves, instead="DirectAdjoint()")
            self.wanted = self.wanted or dy.requires_grad
            return dy.detach()

        return f

    def recorded(self, args: Sequence[Any] | None = None) -> RowsField:
        """For a replay: with a graph, from those arguments or the problem's own; counts what the gradient costs."""
        plain = self.given(self._args if args is None else args)

        def count(_: Tensor) -> None:
            self.stats.n_vjp += 1

        def f(t: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
            self.stats.nfe_backward += 1
            dy = plain(t, y, rows)
            if dy.requires_grad:
                dy.register_hook(count)
            return dy

        return f


class _Replay:
    """The accepted steps of a solve, each round of them on its own rows of flat states (B, n)."""

    def __init__(self, f: RowsField, algorithm: AbstractAdaptive, result: SampleIntegration, ndim: int) -> None:
        self._f, self._layout, self._ndim = f, result.layout, ndim
        self.tableau, self.count = algorithm.explicit_tableau, result.saved.shape[1]

    def rows(self, taken: Round, like: Tensor) -> Tensor | None:
        """Positions of the round's samples in the batch, (b,); None where they are all of it, in its order."""
        whole = len(taken.samples) == self.count  # the order is kept when rows leave
        return None if whole else indices(taken.samples, like)

    def rhs(self, rows: Tensor | None) -> FlatField:
        """The field at those rows, for flat states."""
        return flat_field(self._f, self._layout, self._ndim, rows)

    def step(
        self, taken: Round, rows: Tensor | None, y: Tensor, k_first: Tensor | None = None, *, last_stage: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """The states that the round's steps end at, (b, n), and their stages."""
        return step_rows(self.rhs(rows), self.tableau, taken.starts, taken.sizes, y, k_first, last_stage=last_stage)


def _replay(field: _RowField, algorithm: AbstractAdaptive, result: SampleIntegration, problem: ODEProblem) -> Tensor:
    """The saved states (T, B, n), with the graph of the accepted steps."""
    replay = _Replay(field.recorded(), algorithm, result, problem.y0.ndim)
    y = result.layout.flatten(problem.y0)
    k: Tensor | None = None
    if replay.tableau.fsal:  # not where no step was accepted: the field's value there may be NaN
        (going,) = np.nonzero(result.samples.n_accepted.numpy())
        rows = None if len(going) == replay.count else indices(going, y)
        first = replay.rhs(rows)(
            y.new_full((len(going),), problem.ts[0]), y if rows is None else y.index_select(0, rows)
        )
        k = _put(torch.zeros_like(y), rows, first)
    places, pieces = [], []
    for number, taken in enumerate(result.rounds):
        rows = replay.rows(taken, y)
        y_start, k_start = y, k
        if rows is not None:
            y_start, k_start = y.index_select(0, rows), None if k is None else k.index_select(0, rows)
        inside = bool((taken.fractions != 1.0).any())
        y_next, ks = replay.step(taken, rows, y_start, k_start, last_stage=inside or number + 1 < len(result.rounds))
        if len(taken.at):
            pieces.append(states_inside(replay.tableau, taken.sizes, y_start, y_next, ks, taken.at, taken.fractions))
            places.append(taken.saves * replay.count + taken.samples[taken.at])
        y = _put(y, rows, y_next)
        if replay.tableau.fsal:
            whole = torch.zeros_like(y) if k is None else k
            k = _put(whole, rows, ks[-1]) if len(ks) == replay.tableau.stages else None
    saves, samples = result.held
    if len(saves):
        pieces.append(y.index_select(0, indices(samples, y)))
        places.append(saves * replay.count + samples)
    order = np.argsort(np.concatenate(places))
    return torch.cat(pieces).index_select(0, indices(order, y)).view_as(result.saved)


def _put(whole: Tensor, rows: Tensor | None, part: Tensor) -> Tensor:
    return part if rows is None else whole.index_copy(0, rows, part)


@dataclass(eq=False)
class _Solve:
    """What the forward pass hands to the backward pass."""

    field: _RowField
    algorithm: AbstractAdaptive
    result: SampleIntegration
    ndim: int


class _Recomputed(torch.autograd.Function):
    """The saved states (T, B, n) as a function of y0 and the field's inputs, by `CheckpointAdjoint`."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, y0: Tensor, *inputs: Tensor) -> Tensor:
        ctx.solve = solve
        return solve.result.saved.detach()  # another object: what the context holds must not hold the context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; the graph would silently lack this solve
            raise ConfigError("CheckpointAdjoint gives first derivatives only; use DirectAdjoint() for second ones")
        started = time.perf_counter()
        grads = _backward(ctx.solve, cotangent)
        ctx.solve.field.stats.seconds_backward += time.perf_counter() - started
        return None, *grads


def _backward(solve: _Solve, cotangent: Tensor) -> list[Tensor]:
    """Gradients with respect to y0 and each of the field's inputs; `cotangent` is the saved states', (T, B, n)."""
    field, result = solve.field, solve.result
    args, wrt = field.leaves()
    replay = _Replay(field.recorded(args), solve.algorithm, result, solve.ndim)
    totals = [torch.zeros_like(w) for w in wrt]
    costate, given = torch.zeros_like(cotangent[0]), cotangent.flatten(0, 1)

    def of_saves(saves: np.ndarray, samples: np.ndarray) -> Tensor:
        return given.index_select(0, indices(saves * replay.count + samples, given))

    saves, samples = result.held
    if len(saves):
        costate.index_add_(0, indices(samples, costate), of_saves(saves, samples))
    for taken in reversed(result.rounds):
        rows = replay.rows(taken, costate)
        inside = bool((taken.fractions != 1.0).any())
        with torch.enable_grad():
            assert taken.states is not None, "the solve was asked to keep them"
            y = taken.states.detach().requires_grad_()
            y_next, ks = replay.step(taken, rows, y, last_stage=inside)
            outputs, seeds = [y_next], [costate if rows is None else costate.index_select(0, rows)]
            if len(taken.at):
                outputs.append(states_inside(replay.tableau, taken.sizes, y, y_next, ks, taken.at, taken.fractions))
                seeds.append(of_saves(taken.saves, taken.samples[taken.at]))
        before, *grads = gradients(outputs, [y, *wrt], seeds)
        costate = before if rows is None else costate.index_copy_(0, rows, before)
        for total, grad in zip(totals, grads, strict=True):
            total.add_(grad)
    return [result.layout.restore(costate), *totals]
