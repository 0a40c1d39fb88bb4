"""The contract with a user's function: every evaluation, recording and product of every solve goes through here.

What is seen to: the form, dtype and device of what it returns; that it writes neither into the state that it is given
nor into what it has returned before; functions that differentiate by their state; a lower precision; states of several
tensors; which arguments belong to the samples of a batch; and every tensor that it depends on, so that a gradient can
evaluate it again at the values of the solve.
"""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.errors import ConfigError
from homojl.functions.base import AbstractField, AbstractMap
from homojl.functions.captured import Captured
from homojl.functions.products import Linearisation, gradients
from homojl.functions.states import Form
from homojl.problems import PerSample, Shared
from homojl.solution import Stats

Tensor = torch.Tensor


class WrittenOver(ConfigError):
    """A function has written into what it returned before; `solve` then starts again with copies."""


class UserFunction:
    """A problem's function with everything that it depends on.

    Args:
        f, args, params: of the problem.
        like: the state as solvers see it, whose form every result has.
        stats: what counts the work of gradients.
        form: of the user's state where that is another.
        precision: evaluate under an autocast to that dtype; None: as it is.
        copies: whether f gets, and gives, copies.
        closed: whether no other tensors than those of args and params receive gradients.
        name, state: of the function and of the state, for messages.

    Attributes:
        calls: evaluations so far.
        inputs: the tensors, other than the state, that receive gradients; known after `probe`.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        params: Sequence[Tensor] | None,
        *,
        like: Tensor,
        stats: Stats,
        form: Form | None = None,
        precision: torch.dtype | None = None,
        copies: bool = False,
        closed: bool = False,
        name: str = "f",
        state: str = "y0",
    ) -> None:
        self.f = f if precision is None else Autocast(f, precision, like.device.type)
        self.stats, self.calls = stats, 0
        self._like, self._form, self._precision = like, form, precision
        self._names, self._closed = (name, state), closed
        self._params = tuple(p for p in params or () if p.requires_grad)
        leaves, self._spec = list(args), None
        if not all(isinstance(a, Tensor) for a in args):
            leaves, self._spec = pytree.tree_flatten(args, is_leaf=lambda x: isinstance(x, PerSample | Shared))
        self._marks = [True if isinstance(a, PerSample) else False if isinstance(a, Shared) else None for a in leaves]
        self._leaves = [a.value if isinstance(a, PerSample | Shared) else a for a in leaves]
        if any(isinstance(a, Tensor) and a.is_inference() for a in self._leaves):
            with torch.inference_mode(False):  # they can be in no graph, which products need
                self._leaves = [a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in self._leaves]
        self.args = self._filled(self._leaves)
        self._rows: Tensor | None = None
        self._row_args = self.args
        self._separable: bool | None = None
        self._mixes = ""  # how, where samples depend on each other
        self._captured: Captured | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self._copies, self._differentiates, self._checked = copies, False, False
        self._plain = self._simple = False  # whether an evaluation takes the short way now; whether it may
        self.counting = False
        # Graphs hold this, and must hold neither f nor what it holds.
        self._count_product = functools.partial(_count_product, stats)
        self._last: Tensor | None = None
        self._last_careful: Tensor | None = None
        self._given: Tensor | None = None  # the state, where f was given one that requires a gradient of its own
        self._last_version = 0
        self._known: tuple[Tensor, Tensor] | None = None

    def _filled(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with those leaves."""
        return tuple(leaves) if self._spec is None else tuple(pytree.tree_unflatten(leaves, self._spec))

    # Evaluation

    def _evaluate(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The function where the state is the last of the inputs, of that state's form."""
        self.calls += 1
        y = inputs[-1]
        if self._plain:
            version = y._version
            try:
                value: Tensor = self.f(*inputs, *args)
            except RuntimeError as error:
                if y.requires_grad or "does not require grad" not in str(error):
                    raise
                self._differentiates, self._plain, self._simple = True, False, False
                value = self._carefully(inputs, args)
            last = self._last
            if y._version != version or (last is not None and last._version != self._last_version):
                raise self._written()
            self._last, self._last_version = value, value._version
        elif self._known is not None:
            value = self._of_probe(inputs, args)
        elif self._checked:
            value = self._carefully(inputs, args)
        else:
            value = self._first(inputs, args)
        if self.counting and value.requires_grad:
            value.register_hook(self._count_product)
        return value

    def _written(self) -> WrittenOver:
        return WrittenOver(f"{self._names[0]} wrote into its state, or into the tensor that it returned before")

    def _of_probe(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The first evaluation after `probe`, whose value there is used where the state is the same."""
        assert self._known is not None
        (at, value), y = self._known, inputs[-1]
        self._known, self._plain = None, self._simple
        if _same_memory(at, y) and at.shape == y.shape:
            if self._plain:
                self._last, self._last_version = value, value._version
            elif not self._copies:
                self._last_careful = value
            return value
        self.calls += 1  # the other one was for nothing
        return self._carefully(inputs, args)

    def forget(self) -> None:
        """Let the next evaluation be a new one."""
        if self._known is not None:
            self._known, self._plain = None, self._simple
            self.calls += 1

    def _remember(self, y: Tensor, value: Tensor) -> None:
        """Have the next evaluation, where it is at y, return this value, and counted there."""
        self._known = (y, value.detach())
        self.calls -= 1
        self._plain, self._last, self._last_careful = False, None, None

    def count_products(self, evaluations: int) -> None:
        """Add evaluations whose gradient is being computed otherwise."""
        self.stats.n_vjp += evaluations

    @property
    def opens(self) -> bool:
        """Whether `f(t, y, *args)` is all there is to an evaluation, so that it may be compiled."""
        return self._form is None and not self._copies and not self._differentiates

    def _first(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The first evaluation, on a copy of the state: finds out what the function does with what it is given."""
        *time, y = inputs
        untracked = torch.is_inference_mode_enabled() or y.is_inference()
        given = y.clone()
        before = given.clone() if untracked else given
        watched = [a for a in (*time, *self._leaves) if isinstance(a, Tensor) and not a.is_inference()]
        versions = [a._version for a in watched]
        version, required = 0 if untracked else given._version, given.requires_grad
        parts: list[Tensor] = []
        try:
            value = self._apply((*time, given), args, parts)
        except RuntimeError as error:
            if required or "does not require grad" not in str(error):
                raise
            self._differentiates = True
            given = before = y.detach().clone()
            version = given._version
            value = self._carefully((*time, given), args)
        if given.requires_grad and not required:
            self._differentiates, self._given = True, given
        if (untracked and not torch.equal(given, before)) or (not untracked and given._version != version):
            self._copies = True
        if self._form is not None:  # whose parts a function may write into, or require gradients of, one by one
            asked = not required and any(x.requires_grad for x in parts)
            if asked or (self._copies and torch.is_grad_enabled()):
                self._differentiates = self._differentiates or (asked and not self._copies)
                value = self._carefully(inputs, args)
        if any(a._version != v for a, v in zip(watched, versions, strict=True)):
            raise ConfigError(f"{self._names[0]} writes into its time or its arguments; give it copies to write into")
        if not torch.is_grad_enabled() and value.requires_grad:
            value = value.detach()
        self._check_form(value, y)
        self._checked = True
        special = self._copies or self._differentiates or self._form is not None
        self._plain = self._simple = not (special or untracked or value.is_inference())
        if self._plain:
            self._last, self._last_version = value, value._version
        elif not self._copies:
            self._last_careful = value
        return value.clone() if self._copies else value

    def _carefully(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        *time, y = inputs
        if not self._differentiates:
            try:
                value = self._apply((*time, y.clone() if self._copies else y), args)
            except RuntimeError as error:
                if y.requires_grad or "does not require grad" not in str(error):
                    raise
                self._differentiates = True
        if self._differentiates:
            if not y.requires_grad:
                y = self._given = y.detach().requires_grad_()
            with torch.enable_grad():
                value = self._apply((*time, y.clone() if self._copies else y), args)
        if not torch.is_grad_enabled() and value.requires_grad:
            value = value.detach()
        if value.shape != y.shape:
            self._check_form(value, y)
        last, self._last_careful = self._last_careful, None if self._copies else value
        if last is not None and value is not last and _same_memory(value, last):
            raise WrittenOver(f"{self._names[0]} wrote into the tensor that it returned before")
        return value.clone() if self._copies else value

    def _apply(self, inputs: tuple[Tensor, ...], args: Sequence[Any], parts: list[Tensor] | None = None) -> Tensor:
        """One call of the user's function; `parts` receives the tensors that it was given as the state."""
        if self._form is not None:
            *time, y = inputs
            state = self._form.split(y)
            if self._copies:  # each its own, so that writing into one leaves what was recorded of another valid
                state = pytree.tree_map(torch.clone, state)
            if parts is not None:
                parts += pytree.tree_leaves(state)
            inputs = (*time, state)
        value = self.f(*inputs, *args)
        return value if self._form is None else self._form.join(value, self._names[0])

    def _tried(self, inputs: tuple[Tensor, ...], args: Sequence[Any]) -> Tensor:
        """The value alone, of an evaluation that no solve sees."""
        *time, y = inputs
        y = y.detach().clone()
        if not self._differentiates:
            try:
                with torch.no_grad():
                    return self._apply((*time, y.clone() if self._copies else y), args)
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
        y = y.requires_grad_()
        with torch.enable_grad():
            return self._apply((*time, y.clone() if self._copies else y), args).detach()

    def _check_form(self, value: object, like: Tensor) -> None:
        rows = None if like.shape == self._like.shape else len(self._like)
        check_form(self._names[0], value, self._names[1], like, rows=rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the state."""
        return self._like.dtype

    def check(self, state: object, name: str) -> None:
        """Raise a ConfigError unless what a function of that name returned has the state's form."""
        check_form(name, state, self._names[1], self._like)

    def finish(self) -> int:
        """The number of evaluations; the last value is let go."""
        self._last = self._last_careful = self._known = self._given = None
        return self.calls

    def like_rows_of(self, other: UserFunction) -> None:
        """Take the samples' arguments for what the same function at other tensors has found them to be."""
        self._marks, self._separable, self._mixes, self._rows = other._marks, other._separable, other._mixes, None

    def _for_products(self) -> Any:
        """The same function where PyTorch can record it: tensors made in inference mode, which can be in no graph, are
        copied."""
        if not torch.is_inference_mode_enabled():
            return self
        captured = Captured(self.f)
        if not any(x.is_inference() for x in captured.tensors):
            return self
        other = self._copy()
        with torch.inference_mode(False):
            other.f = captured.rebuilt([x.clone() if x.is_inference() else x for x in captured.tensors])
        return other

    def versions(self) -> tuple[int, ...]:
        """How often each of the tensors that the function depends on has been written to."""
        held = Captured(self.f).tensors
        tensors = [x for x in (*self._leaves, *held, *self._params) if isinstance(x, Tensor) and not x.is_inference()]
        return tuple(x._version for x in tensors)

    # Dependencies and gradients

    def probe(self, *inputs: Tensor, instead: str) -> None:
        """Evaluate once with a graph, to find every tensor that the function depends on.

        The next evaluation at the same state is given this value.

        Args:
            inputs: time and state, or the state.
            instead: an adjoint that reaches every tensor, for the message.

        Raises:
            ConfigError: if the function depends on tensors that it does not show.
        """
        slots, held, loose = self._gathered()
        tracked = [not x.is_inference() for x in held]
        versions = [x._version if track else 0 for x, track in zip(held, tracked, strict=True)]
        *time, y = inputs
        with torch.enable_grad():
            value = self._evaluate((*time, y.detach()), self.args)
        written = any(track and x._version != v for x, v, track in zip(held, versions, tracked, strict=True))
        known = [x for x in (*slots, *held, *loose) if x.requires_grad]
        reached = self._reached(value, known, instead)
        # A tensor that is computed from others and that f does not use may be a result which its module keeps.
        unused = {id(x) for x in held if x.requires_grad and not x.is_leaf and id(x) not in reached}
        # Buffers that f writes into, and counters, are its own affair: a gradient works on copies.
        own = {id(x) for x in held if not x.requires_grad and (written or (x.ndim == 0 and not x.is_floating_point()))}
        kept = [x.detach() if id(x) in unused else x.clone() if id(x) in own else x for x in held]
        self.tensors = [*slots, *kept, *loose]
        self._given_slots = [isinstance(a, Tensor) for a in self._leaves]
        self._counts = len(slots), len(held)
        self._wanted = [x.requires_grad for x in self.tensors]
        self._traps = [len(slots) + i for i, x in enumerate(held) if id(x) in unused]
        self.inputs = tuple(x for x in self.tensors if x.requires_grad)
        self._remember(y, value)

    def _gathered(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The tensors among the arguments, those that the function holds, and parameters that it does not show."""
        self._captured = Captured(self.f)
        slots, held = [a for a in self._leaves if isinstance(a, Tensor)], self._captured.tensors
        if self._closed:
            given = {id(p) for p in self._params}
            held[:] = [x if id(x) in given else x.detach() for x in held]
        seen = {id(x) for x in (*slots, *held)}
        return slots, held, [p for p in self._params if id(p) not in seen]

    def gather(self) -> None:
        """Find the tensors that the function depends on without evaluating it, as for `torch.func`'s transforms.

        Raises:
            ConfigError: if a parameter is given that the function does not show.
        """
        slots, held, loose = self._gathered()
        if loose:
            raise ConfigError(f"{self._names[0]} does not show where it holds its params; pass them in args")
        self.tensors, self._counts, self._traps = [*slots, *held], (len(slots), len(held)), []
        self._given_slots = [isinstance(a, Tensor) for a in self._leaves]
        self._wanted = [x.requires_grad for x in self.tensors]

    def _reached(self, value: Tensor, known: Sequence[Tensor], instead: str) -> set[int]:
        """The identities of those `known` tensors that a value was computed from; all others raise."""
        by_node = {(t.grad_fn, t.output_nr): id(t) for t in known if t.grad_fn is not None}
        nodes = {node for node, _ in by_node}
        leaves = {id(t) for t in known if t.grad_fn is None}
        reached: set[int] = set()
        missed = []
        for node, number in _graph(value, nodes):
            if (node, number) in by_node:
                reached.add(by_node[node, number])
            elif (variable := getattr(node, "variable", None)) is not None:
                if id(variable) in leaves:
                    reached.add(id(variable))
                elif variable is not self._given:
                    missed.append(variable)
        if missed and not self._closed:
            shapes = ", ".join(str(tuple(v.shape)) for v in missed[:4])
            raise ConfigError(
                f"{self._names[0]} depends on {len(missed)} tensor(s) that require gradients (shape {shapes}) but are "
                "neither in args nor in params, so this adjoint would miss them: pass "
                f"params=tuple(module.parameters()) or args=(x,), or use {instead}"
            )
        return reached

    def again(self, saved: Sequence[Tensor], *, twice: bool = False) -> tuple[Any, list[Tensor]]:
        """The function at the tensors of the solve, as a gradient evaluates it, and those it is to differentiate by.

        Args:
            saved: as `tensors`, from `save_for_backward`.
            twice: whether the gradient is to be differentiated again.
        """
        slots, held = self._counts
        values = []
        for i, x in enumerate(saved):
            if x.requires_grad and i < slots + held:
                x = x.view_as(x) if twice else x.detach().requires_grad_()
            elif i in self._traps:
                x = x.detach().requires_grad_()
            values.append(x)
        return self.rebuilt(values), [x for x in values if x.requires_grad]

    @property
    def hidden(self) -> bool:
        """Whether there are params that `rebuilt` cannot replace."""
        return len(self._wanted) > sum(self._counts)

    @property
    def eps(self) -> float:
        """The relative rounding error of its operations."""
        return torch.finfo(self._precision or self._like.dtype).eps

    def rebuilt(self, values: Sequence[Tensor]) -> Any:
        """The function with other tensors in the places of `tensors`."""
        assert self._captured is not None, "probe() or gather() comes first"
        slots, held = self._counts
        given = iter(values[:slots])
        leaves = [next(given) if slot else a for a, slot in zip(self._leaves, self._given_slots, strict=True)]
        other = self._copy()
        other.f = self._captured.rebuilt(values[slots : slots + held])
        other._leaves, other.args = leaves, self._filled(leaves)
        other._rows, other._row_args = None, other.args
        other.calls, other._last, other._last_careful, other._known, other.counting = 0, None, None, None, True
        other._plain = self._simple and not torch.is_inference_mode_enabled()
        return other

    def release(self) -> None:
        """Become what is `frozen`: gradients use what `rebuilt` makes, and no solution keeps a module alive."""
        self.__dict__.update(self.frozen().__dict__)

    def held(self) -> list[Tensor]:
        """The tensors in its arguments and those that f holds."""
        self._captured = Captured(self.f)
        self._given_slots = [isinstance(a, Tensor) for a in self._leaves]
        return [*(a for a in self._leaves if isinstance(a, Tensor)), *self._captured.tensors]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The function with others in the places of those that are `held`."""
        assert self._captured is not None, "held() comes first"
        slots = sum(self._given_slots)
        given = iter(tensors[:slots])
        other = self._copy()
        other._leaves = [next(given) if slot else a for a, slot in zip(self._leaves, self._given_slots, strict=True)]
        other.f, other.args = (
            self._captured.rebuilt(tensors[slots:]),
            self._filled(other._leaves),
        )
        other._rows, other._row_args, other._checked, other._plain = None, other.args, False, False
        other._last = other._last_careful = other._known = None
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
            if i in self._traps and grad is not None:
                raise ConfigError(
                    f"{self._names[0]} depends on a tensor of shape {tuple(grad.shape)} that its first evaluation did "
                    "not use; pass it in args"
                )
            if wanted and grad is None and i < self._counts[0]:
                grad = torch.zeros_like(tensors[i])
            places.append(grad)
        return places

    def _copy(self) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def frozen(self) -> Any:
        """What a backward pass needs to have it evaluated `again`: it holds neither tensors nor f."""
        other = self._copy()
        other.f = None
        other._leaves = [None if slot else a for a, slot in zip(self._leaves, self._given_slots, strict=True)]
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
            value = self._evaluate((*time, y.detach()), self.args)
        self._remember(y, value)
        return value.requires_grad

    # Rows

    @property
    def separates(self) -> bool | None:
        """What `separable` has found; None: nothing so far."""
        return self._separable

    @property
    def mixes(self) -> bool:
        """Whether `separable` has found that samples depend on each other."""
        return bool(self._mixes)

    def args_at(self, rows: Tensor | None) -> tuple[Any, ...]:
        """The arguments at some rows of the batch, (b,); None: of all of it."""
        if rows is None:
            return self.args
        if rows is not self._rows:
            self._rows, self._row_args = rows, self._chosen(rows, self._marks)
        return self._row_args

    def _chosen(self, rows: Tensor, marks: Sequence[bool | None]) -> tuple[Any, ...]:
        chosen = [a.index_select(0, rows) if mark else a for a, mark in zip(self._leaves, marks, strict=True)]
        return self._filled(chosen)

    def _of_batch_size(self, argument: object) -> bool:
        return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == len(self._like)

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
        if self._mixes:
            raise Mixes(self._mixes)
        if self._separable is not None:
            return self._separable
        some = staying[:2]
        expected, whole = value.index_select(0, some), tuple(x[some] for x in inputs)  # which keeps the memory format
        unmarked = [mark is None and self._of_batch_size(a) for a, mark in zip(self._leaves, self._marks, strict=True)]
        agreeing = []
        open_count = sum(unmarked)
        same = [(True,) * open_count, (False,) * open_count][: 1 + bool(open_count)]
        for choice in itertools.product((True, False), repeat=open_count) if open_count <= 3 else same:
            chosen = iter(choice)
            marks = [next(chosen) if open else bool(mark) for open, mark in zip(unmarked, self._marks, strict=True)]
            try:
                agreeing += [marks] * self._agrees(self._tried(whole, self._chosen(some, marks)), expected)
            except Exception:  # as of shapes that do not fit, which is an answer
                continue
        if len(agreeing) > 1 and len(value) > len(some):
            return False  # nothing tells the two apart here
        # At states that differ from each other, which those of a solve's start may not.
        *times, y = inputs
        moved = y + (1 + y.abs()) * torch.linspace(0.1, 0.2, len(y), device=y.device).view(-1, *[1] * (y.ndim - 1))
        if agreeing:
            self._marks = list(agreeing[0])
            other = torch.full_like(some[:1], 0 if int(some[0]) else len(value) - 1)
            if len(value) > 1 and not self._alone((*times, moved), torch.cat([some[:1], other])):
                self._mix()
            self._rows, self._separable = None, True
            return True
        self._separable = False
        moved = moved.index_copy(0, some, whole[-1])
        if not self._agrees(self._tried((*times, moved), self.args).index_select(0, some), expected):
            self._mix()
        warn_caller(
            f"{self._names[0]} cannot be evaluated for some samples alone, so those that have ended go on being "
            "evaluated; pass tensors with a row for each sample in args, as hj.PerSample(x)"
        )
        return False

    def _alone(self, inputs: tuple[Tensor, ...], pair: Tensor) -> bool:
        """Whether a sample's value is the same with another one beside it."""
        values = []
        for rows in (pair, pair[:1]):
            try:
                values.append(self._tried(tuple(x[rows] for x in inputs), self._chosen(rows, self._marks)))
            except Exception:  # as of BatchNorm, which refuses one sample
                return False
        both, one = (x[:1].nan_to_num() for x in values)
        return self._agrees(one, both)

    def _mix(self) -> None:
        self._separable, self._mixes = (
            False,
            (
                f"{self._names[0]} mixes the samples of the batch, as BatchNorm in training mode does: each sample's "
                "value depends on the others"
            ),
        )
        raise Mixes(self._mixes)

    def _agrees(self, value: Tensor, expected: Tensor) -> bool:
        if value.shape != expected.shape:
            return False
        eps = torch.finfo(self._precision or expected.dtype).eps
        scale = float(expected.abs().max())
        return bool(((value - expected).abs().max() <= 8 * eps**0.5 * scale).item()) if scale > 0 else not value.any()


def warn_caller(message: str) -> None:
    """Warn at the line that called homojl."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("homojl", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


class Mixes(ConfigError):
    """A function whose samples depend on each other."""


class Autocast:
    """A function under `torch.autocast`, what it returns in the lower precision cast back to float32.

    Args:
        function: of tensors, to a tensor or several.
        dtype: bfloat16 or float16.
        device_type: "cpu", "cuda" ...
    """

    def __init__(self, function: Callable[..., Any], dtype: torch.dtype, device_type: str) -> None:
        # Called as in a bound method, so that what was compiled for a function is found again under it.
        self.__func__ = function
        self._dtype, self._device_type = dtype, device_type

    def __call__(self, *inputs: Any) -> Any:
        # Autocast's cache would give weights that were cast without a graph to an evaluation that needs one.
        with torch.autocast(self._device_type, self._dtype, cache_enabled=False):
            value = self.__func__(*inputs)
        if isinstance(value, Tensor):
            return value.float() if value.dtype == self._dtype else value
        return pytree.tree_map_only(Tensor, lambda x: x.float() if x.dtype == self._dtype else x, value)


class VectorField(UserFunction, AbstractField):
    """f(t, y, *args)."""

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        if not self._plain or self.counting:
            return self._evaluate((t, y), self.args)
        # As `_evaluate` does it, without its calls: a small state's steps are made of little else.
        self.calls += 1
        version, last = y._version, self._last
        try:
            value: Tensor = self.f(t, y, *self.args)
        except RuntimeError:
            self.calls -= 1
            return self._evaluate((t, y), self.args)
        if y._version != version or (last is not None and last._version != self._last_version):
            raise self._written()
        self._last, self._last_version = value, value._version
        return value

    def at(self, t: Tensor, y: Tensor, rows: Tensor | None) -> Tensor:
        """At some rows of the batch, each at a time of its own, (b, 1, ..., 1)."""
        return self._evaluate((t, y), self.args_at(rows))

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
            dy = self._carefully((t, y), self.args)
        wrt = [y, *wrt]
        grads = gradients([dy], wrt, [cotangent], again=again)
        zeroed = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wrt, strict=True)]
        return dy if again else dy.detach(), zeroed


class MapFunction(UserFunction, AbstractMap):
    """f(z, *args)."""

    def __call__(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._evaluate((z,), self.args_at(rows))

    def watched(self, z: Tensor, rows: Tensor | None) -> Tensor:
        """An evaluation of a gradient's own, which is not counted."""
        return self._carefully((z,), self.args_at(rows))

    def unwatched(self, z: Tensor) -> Tensor:
        """The function alone, as inside `torch.func`'s transforms, whose tensors have no memory to be looked at."""
        return self._apply((z.clone(),), self.args)

    def linearised(self, z: Tensor, rows: Tensor | None = None) -> Linearisation:
        """At some rows of the batch."""
        f = self._for_products()
        return Linearisation(lambda z: f._carefully((z,), f.args_at(rows)), z, self.stats)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return a.data_ptr() == b.data_ptr()
    except RuntimeError:  # tensors that torch.func wraps have none
        return False


def _count_product(stats: Stats, _: Tensor) -> None:
    stats.n_vjp += 1


def check_form(function: str, value: object, name: str, like: Tensor, *, rows: int | None = None) -> None:
    """Raise a ConfigError unless what a function returned has the form of the tensor `like`, called `name`."""
    if not isinstance(value, Tensor):
        raise ConfigError(f"{function} must return a torch.Tensor, got {type(value).__name__}")
    if value.shape != like.shape or value.dtype != like.dtype or value.device != like.device:
        some = "" if rows is None else f" for {len(like)} of {rows} samples"
        raise ConfigError(
            f"{function} must return what {name} is: shape {tuple(like.shape)}{some}, {like.dtype}, {like.device}; "
            f"got shape {tuple(value.shape)}, {value.dtype}, {value.device}"
        )


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
