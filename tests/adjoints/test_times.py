"""Gradients with respect to the times of a solve: against finite differences, exact answers, and each other."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj

ADJOINTS = {
    "direct": hj.DirectAdjoint(),
    "checkpoint": hj.CheckpointAdjoint(),
    "backsolve": hj.BacksolveAdjoint(),
    "gauss": hj.GaussAdjoint(),
}
each_adjoint = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def forced(t, y, w):
    return torch.tanh(w @ y) + torch.sin(3 * t)


def start() -> tuple[torch.Tensor, torch.Tensor]:
    w = torch.tensor([[0.3, -1.0], [0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    return torch.tensor([0.5, -0.4], dtype=torch.float64, requires_grad=True), w


@each_adjoint
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.2, 0.7, 1.9), (1.0, 0.3, -0.5)])
def test_gradcheck(adjoint, ts, backend):
    def states(times, y0, w):
        problem = hj.ODEProblem(forced, y0, times, args=(w,))
        return hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint, backend=backend).ys

    times = torch.tensor(ts, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(states, (times, *start()), atol=1e-6)


def test_second_derivatives_are_refused_not_dropped():
    times = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    y0, w = start()
    value = hj.solve(hj.ODEProblem(forced, y0, times, args=(w,)), hj.Dopri5()).value.sum()
    with pytest.raises(hj.ConfigError, match=r"first derivatives only; pass ts\.detach"):
        torch.autograd.grad(value, y0, create_graph=True)


@each_adjoint
def test_the_exact_gradient_of_a_decay(adjoint):
    # y(t) = exp(t0 - t): dy/dt = -y and dy/dt0 = y.
    times = torch.tensor([0.4, 1.0, 2.5], dtype=torch.float32, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones((), dtype=torch.float64), times)
    solution = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint)
    (gradient,) = torch.autograd.grad(solution.ys.sum(), times)
    late = [math.exp(0.4 - t) for t in (1.0, 2.5)]
    assert gradient.dtype is torch.float32
    torch.testing.assert_close(gradient, torch.tensor([sum(late), -late[0], -late[1]]), rtol=1e-6, atol=0)


def test_what_no_gradient_is_asked_for_costs_no_evaluation():
    calls = []

    def f(t, y):
        calls.append(None)
        return -y

    def evaluations(times) -> tuple[int, int]:
        calls.clear()
        solution = hj.solve(hj.ODEProblem(f, torch.ones(2, requires_grad=True), times), hj.Tsit5())
        forward = len(calls)
        solution.ys[:-1].sum().backward()
        assert solution.stats.nfe + solution.stats.nfe_backward == forward
        return forward, len(calls) - forward

    plain = evaluations((0.0, 0.5, 1.0))
    timed = evaluations(torch.tensor([0.0, 0.5, 1.0], requires_grad=True))
    assert plain[1] == timed[1] == 0
    assert timed[0] == plain[0] + 3  # the derivative at the initial time and at both saved ones
    with torch.no_grad():
        assert evaluations_without_graph() == plain[0]


def evaluations_without_graph() -> int:
    times = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    solution = hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(2), times), hj.Tsit5())
    assert not solution.ys.requires_grad
    return solution.stats.nfe


def test_a_solve_that_stopped_early_has_the_gradients_of_the_times_it_reached():
    times = torch.tensor([0.0, 0.1, 50.0], dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones(1, dtype=torch.float64), times)
    solution = hj.solve(problem, hj.Tsit5(**TIGHT, max_steps=30), throw=False)
    assert not solution.status.ok
    assert len(solution.states) == 3
    (gradient,) = torch.autograd.grad(solution.states[1].sum(), times, retain_graph=True)
    torch.testing.assert_close(gradient, torch.tensor([1.0, -1.0, 0.0]).double() * math.exp(-0.1), rtol=1e-8, atol=0)
    (gradient,) = torch.autograd.grad(solution.value.sum(), times)
    assert gradient[2] == 0


def falling(t, y, gravity):
    return torch.stack([y[1], -gravity])


def ground(t, y, gravity):
    return y[0]


@each_adjoint
def test_the_exact_gradient_of_the_time_of_a_fall(adjoint):
    # The fall from rest lasts sqrt(2 height / gravity) and ends at -sqrt(2 height gravity).
    height = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    gravity = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([0.25, 50.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.stack([height, torch.zeros_like(height)])
    problem = hj.ODEProblem(falling, y0, start, args=(gravity,), event=hj.Event(ground))
    solution = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint, backend="pytorch")
    duration = torch.sqrt(2 * height / gravity)
    exact = [start[0] + duration, duration * 0, -duration * gravity]
    for computed, known in zip([solution.ts[-1], *solution.value], exact, strict=True):
        torch.testing.assert_close(computed, known)
        wrt = (height, gravity, start)
        got = torch.autograd.grad(computed, wrt, retain_graph=True)
        expected = torch.autograd.grad(known, wrt, retain_graph=True, allow_unused=True, materialize_grads=True)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-9)


def test_gradcheck_of_an_event_with_several_values_and_parameters_of_its_own():
    def f(t, y, w, level):
        return torch.stack([y[1], -w * y[0] + 0.1 * torch.sin(t)])

    def condition(t, y, w, level):
        return torch.stack([y[0] + 10.0, y[0] * t - level])

    def end(y0, w, level):
        problem = hj.ODEProblem(f, y0, (0.0, 9.0), args=(w, level), event=hj.Event(condition, direction=1))
        solution = hj.solve(problem, hj.Dopri5(**TIGHT))
        assert solution.status.name == "EVENT"
        return solution.ts[-1], solution.value

    values = [[0.3, 1.0], 2.0, 0.4]
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    assert torch.autograd.gradcheck(end, inputs, atol=1e-6)
