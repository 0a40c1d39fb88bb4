"""A first step remembered from earlier solves: cheaper, never trusted, and forgetful of failures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.algorithms import AbstractAdaptive, with_first_step
from tests.catalogue import EXACT_ODES, EXPLICIT

ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive)]
TRUTHFUL = [cls for cls in ADAPTIVE if cls is not hj.Fehlberg2]  # its estimate is far below its error


@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
def test_later_solves_take_fewer_evaluations(cls, problem, backend):
    tolerance = 1e-3 if cls.tableau.order == 2 else 1e-6
    stated = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
    estimated = hj.solve(stated, cls(rtol=tolerance, atol=tolerance), backend=backend).stats
    algorithm = cls(rtol=tolerance, atol=tolerance, first_step=hj.StepMemory())
    costs = [hj.solve(stated, algorithm, backend=backend).stats.nfe for _ in range(6)]
    assert costs[0] == estimated.nfe  # nothing is known yet
    # The estimate's own evaluation is saved for good; a step more or less may be cut off by the end.
    assert costs[-1] < costs[0] + cls.tableau.stages
    assert min(costs[1:]) < costs[0]


@given(
    st.floats(1e-12, 1e12),
    st.sampled_from(TRUTHFUL),
    st.sampled_from(EXACT_ODES),
    st.sampled_from(["joint", "per-sample"]),
)
@settings(max_examples=40, deadline=None)
def test_a_bad_memory_costs_steps_and_no_accuracy(size, cls, problem, batch):
    if batch == "per-sample" and problem.name != "logistic":
        batch = "joint"  # the others couple what would be their samples
    tolerance = 1e-4 if cls.tableau.order == 2 else 1e-7
    memory = hj.StepMemory(onwards=size, backwards=size)
    algorithm = cls(rtol=tolerance, atol=tolerance, first_step=memory)
    stated = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
    first = hj.solve(stated, algorithm, backend="pytorch", batch=batch)
    if size > 1e3:
        assert first.stats.n_rejected > 0 or first.stats.n_accepted == 1
    for _ in range(2):
        solution = hj.solve(stated, algorithm, backend="pytorch", batch=batch)
        for found in (first, solution):
            error = ((found.value - problem.exact(problem.t1)).abs() / (1 + problem.exact(problem.t1).abs())).max()
            assert error < 20 * tolerance
    assert memory.recall(stated.ts) < 2 * abs(problem.t1 - problem.t0) or first.stats.n_accepted == 1


def test_what_is_learned_of_a_step_sequence():
    ts = (0.0, 1.0)
    memory = hj.StepMemory()
    assert memory.recall(ts) is None
    memory.learn_from(ts, (), 0)
    assert memory.recall(ts) is None  # an event at the start, say
    memory.learn_from(ts, (0.01, 0.1, 0.89), 0)
    assert memory.recall(ts) == 0.1
    # The second step was cut short, or rejected: the first is known to have been good.
    memory.learn_from(ts, (0.5, 1e-6, 0.5), 1)
    assert memory.recall(ts) == 0.45
    # A single step may be shorter than what is known because the solve is.
    memory.learn_from(ts, (0.3,), 0)
    assert memory.recall(ts) == 0.45
    memory.learn_from(ts, (0.3,), 2)
    assert memory.recall(ts) == 0.3
    memory.learn_from(ts, (0.7,), 0)
    assert memory.recall(ts) == 0.7


def test_directions_are_remembered_apart():
    memory = hj.StepMemory()
    memory.learn_from((0.0, 1.0), (0.1, 0.2, 0.7), 0)
    memory.learn_from((1.0, 0.0), (-0.3, -0.4, -0.3), 0)
    assert (memory.onwards, memory.backwards) == (0.2, 0.4)
    twin = memory.copy()
    twin.learn((0.0, 1.0), 0.9)
    assert (memory.onwards, twin.onwards, twin.backwards) == (0.2, 0.9, 0.4)
    algorithm = hj.Tsit5(first_step=memory)
    assert with_first_step(algorithm, (0.0, 1.0)).first_step == 0.2
    assert with_first_step(algorithm, (1.0, 0.0)).first_step == 0.4
    assert with_first_step(hj.RK4(), (0.0, 1.0)) == hj.RK4()


def test_a_backward_solve_has_a_memory_of_its_own(backend):
    memory = hj.StepMemory()
    algorithm = hj.Tsit5(rtol=1e-6, atol=1e-6, first_step=memory)
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    costs = []
    for _ in range(3):
        problem = hj.ODEProblem(lambda t, y: -torch.cos(t) * y**2, y0, (0.0, 2.0))
        solution = hj.solve(problem, algorithm, adjoint=hj.BacksolveAdjoint(), backend=backend)
        (grad,) = torch.autograd.grad(solution.value.sum(), y0)
        torch.testing.assert_close(grad, 1 / (1 + math.sin(2.0)) ** 2 + 0 * y0, rtol=1e-4, atol=1e-4)
        costs.append(solution.stats.nfe_backward)
    assert memory.backwards is not None
    assert memory.backwards != memory.onwards
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_a_failed_solve_teaches_nothing(batch):
    memory = hj.StepMemory(onwards=0.25)
    pole = hj.ODEProblem(lambda t, y: y**2, torch.ones(2, dtype=torch.float64), (0.0, 2.0))
    nan = hj.ODEProblem(lambda t, y: y * math.nan, torch.ones(2, dtype=torch.float64), (0.0, 2.0))
    for problem in (pole, nan):
        hj.solve(problem, hj.Tsit5(first_step=memory), throw=False, batch=batch, backend="pytorch")
        assert memory.onwards == 0.25


def test_samples_with_steps_of_their_own_share_a_typical_one():
    """One sample in eight is stiff; its first step is not everybody's."""
    rate = torch.tensor([1.0, 1.0, 1.0, 500.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    y0 = torch.linspace(1, 2, 8, dtype=torch.float64)[:, None]
    problem = hj.ODEProblem(lambda t, y, rate: -rate * y, y0, (0.0, 5.0), args=(rate,))
    memory, alone = hj.StepMemory(), hj.StepMemory()
    for _ in range(4):
        solution = hj.solve(problem, hj.Tsit5(rtol=1e-6, atol=1e-6, first_step=memory), batch="per-sample")
        gentle = hj.ODEProblem(lambda t, y: -y, y0, (0.0, 5.0))
        hj.solve(gentle, hj.Tsit5(rtol=1e-6, atol=1e-6, first_step=alone), backend="pytorch")
    torch.testing.assert_close(solution.value, y0 * torch.exp(-5 * rate), rtol=1e-4, atol=1e-5)
    assert memory.onwards == pytest.approx(alone.onwards, rel=0.2)


@pytest.mark.parametrize("first_step", [0.0, -1.0, math.nan, math.inf])
def test_other_first_steps_are_checked_as_before(first_step):
    with pytest.raises(hj.ConfigError, match="first_step must be positive and finite"):
        hj.Tsit5(first_step=first_step)
