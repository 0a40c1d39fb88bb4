"""The contract with a user's function: every evaluation, recording and product of every solve goes through here.

What is seen to: the form, dtype and device of what it returns; that it writes neither into the state that it is given
nor into what it has returned before; functions that differentiate by their state; a lower precision; states of several
tensors; which arguments belong to the samples of a batch; and every tensor that it depends on, so that a gradient can
evaluate it again at the values of the solve.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from homojl.errors import ConfigError
from homojl.functions.base import AbstractField, AbstractMap
from homojl.functions.dependent import Dependent
from homojl.functions.products import Linearisation, dense_zeros, gradients

Tensor = torch.Tensor


DRAW_ONCE = (
    "draw masks of dropout and other random numbers once and pass them in args, and take spectral_norm from "
    "torch.nn.utils.parametrizations, under torch.nn.utils.parametrize.cached()"
)
_ASKED = 3  # rows that are evaluated by themselves
_AT_ONCE = 2**16  # elements of states, of which several values are compared at a time


class Mixes(ConfigError):
    """A function whose samples depend on each other."""


class UserFunction(Dependent):
    """A problem's function with everything that it depends on, and at some rows of the batch.

    Attributes:
        separates: what `separable` has found; None: nothing so far.
        mixes: whether it has found that samples depend on each other.
    """

    separates: bool | None = None
    mixes = False

    @torch.no_grad()
    def separable(self, inputs: tuple[Tensor, ...], value: Tensor, staying: Tensor) -> bool:
        """Whether some rows of the batch may be evaluated without the others; asked before rows leave.

        The function at a few rows is compared with those rows of its value. An argument that is not marked and has as
        many rows as the batch is taken for the samples', or else for a shared one, whichever gives the same value.

        Args:
            inputs: of the whole batch: times, each sample its own, and states.
            value: of the function there.
            staying: positions of some rows that stay, (b,).

        Returns:
            False: go on with the whole batch, now at least.

        Raises:
            ConfigError: if a sample's value depends on the others; `Mixes`.
        """
        if self.mixes:
            self._mix()
        if self.separates is not None:
            return self.separates
        some = staying[:_ASKED]
        expected, whole = value.index_select(0, some), tuple(x[some] for x in inputs)  # which keeps the memory format
        sized = self.arguments.of_length(len(self._like))
        unmarked = [mark is None and fits for mark, fits in zip(self._marks, sized, strict=True)]
        agreeing = []
        open_count = sum(unmarked)
        same = [(True,) * open_count, (False,) * open_count][: 1 + bool(open_count)]
        for choice in itertools.product((True, False), repeat=open_count) if open_count <= 3 else same:
            chosen = iter(choice)
            marks = [next(chosen) if open else bool(mark) for open, mark in zip(unmarked, self._marks, strict=True)]
            try:
                agreeing += [marks] * self._agrees(self._tried(whole, self.arguments.at(some, marks)), expected)
            except Exception:  # as of shapes that do not fit, which is an answer
                continue
        if len(agreeing) > 1 and len(value) > len(some):
            return False  # nothing tells the two apart here
        if agreeing:
            self._marks = list(agreeing[0])
            if len(some) == 1:
                some = torch.cat([some, torch.full_like(some, 0 if int(some[0]) else len(value) - 1)])
            rows = tuple(x[some] for x in inputs)
            if len(value) > 1 and self._couples(rows, self.arguments.at(some, self._marks), value[some]):
                self._mix()
            self._rows, self.separates = None, True
            return True
        self.separates = False
        if self._couples(inputs, self.args, value):
            self._mix()
        warn_caller(
            f"{self._names[0]} cannot be evaluated for some samples alone, so those that have ended go on being "
            "evaluated; pass tensors with a row for each sample in args, as hj.PerSample(x)"
        )
        return False

    def _couples(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...], value: Tensor) -> bool:
        """Whether the values of some rows change with the states of others, in evaluations of one size.

        Of one size, so that those of separate rows are the same to the bit.

        Args:
            inputs: times, each row its own, and states.
            args: of those rows.
            value: of the function there.

        Raises:
            ConfigError: if the function is not deterministic.
        """
        *times, y = inputs
        # At states that differ from each other, which those of a solve's start may not.
        column = (-1, *[1] * (y.ndim - 1))
        size, real = 1 + y.abs(), y.dtype.to_real()
        moved = y + size * torch.linspace(0.1, 0.2, len(y), dtype=real, device=y.device).view(column)
        pairs = [(moved, moved + 0.3 * size)]
        if not times:  # a map's values may be in its domain where others are not
            pairs.append((y, value))
        for states, others in pairs:
            try:
                return self._moves(times, states, others, args)
            except ConfigError:
                raise
            except Exception:  # as of a map that checks what it is given
                continue
        return False

    def _moves(self, times: Sequence[Tensor], states: Tensor, others: Tensor, args: tuple[Any, ...]) -> bool:
        """Whether values at some rows change where other rows have other states."""
        position = torch.arange(len(states), device=states.device)
        # Of few rows each is held while the others move; of many, halves.
        if len(states) <= _ASKED:
            groups = [position == i for i in range(len(states))]
        else:
            groups = [position % 2 == 0, 2 * position < len(states)]
            groups += [~group for group in groups]
        before = self._tried((*times, states), args)
        for held in torch.stack(groups).split(len(groups) if states.numel() <= _AT_ONCE else 1):
            column = held.view(*held.shape, *[1] * (states.ndim - 1))
            mixed = [self._tried((*times, x), args) for x in torch.where(column, states, others)]
            if _differ(before, torch.stack(mixed), held):
                if _differ(before, self._tried((*times, states), args)[None], torch.ones_like(held[:1])):
                    raise ConfigError(
                        f"{self._names[0]} is not deterministic: it has two values at one state; {DRAW_ONCE}"
                    )
                return True
        return False

    def _mix(self) -> NoReturn:
        self.separates, self.mixes = False, True
        raise Mixes(
            f"{self._names[0]} mixes the samples of the batch, as BatchNorm in training mode does: each sample's value "
            "depends on the others"
        )

    def like_rows_of(self, other: UserFunction) -> None:
        """Take the samples' arguments for what the same function at other tensors has found them to be."""
        self._marks, self.separates, self.mixes, self._rows = other._marks, other.separates, other.mixes, None

    def _agrees(self, value: Tensor, expected: Tensor) -> bool:
        if value.shape != expected.shape:
            return False
        eps = torch.finfo(self._precision or expected.dtype).eps
        scale = float(expected.abs().max())
        return bool(((value - expected).abs().max() <= 8 * eps**0.5 * scale).item()) if scale > 0 else not value.any()


def _differ(a: Tensor, others: Tensor, rows: Tensor) -> bool:
    """Whether some of `others` (k, B, ...) differ from a (B, ...) at their rows (k, B), by more than rounding."""
    change = (others - a).abs().nan_to_num().reshape(*others.shape[:2], -1).amax(2)
    scale = a.abs().nan_to_num().reshape(len(a), -1).amax(1)
    return bool((rows & (change > 64 * torch.finfo(a.dtype).eps * scale)).any())


def warn_caller(message: str) -> None:
    """Warn at the line that called homojl."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("homojl", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


class VectorField(UserFunction, AbstractField):
    """f(t, y, *args)."""

    def linearised(self, t: Tensor, y: Tensor) -> Linearisation:
        """At a time and a state."""
        f = self._for_products()
        return Linearisation(lambda z: f._carefully((t, z), f.args), y, self.stats)

    def counted(self, value: Tensor) -> Tensor:
        if self.counting and value.requires_grad:
            value = value.view_as(value)
            value.register_hook(self._count_product)
        return value

    def vjp(self, t: Tensor, y: Tensor, cotangent: Tensor, wrt: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """f(t, y), and cotangent^T df/d(y, *wrt), zeros where there is no dependence.

        Where y or the cotangent requires a gradient, so do the results.
        """
        again = torch.is_grad_enabled() and (y.requires_grad or cotangent.requires_grad)
        self.stats.nfe_backward += 1
        self.stats.n_vjp += 1
        with torch.enable_grad():
            y = y if again and y.requires_grad else y.detach().requires_grad_()
            dy = self._carefully((t, y.view_as(y)), self.args)
        self.look_behind(dy, y)
        wrt = [y, *wrt]
        grads = gradients([dy], wrt, [cotangent], again=again)
        zeroed = [dense_zeros(x) if g is None else g.to_dense() for g, x in zip(grads, wrt, strict=True)]
        return dy if again else dy.detach(), zeroed


class MapFunction(UserFunction, AbstractMap):
    """f(z, *args)."""

    def __call__(self, z: Tensor, rows: Tensor | None = None) -> Tensor:  # type: ignore[override]  # a map has no time
        return super().__call__(z, rows=rows)

    def watched(self, z: Tensor, rows: Tensor | None) -> Tensor:
        """An evaluation of a gradient's own, which is not counted."""
        return self._carefully((z,), self.args_at(rows))

    def unwatched(self, z: Tensor) -> Tensor:
        """The function alone, as inside `torch.func`'s transforms, whose tensors have no memory to be looked at."""
        return self._called((z.clone(),), self.args)

    def linearised(self, z: Tensor, rows: Tensor | None = None) -> Linearisation:
        """At some rows of the batch."""
        f = self._for_products()
        return Linearisation(lambda z: f._carefully((z,), f.args_at(rows)), z, self.stats)
