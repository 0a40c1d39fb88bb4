"""What a user's function depends on: found, saved by autograd, and put back where a gradient evaluates it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from homojl.errors import ConfigError
from homojl.functions.captured import Captured, add_counts
from homojl.functions.evaluated import Evaluated

Tensor = torch.Tensor

SMALL = 2**17  # bytes of a tensor without gradient that is copied rather than watched


class Dependent(Evaluated):
    """A user's function with every tensor that it depends on.

    Attributes:
        inputs: the tensors, other than the state, that receive gradients; known after `probe`.
        start: the value that `probe` has found, where it was asked to keep it.
        made: the copies of objects that it holds, where it is itself a copy.
    """

    start: Tensor | None
    made: dict[int, Any]

    def probe(self, *inputs: Tensor, instead: str, keep: bool = False) -> None:
        """Evaluate once with a graph, to find every tensor that the function depends on.

        The next evaluation at the same state is given this value. What the function sets up in its first evaluation
        is there when its tensors are looked for.

        Args:
            inputs: time and state, or the state.
            instead: an adjoint that reaches every tensor, for the message.
            keep: whether the value is kept.

        Raises:
            ConfigError: if the function depends on tensors that it does not show.
        """
        *time, y = inputs
        first_node: int = torch._C._autograd._get_sequence_nr()
        state = y.detach()
        with torch.enable_grad():
            value = self(*time, state)
        slots, held, loose = self._gathered()
        known = [x for x in (*slots, *held, *loose) if x.requires_grad]
        own = {_memory(x) for x in (state, self._given) if x is not None}
        reached = self._reached(value, known, own, first_node, instead)
        self._counts = len(slots), len(held)
        self._traps, self._aside, kept = [], {}, []
        for i, x in enumerate(held, len(slots)):
            if x.requires_grad and not x.is_leaf and id(x) not in reached:
                # It is computed from others, and f does not use it: perhaps a result that its module keeps.
                self._traps.append(i)
                x = x.detach()
            elif not x.requires_grad and x.numel() * x.element_size() <= SMALL:
                x = x.clone()  # a statistic or a counter, which may change before the backward pass
            elif id(x) not in reached and x.dtype != torch.bool and not x.is_complex() and not x.is_inference():
                self._aside[i] = x, x._version
            kept.append(x)
        self.tensors = [*slots, *kept, *loose]
        self._wanted = [x.requires_grad for x in self.tensors]
        self.inputs = tuple(x for x in self.tensors if x.requires_grad)
        self.start, self._instead = (value.detach().clone() if keep else None), instead
        self._remember((*time, y), value)

    def to_save(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those of `tensors` that autograd saves, and watches.

        The others, which the first evaluation did not use as far as a graph shows, may change: f may hold much more
        than it uses, such as another part of a model, whose optimiser goes on.
        """
        return [x for i, x in enumerate(tensors) if i not in self._aside]

    def restored(self, saved: Sequence[Tensor]) -> list[Tensor]:
        """All of `tensors` from those that autograd saved; one that has changed since is NaN where f does use it."""
        given = iter(saved)
        return [self._beside(i) if i in self._aside else next(given) for i in range(len(self._wanted))]

    def _beside(self, i: int) -> Tensor:
        x, version = self._aside[i]
        if x._version == version:
            return x
        wrong = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).min
        return x.detach().new_full((), wrong).expand(x.shape)

    def _gathered(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The tensors among the arguments, those that the function holds, and parameters that it does not show."""
        self._captured = Captured(self.f)
        slots, held, params = self.arguments.tensors, self._captured.tensors, self.params
        if self._closed:
            if self._captured.cached:
                raise ConfigError(
                    f"parameters of {self._names[0]} that are named one by one do not go with parametrize.cached(); "
                    "leave out one of the two"
                )
            given = {id(p) for p in params}
            held[:] = [x if id(x) in given else x.detach() for x in held]
        seen = {id(x) for x in (*slots, *held)}
        return slots, held, [p for p in params if id(p) not in seen]

    def gather(self) -> None:
        """Find the tensors that the function depends on without evaluating it, as for `torch.func`'s transforms.

        Raises:
            ConfigError: if a parameter is given that the function does not show.
        """
        slots, held, loose = self._gathered()
        if loose:
            raise ConfigError(f"{self._names[0]} does not show where it holds its params; pass them in args")
        self.tensors, self._counts, self._traps, self._aside = [*slots, *held], (len(slots), len(held)), [], {}
        self._wanted, self._instead = [x.requires_grad for x in self.tensors], "torch.autograd.grad"

    def _reached(
        self, value: Tensor, known: Sequence[Tensor], own: set[int], first_node: int, instead: str
    ) -> set[int]:
        """The identities of those `known` tensors that a value was computed from; all others raise.

        Args:
            own: memory of the state, by which the function may differentiate itself.
            first_node: the number of the first node of this evaluation.
        """
        by_node = {(t.grad_fn, t.output_nr): id(t) for t in known if t.grad_fn is not None}
        nodes = {node for node, _ in by_node}
        leaves = {id(t) for t in known if t.grad_fn is None}
        reached: set[int] = set()
        missed = []
        # Behind what this evaluation has made and f keeps, there may be more.
        ends = {node for node in nodes if node._sequence_nr() < first_node}
        for node, number in _graph(value, ends):
            if (node, number) in by_node:
                reached.add(by_node[node, number])
            elif (variable := getattr(node, "variable", None)) is not None:
                if id(variable) in leaves:
                    reached.add(id(variable))
                elif _memory(variable) not in own:
                    missed.append(f"shape {tuple(variable.shape)}")
        if missed and not self._closed:
            raise ConfigError(
                f"{self._names[0]} depends on {len(missed)} tensor(s) that require gradients "
                f"({', '.join(missed[:4])}) but are neither in args nor in params, nor found in what it holds, so this "
                f"adjoint would miss them: pass args=(x,) or params=tuple(module.parameters()), or use {instead}"
            )
        return reached

    def again(self, saved: Sequence[Tensor], *, twice: bool = False) -> tuple[Any, list[Tensor]]:
        """The function at the tensors of the solve, as a gradient evaluates it, and those it is to differentiate by.

        Args:
            saved: as `tensors`, which `restored` gives.
            twice: whether the gradient is to be differentiated again.
        """
        slots, held = self._counts
        values = []
        for i, (x, wanted) in enumerate(zip(saved, self._wanted, strict=True)):
            if wanted and twice and x.requires_grad and i < slots + held:
                x = x.view_as(x)
            elif (wanted and (i < slots + held or not x.requires_grad)) or i in self._traps:
                x = x.detach().requires_grad_()  # which the user may have frozen since
            values.append(x)
        again, wrt = self.rebuilt(values), [x for x in values if x.requires_grad]
        again._ends = None if twice else {id(x) for x in wrt}
        return again, wrt

    def look_behind(self, value: Tensor, y: Tensor) -> None:
        """See that the first value of a gradient's own comes from the tensors of the solve alone.

        Raises:
            ConfigError: if f reaches another that requires a gradient, by a way that is not followed.
        """
        ends, self._ends = self._ends, None
        if ends is None:
            return
        own = {_memory(x) for x in (y, self._given) if x is not None}
        for node, _ in _graph(value, set() if y.grad_fn is None else {y.grad_fn}):  # not behind the state
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in ends and _memory(variable) not in own:
                raise ConfigError(
                    f"{self._names[0]} reaches a tensor of shape {tuple(variable.shape)} by a way that this adjoint "
                    "does not follow, such as a cache, so that its gradient would be wrong: pass it in args, or use "
                    f"{self._instead}"
                )

    @property
    def hidden(self) -> bool:
        """Whether there are params that `rebuilt` cannot replace."""
        return len(self._wanted) > sum(self._counts)

    @property
    def eps(self) -> float:
        """The relative rounding error of its operations."""
        return torch.finfo(self._precision or self._like.dtype).eps

    def rebuilt(self, values: Sequence[Tensor]) -> Any:
        """The function with other tensors in the places of its arguments' and of those that f holds."""
        assert self._captured is not None, "its tensors are looked for first"
        slots, other = len(self.arguments.tensors), self._copy()
        other.made = {}
        other.f, other.arguments = self._captured.rebuilt(values[slots:], other.made), self.arguments.replaced(values)
        other.args = other._row_args = other.arguments.filled
        other.calls, other.counting, other._rows = 0, True, None
        other._plain = self._simple and not torch.is_inference_mode_enabled()
        other.finish()
        return other

    def add_counts(self) -> None:
        """Add the evaluations that f itself has counted, in whole numbers among its attributes, to the original's."""
        add_counts(self.made)

    def release(self) -> None:
        """Become what is `frozen`: gradients use what `rebuilt` makes, and no solution keeps a module alive."""
        self.__dict__.update(self.frozen().__dict__)

    def held(self) -> list[Tensor]:
        """The tensors in its arguments and those that f holds."""
        self._captured = Captured(self.f)
        return [*self.arguments.tensors, *self._captured.tensors]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The function, as if it were new, with others in the places of those that are `held`."""
        other = self.rebuilt(tensors)
        other.counting = other._checked = other._plain = other._simple = False
        return other

    def spread(self, grads: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients by what `again` returned, as gradients by the saved `tensors`.

        An argument on which nothing depends has the gradient zero; a tensor that f holds has none.

        Raises:
            ConfigError: if f uses a tensor in the backward pass that it did not use in the first evaluation.
        """
        found, places = iter(grads), []
        for i, wanted in enumerate(self._wanted):
            grad = next(found) if wanted or i in self._traps else None
            if i in self._traps and grad is not None and bool(grad.any()):
                raise ConfigError(
                    f"{self._names[0]} depends on a tensor of shape {tuple(grad.shape)} that its first evaluation did "
                    "not use; pass it in args"
                )
            if wanted and grad is None and i < self._counts[0]:
                grad = torch.zeros_like(tensors[i])
            places.append(grad)
        return places

    def frozen(self) -> Any:
        """What a backward pass needs to have it evaluated `again`: it holds neither tensors nor f."""
        other = self._copy()
        other.f = None
        other.arguments = self.arguments.replaced([None] * len(self.arguments.tensors))
        other.args, other._row_args, other._params, other.tensors, other.inputs = (), (), (), [], ()
        other._like = torch.empty((), dtype=self._like.dtype, device=self._like.device).expand(self._like.shape)
        other.finish()
        return other

    def depends(self, *inputs: Tensor) -> bool:
        """Evaluate once with a graph: whether the value depends on anything beside the state that requires a gradient.

        The next evaluation at the same state is given this value.
        """
        *time, y = inputs
        with torch.enable_grad():
            value = self(*time, y.detach())
        self._remember((*time, y), value)
        return value.requires_grad


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _graph(value: Tensor, ends: set[Any]) -> Iterator[tuple[Any, int]]:
    """The nodes that a value was computed by, each with the number of its output; not behind the nodes of `ends`."""
    if value.grad_fn is None:
        if value.requires_grad:
            yield torch.autograd.graph.get_gradient_edge(value).node, 0
        return
    seen: set[Any] = set()
    opened = set(ends)
    stack: list[tuple[Any, int]] = [(value.grad_fn, value.output_nr)]
    while stack:
        edge = stack.pop()
        if edge in seen or edge[0] is None:
            continue
        seen.add(edge)
        yield edge
        if edge[0] not in opened:
            opened.add(edge[0])
            stack.extend(edge[0].next_functions)
