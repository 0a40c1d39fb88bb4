"""Solves that end where a condition changes its sign, and steps that end where the field jumps."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj
from homojl.problems import Event
from homojl.solution import Status

FALL = (lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)]), torch.tensor([10.0, 0.0], dtype=torch.float64))
HITS = math.sqrt(20 / 9.81)


def ground(t, y):
    return y[0]


def fall(algorithm, event, ts=(0.0, 5.0)):
    return hj.solve(hj.ODEProblem(*FALL, ts, event=event), algorithm, backend="pytorch")


@pytest.mark.parametrize(
    "algorithm",
    [
        hj.Tsit5(rtol=1e-9, atol=1e-9),
        hj.Dopri5(),
        hj.Bosh3(),
        hj.Dopri8(),
        hj.RK4(step_size=0.3),
        hj.Midpoint(step_size=1),
    ],
    ids=lambda a: a.name,
)
def test_the_time_of_a_fall(algorithm):
    solution = fall(algorithm, Event(ground))
    assert solution.status is Status.EVENT
    assert solution.ts[-1].item() == pytest.approx(HITS, abs=1e-12)
    assert solution.value[0].item() == pytest.approx(0, abs=1e-11)
    assert solution.value[1].item() == pytest.approx(-9.81 * HITS, abs=1e-11)


def test_save_times_before_the_event_are_kept_and_those_after_it_are_not():
    solution = fall(hj.Dopri5(), Event(ground), (0.0, 0.5, 1.0, 2.0, 5.0))
    torch.testing.assert_close(solution.ts, torch.tensor([0.0, 0.5, 1.0, HITS], dtype=torch.float64))
    heights = torch.stack(solution.states)[:, 0]
    torch.testing.assert_close(heights, 10 - 9.81 / 2 * solution.ts**2)


def test_direction_and_several_values():
    def oscillator(t, y):
        return torch.stack([y[1], -y[0]])

    y0 = torch.tensor([0.0, 1.0], dtype=torch.float64)  # y = sin t
    tight = hj.Tsit5(rtol=1e-10, atol=1e-10)

    def end(event, t1=10.0):
        return hj.solve(hj.ODEProblem(oscillator, y0, (0.0, t1), event=event), tight, backend="pytorch").ts[-1].item()

    assert end(Event(ground)) == pytest.approx(math.pi)  # zero at the start is no event
    assert end(Event(ground, direction=1)) == pytest.approx(2 * math.pi)
    assert end(Event(ground, direction=-1)) == pytest.approx(math.pi)
    assert end(Event(ground), -10.0) == pytest.approx(-math.pi)
    assert end(Event(lambda t, y: torch.stack([y[0], y[0] - 0.5]))) == pytest.approx(math.pi / 6)
    assert end(Event(lambda t, y: t - 2.25)) == pytest.approx(2.25)


def test_without_the_event_the_solve_reaches_its_end():
    solution = fall(hj.Tsit5(), Event(ground), (0.0, 1.0))
    assert solution.status is Status.SUCCESS


@pytest.mark.parametrize("direction", [1, -1])
def test_steps_end_where_the_field_jumps(direction):
    def field(t, y):
        return torch.where(t * direction < 1.0, torch.ones_like(y), 3 * torch.ones_like(y))

    y0 = torch.zeros(1, dtype=torch.float64)
    ts = (0.0, 2.0 * direction)
    algorithm = hj.Dopri5(rtol=1e-10, atol=1e-10)
    plain = hj.solve(hj.ODEProblem(field, y0, ts), algorithm, backend="pytorch")
    told = hj.solve(hj.ODEProblem(field, y0, ts, discontinuities=(7.0, direction)), algorithm, backend="pytorch")
    assert told.value.item() == pytest.approx(4 * direction, abs=1e-9)
    assert any(abs(start - direction) < 1e-15 for start in told.steps.starts)
    assert told.stats.n_rejected < plain.stats.n_rejected


def test_what_is_not_an_event_is_refused():
    with pytest.raises(hj.ConfigError, match="event must be an Event"):
        hj.ODEProblem(*FALL, (0.0, 1.0), event=ground)
    with pytest.raises(hj.ConfigError, match="direction must be -1, 0 or 1"):
        Event(ground, direction=2)


@pytest.mark.parametrize(
    ("algorithm", "where"),
    [
        (hj.Tsit5(), r"at t = 0\.505 after \d+ accepted and \d+ rejected steps, step \S+, sample 1\)"),
        (hj.KenCarp4(), r"at t = 0\.505 after \d+ accepted and \d+ rejected steps, step \S+, sample 1\)"),
        (hj.RK4(step_size=0.02), r"at t = 0\.5 after 25 steps of 0\.02, sample 1\)"),
        (hj.AdamsBashforth(step_size=0.02), r"at t = 0\.52 after 26 steps of 0\.02, sample 1\)"),
        (hj.ImplicitEuler(step_size=0.02), r"at t = 0\.5 after 25 steps of 0\.02, sample 1\)"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_time_steps_and_sample_of_what_is_not_finite_are_named(algorithm, where):
    def field(t, y):
        return torch.where((t > 0.505) & (y[:, :1] > 0.5), math.nan, -0.1 * y)

    y0 = torch.tensor([[0.1, 0.2], [1.0, 1.0], [0.0, 0.3]])
    with pytest.raises(hj.SolveError, match=where):
        hj.solve(hj.ODEProblem(field, y0, (0.0, 1.0)), algorithm, backend="pytorch")


def test_the_samples_of_a_start_that_is_not_finite_are_counted():
    y0 = torch.tensor([[1.0], [math.inf], [0.0], [math.nan]])
    for algorithm in (hj.Tsit5(), hj.RK4(step_size=0.1)):
        with pytest.raises(hj.SolveError, match=r"at t = 0 after 0 .*sample 1 and 1 more"):
            hj.solve(hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), algorithm, backend="pytorch")


def test_conditions_that_change_together_are_one_event_of_the_first():
    def field(t, y):  # two balls
        return torch.stack([y[1], torch.full_like(y[1], -9.8), y[3], torch.full_like(y[3], -9.8)])

    def bounce(t, y):
        down = torch.stack([y[0], y[2]]).abs() < 1e-9
        return torch.stack([y[0], torch.where(down[0], -y[1], y[1]), y[2], torch.where(down[1], -y[3], y[3])])

    def events(heights):
        y0 = torch.tensor([heights[0], 0.0, heights[1], 0.0], dtype=torch.float64)
        event = hj.Event(lambda t, y: torch.stack([y[0], y[2]]), direction=-1, then=bounce)
        problem = hj.ODEProblem(field, y0, (0.0, 0.6), event=event)
        solution = hj.solve(problem, hj.Tsit5(rtol=1e-9, atol=1e-9), backend="pytorch")
        return solution, [(e.which, round(float(e.time), 6)) for e in solution.events]

    together, seen = events((1.0, 1.0))
    assert seen == [(0, 0.451754)]
    torch.testing.assert_close(together.value[:2], together.value[2:])
    _, seen = events((1.0, 0.9))
    assert seen == [(1, 0.428571), (0, 0.451754)]
