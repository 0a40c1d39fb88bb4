"""`CheckpointAdjoint(max_states=...)`: the same gradient from few kept states, for no more steps than it must take."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.adjoints.checkpoints import states_backwards, steps_again
from homojl.algorithms import AbstractAdaptive
from tests.catalogue import EXPLICIT

ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive) and cls.order > 2]


@functools.cache
def _fewest(steps: int, slots: int) -> int:
    """The fewest steps by which all states can be had in reverse order, by dynamic programming."""
    if steps <= 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + _fewest(steps - m, slots - 1) + _fewest(m, slots) for m in range(1, steps))


@given(st.integers(0, 60), st.integers(1, 7))
def test_every_state_comes_once_from_the_fewest_steps(steps, max_states):
    taken = 0

    def advance(state: int, start: int, stop: int) -> int:
        nonlocal taken
        assert state == start < stop
        taken += stop - start
        return stop

    found = list(states_backwards(advance, 0, steps, max_states))
    assert found == [(i, i) for i in reversed(range(steps))]
    assert taken == _fewest(steps, max_states + 1) == steps_again(steps, max_states)


@pytest.mark.parametrize(("steps", "repeats"), [(528, 2), (529, 3), (5_984, 3), (5_985, 4), (52_360, 4)])
def test_thirty_states_take_each_step_again_as_often_as_documented(steps, repeats):
    assert repeats - 2 < steps_again(steps, 30) / steps < repeats
    taken = 0

    def advance(state: int, start: int, stop: int) -> int:
        nonlocal taken
        taken += stop - start
        return stop

    for _ in states_backwards(advance, 0, steps, 30):
        pass
    assert taken == steps_again(steps, 30)


@pytest.mark.parametrize("max_states", [1, 2, 5, 30])
def test_no_more_states_are_alive_than_stated(max_states):
    class State:
        pass

    alive: weakref.WeakSet[State] = weakref.WeakSet()
    most = 0

    def advance(state: State, start: int, stop: int) -> State:
        nonlocal most
        new = State()
        alive.add(new)
        most = max(most, len(alive))
        return new

    for index, state in states_backwards(advance, State(), 100, max_states):
        assert index >= 0
        del state  # as who takes them does before asking for the next
    assert max_states <= most <= max_states + 2  # the one at work, and the one handed over


class Field(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = torch.nn.Parameter(2 * torch.randn(3, 3, generator=generator, dtype=dtype))

    def forward(self, t, z, x):
        return torch.tanh(z @ self.w + x * torch.cos(5 * t)) - 0.1 * z


def _gradients(algorithm, max_states, ts, *, dtype=torch.float64, throw=True, event=None, jumps=(), backend="pytorch"):
    generator = torch.Generator().manual_seed(11)
    y0, x = (torch.randn(2, 3, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    field = Field(dtype)
    problem = hj.ODEProblem(field, y0, ts, args=(x,), event=event, discontinuities=jumps)
    adjoint = hj.CheckpointAdjoint(max_states=max_states)
    solution = hj.solve(problem, algorithm, adjoint=adjoint, backend=backend, throw=throw)
    weights = torch.linspace(0.5, 1.5, len(solution.ts), dtype=dtype).view(-1, 1, 1)
    loss = (weights * torch.sin(2 * solution.ys)).sum()
    return torch.autograd.grad(loss, [y0, x, field.w]), solution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", [*ADAPTIVE, hj.RK4, hj.KenCarp4, hj.GaussLegendre4], ids=lambda c: c.__name__)
@pytest.mark.parametrize("ts", [(0.0, 0.5, 1.3, 3.0), (3.0, 0.1, 0.0)])
def test_bit_for_bit_the_gradient_of_all_states(cls, dtype, ts):
    max_states = 3
    fixed = not hasattr(cls, "controller")
    algorithm = cls(step_size=0.25) if fixed else cls(rtol=1e-3, atol=1e-3)
    every, solution = _gradients(algorithm, None, ts, dtype=dtype)
    few, _ = _gradients(algorithm, max_states, ts, dtype=dtype)
    assert solution.stats.n_accepted > max_states + 1
    for a, b in zip(every, few, strict=True):
        assert torch.equal(a, b)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.integers(1, 8), st.sampled_from(ADAPTIVE))
@settings(max_examples=12, deadline=None)
def test_wherever_the_save_times_lie(gaps, max_states, cls):
    ts = [0.0]
    for gap in gaps:
        ts.append(ts[-1] + gap)
    algorithm = cls(rtol=1e-5, atol=1e-5)
    for a, b in zip(_gradients(algorithm, None, ts)[0], _gradients(algorithm, max_states, ts)[0], strict=True):
        assert torch.equal(a, b)


def test_solves_that_stop_early_end_at_events_or_cross_jumps():
    cases = [
        {"algorithm": hj.Tsit5(max_steps=12, rtol=1e-6), "throw": False},
        {"algorithm": hj.Dopri5(), "event": hj.Event(lambda t, y, x: y.sum() - 1.0)},
        {"algorithm": hj.Dopri8(), "event": hj.Event(lambda t, y, x: y.sum() - 1.0)},
        {"algorithm": hj.Tsit5(), "jumps": (0.7, 1.9)},
    ]
    for case in cases:
        every, solution = _gradients(max_states=None, ts=(0.0, 0.6, 3.0), **case)
        assert len(solution.steps) > 3
        few, _ = _gradients(max_states=2, ts=(0.0, 0.6, 3.0), **case)
        for a, b in zip(every, few, strict=True):
            assert torch.equal(a, b)


def test_over_any_backend(backend):
    every, _ = _gradients(hj.Tsit5(rtol=1e-6, atol=1e-6), None, (0.0, 0.7, 2.0), backend=backend)
    few, _ = _gradients(hj.Tsit5(rtol=1e-6, atol=1e-6), 3, (0.0, 0.7, 2.0), backend=backend)
    rounding = 0.0 if backend == "pytorch" else 1e-10
    for a, b in zip(every, few, strict=True):
        torch.testing.assert_close(b, a, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("max_states", [2, 10])
def test_its_evaluations_are_those_of_the_steps_it_takes(max_states):
    """RK4 evaluates the field four times a step: once with a graph, and as often as the step is taken again."""
    _, solution = _gradients(hj.RK4(step_size=0.02), max_states, (0.0, 2.0))
    n = len(solution.steps)
    assert n == 100
    assert solution.stats.nfe_backward == 4 * (n + steps_again(n, max_states))
    assert solution.stats.n_vjp == 4 * n
    assert solution.stats.nfe == 4 * n


def test_steps_that_no_gradient_asks_for_are_not_taken_again():
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -y, y0, (0.0, 0.1, 10.0))
    adjoint = hj.CheckpointAdjoint(max_states=2)
    solution = hj.solve(problem, hj.RK4(step_size=0.1), adjoint=adjoint, backend="pytorch")
    torch.autograd.grad(solution.states[1].sum(), y0)
    assert solution.stats.nfe_backward == 4


def test_at_least_one_state():
    with pytest.raises(hj.ConfigError, match="max_states must be at least 1, got 0"):
        hj.CheckpointAdjoint(max_states=0)
