"""A field as a function of tensors alone: what it holds, found by PyTorch's own tracing and checked at every call."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from homojl.backends.pytorch.native.operations import Postponed, Unsupported, raise_postponed

Tensor = torch.Tensor


# PyTorch traces in one thread at a time, and meanwhile nothing that it has traced may be called in another.
TRACING = threading.RLock()


class Opened:
    """A field's graph for states of one shape.

    Args:
        graph: of the field, from tensors alone.

    Attributes:
        programs: what was compiled for it, by method and the like.
        places: of what it holds among the graph's inputs.
        reason: why it is not solved whole; empty: it may be.
    """

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        self.graph, self.programs = graph, dict[Any, Any]()
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        (output,) = (n for n in graph.graph.nodes if n.op == "output")
        self.reason = _unsuited(placeholders)
        if len(output.args[0]) != 1 or not _pure():
            self.reason = "a field that changes something beside the tensor that it returns"
        names = [_name_of(n) for n in placeholders]
        self._time, self._state = (names.index(x) if x in names else None for x in ("homojl_time", "homojl_state"))
        self._count = len(names)
        self.places = [i for i in range(self._count) if i not in (self._time, self._state)]

    def field(self, t: Tensor, y: Tensor, *inputs: Tensor) -> Tensor:
        """The derivative, with others in the places of the tensors that the field holds."""
        flat: list[Any] = [None] * self._count
        for i, x in zip(self.places, inputs, strict=True):
            flat[i] = x
        if self._time is not None:
            flat[self._time] = t
        if self._state is not None:
            flat[self._state] = y
        value: Tensor = self.graph(*flat)[0]
        return value


def _name_of(placeholder: torch.fx.Node) -> str:
    given = placeholder.meta.get("grapharg")
    return str(getattr(getattr(given, "source", None), "local_name", ""))


def _pure() -> bool:
    """Whether the field that is being traced leaves all objects as they are that there were before."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    effects = InstructionTranslator.current_tx().output.side_effects
    made = AttributeMutationNew, ValueMutationNew
    there = [x for x in effects.id_to_variable.values() if not isinstance(x.mutation_type, made)]
    return not (any(map(effects.is_modified, there)) or effects.tensor_hooks or effects.save_for_backward)


def _unsuited(placeholders: Sequence[torch.fx.Node]) -> str:
    """Why a field with such a graph is not solved whole; empty: it may be."""
    for node in placeholders:
        value, source = node.meta.get("example_value"), getattr(node.meta.get("grapharg"), "source", None)
        if not isinstance(value, Tensor):
            return "a field with a number that varies from call to call"
        while source is not None:
            if "Random" in type(source).__name__:
                return "a field that draws random numbers"
            source = getattr(source, "base", None)
        if value.device.type != "cpu" or value.layout != torch.strided:
            return "a field with tensors on other devices than the CPU"
    return ""


class _Use(threading.local):
    """What is to be told of the calls in one thread."""

    tell: Callable[[tuple[Opened, list[Tensor]]], None] | None = None


class _Backend:
    """What `torch.compile` is given in the place of a compiler: what it makes computes nothing, and tells `use`."""

    def __init__(self) -> None:
        self.use = _Use()
        self.opened = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
        self.opened += 1
        opened = Opened(graph)
        if opened.reason:
            raise Unsupported(opened.reason)

        def called(*flat: Any) -> tuple[Any, ...]:
            if self.use.tell is not None:
                self.use.tell((opened, [flat[i] for i in opened.places]))
            return (None,)

        return called


class Entry:
    """The way into fields of one code."""

    _count = itertools.count()

    def __init__(self) -> None:
        def call(function: Any, args: Any, homojl_time: Tensor, homojl_state: Tensor) -> Any:
            return function(homojl_time, homojl_state, *args)

        # PyTorch counts what it has compiled for a code, and ours is one for all fields.
        code = call.__code__.replace(co_name=f"call_{next(self._count)}")
        self._backend = _Backend()
        own = types.FunctionType(code, call.__globals__, None, None, call.__closure__)
        self._open = torch.compile(own, backend=self._backend, fullgraph=True, dynamic=False)
        self._known = torch._dynamo.run(own)  # checks and calls what was opened before, and opens nothing

    def __call__(
        self, function: Callable[..., Any], args: tuple[Any, ...], t: Tensor, y: Tensor
    ) -> tuple[Opened, list[Tensor]]:
        """A field opened up, and the tensors that it holds now.

        Raises:
            Unsupported: if it cannot be, or changes with every call.
        """
        if torch._C._len_torch_dispatch_stack() > 0:  # PyTorch compiles nothing where a mode sees all operations
            raise Postponed("watched by a mode")
        found: list[tuple[Opened, list[Tensor]]] = []
        backend = self._backend
        backend.use.tell = found.append
        try:
            with TRACING:
                if backend.opened:
                    self._known(function, args, t, y)
                if not found:
                    self._opened_anew(function, args, t, y)
        finally:
            backend.use.tell = None
        if not found:
            raise Unsupported("a field that computes nothing")
        return found[0]

    def _opened_anew(self, *call: Any) -> None:
        try:
            with _quietly():
                self._open(*call)
                before = self._backend.opened
                self._open(*call)
        except Exception as error:
            raise_postponed(error)
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch.fx")):
                reason = getattr(error, "inner_exception", None) or error
                raise Unsupported(str(reason).strip().splitlines()[0]) from error
            raise
        if self._backend.opened != before:  # as where it writes into what it depends on
            raise Unsupported("a field that is another one at every call")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the pages that PyTorch logs of an operation that cannot be traced, as of shapes that do not fit."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


_entries: weakref.WeakKeyDictionary[Any, tuple[Entry, Entry]] = weakref.WeakKeyDictionary()


def entry_of(owner: Any) -> Entry:
    """The way into a field whose code is `owner`, in the present grad mode, so that each checks one mode alone."""
    entries = _entries.get(owner)
    if entries is None:
        entries = _entries[owner] = Entry(), Entry()
    return entries[torch.is_grad_enabled()]
