"""Whole solves in C++ are the eager ones, to rounding: steps, states, gradients, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import homojl as hj
from homojl.backends.pytorch.native import build, program, whole
from homojl.backends.pytorch.native.entry import entry_of
from homojl.backends.pytorch.native.operations import Postponed, Unsupported

pytestmark = [pytest.mark.slow, pytest.mark.needs("compiler")]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def _whole(monkeypatch):
    """No solve of these tests is made step by step without saying so."""

    def refuse(owner, reason):
        assert isinstance(reason, Postponed), reason
        raise reason

    monkeypatch.setattr(whole, "refuse", refuse)


class Layers(nn.Module):
    """Products of odd sizes, with vectors of each length and a time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 37), nn.SiLU(), nn.Linear(37, 19), nn.Tanh(), nn.Linear(19, 3))
        self.norm = nn.LayerNorm(3)

    def forward(self, t, y):
        return self.net(torch.cat([y, t.expand(len(y), 1)], 1)) - self.norm(y)


class Gates(nn.Module):
    """Views, slices that are written, sums, a softmax and a number from outside."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, t, y):
        a, b, c = y.unbind(-1)
        out = torch.zeros_like(y)
        out[:, :2] = torch.stack([a * b - c, torch.sigmoid(b) * torch.exp(-c * c)], 1)
        out[:, 2] = torch.where(a > 0, a.mean(), torch.sin(t) * c)
        return out - torch.softmax(y @ self.weight, -1) * y.square().sum() / 10


CASES = {
    "layers": (Layers, hj.Dopri5(rtol=1e-7, atol=1e-7), torch.linspace(0, 2, 7)),
    "gates": (Gates, hj.Bosh3(rtol=1e-6, atol=1e-6), (1.0, 0.5, 0.0)),
    "without a continuous extension": (Gates, hj.RK4(step_size=0.1), (0.0, 0.25, 1.0)),
}


def solved(field, algorithm, ts, backend, adjoint, **options):
    y = torch.linspace(-1, 1, 33, dtype=torch.float64).view(11, 3).requires_grad_()
    solution = hj.solve(hj.ODEProblem(field, y, ts, **options), algorithm, adjoint=adjoint, backend=backend)
    loss = (solution.ys * torch.arange(1, len(ts) + 1).view(-1, 1, 1)).square().sum()
    return solution, torch.autograd.grad(loss, [y, *field.parameters()], create_graph=True)


@pytest.mark.parametrize("case", CASES)
def test_steps_states_and_gradients(case):
    make, algorithm, ts = CASES[case]
    field = make().double()
    eager, expected = solved(field, algorithm, ts, "pytorch", hj.DirectAdjoint())
    for adjoint in (hj.DirectAdjoint(), hj.CheckpointAdjoint()):
        y = torch.linspace(-1, 1, 33, dtype=torch.float64).view(11, 3).requires_grad_()
        ode = hj.ODEProblem(field, y, ts)
        whole = hj.solve(ode, algorithm, adjoint=adjoint, backend="pytorch-compiled")
        loss = (whole.ys * torch.arange(1, len(ts) + 1).view(-1, 1, 1)).square().sum()
        found = torch.autograd.grad(loss, [y, *field.parameters()])
        assert (whole.stats.nfe, whole.stats.n_rejected) == (eager.stats.nfe, eager.stats.n_rejected)
        torch.testing.assert_close(torch.tensor(whole.steps.saves), torch.tensor(eager.steps.saves))
        assert whole.steps.sizes == pytest.approx(eager.steps.sizes, rel=1e-5)  # the last one is what is left
        torch.testing.assert_close(whole.ys, eager.ys, rtol=1e-10, atol=1e-10)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def stiffening(t, y):
    return 8 * torch.cos(40 * t * t) * y - y**3


CONTROLS = {
    "proportional and integral": hj.PIController(beta1=0.3, beta2=0.1, safety=0.8, max_factor=3.0),
    "with a floor": hj.PIController(floor=0.02),
    "predictive": hj.PredictiveController(),
    "of three errors": hj.PIDController(),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_formulas_of_the_step_control_are_the_same_in_both(name):
    y = torch.tensor([1.0, -0.3], dtype=torch.float64)
    algorithm = hj.Bosh3(rtol=1e-4, atol=1e-6, controller=CONTROLS[name])
    with torch.no_grad():
        ode = hj.ODEProblem(stiffening, y, (0.0, 1.5))
        eager, compiled = (hj.solve(ode, algorithm, backend=b) for b in ("pytorch", "pytorch-compiled"))
    assert (compiled.stats.n_accepted, compiled.stats.n_rejected) == (eager.stats.n_accepted, eager.stats.n_rejected)
    assert eager.stats.n_rejected > 0
    assert compiled.steps.sizes == pytest.approx(eager.steps.sizes, rel=1e-8)


def test_second_derivatives():
    field = Gates()
    _, expected = solved(field, hj.RK4(step_size=0.1), (0.0, 0.25, 1.0), "pytorch", hj.DirectAdjoint())
    _, found = solved(field, hj.RK4(step_size=0.1), (0.0, 0.25, 1.0), "pytorch-compiled", hj.DirectAdjoint())
    again = [torch.autograd.grad(sum(g.square().sum() for g in grads), field.weight)[0] for grads in (expected, found)]
    torch.testing.assert_close(*again, rtol=1e-9, atol=1e-9)


def test_what_was_compiled_is_found_again_and_takes_other_weights(monkeypatch):
    algorithm, ts = hj.RK4(step_size=0.1), (0.0, 0.25, 1.0)
    solved(Gates(), algorithm, ts, "pytorch-compiled", hj.DirectAdjoint())

    def compile_source(*_):
        raise AssertionError("compiled once more")

    monkeypatch.setattr(program, "compile_source", compile_source)
    field = Gates()  # another module, with other weights
    monkeypatch.setattr("homojl.backends.pytorch.native.entry._entries", {})  # as in another process
    eager, _ = solved(field, algorithm, ts, "pytorch", hj.DirectAdjoint())
    whole, _ = solved(field, algorithm, ts, "pytorch-compiled", hj.DirectAdjoint())
    torch.testing.assert_close(whole.ys, eager.ys, rtol=1e-10, atol=1e-10)


def test_weights_that_change_before_the_gradient_are_noticed():
    field = Gates()
    y = torch.linspace(-1, 1, 33, dtype=torch.float64).view(11, 3)
    value = hj.solve(hj.ODEProblem(field, y, (0.0, 0.25, 1.0)), hj.RK4(step_size=0.1), backend="pytorch-compiled").value
    with torch.no_grad():
        field.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


class Keeps(nn.Module):
    def forward(self, t, y):
        self.last = -y
        return self.last


class Counts(nn.Module):
    calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -y


class Draws(nn.Module):
    def forward(self, t, y):
        return y * torch.rand(3)


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, t, y):
        self.total.add_(y)
        return -y


@pytest.mark.parametrize("make", [Keeps, Counts, Draws, Writes])
def test_a_field_that_does_more_than_to_return_a_value_is_refused_and_nothing_is_changed(make):
    field, y = make(), torch.ones(3)

    @torch.no_grad()
    def opened_and_compiled():
        opened, inputs = entry_of(make.forward.__code__)(field, (), torch.tensor(0.0), y)
        program.program_for(opened, hj.Tsit5().explicit_tableau, [], torch.tensor(0.0), y, inputs)

    with pytest.raises(Unsupported):
        opened_and_compiled()
    assert not hasattr(field, "last")
    assert getattr(field, "calls", 0) == 0
    assert not getattr(field, "total", torch.zeros(1)).any()


def test_a_field_first_met_inside_a_transform_is_solved_whole_later_in_several_threads_at_once():
    y = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)

    def value(weight, backend="pytorch-compiled"):
        ode = hj.ODEProblem(lambda t, y, w: torch.tanh(y @ w), y, (0.0, 1.0), args=(weight,))
        return hj.solve(ode, hj.Tsit5(rtol=1e-6, atol=1e-6), backend=backend).value.square().sum()

    weights = [k * torch.eye(3, dtype=torch.float64) for k in (1.0, 2.0, -1.0)]
    postponed = torch.func.grad(value)(weights[0])
    eager = [value(w, "pytorch") for w in weights]
    torch.testing.assert_close(postponed, torch.func.grad(lambda w: value(w, "pytorch"))(weights[0]))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(value, weights * 4))
    torch.testing.assert_close(torch.stack(found), torch.stack(eager * 4), rtol=1e-10, atol=0)


def lorenz(t, y, p):
    (x, v, z), (s, r, b) = y.unbind(-1), p.unbind(-1)
    return torch.stack([s * (v - x), x * (r - z) - v, x * v - b * z], -1) + 0 * t


def lorenz_systems(field, backend, samples=300, saves=4):
    """More samples than there are lanes, each with parameters of its own, and one number for all."""
    y = torch.linspace(-1, 1, samples * 3, dtype=torch.float64).view(-1, 3).requires_grad_()
    p = (torch.tensor([10.0, 28.0, 8 / 3]).double() * torch.linspace(0.8, 1.2, samples).double()[:, None]).detach()
    p.requires_grad_()
    ode = hj.ODEProblem(field, y, torch.linspace(0, 0.5, saves), args=(hj.PerSample(p),))
    algorithm = hj.Tsit5(rtol=1e-5, atol=1e-5)
    solution = hj.solve(ode, algorithm, adjoint=hj.CheckpointAdjoint(), batch="per-sample", backend=backend)
    return solution, torch.autograd.grad(solution.ys.square().sum(), [y, p])


def test_an_ensemble_with_its_gradient():
    eager, expected = lorenz_systems(lorenz, "pytorch")
    whole, found = lorenz_systems(lorenz, "pytorch-compiled")
    assert torch.equal(whole.samples.n_accepted, eager.samples.n_accepted)
    assert torch.equal(whole.samples.n_rejected, eager.samples.n_rejected)
    assert whole.samples.statuses == eager.samples.statuses
    torch.testing.assert_close(whole.ys, eager.ys, rtol=1e-10, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert whole.stats.nfe_backward > 0


def test_an_ensemble_taken_again_some_samples_at_a_time_has_the_same_gradient(monkeypatch):
    _, together = lorenz_systems(lorenz, "pytorch-compiled")
    monkeypatch.setattr("homojl.backends.pytorch.native.ensemble._AT_A_TIME", 1)
    _, apart = lorenz_systems(lorenz, "pytorch-compiled")
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_ensemble_whose_samples_depend_on_each_other_is_refused():
    with pytest.raises(hj.ConfigError, match="mixes the samples"):
        lorenz_systems(lambda t, y, p: (y - y.mean(0)) * p, "pytorch-compiled")
