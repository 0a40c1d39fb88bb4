"""Solves and their gradients on another device: nothing lies on the wrong one, and waits for it are counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import homojl as hj
from homojl.backends.pytorch.samples import rough_products
from homojl.backends.pytorch.steppers import stepper_for
from homojl.functions.base import DerivedField
from tests.elsewhere import DEVICE, Elsewhere, There, back, there

Tensor = torch.Tensor

EQUILIBRIA = [
    *((algorithm(), hj.ImplicitAdjoint()) for algorithm in (hj.Picard, hj.Broyden, hj.NewtonKrylov)),
    *((algorithm(), hj.ImplicitAdjoint()) for algorithm in (hj.PseudoTransient, hj.Relaxation, hj.Homotopy)),
    *((hj.Anderson(), adjoint()) for adjoint in (hj.ImplicitAdjoint, hj.PhantomAdjoint, hj.UnrolledAdjoint)),
]
EXPLICIT = [hj.Euler(step_size=0.1), hj.RK4(step_size=0.1), hj.Bosh3(), hj.Dopri5(), hj.Tsit5(), hj.Dopri8()]
IMPLICIT = [hj.TRBDF2(), hj.KenCarp4(), hj.KenCarp4(linear_solver="krylov"), hj.Kvaerno5()]
ODES = [
    *((algorithm, hj.CheckpointAdjoint(), "joint") for algorithm in (*EXPLICIT, *IMPLICIT)),
    *((hj.Dopri5(), adjoint(), "joint") for adjoint in (hj.DirectAdjoint, hj.GaussAdjoint, hj.BacksolveAdjoint)),
    *((hj.Tsit5(), adjoint(), "per-sample") for adjoint in (hj.DirectAdjoint, hj.CheckpointAdjoint)),
]


def named(case) -> str:
    return "-".join(x if isinstance(x, str) else x.name for x in case)


def inputs(*, rows: int = 5, n: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(n, n, generator=generator, dtype=dtype)
    return weight, torch.randn(rows, n, generator=generator, dtype=dtype)


def equilibrium(put, algorithm, adjoint):
    weight, x = (put(a) for a in inputs())
    weight.requires_grad_()
    problem = hj.FixedPointProblem(
        lambda z, w, x: torch.tanh(z @ w + x), torch.zeros_like(x), args=(weight, hj.PerSample(x))
    )
    sol = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch")
    (grad,) = torch.autograd.grad(sol.value.square().sum(), weight)
    return sol, back(sol.value), back(grad)


def ode(put, algorithm, adjoint, batch, saves=(0.0, 0.3, 1.0)):
    weight, y0 = (put(a) for a in inputs())
    weight.requires_grad_()
    problem = hj.ODEProblem(lambda t, y, w: torch.tanh(y @ w) - y * t, y0, saves, args=(weight,))
    sol = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch", batch=batch)
    (grad,) = torch.autograd.grad(sol.ys.square().sum(), weight)
    return sol, back(sol.ys), back(grad)


def here(x: Tensor) -> Tensor:
    return x.clone()


@pytest.mark.parametrize("case", EQUILIBRIA, ids=named)
def test_equilibria_and_their_gradients_stay_on_the_device(case):
    _, value, grad = equilibrium(here, *case)
    with Elsewhere():
        sol, found, found_grad = equilibrium(there, *case)
    assert sol.value.device == DEVICE
    # On another device GMRES may take some more products than it needs.
    torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found_grad, grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", ODES, ids=named)
def test_odes_and_their_gradients_stay_on_the_device(case):
    _, value, grad = ode(here, *case)
    with Elsewhere():
        sol, found, found_grad = ode(there, *case)
    assert sol.ys.device == DEVICE
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_grad, grad, rtol=1e-3, atol=1e-3)


def test_gauss_moves_cotangents_on_the_device():
    case = (hj.Dopri5(), hj.GaussAdjoint(), "joint", tuple(torch.linspace(0, 1, 20).tolist()))
    _, _, grad = ode(here, *case)
    with Elsewhere() as device:
        _, _, found = ode(there, *case)
    torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-5)
    assert sum(device.waits.values()) <= 20  # fewer than one for each save time


def test_a_tensor_on_the_wrong_device_shows():
    x = there(torch.ones(3))
    with Elsewhere():
        assert isinstance(x * 2 + torch.tensor(1.0), There)
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="two devices"):
            hj.solve(hj.FixedPointProblem(lambda z: z + torch.ones(3), x[None]), hj.Picard(), backend="pytorch")


def test_waits_are_counted():
    with Elsewhere() as device:
        x = there(torch.ones(3))
        assert x.sum().item() == 3.0
        assert (2 * x).tolist() == [2.0] * 3
        assert len(x[x > 0]) == 3
        x.double().to(DEVICE)
        assert sum(device.waits.values()) == 3


@torch.no_grad()
@pytest.mark.parametrize("algorithm", [hj.Picard(rtol=1e-6), hj.Anderson(rtol=1e-6), hj.Broyden(rtol=1e-6)])
def test_an_iteration_waits_once(algorithm):
    weight, x = inputs(rows=1)
    with Elsewhere() as device:
        w, x = there(weight), there(x).expand(6, 4).contiguous()
        problem = hj.FixedPointProblem(lambda z: torch.tanh(z @ w + x), torch.zeros_like(x))
        sol = hj.solve(problem, algorithm, backend="pytorch")
    assert sol.iterations.max() > 3
    assert sum(device.waits.values()) == sol.iterations.max() + 1


@torch.no_grad()
@pytest.mark.parametrize("algorithm", [hj.Dopri5(rtol=1e-6), hj.Tsit5(rtol=1e-6), hj.Bosh3(rtol=1e-4)])
def test_a_joint_step_waits_once(algorithm):
    weight, y0 = inputs()
    with Elsewhere() as device:
        w, y0 = there(weight), there(y0)
        sol = hj.solve(hj.ODEProblem(lambda t, y: torch.tanh(y @ w), y0, (0.0, 5.0)), algorithm, backend="pytorch")
    start = 3  # for the first step's size
    assert len(sol.steps) > 5
    assert sum(device.waits.values()) <= len(sol.steps) + sol.stats.n_rejected + start


@torch.no_grad()
def test_newton_krylov_waits_a_few_times_for_each_linear_system():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(60, 60, generator=generator, dtype=torch.float64) / 60**0.5
    x = torch.randn(1, 60, generator=generator, dtype=torch.float64)
    with Elsewhere() as device:
        w, x = there(w), there(x)
        problem = hj.FixedPointProblem(lambda z: torch.tanh(z @ w + x), torch.zeros_like(x))
        sol = hj.solve(problem, hj.NewtonKrylov(rtol=1e-8, atol=0), backend="pytorch")
    waits = sum(device.waits.values())
    # One for the residual, one for the line search, and of GMRES one, or where it needs far more than before, a few.
    assert waits <= 6 * sol.iterations.max()
    assert waits < sol.stats.n_jvp


@pytest.mark.parametrize("algorithm", EXPLICIT, ids=lambda a: a.name)
def test_the_steps_of_cuda_tensors_are_cuda_tensors(algorithm):
    # No GPU is needed: these tensors have a device and a shape, but no numbers.
    with FakeTensorMode():
        y, w = torch.empty(5, 4, device="cuda"), torch.empty(4, 4, device="cuda")
        stepper = stepper_for(algorithm)
        field = DerivedField(lambda t, y: torch.tanh(y @ w) - y * t)
        step = stepper.step(field, 0.2, 0.1, y)
        tensors = [step.y_next, *stepper.inside(step, [0.3, 1.0] if stepper.interpolates else [1.0]), *step.ks]
        if hasattr(algorithm, "rtol"):
            tensors.append(stepper.error(step))
        assert {x.device.type for x in tensors} == {"cuda"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.conv(z) + x)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y))


LAYERS = {
    "equilibrium": (lambda: hj.nn.Equilibrium(Block()), (2, 4, 6, 6)),
    "ode": (lambda: hj.nn.ODE(Field()), (3, 4)),
    "homoode": (lambda: hj.nn.HomoODE(4), (2, 4, 6, 6)),
    "mondeq": (lambda: hj.nn.MonDEQ(4), (2, 4, 6, 6)),
    "linear mondeq": (lambda: hj.nn.MonDEQ(4, convolution=False), (3, 4)),
    "pcdeq": (lambda: hj.nn.PcDEQ(4), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_stay_on_the_device(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.rand(shape)
    value = layer(x).detach()
    with Elsewhere():
        for module in layer.modules():
            for key, parameter in module._parameters.items():
                module._parameters[key] = None if parameter is None else nn.Parameter(there(parameter.detach()))
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else there(buffer)
        found = layer(there(x))
        found.square().sum().backward()
    torch.testing.assert_close(back(found), value, rtol=1e-4, atol=1e-5)
    assert all(p.grad.device == DEVICE for p in layer.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in layer.parameters())


def test_tf32_is_named_where_more_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with FakeTensorMode():
        z = torch.empty(2, 3, device="cuda")
        assert "TF32" in rough_products(z, 1e-5)
        assert rough_products(z, 1e-2) == rough_products(z.double(), 1e-5) == rough_products(z.cpu(), 1e-5) == ""
