"""The solution between its save times."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj
from tests.catalogue import EXACT_ODES

TIMES = torch.tensor([0.3, 1.1, 1.12, 2.9], dtype=torch.float64)
FORCED = next(p for p in EXACT_ODES if p.name == "forced")
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def solved(algorithm, adjoint=None, problem=FORCED, backend="pytorch", **options):
    ivp = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1), **options)
    return hj.solve(ivp, algorithm, adjoint=adjoint, backend=backend, dense=True)


@pytest.mark.parametrize(
    ("algorithm", "tolerance"),
    [
        (hj.Tsit5(**TIGHT), 1e-7),
        (hj.Dopri5(**TIGHT), 1e-7),
        (hj.Bosh3(rtol=1e-7, atol=1e-7), 1e-5),
        (hj.Dopri8(**TIGHT), 1e-8),  # no extension: a shorter step
        (hj.RK4(step_size=0.02), 1e-7),
        (hj.KenCarp4(rtol=1e-8, atol=1e-8), 1e-5),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
def test_every_method_at_any_time(algorithm, tolerance, problem):
    solution = solved(algorithm, problem=problem)
    for share in (0.0, 0.1, 0.51, 0.52, 0.999, 1.0):
        t = problem.t0 + share * (problem.t1 - problem.t0)
        torch.testing.assert_close(solution.at(t), problem.exact(t), rtol=tolerance, atol=tolerance)


def test_it_meets_the_saved_states_and_takes_times_of_every_kind(backend):
    ts = (0.3, 0.9, 2.0, 3.3)
    problem = hj.ODEProblem(FORCED.f, FORCED.y0, ts)
    solution = hj.solve(problem, hj.Tsit5(**TIGHT), backend=backend, dense=True)
    torch.testing.assert_close(solution.at(torch.tensor(ts)), solution.ys, rtol=1e-6, atol=0)
    assert solution.at(0.9).shape == solution.at(torch.tensor(0.9)).shape == FORCED.y0.shape
    assert solution.at(TIMES).shape == (4, *FORCED.y0.shape)


def test_times_in_one_step_share_its_stages():
    solution = solved(hj.Tsit5(rtol=1e-4, atol=1e-4))
    start, size = solution.steps.starts[1], solution.steps.sizes[1]
    field = solution.interpolant._f
    calls = field.calls
    for share in (0.2, 0.5, 0.7):
        solution.at(start + share * size)
    assert field.calls - calls == 7


@pytest.mark.parametrize("algorithm", [hj.Tsit5(**TIGHT), hj.Dopri8(rtol=1e-13, atol=1e-13)], ids=lambda a: a.name)
def test_gradients_by_state_argument_and_time(algorithm):
    def f(t, y, w):
        return torch.sin(w * t) * y

    def states(y0, w, times):
        problem = hj.ODEProblem(f, y0, (0.2, 1.9), args=(w,))
        return hj.solve(problem, algorithm, backend="pytorch", dense=True).at(times)

    inputs = [[1.0, -0.3], 1.4, [0.2, 0.5, 0.51, 1.9]]
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    with torch.no_grad():
        inputs[2][0] += 1e-3  # finite differences must stay inside the solve
        inputs[2][-1] -= 1e-3
    assert torch.autograd.gradcheck(states, inputs, atol=1e-5)


def test_a_solution_up_to_an_event():
    event = hj.Event(lambda t, y: y - 2.0)
    solution = solved(hj.Tsit5(**TIGHT), event=event)
    assert solution.at(solution.ts[-1].item()).item() == pytest.approx(2.0)
    assert solution.at(0.8).item() == pytest.approx(math.exp(math.sin(0.8) - math.sin(0.3)))
    with pytest.raises(hj.ConfigError, match="lies outside the solution"):
        solution.at(3.0)


def test_gradients_are_never_dropped():
    y0 = torch.ones(1, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0))
    solution = hj.solve(problem, hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), dense=True, backend="pytorch")
    with pytest.raises(hj.ConfigError, match="add the times to ts"):
        solution.at(0.5)
    with torch.no_grad():
        assert solution.at(0.5).item() == pytest.approx(math.exp(-0.5), rel=1e-3)
    solution.value.sum().backward()
    torch.testing.assert_close(y0.grad, torch.tensor([math.exp(-1)]), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: hj.solve(hj.ODEProblem(torch.mul, torch.ones(1), (0, 1)), hj.Tsit5()).at(0.5), r"dense=True"),
        (lambda: solved(hj.Tsit5()).at(torch.ones(1, 1)), "1-D tensor"),
        (lambda: solved(hj.SciPy()), "no tableau of SciPy"),
        (
            lambda: hj.solve(hj.FixedPointProblem(torch.cos, torch.ones(1, 1)), hj.Picard(), dense=True),
            "dense=True is for an ODEProblem",
        ),
    ],
)
def test_refused(ask, message):
    with pytest.raises(hj.ConfigError, match=message):
        ask()
