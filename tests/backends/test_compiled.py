"""Compiled steps are the eager ones, to rounding, with the same statuses, counts and gradients."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj

pytestmark = pytest.mark.slow


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack([v, mu * (1 - x * x) * v - x], -1)


def problem(**kwargs):
    y0 = torch.tensor([[2.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
    mu = torch.tensor(1.5, dtype=torch.float64)
    return hj.ODEProblem(van_der_pol, y0, torch.linspace(0, 3, 7), args=(mu,), **kwargs)


@pytest.mark.parametrize("algorithm", [hj.Dopri5(rtol=1e-8, atol=1e-8), hj.RK4(step_size=0.1)], ids=lambda a: a.name)
def test_the_same_steps_and_states(algorithm):
    with torch.no_grad():
        eager = hj.solve(problem(), algorithm, backend="pytorch")
        compiled = hj.solve(problem(), algorithm, backend="pytorch-compiled")
    assert compiled.stats.backend == "pytorch-compiled"
    assert (compiled.stats.nfe, compiled.stats.n_rejected) == (eager.stats.nfe, eager.stats.n_rejected)
    assert len(compiled.steps) == len(eager.steps)
    torch.testing.assert_close(compiled.ys, eager.ys, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.BacksolveAdjoint()], ids=repr)
def test_gradients(adjoint):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y, x):
            return self.net(y + x) - y

    y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    found = {}
    for backend in ("pytorch", "pytorch-compiled"):
        solution = hj.solve(
            hj.ODEProblem(Field(), y0, (0.0, 0.4, 1.0), args=(x,)),
            hj.Tsit5(rtol=1e-9, atol=1e-9),
            adjoint=adjoint,
            backend=backend,
        )
        loss = solution.ys.square().sum()
        found[backend] = torch.autograd.grad(loss, [y0, x, *net.parameters()]), solution.stats.n_vjp
    for a, b in zip(found["pytorch"][0], found["pytorch-compiled"][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    # The last stage of the last step has no part in the loss, and that of another one is the next one's first stage:
    # whether they are differentiated is each way's own affair.
    assert abs(found["pytorch-compiled"][1] - found["pytorch"][1]) <= 1


def assert_alike(compiled, eager):
    assert compiled.stats.backend == "pytorch-compiled"
    assert compiled.status is eager.status
    assert (compiled.stats.nfe, compiled.stats.n_rejected) == (eager.stats.nfe, eager.stats.n_rejected)
    torch.testing.assert_close(compiled.ts, eager.ts, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.tensor(compiled.steps.sizes), torch.tensor(eager.steps.sizes))
    torch.testing.assert_close(compiled.ys, eager.ys, rtol=1e-9, atol=1e-9)


def pulses(t, y):
    """Steps grow between the pulses and are rejected at each."""
    return torch.exp(-50 * torch.sin(t) ** 2) * torch.cos(y) - 0.1 * y


LOOKS_AHEAD = {
    "rejected steps": ({}, hj.Bosh3(rtol=1e-7, atol=1e-7)),
    "backward in time": ({"ts": (9.0, 4.0, 0.0)}, hj.Bosh3(rtol=1e-7, atol=1e-7)),
    "predictive control": ({}, hj.Bosh3(rtol=1e-7, atol=1e-7, controller=hj.PredictiveController())),
    "a largest step, another tolerance": ({}, hj.Bosh3(rtol=1e-5, atol=1e-5, max_step=0.3)),
    "too many steps": ({}, hj.Bosh3(rtol=1e-7, atol=1e-7, max_steps=21)),
    "an event": ({"event": hj.Event(lambda t, y: y[0] - 1.1)}, hj.Bosh3(rtol=1e-7, atol=1e-7)),
    "discontinuities": ({"discontinuities": (2.0, 5.5)}, hj.Bosh3(rtol=1e-7, atol=1e-7)),
}


@pytest.mark.parametrize("case", LOOKS_AHEAD)
def test_what_runs_ahead_are_the_steps_of_the_loop(case, caplog):
    caplog.set_level("INFO", "homojl")
    options, algorithm = LOOKS_AHEAD[case]
    y0 = torch.linspace(1, 2, 4, dtype=torch.float64)
    ode = hj.ODEProblem(pulses, y0, **{"ts": (0.0, 4.0, 9.0), **options})
    with torch.no_grad():
        eager, compiled = (
            hj.solve(ode, algorithm, backend=backend, throw=False) for backend in ("pytorch", "pytorch-compiled")
        )
    assert_alike(compiled, eager)
    assert len(eager.steps) > 8
    assert "one by one" not in caplog.text
    if case == "rejected steps":
        assert eager.stats.n_rejected > 2


def test_where_the_field_is_no_longer_finite():
    def blows_up(t, y):
        return y * y

    ode = hj.ODEProblem(blows_up, torch.ones(2, dtype=torch.float64), (0.0, 2.0))
    with torch.no_grad():
        eager, compiled = (
            hj.solve(ode, hj.Tsit5(), backend=backend, throw=False) for backend in ("pytorch", "pytorch-compiled")
        )
    assert not compiled.status.ok
    assert compiled.status is eager.status
    assert compiled.ts[-1].item() == pytest.approx(1.0, abs=1e-3)


def test_a_field_that_keeps_books_has_its_steps_compiled_one_by_one(caplog):
    caplog.set_level("INFO", "homojl")

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, t, y):
            self.calls += 1
            return -y

    field = Counting()
    ode = hj.ODEProblem(field, torch.ones(3, dtype=torch.float64), (0.0, 5.0))
    with torch.no_grad():
        eager = hj.solve(ode, hj.Tsit5(), backend="pytorch")
        field.calls.zero_()
        compiled = hj.solve(ode, hj.Tsit5(), backend="pytorch-compiled")
        assert field.calls.item() == compiled.stats.nfe
        again = hj.solve(ode, hj.Tsit5(), backend="pytorch-compiled")
    assert caplog.text.count("one by one") == 1
    assert_alike(compiled, eager)
    assert_alike(again, eager)


def test_functions_with_the_same_code_are_told_apart_by_what_they_enclose():
    def field(rate):
        return lambda t, y: rate * y

    y0 = torch.ones(3, dtype=torch.float64)
    ends = [
        hj.solve(hj.ODEProblem(field(rate), y0, (0.0, 1.0)), hj.Tsit5(), backend="pytorch-compiled").value[0].item()
        for rate in (torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(0.5))
    ]
    assert ends == pytest.approx([2.718, 0.368, 1.649], abs=1e-2)


def test_numbers_that_a_field_encloses_or_is_given():
    def field(rate):
        return lambda t, y, shift: rate * (y - shift)

    y0 = torch.ones(3, dtype=torch.float64)
    for rate, shift in ((-1.0, 0.5), (-0.7, 0.25), (-1.3, 2)):
        ode = hj.ODEProblem(field(rate), y0, (0.0, 2.0), args=(shift,))
        with torch.no_grad():
            eager = hj.solve(ode, hj.Bosh3(rtol=1e-8, atol=1e-8), backend="pytorch")
            compiled = hj.solve(ode, hj.Bosh3(rtol=1e-8, atol=1e-8), backend="pytorch-compiled")
        recorded = hj.solve(
            hj.ODEProblem(field(rate), y0.clone().requires_grad_(), (0.0, 2.0), args=(shift,)),
            hj.Bosh3(rtol=1e-8, atol=1e-8),
            backend="pytorch-compiled",
        )
        assert_alike(compiled, eager)
        assert_alike(recorded, eager)
        assert compiled.value[0].item() == pytest.approx(shift + (1 - shift) * math.exp(2 * rate), abs=1e-6)


def test_a_field_that_is_no_graph_is_refused_in_one_line():
    def field(t, y):
        return -y if y.sum().item() > 0 else y

    with pytest.raises(hj.ConfigError, match=r"the field cannot be compiled: .*; use backend='pytorch'") as caught:
        hj.solve(hj.ODEProblem(field, torch.ones(2), (0.0, 1.0)), hj.Tsit5(), backend="pytorch-compiled")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_another_graph_at_every_call_is_refused_in_one_line():
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, t, y):
            self.calls += 1
            return -y * self.calls

    ode = hj.ODEProblem(Counting(), torch.ones(2), (0.0, 1.0))
    refused = pytest.raises(hj.ConfigError, match=r"the field cannot be compiled: .*; use backend='pytorch'")
    with torch._dynamo.config.patch(recompile_limit=2), refused as caught:
        hj.solve(ode, hj.RK4(step_size=0.01), backend="pytorch-compiled")
    assert "\n" not in str(caught.value)


def test_a_tensor_in_a_closure_receives_its_gradient():
    weight = torch.ones(2, requires_grad=True)
    ode = hj.ODEProblem(lambda t, y: weight * y, torch.ones(2, requires_grad=True), (0.0, 1.0))
    for algorithm in (hj.Tsit5(), hj.RK4(step_size=0.5)):
        value = hj.solve(ode, algorithm, adjoint=hj.CheckpointAdjoint(), backend="pytorch-compiled").value
        (found,) = torch.autograd.grad(value.sum(), weight)
        torch.testing.assert_close(found, torch.full((2,), math.e), rtol=1e-2, atol=0)


ORDER = torch.tensor([2, 0, 3, 1])


def test_what_the_compiler_gets_wrong_is_not_compiled():
    """PyTorch 2.13 fuses the gradient of an index with what reads it: four stages in one graph are wrong."""
    y0 = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)
    found = []
    for backend in ("pytorch", "pytorch-compiled"):
        y = y0.clone().requires_grad_()
        problem = hj.ODEProblem(lambda t, y: y[:, ORDER] - y, y, (0.0, 0.3, 1.0))
        solution = hj.solve(problem, hj.Tsit5(rtol=1e-5, atol=1e-6), backend=backend)
        solution.ys.pow(3).sum().backward()
        found.append((solution.stats.nfe, solution.stats.n_vjp, solution.ys.detach(), y.grad))
    assert found[0][:2] == found[1][:2]
    for eager, compiled in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-10)
