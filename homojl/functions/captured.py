"""The tensors that a Python function holds: taken out, and put back as others.

A gradient that evaluates a function again must do so at the values of the solve, and reach parameters as autograd does,
not through the live module. So a function is copied with other tensors in the places of its own: modules by their
parameters and buffers, closures, bound methods, partials and callable objects by what they hold. The copies are
shallow, and the originals are never written to.
"""

from __future__ import annotations

import copy
import dis
import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.utils import parametrize

Tensor = torch.Tensor
# What makes a copy with other tensors; the copies made so far, by the identities of the originals, are passed along.
Builder = Callable[[Sequence[Tensor], dict[int, Any]], Any]

_DEEPEST = 6  # levels of objects that are looked into
_LONGEST, _MOST = 1_000, 20_000  # items of a list or dict that is looked into, and of all
_LIBRARIES = ("torch", "numpy", "builtins", "functools", "math", "typing", "homojl.solving")
_NUMBERS = frozenset({type(None), str, int, float, complex, bool, bytes})
# Of what holds no tensors: most of a module's attributes.
_PLAIN = _NUMBERS | {types.ModuleType, torch.dtype, torch.device}
_STORE_GLOBAL, _STORE_DEREF = dis.opmap["STORE_GLOBAL"], dis.opmap["STORE_DEREF"]


class Captured:
    """A function and the tensors that it holds.

    Numbers that a function encloses, or reads from its module, are kept as they are now too, unless it assigns to them.

    Attributes:
        tensors: each of them once.
        cached: whether some are what `torch.nn.utils.parametrize.cached` has computed, with a graph.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.tensors: list[Tensor] = []
        self.cached = False
        self._function: Callable[..., Any] | None = function
        self._places: dict[int, int] = {}
        self._builders: dict[int, Builder | None] = {}
        self._open: set[int] = set()  # what is being looked into
        self._later: dict[int, Builder | None] = {}  # of what was asked for while it was being looked into
        self._alive: list[Any] = []  # so that no identity is used twice
        self._home: dict[str, Any] | None = None  # the module of the first function that is seen
        self._seen = 0
        self._builder = self._look(function, 0, called=True)
        self._builders, self._alive, self._places, self._home = {}, [], {}, None
        self._function = None if self._builder else function  # what is rebuilt need not be kept alive

    def rebuilt(self, tensors: Sequence[Tensor], made: dict[int, Any] | None = None) -> Callable[..., Any]:
        """The function with other tensors in the places of its own; `made` receives the copies."""
        if self._builder is None:
            assert self._function is not None
            return self._function
        return self._builder(tensors, {} if made is None else made)

    def _hold(self, tensor: Tensor) -> Builder:
        place = self._places.setdefault(id(tensor), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(tensor)
        return lambda tensors, _: tensors[place]

    def _look(self, value: Any, depth: int, *, called: bool = False) -> Builder | None:
        """What makes a copy of a value with other tensors; None: it holds none."""
        kind = type(value)
        if kind in _PLAIN or kind in _PROXIES:
            return None
        if isinstance(value, Tensor):
            return self._hold(value)
        if issubclass(kind, type):
            return None
        self._seen += 1
        key = id(value)
        if key in self._builders:
            found = self._builders[key]
            return found if found is not None or key not in self._open else self._when_made(key)
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
        if key in self._later:
            self._later[key] = builder
        return builder

    def _when_made(self, key: int) -> Builder:
        """The copy of something that holds itself."""
        later = self._later
        later.setdefault(key, None)

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key not in made:
                builder = later[key]
                assert builder is not None, "what holds itself has been looked into"
                made[key] = builder(tensors, made)
            return made[key]

        return build

    def _inside(self, value: Any, depth: int, called: bool) -> Builder | None:
        if isinstance(value, torch.nn.Module):
            return self._module(value, depth)
        if isinstance(value, types.FunctionType):
            return self._plain_function(value, depth)
        if isinstance(value, types.MethodType):
            return self._method(value, depth)
        if isinstance(value, functools.partial):
            return self._partial(value, depth)
        if isinstance(value, weakref.ReferenceType):
            target = None if isinstance(value(), Tensor) else self._look(value(), depth + 1)
            return None if target is None else lambda tensors, made: weakref.ref(target(tensors, made))
        if isinstance(value, (list, tuple, dict, deque)):
            return self._container(value, depth)
        if called or callable(value) or not _of_library(type(value).__module__):
            return self._object(value, depth)
        return None

    def _method(self, method: types.MethodType, depth: int) -> Builder | None:
        function, owner = method.__func__, method.__self__
        plain = self._look(function, depth + 1)
        holder = self._look(owner, depth + 1, called=True)
        if plain is None and holder is None:
            return None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            on = owner if holder is None else holder(tensors, made)
            return types.MethodType(function if plain is None else plain(tensors, made), on)

        return build

    def _container(self, value: Any, depth: int) -> Builder | None:
        if len(value) > _LONGEST or self._seen > _MOST:
            return None
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        self._seen += len(items)
        builders = {name: b for name, item in items if (b := self._look(item, depth + 1)) is not None}
        if isinstance(value, tuple):
            if not builders:
                return None
            kept, kind = [None if i in builders else item for i, item in items], type(value)
            return lambda tensors, made: tuple.__new__(
                kind, [builders[i](tensors, made) if i in builders else item for i, item in enumerate(kept)]
            )
        own = getattr(value, "__dict__", {})  # of a subclass
        itself = own is value
        attributes = {} if itself else {n: b for n, v in own.items() if (b := self._look(v, depth + 1)) is not None}
        if not (builders or attributes):
            return None
        try:
            key, skeleton = id(value), copy.copy(value)
        except Exception:  # what cannot be copied is evaluated as it is
            return None
        if skeleton is value:
            return None
        if itself:
            skeleton.__dict__ = skeleton
        for name in builders:
            skeleton[name] = None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key not in made:
                made[key] = copied = copy.copy(skeleton)
                if itself:
                    copied.__dict__ = copied
                for name, builder in builders.items():
                    copied[name] = builder(tensors, made)
                for name, builder in attributes.items():
                    copied.__dict__[name] = builder(tensors, made)
            return made[key]

        return build

    def _partial(self, value: functools.partial[Any], depth: int) -> Builder | None:
        parts = (value.func, tuple(value.args), dict(value.keywords))
        builder, key = self._container(parts, depth), id(value)
        if builder is None:
            return None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key not in made:
                made[key] = copied = functools.partial(_nothing)
                function, args, keywords = builder(tensors, made)
                copied.__setstate__((function, args, keywords, {}))  # type: ignore[attr-defined]  # typeshed lacks it
            return made[key]

        return build

    def _plain_function(self, function: types.FunctionType, depth: int) -> Builder | None:
        if (function.__module__ or "").split(".")[0] in _LIBRARIES or function.__module__ in _LIBRARIES:
            return None
        code, scope = function.__code__, function.__globals__
        self._home = scope if self._home is None else self._home
        old = function.__closure__ or ()
        held = {i: cell.cell_contents for i, cell in enumerate(old) if _filled(cell)}
        names = {n for n in _names(code) if n in scope}
        in_cells = {i: b for i, v in held.items() if (b := self._look(v, depth + 1)) is not None}
        in_globals = {n: b for n in names if (b := self._look(scope[n], depth + 1)) is not None}
        # Numbers as they are now: a loop goes on to change those that the functions it has made enclose.
        fixed_cells = {i: v for i, v in held.items() if type(v) in _NUMBERS}
        fixed_globals = {n: scope[n] for n in names if type(scope[n]) in _NUMBERS} if scope is self._home else {}
        if fixed_cells or fixed_globals:
            assigned = _assigned(code)
            fixed_cells = {i: v for i, v in fixed_cells.items() if code.co_freevars[i] not in assigned}
            fixed_globals = {n: v for n, v in fixed_globals.items() if n not in assigned}
            if assigned & names:  # the function's own counters stay where others read them
                fixed_globals = {}
        defaults = self._look(function.__defaults__ or (), depth + 1)
        keywords = self._look(function.__kwdefaults__ or {}, depth + 1)
        if not (in_cells or in_globals or defaults or keywords or fixed_cells or fixed_globals):
            return None
        name, key, attributes, counted = function.__name__, id(function), dict(function.__dict__), _Counted(function)
        own = None if defaults else function.__defaults__
        kept = None if keywords else function.__kwdefaults__
        kept_cells = [None if i in in_cells or i in fixed_cells else cell for i, cell in enumerate(old)]

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key in made:
                return made[key]
            new_cells = [types.CellType() if cell is None else cell for cell in kept_cells]
            new_scope = {**scope, **fixed_globals} if in_globals or fixed_globals else scope
            copied = types.FunctionType(code, new_scope, name, own, tuple(new_cells) or None)
            copied.__kwdefaults__ = kept
            made[key] = copied
            copied.__dict__.update(attributes)
            counted.note(copied, made)
            for i, number in fixed_cells.items():
                new_cells[i].cell_contents = number
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
        kind = type(value)
        if (kind.__module__ or "").split(".")[0] in _LIBRARIES and not kind.__module__.startswith(_OPENED):
            return None
        slots, attributes = _slots(value), dict(getattr(value, "__dict__", {}))
        builders = {n: b for n, v in (slots | attributes).items() if (b := self._look(v, depth + 1)) is not None}
        if not builders:
            return None
        make = _maker(kind)
        if make is None:  # an object that cannot be made so is evaluated as it is
            return None
        key, counted = id(value), _Counted(value)
        for n in builders:
            (slots if n in slots else attributes)[n] = None

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key not in made:
                made[key] = copied = make(kind)
                if attributes:
                    copied.__dict__.update(attributes)
                for n, v in slots.items():
                    object.__setattr__(copied, n, v)
                counted.note(copied, made)
                for n, builder in builders.items():
                    if n in slots:
                        object.__setattr__(copied, n, builder(tensors, made))
                    else:
                        copied.__dict__[n] = builder(tensors, made)
            return made[key]

        return build

    def _module(self, module: torch.nn.Module, depth: int) -> Builder | None:
        if module.__class__.__name__ == "OptimizedModule":  # what was compiled is evaluated as it was before
            return self._look(module._modules["_orig_mod"], depth)
        if isinstance(module, torch.jit.ScriptModule):
            return None
        kind, parts = type(module), module.__dict__.copy()
        tables = {name: dict(parts[name]) for name in ("_parameters", "_buffers", "_modules")}
        parts.update({name: {} for name in tables})
        parts.pop("_flat_weights", None)
        parts["_compiled_call_impl"] = None  # which would call the module itself
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
        for n in _HOOKS:  # those that compute with parameters; others note what they see where their user looks for it
            before = len(self.tensors)
            builder = self._look(parts[n], depth + 1) if parts[n] else None
            if builder is not None and any(x.requires_grad for x in self.tensors[before:]):
                attributes[n] = builder
        if cached := _cached(module):
            self.cached |= any(x.requires_grad for x in cached.values())
            attributes |= {_OF_CACHE + n: self._hold(x) for n, x in cached.items()}
            kind = _reading(kind, cached)
        for n in attributes:
            parts[n] = None
        forward = None if _of_library(type(module).__module__) else type(module).forward
        around = self._look(forward, depth + 1)  # what its forward method reads from around it
        if not (attributes or around or any(builders.values())):
            return None
        key, counted = id(module), _Counted(module)

        def build(tensors: Sequence[Tensor], made: dict[int, Any]) -> Any:
            if key in made:
                return made[key]
            copied = object.__new__(kind)
            filled = parts.copy()
            object.__setattr__(copied, "__dict__", filled)
            made[key] = copied
            counted.note(copied, made)
            for name, table in tables.items():
                filled[name] = {
                    n: builders[name][n](tensors, made) if n in builders[name] else v for n, v in table.items()
                }
            for n, builder in attributes.items():
                filled[n] = builder(tensors, made)
            if around is not None:
                filled["forward"] = types.MethodType(around(tensors, made), copied)
            if flat:
                filled["_flat_weights"] = [getattr(copied, n, None) for n in filled["_flat_weights_names"]]
            return copied

        # The tables keep what holds no tensors alone, so that no parameter is kept alive by the copy.
        for name, found in builders.items():
            for n in found:
                tables[name][n] = None
        return build


def _cached(module: torch.nn.Module) -> dict[str, Tensor]:
    """What `torch.nn.utils.parametrize.cached` keeps of a module, by the names that its forward method reads."""
    if not parametrize._cache_enabled or "parametrizations" not in module._modules:
        return {}
    kept = {n: parametrize._cache.get((id(module), n)) for n in module.get_submodule("parametrizations")._modules}
    return {n: x for n, x in kept.items() if x is not None}


def _reading(kind: type, names: Iterable[str]) -> type:
    """The class of a parametrized module for copies, which read what they have been given."""

    def read(name: str) -> property:
        return property(lambda copied: copied.__dict__[_OF_CACHE + name])

    return type(kind.__name__, (kind,), {n: read(n) for n in names})


class _Counted:
    """The whole numbers among an object's attributes, such as a counter of its evaluations."""

    def __init__(self, value: Any) -> None:
        own = getattr(value, "__dict__", {})
        self._names = [n for n, v in own.items() if type(v) is int and n not in _OF_MODULES]
        try:
            self._original = weakref.ref(value) if self._names else None
        except TypeError:
            self._original = None

    def note(self, copied: Any, made: dict[int, Any]) -> None:
        if self._original is not None:
            before = {n: copied.__dict__[n] for n in self._names}
            made.setdefault(_COUNTS, []).append((self._original, copied, before))


_OF_CACHE = "_homojl_cached_"  # attributes of copies
_COUNTS = -1  # in the place of an identity: the counters of the copies


def add_counts(made: dict[int, Any]) -> None:
    """Add what the copies have counted to the counters of the originals."""
    for original, copied, before in made.pop(_COUNTS, ()):
        value = original()
        for n, start in before.items():
            more = copied.__dict__.get(n, start) - start if value is not None else 0
            if more and type(value.__dict__.get(n)) is int:
                value.__dict__[n] += more


# What every module's __dict__ has beside the user's attributes.
_OF_MODULES = frozenset(torch.nn.Module().__dict__) | {"_flat_weights", "_flat_weight_refs", "_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PROXIES = frozenset(weakref.ProxyTypes)
_OPENED = ("torch.distributions",)  # objects of libraries that users build from their tensors


def _maker(kind: type) -> Callable[[type], Any] | None:
    """What makes an empty object of a class, past whatever it does when it is made or copied; None: nothing does."""
    makers: list[Any] = [object.__new__, kind.__new__]
    for make in makers:
        try:
            make(kind)
        except TypeError:
            continue
        return make
    return None


def _nothing() -> None:
    """In the place of a partial's function, until there is one."""


@functools.cache
def _of_library(module: str) -> bool:
    """Whether a class's module is of an installed package or of Python, so that its objects are not looked into."""
    root = module.split(".")[0]
    if root == "homojl":
        return True
    if root == "__main__" or module == "types" or module.startswith(_OPENED):  # types: SimpleNamespace
        return False
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file


def _slots(value: Any) -> dict[str, Any]:
    names = [n for kind in type(value).__mro__ for n in _listed(kind.__dict__.get("__slots__", ()))]
    return {n: getattr(value, n) for n in names if n not in ("__dict__", "__weakref__") and hasattr(value, n)}


def _listed(slots: Any) -> Sequence[str]:
    return (slots,) if type(slots) is str else tuple(slots)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """A function's code, and the code of functions in it."""
    inner = [c for constant in code.co_consts if type(constant) is types.CodeType for c in _codes(constant)]
    return [code, *inner]


def _names(code: types.CodeType) -> set[str]:
    """The names that a function may look up in its module."""
    return {name for part in _codes(code) for name in part.co_names}


def _assigned(code: types.CodeType) -> set[str]:
    """The names of its module, or of functions around it, that a function assigns to."""
    found = set()
    for part in _codes(code):
        if {_STORE_GLOBAL, _STORE_DEREF} & set(part.co_code[::2]):
            found |= {i.argval for i in dis.get_instructions(part) if i.opcode in (_STORE_GLOBAL, _STORE_DEREF)}
    return found
