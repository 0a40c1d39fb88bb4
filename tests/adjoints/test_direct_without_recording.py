"""`DirectAdjoint` over a backend whose operations autograd does not see: the accepted steps are taken again."""

from __future__ import annotations

import pytest
import torch

import homojl as hj
from homojl.backends.pytorch.backend import TorchBackend


def gradients(algorithm, throw=True):
    """The solution, and the gradients of a loss of its states for the initial, a listed and a closed-over tensor."""
    y0, listed, closed_over = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.0, 2.0], 0.7, 0.3))

    def f(t, y, a):
        return -a * y + closed_over * torch.sin(t) * y.flip(0)

    problem = hj.ODEProblem(f, y0, (0.0, 0.3, 1.0, 2.0), args=(listed,), params=(closed_over,))
    sol = hj.solve(problem, algorithm, adjoint=hj.DirectAdjoint(), backend="pytorch", throw=throw)
    loss = (sol.ys * torch.arange(1, 1 + sol.ys.numel()).view_as(sol.ys)).sum()
    return sol, torch.autograd.grad(loss, (y0, listed, closed_over))


@pytest.mark.parametrize(
    "algorithm",
    [
        hj.Dopri5(rtol=1e-6, atol=1e-6),
        hj.Tsit5(rtol=1e-4, atol=1e-4),
        hj.RK4(step_size=0.25),
        hj.Dopri5(rtol=1e-8, atol=1e-8, max_steps=5),
    ],
    ids=["dopri5", "tsit5", "equal steps", "stopped early"],
)
def test_gradients_are_those_of_the_recorded_solve(algorithm, monkeypatch):
    recorded, expected = gradients(algorithm, throw=False)
    monkeypatch.setattr(TorchBackend, "records", False)
    replayed, found = gradients(algorithm, throw=False)
    assert replayed.status is recorded.status
    assert replayed.steps == recorded.steps
    torch.testing.assert_close(replayed.ys, recorded.ys, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert replayed.stats.nfe_backward > 0


def test_a_method_without_a_tableau_is_refused(monkeypatch):
    monkeypatch.setattr(TorchBackend, "records", False)
    with pytest.raises(hj.ConfigError, match="has no tableau of AdamsBashforth; use GaussAdjoint"):
        gradients(hj.AdamsBashforth(step_size=0.1))


def test_a_solve_that_needs_no_gradient_is_not_taken_again(monkeypatch):
    monkeypatch.setattr(TorchBackend, "records", False)
    sol = hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(3), (0.0, 1.0)), hj.Dopri5(), backend="pytorch")
    assert not sol.value.requires_grad
    assert sol.stats.nfe_backward == 0
