"""What torchdiffeq and homojl do where people leave the paved road: right, refused, raw or wrong, side by side.

    python benchmarks/behaviours.py                          a table; needs the group `peers`
    python benchmarks/behaviours.py weights                  the situations with that word

Every situation is one program, written with torchdiffeq's names, which homojl has too, and run once with each library.
It compares a value or a gradient with a closed form. "refused" is an error that the library raises itself, or PyTorch's
own about a tensor that was changed in place; "raw" is another error. What homojl promises beyond these names is in
tests/promises.
"""

from __future__ import annotations

import gc
import math
import sys
import threading
import traceback
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from rows import head, row
from torch import nn

import homojl as hj

Tensor = torch.Tensor
Library = Any
KINDS = ("right", "refused", "raw", "wrong")
SITUATIONS: dict[str, Callable[[Library], None]] = {}


def situation(name: str) -> Callable[[Callable[[Library], None]], Callable[[Library], None]]:
    def add(function: Callable[[Library], None]) -> Callable[[Library], None]:
        SITUATIONS[name] = function
        return function

    return add


class Wrong(Exception):
    """Not the closed form."""


def near(got: Any, want: Any, tol: float = 1e-3) -> None:
    got, want = torch.as_tensor(got).detach(), torch.as_tensor(want).detach()
    if got.shape != want.shape:
        raise Wrong(f"shape {tuple(got.shape)}, not {tuple(want.shape)}")
    if got.numel() and not (got - want).abs().max() <= tol * max(1.0, float(want.abs().max())):
        raise Wrong(f"{got.flatten()[:3].tolist()}, not {want.flatten()[:3].tolist()}")


# Logistic growth, dy/dt = w y (1 - y), which has a closed form.

START = torch.tensor([[0.2], [0.5]], dtype=torch.float64)
SPAN = torch.tensor([0.0, 1.5], dtype=torch.float64)
TIGHT = {"rtol": 1e-7, "atol": 1e-9}


def grown(y0: Tensor, w: Any) -> Tensor:
    """The closed form at the end of `SPAN`."""
    return y0 / (y0 + (1 - y0) * torch.exp(-1.5 * torch.as_tensor(w)))


def slope(w: float) -> Tensor:
    """Its derivative by w, summed."""
    leaf = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(grown(START, leaf).sum(), leaf)
    return grad


class Growth(nn.Module):
    def __init__(self, w: float = 0.8) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.w * y * (1 - y)


def with_each(name: str) -> Callable[[Callable[[Library, str], None]], None]:
    """A situation of `odeint` and of `odeint_adjoint`."""

    def add(function: Callable[[Library, str], None]) -> None:
        for how in ("odeint", "odeint_adjoint"):
            SITUATIONS[f"{name}: {how}"] = lambda lib, how=how: function(lib, how)  # type: ignore[misc]

    return add


def end(lib: Library, how: str, f: Any, y0: Tensor, **options: Any) -> Tensor:
    value: Tensor = getattr(lib, how)(f, y0, SPAN.to(y0.dtype.to_real()), **{**TIGHT, **options})[-1]
    return value


# ---- weights --------------------------------------------------------------------------------------------------------


@with_each("weights take a step between solve and gradient")
def _(lib: Library, how: str) -> None:
    f = Growth()
    loss = end(lib, how, f, START).sum()
    with torch.no_grad():
        f.w.add_(1.0)
    (grad,) = torch.autograd.grad(loss, f.w)
    near(grad, slope(0.8))


@with_each("weights replaced between solve and gradient")
def _(lib: Library, how: str) -> None:
    f = Growth()
    old = f.w
    loss = end(lib, how, f, START).sum()
    f.w = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss, old)
    near(grad, slope(0.8))


@with_each("functional_call, the gradient taken outside")
def _(lib: Library, how: str) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.growth = Growth()

        def forward(self, y: Tensor) -> Tensor:
            return end(lib, how, self.growth, y)

    w = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    value = torch.func.functional_call(Outer(), {"growth.w": w}, (START,))
    (grad,) = torch.autograd.grad(value.sum(), w, allow_unused=True, materialize_grads=True)
    near(grad, slope(0.6))


@with_each("a hook on the weights")
def _(lib: Library, how: str) -> None:
    f = Growth()
    f.w.register_hook(lambda grad: grad / 4)
    end(lib, how, f, START).sum().backward()
    near(f.w.grad, slope(0.8) / 4)


@with_each("weights that another network computes")
def _(lib: Library, how: str) -> None:
    class Made(nn.Module):
        def __init__(self, w: Tensor) -> None:
            super().__init__()
            self.w = w

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.w * y * (1 - y)

    code = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        end(lib, how, Made(2 * code), START.clone().requires_grad_()).sum(),
        code,
        allow_unused=True,
        materialize_grads=True,
    )
    near(grad, 2 * slope(0.8))


@with_each("weights in a closure")
def _(lib: Library, how: str) -> None:
    w = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    value = end(lib, how, lambda t, y: w * y * (1 - y), START)
    (grad,) = torch.autograd.grad(value.sum(), w, allow_unused=True, materialize_grads=True)
    near(grad, slope(0.8))


@with_each("a module that keeps its solution is freed")
def _(lib: Library, how: str) -> None:
    f = Growth()
    f.solution = end(lib, how, f, START)
    f.solution.sum().backward()
    gone = weakref.ref(f)
    del f
    gc.collect()
    if gone() is not None:
        raise Wrong("it is still there")


# ---- fields ---------------------------------------------------------------------------------------------------------


@with_each("a field that begins with an in-place relu")
def _(lib: Library, how: str) -> None:
    class Inplace(Growth):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            y = nn.functional.relu(y.neg_() if not y.requires_grad else -y, inplace=True)
            return self.w * torch.ones_like(y) + 0 * y

    f, y0 = Inplace(), START.clone()
    value = end(lib, how, f, y0)
    near(y0, START, 0.0)
    near(value, START + 1.5 * 0.8)
    (grad,) = torch.autograd.grad(value.sum(), f.w)
    near(grad, 3.0)


@with_each("a field that writes its result into a buffer")
def _(lib: Library, how: str) -> None:
    class Buffered(Growth):
        def __init__(self) -> None:
            super().__init__()
            self.place = torch.zeros_like(START)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.place.copy_(self.w.detach() * y * (1 - y))

    with torch.no_grad():
        near(end(lib, how, Buffered(), START), grown(START, 0.8))


@with_each("a field that is the gradient of an energy")
def _(lib: Library, how: str) -> None:
    class Descent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                y = y if y.requires_grad else y.requires_grad_()
                (down,) = torch.autograd.grad((0.5 * self.k * y**2).sum(), y, create_graph=True)
            return -down

    f = Descent()
    value = end(lib, how, f, START.clone())
    near(value, START * math.exp(-1.05))
    (grad,) = torch.autograd.grad(value.sum(), f.k)
    near(grad, (-1.5 * START * math.exp(-1.05)).sum())


@with_each("a field with dropout")
def _(lib: Library, how: str) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.w * nn.functional.dropout(torch.ones_like(y), 0.5)

    torch.manual_seed(0)
    f = Noisy()
    value = end(lib, how, f, START, method="euler", options={"step_size": 0.1})
    (grad,) = torch.autograd.grad(value.sum(), f.w)
    near(grad, ((value - START) / f.w).sum())  # whatever was drawn


@with_each("a field in bfloat16 by autocast")
def _(lib: Library, how: str) -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, -1.0)
    y0 = START.float()
    with torch.autocast("cpu", torch.bfloat16):
        f = nn.Sequential(layer)
        f.forward = lambda t, y: layer(y).float()  # type: ignore[assignment, method-assign]
        value = end(lib, how, f, y0, rtol=1e-2, atol=1e-2)
    (grad,) = torch.autograd.grad(value.sum(), layer.weight)
    near(value, y0 * math.exp(-1.5), 0.05)
    near(grad, (1.5 * y0 * math.exp(-1.5)).sum().view(1, 1), 0.05)


# ---- other derivatives ----------------------------------------------------------------------------------------------


@with_each("torch.func.jvp")
def _(lib: Library, how: str) -> None:
    f = Growth()
    _, tangent = torch.func.jvp(lambda y: end(lib, how, f, y), (START,), (torch.ones_like(START),))
    near(tangent, torch.func.jvp(lambda y: grown(y, 0.8), (START,), (torch.ones_like(START),))[1])


@with_each("torch.func.vmap")
def _(lib: Library, how: str) -> None:
    f = Growth()
    near(torch.func.vmap(lambda y: end(lib, how, f, y))(START), grown(START, 0.8))


@with_each("torch.func.vmap, samples of different speeds")
def _(lib: Library, how: str) -> None:
    rates = torch.tensor([0.5, 60.0], dtype=torch.float64)
    f = nn.Module()

    def one(y: Tensor, rate: Tensor) -> Tensor:
        f.forward = lambda t, y: -rate * y  # type: ignore[assignment, method-assign]
        return end(lib, how, f, y)

    near(torch.func.vmap(one)(START, rates), START * torch.exp(-1.5 * rates)[:, None])


@with_each("torch.func.grad")
def _(lib: Library, how: str) -> None:
    f = Growth()
    grad = torch.func.grad(lambda y: end(lib, how, f, y).sum())(START)
    near(grad, torch.func.grad(lambda y: grown(y, 0.8).sum())(START))


@with_each("torch.func.jacrev")
def _(lib: Library, how: str) -> None:
    f = Growth()
    near(torch.func.jacrev(lambda y: end(lib, how, f, y))(START), torch.func.jacrev(lambda y: grown(y, 0.8))(START))


@with_each("a second derivative")
def _(lib: Library, how: str) -> None:
    f = Growth()
    (first,) = torch.autograd.grad(end(lib, how, f, START).sum(), f.w, create_graph=True)
    (second,) = torch.autograd.grad(first, f.w, allow_unused=True, materialize_grads=True)
    leaf = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(grown(START, leaf).sum(), leaf, create_graph=True)
    near(second, torch.autograd.grad(want, leaf)[0])


@with_each("gradients in several threads")
def _(lib: Library, how: str) -> None:
    errors: list[BaseException] = []

    def go() -> None:
        try:
            f = Growth()
            (grad,) = torch.autograd.grad(end(lib, how, f, START).sum(), f.w)
            near(grad, slope(0.8))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=go) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


@with_each("activation checkpointing around the solve")
def _(lib: Library, how: str) -> None:
    from torch.utils.checkpoint import checkpoint

    f = Growth()
    value = checkpoint(lambda y: end(lib, how, f, y), START.clone().requires_grad_(), use_reentrant=False)
    (grad,) = torch.autograd.grad(value.sum(), f.w)
    near(grad, slope(0.8))


@with_each("the gradient by the end time")
def _(lib: Library, how: str) -> None:
    f, span = Growth(), SPAN.clone().requires_grad_()
    (grad,) = torch.autograd.grad(getattr(lib, how)(f, START, span, **TIGHT)[-1].sum(), span)
    y = grown(START, 0.8)
    near(grad[1], (0.8 * y * (1 - y)).sum())


# ---- states ---------------------------------------------------------------------------------------------------------


@with_each("complex states and weights")
def _(lib: Library, how: str) -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5 + 1.0j, dtype=torch.complex128))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.w * y

    f, y0 = Turn(), START.to(torch.complex128)
    value = end(lib, how, f, y0)
    near(value, y0 * torch.exp(1.5 * f.w))
    (grad,) = torch.autograd.grad(value.real.sum(), f.w)
    (want,) = torch.autograd.grad((y0 * torch.exp(1.5 * f.w)).real.sum(), f.w)
    near(grad, want)


@with_each("a batch without samples")
def _(lib: Library, how: str) -> None:
    f = Growth()
    value = end(lib, how, f, START[:0])
    value.sum().backward()
    near(value, START[:0])
    near(torch.zeros(()) if f.w.grad is None else f.w.grad, 0.0)


@with_each("a solution that ends before the last time")
def _(lib: Library, how: str) -> None:
    f = Growth()
    f.forward = lambda t, y: y * y  # type: ignore[assignment, method-assign]
    with torch.no_grad():
        value = end(lib, how, f, 2 * torch.ones(1, 1, dtype=torch.float64))  # infinite at t = 0.5
    raise Wrong(f"{value.item():.2g}, without a word")


@with_each("a sample that is not a number among good ones")
def _(lib: Library, how: str) -> None:
    y0 = torch.cat([START, torch.full_like(START, torch.nan)])
    with torch.no_grad():
        near(end(lib, how, Growth(), y0)[:2], grown(START, 0.8))


@with_each("inside inference_mode")
def _(lib: Library, how: str) -> None:
    with torch.inference_mode():
        near(end(lib, how, Growth(), START.clone()), grown(START, 0.8))


@with_each("the solution changed in place")
def _(lib: Library, how: str) -> None:
    f = Growth()
    value = end(lib, how, f, START)
    value *= 2
    (grad,) = torch.autograd.grad(value.sum(), f.w)
    near(grad, 2 * slope(0.8))


# ---- events ---------------------------------------------------------------------------------------------------------


class Fall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -self.g])


HEIGHT = torch.tensor([1.0, 0.0], dtype=torch.float64)
ZERO = torch.tensor(0.0, dtype=torch.float64)


@situation("the time of an event has a gradient")
def _(lib: Library) -> None:
    f = Fall()
    t, _ = lib.odeint_event(f, HEIGHT, ZERO, event_fn=lambda t, y: y[0], odeint_interface=lib.odeint_adjoint, **TIGHT)
    (grad,) = torch.autograd.grad(t, f.g)
    near(t, 1.0)
    near(grad, -0.25)


@situation("an event's condition that stops to be a number")
def _(lib: Library) -> None:
    t, _ = lib.odeint_event(Fall(), HEIGHT, ZERO, event_fn=lambda t, y: torch.sqrt(y[0]) - 0.1, **TIGHT)
    near(t, math.sqrt(0.99))


@situation("of two conditions one happens, and is differentiated")
def _(lib: Library) -> None:
    f = Fall()
    both = lambda t, y: torch.stack([y[0], 1e-12 * (3 + t)])  # noqa: E731
    t, _ = lib.odeint_event(f, HEIGHT, ZERO, event_fn=both, odeint_interface=lib.odeint_adjoint, **TIGHT)
    (grad,) = torch.autograd.grad(t, f.g)
    near(t, 1.0)
    near(grad, -0.25)


# ---- the table ------------------------------------------------------------------------------------------------------


def outcome(function: Callable[[Library], None], lib: types.ModuleType) -> tuple[str, str]:
    """The kind of what a library did, and its words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(lib)
    except Wrong as error:
        return "wrong", str(error)
    except hj.HomoJLError as error:
        return "refused", str(error)
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        own = f"/{lib.__name__}/" in where and lib is not hj and not isinstance(error, RuntimeError)
        return ("refused" if own or "modified by an inplace operation" in str(error) else "raw"), words
    return "right", ""


def main() -> int:
    import torchdiffeq

    torch.set_num_threads(1)
    libraries = (torchdiffeq, hj)
    word = " ".join(sys.argv[1:])
    counts: dict[str, Counter[str]] = {lib.__name__: Counter() for lib in libraries}
    head("situation", *counts)
    for name, function in SITUATIONS.items():
        if word not in name:
            continue
        cells = []
        for lib in libraries:
            kind, words = outcome(function, lib)
            counts[lib.__name__][kind] += 1
            cells.append(f"{kind}: {words[:90]}".replace("|", "/") if words else kind)
        row(name, *cells)
    for kind in KINDS:
        row(f"**{kind}**", *(count[kind] for count in counts.values()))
    return bool(counts["homojl"]["wrong"] + counts["homojl"]["raw"])


if __name__ == "__main__":
    sys.exit(main())
