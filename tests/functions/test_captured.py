"""The tensors that a function holds, found wherever people put them, and gradients that reach them."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

import homojl as hj
from homojl.functions.captured import Captured

Y0 = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4).double()

    def forward(self, t, y):
        return torch.tanh(self.layer(y)) * torch.cos(t)

    def slower(self, t, y):
        return 0.5 * self(t, y)


class Held:
    """A callable that is no module."""

    def __init__(self, net: Net) -> None:
        self.parts = {"nets": [net]}

    def __call__(self, t, y):
        return self.parts["nets"][0](t, y)


class Recurrent(nn.Module):
    """Its cell keeps another list of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(4, 4, batch_first=True).double()

    def forward(self, t, y):
        return self.cell(y[:, None])[0][:, 0]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4).double())

    def forward(self, t, y):
        return torch.tanh(self.layer(y))


class Conditioned(nn.Module):
    """Its condition, computed from a parameter, is set from outside, as torchdiffeq's users do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.code = nn.Parameter(torch.full((4,), 0.3, dtype=torch.float64))
        self.x = 2 * self.code

    def forward(self, t, y):
        return self.net(t, y) + self.x


net = Net()  # of a module, as in a script


def of_globals(t, y):
    return net(t, y)


def _closure() -> tuple:
    inner = Net()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return lambda t, y: scale * inner(t, y), [scale, *inner.parameters()]


def _bound() -> tuple:
    inner = Net()
    return inner.slower, list(inner.parameters())


def _partial() -> tuple:
    inner, shift = Net(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    return functools.partial(lambda t, y, f, b: f(t, y) + b, f=inner, b=shift), [shift, *inner.parameters()]


def _default() -> tuple:
    inner = Net()

    def f(t, y, inner=inner):
        return inner(t, y)

    return f, list(inner.parameters())


def _nested() -> tuple:
    inner = Net()
    twice = lambda g: lambda t, y: 2 * g(t, y)  # noqa: E731
    return twice(lambda t, y: inner(t, y)), list(inner.parameters())


def _object() -> tuple:
    inner = Net()
    return Held(inner), list(inner.parameters())


def _module(kind: type[nn.Module]) -> tuple:
    module = kind()
    return module, list(module.parameters())


CASES = {
    "closure": _closure,
    "bound method": _bound,
    "partial": _partial,
    "default": _default,
    "nested closures": _nested,
    "callable object": _object,
    "global": lambda: (of_globals, list(net.parameters())),
    "module": lambda: _module(Net),
    "recurrent": lambda: _module(Recurrent),
    "parametrised": lambda: _module(Normed),
    "a condition set from outside": lambda: _module(Conditioned),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("adjoint", [hj.CheckpointAdjoint(), hj.GaussAdjoint()], ids=lambda a: a.name)
def test_gradients_reach_what_a_function_holds(make, adjoint):
    gradients = []
    for how in (hj.DirectAdjoint(), adjoint):
        f, wrt = make()
        value = hj.solve(
            hj.ODEProblem(f, Y0, (0.0, 1.0)), hj.Tsit5(rtol=1e-9, atol=1e-9), adjoint=how, backend="pytorch"
        ).value
        gradients.append(torch.autograd.grad(value.square().sum(), wrt))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_copy_has_other_tensors_and_leaves_the_original_alone(make):
    f, _ = make()
    before = f(torch.zeros(()), Y0)
    captured = Captured(f)
    assert captured.tensors
    zeros = captured.rebuilt([torch.zeros_like(x) for x in captured.tensors])
    t = torch.zeros((), dtype=torch.float64)
    if make is not CASES["parametrised"]:  # whose zero directions have no length
        assert not zeros(t, Y0).any()
    assert torch.equal(f(t, Y0), before)
    assert torch.equal(captured.rebuilt(captured.tensors)(t, Y0), before)


def test_a_module_is_not_kept_by_its_copy():
    module = Net()
    captured, gone = Captured(module), weakref.ref(module)
    tensors = list(captured.tensors)
    del module
    gc.collect()
    assert gone() is None
    assert captured.rebuilt(tensors)(torch.zeros(()), Y0).shape == Y0.shape


def test_a_function_that_holds_itself():
    def f(t, y, depth=2):
        return y if depth == 0 else w * f(t, y, depth - 1)

    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = hj.solve(hj.ODEProblem(f, Y0, (0.0, 1.0)), hj.Tsit5(), adjoint=hj.CheckpointAdjoint()).value
    (gradient,) = torch.autograd.grad(value.sum(), w)
    expected = (Y0 * torch.exp(w.detach() ** 2)).sum() * 2 * w.detach()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
