"""What happened in a solve, and taking its accepted steps again: whole with a graph, or in pieces for a gradient."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast, overload

import numpy as np
import torch

from homojl.algorithms import AbstractODEAlgorithm
from homojl.backends.pytorch.implicit import ImplicitStepper
from homojl.backends.pytorch.rows import RowLayout
from homojl.backends.pytorch.steppers import stepper_for
from homojl.backends.pytorch.steps import Field, Number, Step, on
from homojl.errors import ConfigError
from homojl.functions import VectorField
from homojl.functions.products import gradients
from homojl.solution import StepSequence

Tensor = torch.Tensor

OTHER = (
    "f gives another value in the backward pass than in the solve, so this gradient would be wrong: draw random "
    "numbers, as of dropout, outside of it and pass them in args, as well as what changes in between, or use "
    "DirectAdjoint()"
)


class Round(NamedTuple):
    """Steps that were accepted together: one of the whole state, or one of each of some samples.

    Attributes:
        t, h: where they start and their signed sizes.
        fresh: whether the derivative at the start was evaluated anew, as after a jump.
        fractions, saves: of each state that was saved in them the fraction of the step in (0, 1], 1 being its end, and
            the position of its time among the save times after the first.
        samples: whose steps they are, (b,); None: of the whole state.
        at: for each saved state, which of the steps it lies in, (p,); None: there is one step.
    """

    t: Number
    h: Number
    fresh: bool
    fractions: Any
    saves: Any
    samples: np.ndarray | None = None
    at: np.ndarray | None = None


_NONE = StepSequence()


class _RoundsOf(Sequence[Round]):
    """The rounds of another backend's steps, made when first asked for: not in a solve that gives values alone."""

    def __init__(self, steps: StepSequence, jumps: Sequence[float]) -> None:
        self._steps, self._jumps = steps, jumps

    def __len__(self) -> int:
        return len(self._steps.starts)

    @overload
    def __getitem__(self, i: int) -> Round: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Round]: ...
    def __getitem__(self, i: int | slice) -> Round | Sequence[Round]:
        return self._made[i]

    @functools.cached_property
    def _made(self) -> list[Round]:
        steps = self._steps
        fractions: list[list[float]] = [[] for _ in steps.starts]
        for i, fraction in steps.saves:
            fractions[i].append(fraction)
        rounds, save = [], 0
        for i, (t, h) in enumerate(zip(steps.starts, steps.sizes, strict=True)):
            low, high = sorted((steps.starts[i - 1], t)) if i else (t, t)
            fresh = i == 0 or any(low <= s <= high for s in self._jumps)
            places = list(range(save, save + len(fractions[i])))
            rounds.append(Round(t, h, fresh, fractions[i], places))
            save += len(places)
        return rounds


@dataclass(eq=False)
class Record:
    """The accepted steps of a solve, in the order in which they were taken.

    Attributes:
        rounds: of them.
        states: those that the rounds start from, where they were asked for; None: they were not.
        layout: of the rows, where every sample has steps of its own; None: the whole state is one row.
        held: positions of save time and sample, (m,) each, wherever the saved state is the sample's last one; in a
            joint solve that stopped early the position of its last state.
        taken: the steps of another backend's solve, or of several integrations, of which no rounds are kept.
    """

    rounds: list[Round] = field(default_factory=list)
    states: list[Tensor] | None = None
    layout: RowLayout | None = None
    held: tuple[np.ndarray, np.ndarray] | None = None
    taken: StepSequence = _NONE

    def steps(self) -> StepSequence:
        """As the solution shows them; of a joint solve."""
        if self.layout is not None or self.taken is not _NONE or not self.rounds:
            return self.taken
        saves = [(i, f) for i, taken in enumerate(self.rounds) for f in taken.fractions]
        starts, sizes, *_ = zip(*self.rounds, strict=True)
        return StepSequence(starts, sizes, tuple(saves))

    @staticmethod
    def of(steps: StepSequence, states: Sequence[Tensor], jumps: Sequence[float], saves: int) -> Record:
        """The record of a joint solve that another backend took, with that many states saved after the first."""
        saved = len(steps.saves)
        held = (np.array([saved]), np.zeros(1, dtype=int)) if saved < saves else None
        rounds = cast("list[Round]", _RoundsOf(steps, jumps))  # which is read alone
        return Record(rounds, list(states) or None, held=held, taken=steps)


def _put(whole: Tensor | None, rows: Tensor | None, part: Tensor, like: Tensor) -> Tensor:
    if rows is None:
        return part
    return (torch.zeros_like(like) if whole is None else whole).index_copy(0, rows, part)


class Replay:
    """The accepted steps of a solve, to be taken again.

    Args:
        record, algorithm: of the solve.
        f: the field.
        like: the initial state.
    """

    def __init__(self, record: Record, algorithm: AbstractODEAlgorithm, f: VectorField, like: Tensor) -> None:
        self._record, self._stepper, self._f, self._like = record, stepper_for(algorithm), f, like

    def _again(
        self, i: int, y: Tensor, first: Tensor | None, *, last: bool = False, save: bool = True
    ) -> tuple[Step, list[Tensor], Tensor | None]:
        """The steps of round i, the states that were saved in them, and the rows of the batch; None: all in order.

        Args:
            i: which round.
            y: all states at its start, or in a gradient the rows' own.
            first: the derivatives there, where they are known.
            last: whether the next round needs the derivatives at the end.
            save: whether the saved states are wanted: one by one, or of rows in one tensor.
        """
        taken, layout, rows = self._record.rounds[i], self._record.layout, None
        if taken.samples is not None and len(taken.samples) != len(self._like):
            rows = on(self._like, taken.samples)
            y = y if len(y) == len(rows) else y.index_select(0, rows)
            first = None if first is None else first.index_select(0, rows)
        f: Field = self._f if layout is None else layout.field(self._f, rows)
        inside = save and any(x != 1.0 for x in taken.fractions)
        step = self._stepper.step(f, taken.t, taken.h, y, None if taken.fresh else first, last=last or inside)
        if step.status is not None:
            raise ConfigError(
                f"a step that the solve took cannot be taken again: {step.reason or step.status.value}; {OTHER}"
            )
        if not (save and len(taken.fractions)):
            return step, [], rows
        if taken.at is None:
            return step, self._stepper.inside(step, taken.fractions), rows
        return step, [self._stepper.rows_inside(step, taken.at, taken.fractions)], rows

    def whole(self, y0: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
        """The states that the steps start from, and the `count` saved ones, from y0 on, in the solve's grad mode."""
        record, layout = self._record, self._record.layout
        y = y0 if layout is None else layout.flatten(y0)
        first = self._at_start(y)
        starts: list[Tensor] = []
        pieces: list[Tensor] = []
        places: list[np.ndarray] = []
        for i, taken in enumerate(record.rounds):
            step, saved, rows = self._again(i, y, first, last=i + 1 < len(record.rounds))
            starts.append(step.y)
            pieces += saved
            if taken.at is not None and taken.samples is not None:
                places.append(taken.saves * len(y) + taken.samples[taken.at])
            y = _put(y, rows, step.y_next, y)
            carried = self._stepper.carried(step)
            first = None if carried is None else _put(first, rows, carried, y)
        if layout is None:
            return starts, pieces + [y] * (count - len(pieces))
        if record.held is not None and len(record.held[0]):
            saves, samples = record.held
            pieces.append(y.index_select(0, on(y, samples)))
            places.append(saves * len(y) + samples)
        order = on(y, np.argsort(np.concatenate(places)))
        whole = torch.cat(pieces).index_select(0, order).view(count, *y.shape)
        return starts, [layout.restore(whole[i]) for i in range(count)]  # not unbound, so that they may be written into

    def _at_start(self, y: Tensor) -> Tensor | None:
        """The derivative at the start of every sample that took a step, where rows carry it on."""
        record = self._record
        if record.layout is None or not record.rounds or not self._stepper.carries:
            return None
        t = np.full(len(y), np.nan)
        for taken in reversed(record.rounds):
            t[taken.samples] = taken.t
        (going,) = np.nonzero(~np.isnan(t))
        rows = None if len(going) == len(y) else on(y, going)
        start = y if rows is None else y.index_select(0, rows)
        return _put(None, rows, record.layout.field(self._f, rows)(on(y, t[going]), start), y)

    def states_from(self, y: Tensor, start: int, stop: int) -> Tensor:
        """The state at which step `stop` starts, from that of step `start`; of a joint solve."""
        first = None
        for i in range(start, stop):
            step, *_ = self._again(i, y, first, last=i + 1 < stop, save=False)
            y, first = step.y_next, self._stepper.carried(step)
        return y

    def backwards(
        self,
        starts: Iterable[tuple[int, Tensor]],
        wrt: Sequence[Tensor],
        saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradient, one round after the other, the last one first, each with a graph of its own.

        Args:
            starts: the rounds' numbers and the states they start from, in that order.
            wrt: tensors that the field depends on.
            saved, cotangents: states that the solve saved, and the gradients with respect to them.

        Returns:
            With respect to the initial state and to each of `wrt`; None for zero.

        Raises:
            ConfigError: if the field does not give the values that it gave in the solve.
        """
        record, layout, like = self._record, self._record.layout, self._like
        totals: list[Tensor | None] = [None] * len(wrt)
        own = [False] * len(wrt)  # which totals nothing else refers to: autograd may give one tensor for two inputs
        costate: Tensor | None = None
        flat: Tensor | None = None  # all cotangents of rows
        if layout is not None:
            like = layout.flatten(like)
            costate, flat = self._of_rows(cotangents, like)
        elif record.held is not None:
            costate = cotangents[int(record.held[0][0])]
        checked = False
        for i, y in starts:
            taken = record.rounds[i]
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                # A view: hooks of modules may not be on a leaf in `autograd.grad`.
                step, outputs, rows = self._again(i, y.view_as(y), None)
            if not checked and outputs:
                self._check(outputs, step, taken, saved)
                checked = True
            if flat is not None and taken.samples is not None and outputs:
                places = on(like, taken.saves * len(like) + taken.samples[taken.at])
                pairs = [(outputs[0], flat.index_select(0, places))]
            else:
                pairs = [(o, c) for o, s in zip(outputs, taken.saves, strict=True) if (c := cotangents[s]) is not None]
            if costate is not None:
                pairs.append((step.y_next, costate if rows is None else costate.index_select(0, rows)))
            if not pairs:
                continue
            before, *grads = gradients([o for o, _ in pairs], [y, *wrt], [c for _, c in pairs])
            costate = _put(costate, rows, torch.zeros_like(y) if before is None else before, like)
            for j, grad in enumerate(grads):
                if grad is None:
                    continue
                total = totals[j]
                totals[j] = grad if total is None else total.add_(grad) if own[j] else total + grad
                own[j] = total is not None
        return costate if layout is None or costate is None else layout.restore(costate), totals

    def _of_rows(self, cotangents: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients by the rows' last states, (B, n), and by all saved ones, (saves B, n)."""
        layout, held = self._record.layout, self._record.held
        assert layout is not None
        flat = torch.cat([torch.zeros_like(like) if c is None else layout.flatten(c) for c in cotangents])
        costate = torch.zeros_like(like)
        if held is not None and len(held[0]):
            saves, samples = held
            costate.index_add_(0, on(like, samples), flat.index_select(0, on(like, saves * len(like) + samples)))
        return costate, flat

    def _check(self, outputs: Sequence[Tensor], step: Step, taken: Round, saved: Sequence[Tensor]) -> None:
        """That one saved state is what it was in the solve, to rounding."""
        save = int(taken.saves[0])
        now, before = outputs[0].detach(), saved[save]
        if taken.at is not None:
            assert self._record.layout is not None
            assert taken.samples is not None
            now = now[0]
            before = self._record.layout.flatten(before)[int(taken.samples[taken.at[0]])]
        if torch.equal(now, before):  # as PyTorch's own steps are
            return
        eps, size = torch.finfo(now.dtype).eps, step.y.abs().max() + step.y_next.abs().max()
        change = abs(np.asarray(taken.h)).max() * step.ks[0].abs().max()
        # What another backend solves an implicit step to is not what PyTorch does.
        near = eps**0.5 if isinstance(self._stepper, ImplicitStepper) else 100 * eps
        if not ((now - before).abs().max() <= near * size + eps**0.5 * change).item():  # nor where it is NaN
            raise ConfigError(OTHER)
