"""Events that a solve goes on from, events of each sample, and jumps at times that require a gradient."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj

TIGHT = hj.Tsit5(rtol=1e-10, atol=1e-10)
ADJOINTS = [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint()]
each_adjoint = pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
G = 9.81


def _number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def _fallen(height: torch.Tensor, restitution: torch.Tensor, adjoint: object = None) -> hj.Solution:
    """A ball that falls from a height and bounces."""
    bounce = hj.Event(
        lambda t, y, e: y[0], direction=-1, then=lambda t, y, e: torch.stack([torch.zeros_like(y[0]), -e * y[1]])
    )
    problem = hj.ODEProblem(
        lambda t, y, e: torch.stack([y[1], torch.full_like(y[1], -G)]),
        torch.stack([height, torch.zeros_like(height)]),
        (0.0, 0.2, 0.7),
        args=(restitution,),
        event=bounce,
    )
    return hj.solve(problem, TIGHT, adjoint=adjoint, backend="pytorch")


@each_adjoint
def test_a_bouncing_ball_and_its_gradient(adjoint):
    height, e = _number(1.0), _number(0.8)
    solution = _fallen(height, e, adjoint)
    t1 = torch.sqrt(2 * height / G)  # of the impact
    after = 0.7 - t1
    exact = e * G * t1 * after - G / 2 * after**2
    assert solution.status is hj.Status.SUCCESS
    assert solution.ts.tolist() == [0.0, 0.2, 0.7]
    assert [event.which for event in solution.events] == [0]
    torch.testing.assert_close(solution.events[0].time, t1, rtol=1e-8, atol=0)
    torch.testing.assert_close(solution.states[1][0].item(), 1 - G / 2 * 0.04, rtol=1e-8, atol=0)
    torch.testing.assert_close(solution.value[0], exact, rtol=1e-7, atol=1e-9)
    found = torch.autograd.grad(solution.value[0], (height, e))
    torch.testing.assert_close(found, torch.autograd.grad(exact, (height, e)), rtol=1e-6, atol=1e-8)


def test_events_that_are_passed_are_written_down():
    problem = hj.ODEProblem(
        lambda t, y: torch.cos(t) * torch.ones_like(y),
        torch.zeros(1, dtype=torch.float64),
        (0.0, 5.0, 10.0),
        event=hj.Event(lambda t, y: y[0] - 0.5, terminal=False),
    )
    solution = hj.solve(problem, TIGHT, backend="pytorch")
    times = [math.pi / 6, 5 * math.pi / 6, 13 * math.pi / 6, 17 * math.pi / 6]
    assert [event.time.item() for event in solution.events] == pytest.approx(times, abs=1e-8)
    torch.testing.assert_close(solution.ys[:, 0], torch.sin(solution.ts), rtol=1e-8, atol=1e-9)
    # The steps of all its parts, one after the other.
    assert solution.stats.n_accepted == len(solution.steps) > 0


@pytest.mark.parametrize("adjoint", ADJOINTS[:2], ids=lambda a: a.name)
def test_every_sample_has_an_event_of_its_own(adjoint):
    y0 = torch.tensor([[1.0], [2.0], [0.3]], dtype=torch.float64, requires_grad=True)
    level = _number(0.5)
    problem = hj.ODEProblem(
        lambda t, y, level: -y, y0, (0.0, 1.0, 3.0), args=(level,), event=hj.Event(lambda t, y, level: y[:, 0] - level)
    )
    solution = hj.solve(problem, TIGHT, adjoint=adjoint, batch="per-sample")
    assert solution.status is hj.Status.EVENT
    assert solution.samples.statuses == (hj.Status.EVENT, hj.Status.EVENT, hj.Status.SUCCESS)
    assert solution.samples.events.tolist() == [0, 0, -1]
    exact = torch.log(y0[:2, 0] / level)
    torch.testing.assert_close(solution.samples.times[:2], exact, rtol=1e-8, atol=0)
    # The state at the event stands for the save times that follow it.
    expected = torch.stack([level, level, 0.3 * torch.tensor(math.exp(-3), dtype=torch.float64)])
    torch.testing.assert_close(solution.value[:, 0], expected, rtol=1e-8, atol=1e-10)
    found = torch.autograd.grad(solution.samples.times[:2].sum(), (y0, level), retain_graph=True)
    torch.testing.assert_close(found[0][:2, 0], 1 / y0[:2, 0].detach(), rtol=1e-7, atol=0)
    assert found[1].item() == pytest.approx(-2 / 0.5, rel=1e-7)
    (by_level,) = torch.autograd.grad(solution.value[:2].sum(), level)
    assert by_level.item() == pytest.approx(2.0, rel=1e-7)


@each_adjoint
def test_a_jump_s_time_receives_its_gradient(adjoint):
    jump = _number(0.3)

    def f(t, y):
        return torch.where(t < jump.detach(), 2.0, -1.0) * y

    problem = hj.ODEProblem(f, torch.ones(1, dtype=torch.float64), (0.0, 0.2, 1.0), discontinuities=(jump,))
    solution = hj.solve(problem, TIGHT, adjoint=adjoint, backend="pytorch")
    exact = math.exp(2 * 0.3 - 0.7)
    assert solution.ts.tolist() == [0.0, 0.2, 1.0]
    assert solution.value.item() == pytest.approx(exact, rel=1e-8)
    (gradient,) = torch.autograd.grad(solution.value.sum(), jump)
    assert gradient.item() == pytest.approx(3 * exact, rel=1e-6)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_a_jump_at_a_save_time_receives_its_gradient(adjoint):
    """y' = 1 before the jump and 3 after it: y(0.5) and y(1) lose 2 for each unit that the jump is later."""
    jump = _number(0.5)
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(
        lambda t, y: torch.where(t < jump.detach(), 1.0, 3.0) * torch.ones_like(y),
        torch.zeros(1, dtype=torch.float64),
        times,
        discontinuities=(jump,),
    )
    solution = hj.solve(problem, hj.Dopri5(rtol=1e-9, atol=1e-9), adjoint=adjoint)
    torch.testing.assert_close(solution.ys[:, 0].detach(), torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64))
    for i in (1, 2):
        by_jump, by_times = torch.autograd.grad(solution.ys[i, 0], (jump, times), retain_graph=True)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[0], expected[i] = -1.0, 3.0
        assert by_jump.item() == pytest.approx(-2.0)
        torch.testing.assert_close(by_times, expected)


def test_a_condition_that_is_no_longer_a_number_is_never_passed_unseen():
    def solved(condition):
        problem = hj.ODEProblem(lambda t, y: torch.ones_like(y), torch.zeros(1), (0.0, 3.0), event=hj.Event(condition))
        return hj.solve(problem, hj.Tsit5(), backend="pytorch", throw=False)

    found = solved(lambda t, y: torch.sqrt(1 - y[0]) - 0.5)  # zero at 0.75, no number from 1 on
    assert found.status is hj.Status.EVENT
    assert found.ts[-1].item() == pytest.approx(0.75, abs=1e-5)
    lost = solved(lambda t, y: torch.sqrt(1 - y[0]) + 0.5)
    assert lost.status is hj.Status.DIVERGED
    assert "condition is NaN" in lost.message


def test_what_goes_on_is_refused_where_it_cannot():
    event = hj.Event(lambda t, y: y[:, 0] - 0.5, terminal=False)
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), event=event)
    with pytest.raises(hj.ConfigError, match="do not go with dense=True"):
        hj.solve(problem, hj.Tsit5(), dense=True)


@pytest.mark.parametrize("adjoint", ADJOINTS[:2], ids=lambda a: a.name)
def test_balls_that_bounce_each_at_its_own_times(adjoint):
    """A batch has the states, times and gradients of its balls one by one."""
    heights, e = torch.tensor([1.0, 0.5, 2.0, 20.0], dtype=torch.float64, requires_grad=True), _number(0.8)
    ts = (0.0, 0.3, 0.6, 1.0, 1.5)

    def solved(y0, batch):
        bounce = hj.Event(
            lambda t, y, e: y[..., 0],
            direction=-1,
            then=lambda t, y, e: torch.stack([torch.zeros_like(y[..., 0]), -e * y[..., 1]], -1),
        )
        problem = hj.ODEProblem(
            lambda t, y, e: torch.stack([y[..., 1], torch.full_like(y[..., 1], -G)], -1), y0, ts, (e,), event=bounce
        )
        return hj.solve(problem, TIGHT, adjoint=adjoint, batch=batch, backend="pytorch")

    start = torch.stack([heights, torch.zeros_like(heights)], 1)
    solution = solved(start, "per-sample")
    assert solution.status is hj.Status.SUCCESS
    times = torch.stack([event.time for event in solution.events])  # (most events of one, B)
    assert times.isfinite().sum(0).tolist() == [2, 3, 1, 0]
    assert solution.events[-1].which.tolist() == [-1, 0, -1, -1]
    for i, height in enumerate(heights.detach()):
        alone = height.clone().requires_grad_()
        one = solved(torch.stack([alone, torch.zeros_like(alone)]), "joint")
        torch.testing.assert_close(solution.ys[:, i], one.ys, rtol=1e-9, atol=1e-10)
        found = torch.autograd.grad(solution.ys[:, i, 0].sum(), (heights, e), retain_graph=True)
        expected = torch.autograd.grad(one.ys[:, 0].sum(), (alone, e), materialize_grads=True)
        torch.testing.assert_close(found[0][i], expected[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-7, atol=1e-9)
        own = times[:, i][times[:, i].isfinite()]
        torch.testing.assert_close(
            own, torch.tensor([h.time.item() for h in one.events], dtype=torch.float64), rtol=1e-9, atol=0
        )
    (by_height,) = torch.autograd.grad(times[0, :3].sum(), heights)  # the first impact is at sqrt(2 h / g)
    torch.testing.assert_close(by_height[:3], 1 / (2 * G * heights[:3].detach()).sqrt(), rtol=1e-7, atol=0)
