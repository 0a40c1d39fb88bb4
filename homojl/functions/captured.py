"""The tensors that a Python function holds: taken out, and put back as others.

A gradient that evaluates a function again must do so at the values of the solve, and reach parameters as autograd does,
not through the live module. So a function is copied with other tensors in the places of its own: modules by their
parameters and buffers, closures, bound methods, partials and callable objects by what they hold. The copies are
shallow, and the originals are never written to.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
# What makes a copy with other tensors; the copies made so far, by the identities of the originals, are passed along.
Builder = Callable[[Sequence[Tensor], dict[int, Any]], Any]

# Of what holds no tensors: most of a module's attributes.
_PLAIN = frozenset({type(None), str, int, float, complex, bool, bytes, types.ModuleType, torch.dtype, torch.device})
_DEEPEST = 6  # levels of objects that are looked into
_LIBRARIES = ("torch", "numpy", "builtins", "functools", "math", "typing", "homojl.solving")


class Captured:
    """A function and the tensors that it holds.

    Attributes:
        tensors: each of them once.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.tensors: list[Tensor] = []
        self._function: Callable[..., Any] | None = function
        self._places: dict[int, int] = {}
        self._builders: dict[int, Builder | None] = {}
        self._open: set[int] = set()  # what is being looked into
        self._alive: list[Any] = []  # so that no identity is used twice
        self._builder = self._look(function, 0, called=True)
        self._builders, self._alive, self._places = {}, [], {}
        self._function = None if self._builder else function  # what is rebuilt need not be kept alive

    def rebuilt(self, tensors: Sequence[Tensor]) -> Callable[..., Any]:
        """The function with other tensors in the places of its own."""
        if self._builder is None:
            assert self._function is not None
            return self._function
        return self._builder(tensors, {})

    def _hold(self, tensor: Tensor) -> Builder:
        place = self._places.setdefault(id(tensor), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(tensor)
        return lambda tensors, _: tensors[place]

    def _look(self, value: Any, depth: int, *, called: bool = False) -> Builder | None:
        """What makes a copy of a value with other tensors; None: it holds none."""
        kind = type(value)
        if kind in _PLAIN:
            return None
        if isinstance(value, Tensor):
            return self._hold(value)
        if issubclass(kind, type):
            return None
        key = id(value)
        if key in self._builders:
            found = self._builders[key]
            # One that is being looked into: it holds itself, and is made before it is asked for.
            return found if found is not None or key not in self._open else (lambda _, made: made[key])
        if depth > _DEEPEST:
            return None
        self._builders[key] = None
        self._alive.append(value)
        self._open.add(key)
        try:
            builder = self._inside(value, depth, called)
        finally:
            self._open.discard(key)
        self._builders[key] = builder
        return builder

    def _inside(self, value: Any, depth: int, called: bool) -> Builder | None:
        if isinstance(value, torch.nn.Module):
            return self._module(value, depth)
        if isinstance(value, types.FunctionType):
            return self._plain_function(value, depth)
        if isinstance(value, types.MethodType):
            owner, function = self._look(value.__self__, depth + 1, called=True), value.__func__
            return None if owner is None else lambda tensors, made: types.MethodType(function, owner(tensors, made))
        if isinstance(value, functools.partial):
            return self._partial(value, depth)
        if type(value) in (list, tuple, dict):
            return self._container(value, depth)
        if called or callable(value):
            return self._object(value, depth)
        return None

    def _container(self, value: Any, depth: int) -> Builder | None:
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        builders = {name: b for name, item in items if (b := self._look(item, depth + 1)) is not None}
        if not builders:
            return None
        kept, kind = {name: None if name in builders else item for name, item in items}, type(value)

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            filled = {name: builders[name](tensors, made) if name in builders else item for name, item in kept.items()}
            return filled if kind is dict else kind(filled.values())

        return build

    def _partial(self, value: functools.partial[Any], depth: int) -> Builder | None:
        parts = (value.func, tuple(value.args), dict(value.keywords))
        builder = self._container(parts, depth)
        if builder is None:
            return None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            function, args, keywords = builder(tensors, made)
            return functools.partial(function, *args, **keywords)

        return build

    def _plain_function(self, function: types.FunctionType, depth: int) -> Builder | None:
        if (function.__module__ or "").split(".")[0] in _LIBRARIES or function.__module__ in _LIBRARIES:
            return None
        cells = function.__closure__ or ()
        held = {i: cell.cell_contents for i, cell in enumerate(cells) if _filled(cell)}
        names = {n for n in _names(function.__code__) if n in function.__globals__}
        used = {name: function.__globals__[name] for name in names}
        in_cells = {i: b for i, v in held.items() if (b := self._look(v, depth + 1)) is not None}
        in_globals = {n: b for n, v in used.items() if (b := self._look(v, depth + 1)) is not None}
        defaults = self._look(function.__defaults__ or (), depth + 1)
        keywords = self._look(function.__kwdefaults__ or {}, depth + 1)
        if not (in_cells or in_globals or defaults or keywords):
            return None
        code, name = function.__code__, function.__name__
        own = None if defaults else function.__defaults__
        kept = None if keywords else function.__kwdefaults__
        scope, key, old = function.__globals__, id(function), function.__closure__ or ()
        kept_cells = [None if i in in_cells else cell for i, cell in enumerate(old)]

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key in made:
                return made[key]
            new_cells = [types.CellType() if cell is None else cell for cell in kept_cells]
            new_scope = {**scope} if in_globals else scope
            copied = types.FunctionType(code, new_scope, name, own, tuple(new_cells) or None)
            copied.__kwdefaults__ = kept
            made[key] = copied
            for i, builder in in_cells.items():
                new_cells[i].cell_contents = builder(tensors, made)
            for n, builder in in_globals.items():
                new_scope[n] = builder(tensors, made)
            if defaults is not None:
                copied.__defaults__ = defaults(tensors, made)
            if keywords is not None:
                copied.__kwdefaults__ = keywords(tensors, made)
            return copied

        return build

    def _object(self, value: Any, depth: int) -> Builder | None:
        attributes = getattr(value, "__dict__", None)
        if not attributes or (type(value).__module__ or "").split(".")[0] in _LIBRARIES:
            return None
        builders = {n: b for n, v in attributes.items() if (b := self._look(v, depth + 1)) is not None}
        if not builders:
            return None
        try:
            key, skeleton = id(value), _emptied(value, builders)
        except Exception:  # an object that cannot be copied is evaluated as it is
            return None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key not in made:
                copied = made[key] = copy.copy(skeleton)
                for n, builder in builders.items():
                    copied.__dict__[n] = builder(tensors, made)
            return made[key]

        return build

    def _module(self, module: torch.nn.Module, depth: int) -> Builder | None:
        inner = module.__dict__.get("_orig_mod")  # of torch.compile: what was compiled is evaluated as it was before
        if module.__class__.__name__ == "OptimizedModule":
            inner = module._modules["_orig_mod"]
            return self._look(inner, depth)
        if isinstance(module, torch.jit.ScriptModule):
            return None
        skeleton = module.__new__(type(module))
        parts = module.__dict__.copy()
        tables = {name: dict(parts[name]) for name in ("_parameters", "_buffers", "_modules")}
        parts.update({name: {} for name in tables})
        parts.pop("_flat_weights", None)
        object.__setattr__(skeleton, "__dict__", parts)
        builders: dict[str, dict[str, Builder]] = {name: {} for name in tables}
        for name, table in tables.items():
            for n, value in table.items():
                builder = self._look(value, depth if name == "_modules" else depth + 1)
                if builder is not None:
                    builders[name][n] = builder
        flat = "_flat_weights" in module.__dict__  # of recurrent layers: another list of the parameters
        attributes = {
            n: b
            for n, v in list(parts.items())
            if n not in _OF_MODULES and type(v) not in _PLAIN and (b := self._look(v, depth + 1)) is not None
        }
        for n in attributes:
            parts[n] = None
        if not attributes and not any(builders.values()):
            return None
        key = id(module)

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key in made:
                return made[key]
            copied = skeleton.__new__(type(skeleton))
            filled = parts.copy()
            object.__setattr__(copied, "__dict__", filled)
            made[key] = copied
            for name, table in tables.items():
                filled[name] = {
                    n: builders[name][n](tensors, made) if n in builders[name] else v for n, v in table.items()
                }
            for n, builder in attributes.items():
                filled[n] = builder(tensors, made)
            if flat:
                filled["_flat_weights"] = [getattr(copied, n, None) for n in filled["_flat_weights_names"]]
            return copied

        # The tables keep what holds no tensors alone, so that no parameter is kept alive by the copy.
        for name, found in builders.items():
            for n in found:
                tables[name][n] = None
        return build


# What every module's __dict__ has beside the user's attributes.
_OF_MODULES = frozenset(torch.nn.Module().__dict__) | {"_flat_weights", "_flat_weight_refs", "_compiled_call_impl"}


def _emptied(value: Any, names: Any) -> Any:
    """A shallow copy without the attributes that are put in later."""
    skeleton = copy.copy(value)
    for n in names:
        skeleton.__dict__[n] = None
    return skeleton


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    """The names that a function's code, and the code of functions in it, may look up in its module."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
