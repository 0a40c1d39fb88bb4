"""Several attempts of a compiled step in one graph, run ahead of the loop over steps.

What is left of a compiled step's time where the state is small is the cost of entering the graph. Here a graph holds
several attempts and the arithmetic of the step-size control between them, so that each goes on from where the loop is
going to be. The loop is the eager backend's; it asks for one step after the other and is given what is there. A step
that was foreseen otherwise, as after an event or a jump of the field, is computed anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from homojl.algorithms import AbstractAdaptive
from homojl.backends.pytorch.control import LEAST_RATIO, after_first, after_rejection, after_step
from homojl.backends.pytorch.steps import SMALL
from homojl.functions import VectorField

try:
    from torch._higher_order_ops.scan import scan
except ImportError:  # PyTorch before 2.6; steps are then compiled one by one
    scan = None  # type: ignore[assignment]

Tensor = torch.Tensor

_FIRST, _MOST = 4, 32  # attempts looked ahead at first, doubled each time, and at most
_SAME = 1e-12  # relative difference of times and sizes that rounding may make


class Attempt(NamedTuple):
    """A step of size h from (t, y), with what it came to: error ratio, state, and stages in one tensor."""

    t: float
    h: float
    ratio: float
    y: Tensor
    y_next: Tensor
    ks: Tensor


class Ahead:
    """The attempts of one solve.

    Args:
        run: `function`, compiled.
        end: the time at which the solve ends.
        tolerances: relative and absolute.
    """

    def __init__(self, run: Callable[..., tuple[Tensor, ...]], end: float, tolerances: tuple[float, float]) -> None:
        self._run, self._end, self._tolerances = run, end, tolerances
        self._foreseen: deque[Attempt] = deque()
        self._many = _FIRST
        self._last: Attempt | None = None
        self._before = 0.0, -1.0  # size and error ratio of the last accepted step; a ratio below zero: there is none

    @staticmethod
    def serves(y: Tensor, algorithm: AbstractAdaptive) -> bool:
        """Whether attempts can be foreseen, and entering a graph is a cost that matters."""
        return (
            scan is not None
            and algorithm.explicit_tableau.fsal
            and algorithm.explicit_tableau.dense is not None
            and algorithm.controller.floor == 0.0
            and algorithm.controller.older_exponent(algorithm.order) == 0.0
            and not torch.is_grad_enabled()
            and y.is_contiguous()
            and y.numel() <= SMALL
        )

    def attempt(self, field: VectorField, t: float, h: float, y: Tensor, k: Tensor) -> Attempt:
        """The step of size h from (t, y), where k is the derivative."""
        last = self._last
        if last is not None and last.y is not y:  # it was accepted
            self._before = last.h, max(last.ratio, LEAST_RATIO)
        if self._foreseen:
            found = self._foreseen.popleft()
            if found.y is y and math.isclose(found.t, t, rel_tol=_SAME) and math.isclose(found.h, h, rel_tol=_SAME):
                self._last = found
                return found
            self._foreseen.clear()
        self._look(field, t, h, y, k)
        self._last = self._foreseen.popleft()
        return self._last

    def _look(self, field: VectorField, t: float, h: float, y: Tensor, k: Tensor) -> None:
        # No more than are left at this size. A length of 1 would be compiled apart.
        many = max(2, min(self._many, math.ceil(abs(self._end - t) / abs(h))))
        self._many = min(2 * self._many, _MOST)
        control = torch.tensor([t, h, *self._before], dtype=torch.float64, device=y.device)
        fixed = torch.tensor([self._end, *self._tolerances], dtype=torch.float64, device=y.device)
        each = torch.zeros(many, device=y.device)
        torch._dynamo.mark_dynamic(each, 0)
        numbers, states, stages = self._run(field.f, field.args, control, fixed, y, k, each)
        for (t, h, ratio), y_next, ks in zip(numbers.tolist(), states.unbind(), stages.unbind(), strict=True):
            self._foreseen.append(Attempt(t, h, ratio, y, y_next, ks))
            if ratio <= 1.0:
                y = y_next

    @staticmethod
    def function(
        step: Callable[..., tuple[Any, ...]], algorithm: AbstractAdaptive
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Attempts as a function of tensors.

        (function, args, (t, h, h_old, ratio_old), (end, rtol, atol), y, k_first, (n,)) -> (t, h, ratio) of each of n
        attempts, the state that it came to, and its stages; each with the attempts along the first dimension. After
        the end come steps of size zero.

        """
        controller, order, max_step = algorithm.controller, algorithm.order, algorithm.max_step

        def attempts(  # pragma: no cover - compiled, so that nothing sees its lines run
            function: Callable[..., Tensor],
            args: tuple[Any, ...],
            control: Tensor,
            fixed: Tensor,
            y: Tensor,
            k: Tensor,
            each: Tensor,
        ) -> tuple[Tensor, ...]:
            def attempt(carried: tuple[Tensor, ...], _: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
                control, y, k = carried
                end, rtol, atol = fixed.unbind()
                t, h, h_old, ratio_old = control.unbind()
                h = h.clamp(-max_step, max_step)
                rest = end - t
                h = torch.where(h.abs() >= rest.abs() * (1 - 1e-12), rest, h)
                y_next, ratio, *ks = step(function, args, torch.stack([t, h, rtol, atol]), y, k)
                ratio = ratio.double()
                first = after_first(h, ratio, order, controller)
                later = after_step(h, ratio, h_old, ratio_old, ratio_old, order, controller)
                larger = torch.where(ratio_old < 0, first, later)
                shorter = after_rejection(h, ratio, order, controller)
                taken = torch.stack([t + h, larger, h, ratio.clamp(min=LEAST_RATIO)])
                refused = torch.stack([t, shorter, h_old, ratio_old])
                accepted = ratio <= 1.0
                onward = (
                    torch.where(accepted, taken, refused),
                    torch.where(accepted, y_next, y),
                    torch.where(accepted, ks[-1], k),
                )
                return onward, (torch.stack([t, h, ratio]), y_next.clone(), torch.stack(ks))

            _, found = scan(attempt, (control.clone(), y.clone(), k.clone()), each)
            return found

        return attempts
