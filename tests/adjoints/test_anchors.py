"""Gauss's adjoint where there are more save times than steps: cotangents move to a few of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import homojl as hj
from homojl.adjoints import anchors

Tensor = torch.Tensor


def test_hermite_is_exact_for_polynomials():
    nodes = [0.0, 0.3, 0.5, 1.2]
    polynomial = np.polynomial.Polynomial([0.3, -1.0, 2.0, 0.5, -0.7, 1.1, 0.2, -0.4])
    for s in (0.1, 0.4, 0.9):
        values, derivatives = anchors.hermite(nodes, s)
        found = values @ polynomial(np.array(nodes)) + derivatives @ polynomial.deriv()(np.array(nodes))
        assert found == pytest.approx(polynomial(s), rel=1e-12)
    values, derivatives = anchors.hermite(nodes, 0.5)
    np.testing.assert_allclose(values, [0, 0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(derivatives, 0, atol=1e-15)


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_anchors_are_about_a_step_apart_and_hold_both_ends(way):
    times = [way * t for t in np.linspace(0, 2, 41)]
    starts, sizes = [0.0, way * 0.1, way * 0.5, way * 1.2], [way * h for h in (0.1, 0.4, 0.7, 0.8)]
    places = anchors.choose(times, starts, sizes, 1.0)
    assert places[0] == 40
    assert places[-1] == 0
    assert places == sorted(set(places), reverse=True)
    gaps = [abs(times[a] - times[b]) for a, b in itertools.pairwise(places)]
    assert max(gaps) <= 0.8 + 1e-9
    assert len(places) <= 8
    assert anchors.choose(times, starts, sizes, 1e-3) == list(range(40, -1, -1))
    nodes = [times[i] for i in places]
    for t in times:
        near = anchors.around(nodes, t)
        assert len(near) == 4
        assert min(nodes[m] for m in near) <= t <= max(nodes[m] for m in near)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) + torch.sin(t)


def gradients(adjoint, ts: Tensor, tol: float, algorithm=hj.Dopri5, *, which=slice(None)):
    torch.manual_seed(0)
    field, y0 = Field(), torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(field, y0, tuple(ts.tolist()), params=tuple(field.parameters()))
    sol = hj.solve(problem, algorithm(rtol=tol, atol=tol), adjoint=adjoint, backend="pytorch")
    weights = torch.randn(sol.ys.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((sol.ys * weights)[which].sum(), [y0, *field.parameters()])
    return sol.stats, torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("ts", [torch.linspace(0, 2, 20), torch.linspace(1, -1, 60), torch.linspace(0, 1, 30) ** 2])
@pytest.mark.parametrize("tol", [1e-5, 1e-8])
def test_gradients_are_exact_to_the_tolerance_and_few_evaluations_are_made(ts, tol):
    _, exact = gradients(hj.DirectAdjoint(), ts, 1e-12, hj.Dopri8)
    stats, found = gradients(hj.GaussAdjoint(), ts, tol)
    assert torch.linalg.vector_norm(found - exact) <= 5 * tol * torch.linalg.vector_norm(exact)
    assert stats.nfe_backward <= 4 * stats.nfe


def test_save_times_without_a_cotangent_and_the_first_one():
    ts = torch.linspace(0, 2, 40)
    for which in ([0, 3], [39], [0], [5, 6, 7]):
        _, exact = gradients(hj.DirectAdjoint(), ts, 1e-12, hj.Dopri8, which=which)
        _, found = gradients(hj.GaussAdjoint(), ts, 1e-8, which=which)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [1.0, 30.0, 200.0])
def test_where_the_field_is_fast_the_anchors_move_closer(rate):
    # dy/dt = -k (y - cos t): the gradients of sum_i w_i y(t_i) in closed form.
    ts = torch.linspace(0, 1, 200, dtype=torch.float64)
    k = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    problem = hj.ODEProblem(lambda t, y, k: -k * (y - torch.cos(t)), y0, tuple(ts.tolist()), args=(k,))
    sol = hj.solve(problem, hj.Dopri5(rtol=1e-7, atol=1e-7), adjoint=hj.GaussAdjoint(), backend="pytorch")
    found = torch.autograd.grad((sol.ys * weights).sum(), [y0, k])
    # y = A cos t + B sin t + (y0 - A) e^(-k t) with A = k^2 / (k^2 + 1), B = k / (k^2 + 1).
    a, b = k**2 / (k**2 + 1), k / (k**2 + 1)
    exact = a * torch.cos(ts) + b * torch.sin(ts) + (y0 - a) * torch.exp(-k * ts)
    wanted = torch.autograd.grad((exact[:, None] * weights).sum(), [y0, k])
    scale = float(torch.linalg.vector_norm(weights))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=2e-5, atol=2e-6 * scale)


def test_complex_states_and_jumps():
    ts = torch.linspace(0, 1, 30, dtype=torch.float64)
    y0 = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
    k = torch.tensor(-0.5 + 2.0j, dtype=torch.complex128, requires_grad=True)

    def found(jumps, adjoint):
        problem = hj.ODEProblem(
            lambda t, y, k: k * y * (1 + (t > 0.51)), y0, tuple(ts.tolist()), args=(k,), discontinuities=jumps
        )
        sol = hj.solve(problem, hj.Tsit5(rtol=1e-9, atol=1e-9), adjoint=adjoint, backend="pytorch")
        return torch.autograd.grad(sol.ys.abs().square().sum(), [y0, k])

    long = torch.where(ts > 0.51, 2 * ts - 0.51, ts)
    exact = torch.exp(k * long)[:, None] * y0
    for f, w in zip(
        found((0.51,), hj.GaussAdjoint()), torch.autograd.grad(exact.abs().square().sum(), [y0, k]), strict=True
    ):
        torch.testing.assert_close(f, w, rtol=1e-6, atol=1e-6)
