"""Complex states: answers and gradients, by PyTorch's convention for complex gradients."""

from __future__ import annotations

import pytest
import torch

import homojl as hj

pytestmark = pytest.mark.slow

ADJOINTS = [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.BacksolveAdjoint(), hj.GaussAdjoint()]
METHODS = [hj.Dopri5(rtol=1e-8, atol=1e-8), hj.KenCarp4(rtol=1e-8, atol=1e-8), hj.GaussLegendre4(step_size=0.05)]


def field(t, z, rate, w):
    """Not holomorphic, with a real and a complex parameter."""
    return w * z + 0.5 * z.conj() * torch.cos(rate * t)


def inputs() -> tuple[torch.Tensor, ...]:
    z0 = torch.tensor([[1 + 1j], [2j]], dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    return z0, rate, torch.tensor(0.1 + 1j, dtype=torch.complex128, requires_grad=True)


def as_real_system():
    """The same solve with real and imaginary parts side by side."""
    z0, rate, w = inputs()

    def split(t, y, rate, w):
        return torch.view_as_real(field(t, torch.view_as_complex(y.contiguous()), rate, w))

    problem = hj.ODEProblem(split, torch.view_as_real(z0), (0.0, 0.4, 1.0), args=(rate, w))
    ys = hj.solve(problem, hj.Dopri8(rtol=1e-12, atol=1e-12), backend="pytorch").ys
    return torch.view_as_complex(ys), (z0, rate, w)


def gradients(zs: torch.Tensor, wrt) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((zs.abs() ** 2).sum() + (zs * (2 - 1j)).real.sum(), wrt)


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_a_complex_state_is_two_real_ones(adjoint, algorithm):
    z0, rate, w = inputs()
    problem = hj.ODEProblem(field, z0, (0.0, 0.4, 1.0), args=(rate, w))
    zs = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch").ys
    exact, wrt = as_real_system()
    torch.testing.assert_close(zs, exact, rtol=3e-6, atol=3e-6)
    for computed, known in zip(gradients(zs, (z0, rate, w)), gradients(exact, wrt), strict=True):
        torch.testing.assert_close(computed, known, rtol=2e-5, atol=2e-5)


def test_the_field_receives_real_times_and_the_state_keeps_its_dtype():
    def f(t, z):
        assert t.dtype is torch.float32
        return 1j * z

    z0 = torch.ones(2, 3, dtype=torch.complex64)
    solution = hj.solve(hj.ODEProblem(f, z0, (0.0, 1.0)), hj.Tsit5(rtol=1e-5, atol=1e-5), batch="per-sample")
    assert solution.value.dtype is torch.complex64
    torch.testing.assert_close(solution.value, z0 * torch.exp(torch.tensor(1j)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_gradient_with_respect_to_a_complex_parameter_of_a_real_state(adjoint):
    """y' = -|w|^2 y; the gradient of exp(-w w*) is -2 w exp(-w w*) by PyTorch's convention."""
    w = torch.tensor(-0.3 + 1j, dtype=torch.complex128, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -(w * w.conj()).real * y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
    value = hj.solve(problem, hj.Dopri5(rtol=1e-8, atol=1e-8), adjoint=adjoint).value
    (grad,) = torch.autograd.grad(value.sum(), w)
    expected = -2 * w.detach() * torch.exp(torch.tensor(-1.09, dtype=torch.float64))
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)
