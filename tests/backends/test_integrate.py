"""Solves against exact answers: accuracy, order, save times, step sequence, status."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import solve_ivp

import homojl as hj
from homojl.algorithms import AbstractAdaptive, PIController, PIDController, PredictiveController
from homojl.solution import Status
from tests.catalogue import EXACT_ODES, EXPLICIT

# Pairs of order 2 are for loose tolerances; see test_pairs_of_order_two.
PAIRS = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive)]
ADAPTIVE = [cls for cls in PAIRS if cls.order > 2]
INTERPOLATING = [cls for cls in ADAPTIVE if cls.tableau.dense is not None]
FIXED = [cls for cls in EXPLICIT.values() if cls not in PAIRS]


def _forced_steps(cls, h: float):
    """An algorithm that takes steps of size h, also where it could adapt them."""
    if cls in FIXED:
        return cls(step_size=h)
    # Every step is accepted and its size never changes: order shows without the control.
    still = PIController(safety=1.0, min_factor=1 - 1e-12, max_factor=1 + 1e-12)
    return cls(rtol=0.0, atol=1e6, first_step=h, controller=still)


@pytest.mark.parametrize("cls", EXPLICIT.values(), ids=EXPLICIT)
def test_order_of_convergence(cls, backend):
    # A forced rigid body: nonlinear, coupled and dependent on time, so that no error term vanishes by accident.
    def rates(t, y, sin):
        return y[1] * y[2], -1.25 * y[0] * y[2], -0.5 * y[0] * y[1] * (1 + 0.2 * sin(t))

    y0, length = torch.tensor([1.0, 0.5, 0.9], dtype=torch.float64), 6.0
    reference = solve_ivp(
        lambda t, y: rates(t, y, math.sin), (0, length), y0.numpy(), method="DOP853", rtol=1e-13, atol=1e-15
    ).y[:, -1]
    order = cls.tableau.order
    counts = {
        1: (256, 512, 1024),
        2: (64, 128, 256),
        3: (64, 128, 256),
        4: (32, 64, 128),
        5: (60, 80, 110),
        8: (10, 14, 20),
    }
    errors, sizes = [], []
    for n in counts[order]:
        h = length / n
        problem = hj.ODEProblem(lambda t, y: torch.stack(rates(t, y, torch.sin)), y0, (0.0, length))
        solution = hj.solve(problem, _forced_steps(cls, h), backend=backend)
        assert len(solution.steps) == n
        errors.append(np.linalg.norm(solution.value.numpy() - reference))
        sizes.append(h)
    assert min(errors) > 2e-14, "on the rounding floor the slope means nothing"
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, (slope, errors)


@pytest.mark.parametrize("cls", INTERPOLATING, ids=lambda c: c.__name__)
def test_order_of_the_continuous_extension(cls, backend):
    y0 = torch.tensor([1.0], dtype=torch.float64)
    errors, sizes = [], []
    order = cls.tableau.dense_order
    for n in (16, 32, 64):
        h = 2.0 / n
        # One save in the middle of one step measures the extension plus the solution's own, smaller error.
        where = h * (n // 2) + 0.4 * h
        problem = hj.ODEProblem(lambda t, y: torch.cos(t) * y, y0, (0.0, where, 2.0))
        solution = hj.solve(problem, _forced_steps(cls, h), backend=backend)
        assert 0 < solution.steps.saves[0][1] < 1
        errors.append(abs(solution.states[1].item() - math.exp(math.sin(where))))
        sizes.append(h)
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope > order - 0.3, (slope, errors)


@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_adaptive_accuracy_at_every_save_time(cls, problem, tolerance, backend):
    if cls is hj.Bosh3 and tolerance < 1e-7:
        tolerance = 1e-7  # an order-3 method would take ten thousand steps
    ts = np.linspace(problem.t0, problem.t1, 8)
    solution = hj.solve(hj.ODEProblem(problem.f, problem.y0, ts), cls(rtol=tolerance, atol=tolerance), backend=backend)
    assert solution.status is Status.SUCCESS
    torch.testing.assert_close(solution.ts, torch.from_numpy(ts))
    for t, y in zip(ts, solution.states, strict=True):
        exact = problem.exact(t)
        error = ((y - exact).abs() / (1 + exact.abs())).max()
        assert error < 20 * tolerance, (t, error)


@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
@pytest.mark.parametrize("cls", [cls for cls in PAIRS if cls.order == 2], ids=lambda c: c.__name__)
def test_pairs_of_order_two(cls, problem):
    """Fehlberg's estimate is that of Heun's pair divided by 256, and its errors are larger by as much."""
    errors, exact = [], problem.exact(problem.t1)
    for tolerance in (1e-3, 1e-5):
        ivp = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
        value = hj.solve(ivp, cls(rtol=tolerance, atol=tolerance), backend="pytorch").value
        errors.append(((value - exact).abs() / (1 + exact.abs())).max().item())
        assert errors[-1] < tolerance * (20 if cls is hj.AdaptiveHeun else 512)
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("cls", FIXED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
def test_fixed_steps_meet_every_save_time(cls, problem, backend):
    ts = np.linspace(problem.t0, problem.t1, 5)
    solution = hj.solve(hj.ODEProblem(problem.f, problem.y0, ts), cls(step_size=0.01), backend=backend)
    assert all(fraction == 1.0 for _, fraction in solution.steps.saves)
    assert max(abs(h) for h in solution.steps.sizes) <= 0.01 + 1e-12
    tolerance = {1: 5e-2, 2: 5e-4, 3: 5e-6, 4: 1e-7}[cls.tableau.order]
    for t, y in zip(ts, solution.states, strict=True):
        torch.testing.assert_close(y, problem.exact(t), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
def test_against_scipy(cls, backend):
    def lorenz(t, y):
        return np.array([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])

    def field(t, y):
        return torch.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])

    y0 = np.array([1.0, 2.0, 20.0])
    ts = np.linspace(0, 1, 11)
    reference = solve_ivp(lorenz, (0, 1), y0, method="DOP853", t_eval=ts, rtol=1e-12, atol=1e-12).y.T
    tolerance = 1e-6 if cls is hj.Bosh3 else 1e-9
    solution = hj.solve(
        hj.ODEProblem(field, torch.tensor(y0), ts), cls(rtol=tolerance, atol=tolerance), backend=backend
    )
    np.testing.assert_allclose(solution.ys.numpy(), reference, rtol=1e3 * tolerance, atol=1e3 * tolerance)


@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
def test_the_step_sequence_is_the_one_taken(cls, backend):
    """Taking the reported steps by hand gives the reported states: bit for bit, or from Julia to rounding."""
    from homojl.backends.pytorch.steps import ExplicitStepper

    problem = EXACT_ODES[0]
    solution = hj.solve(
        hj.ODEProblem(problem.f, problem.y0, (0.0, 0.7, 2.0)), cls(rtol=1e-5, atol=1e-5), backend=backend
    )
    y = problem.y0
    for t, h in zip(solution.steps.starts, solution.steps.sizes, strict=True):
        y = ExplicitStepper(cls.tableau).step(problem.f, t, h, y).y_next
    rounding = 0.0 if backend == "pytorch" else 1e-14
    torch.testing.assert_close(y, solution.value, rtol=rounding, atol=rounding)
    starts, sizes = np.array(solution.steps.starts), np.array(solution.steps.sizes)
    np.testing.assert_allclose(starts[1:], (starts + sizes)[:-1], rtol=1e-15)
    assert starts[0] == 0.0
    assert starts[-1] + sizes[-1] == pytest.approx(2.0, abs=1e-15)
    assert solution.stats.n_accepted == len(starts)


def test_first_same_as_last_costs_no_evaluation_twice(backend):
    calls = []

    def f(t, y):
        calls.append(float(t))
        return -y

    y0 = torch.ones(3, dtype=torch.float64)
    algorithm = hj.Dopri5(rtol=1e-6, atol=1e-6, first_step=0.1)
    solution = hj.solve(hj.ODEProblem(f, y0, (0.0, 5.0)), algorithm, backend=backend)
    taken = solution.stats.n_accepted + solution.stats.n_rejected
    assert solution.stats.nfe == len(calls) == 1 + 6 * taken
    estimated = hj.solve(hj.ODEProblem(f, y0, (0.0, 5.0)), hj.Dopri5(rtol=1e-6, atol=1e-6), backend=backend)
    assert estimated.stats.nfe == 2 + 6 * (estimated.stats.n_accepted + estimated.stats.n_rejected)


@pytest.mark.parametrize("controller", [PIController(), PredictiveController(), PIController(beta1=0.2, beta2=0.0)])
def test_every_controller_keeps_the_tolerance(controller, backend):
    for problem in EXACT_ODES:
        algorithm = hj.Tsit5(rtol=1e-7, atol=1e-7, controller=controller)
        solution = hj.solve(hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1)), algorithm, backend=backend)
        torch.testing.assert_close(solution.value, problem.exact(problem.t1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("gains", [(0.25, 0.14, 0.1), (0.3, 0.2, 0.0), (1.0, 0.0, 0.0)])
def test_pid_control_is_its_formula(gains):
    """Every quotient of two steps follows from the last three error ratios, found here from the errors themselves."""
    ratios, sizes = [], []

    def norm(scaled):
        ratios.append(float(torch.linalg.vector_norm(scaled)) / math.sqrt(2))
        return ratios[-1]

    class Sizes(hj.StepObserver):
        def accepted(self, t, y, h):
            sizes.append((h, max(ratios[-1], 1e-4)))

    integral, proportional, derivative = gains
    control = PIDController(integral=integral, proportional=proportional, derivative=derivative, safety=0.6)
    algorithm = hj.Bosh3(
        rtol=1e-4, atol=1e-6, first_step=1e-3, controller=control, norm=hj.ErrorNorm(function=norm), observer=Sizes()
    )
    f, y0 = (lambda t, y: torch.stack([y[1], -y[0] * (2 + torch.sin(t))])), torch.tensor([1.0, 0.0]).double()
    solution = hj.solve(hj.ODEProblem(f, y0, (0.0, 6.0)), algorithm, backend="pytorch")
    assert solution.stats.n_rejected == 0
    assert len(sizes) > 20
    k1, k2, k3 = integral + proportional + derivative, proportional + 2 * derivative, derivative
    for i in range(1, len(sizes) - 2):
        (h, e), (_, e_old), (_, e_older) = sizes[i], sizes[i - 1], sizes[max(i - 2, 0)]
        quotient = (e**k1 / e_old**k2 * e_older**k3) ** (1 / 3) / 0.6
        assert sizes[i + 1][0] == pytest.approx(h / min(5.0, max(0.1, quotient)), rel=1e-9)


def test_prediction_saves_steps_where_they_grow(backend):
    """z' = 1/z from near 0, as from a stiff start: the admissible step grows with z all the way."""
    problem = hj.ODEProblem(lambda t, z: 1 / z, torch.tensor([1e-4], dtype=torch.float64), (0.0, 1.0))
    taken = {}
    for name, controller in {"pi": PIController(), "predictive": PredictiveController()}.items():
        solution = hj.solve(problem, hj.Dopri5(rtol=1e-6, atol=1e-9, controller=controller), backend=backend)
        assert solution.value.item() == pytest.approx(math.sqrt(2 + 1e-8), rel=1e-5)
        taken[name] = solution.stats.nfe
    assert taken["predictive"] < 0.8 * taken["pi"]


def test_saving_more_often_costs_no_steps(backend):
    problem = EXACT_ODES[0]
    few = hj.solve(hj.ODEProblem(problem.f, problem.y0, (0.0, 2.0)), hj.Tsit5(), backend=backend)
    many = hj.solve(hj.ODEProblem(problem.f, problem.y0, np.linspace(0, 2, 200)), hj.Tsit5(), backend=backend)
    assert many.steps.starts == few.steps.starts
    assert many.stats.nfe == few.stats.nfe
    assert torch.equal(many.value, few.value)


@given(st.floats(0.1, 3.0), st.integers(0, 2**16), st.sampled_from(ADAPTIVE))
@settings(max_examples=30, deadline=None)
def test_forward_and_back_returns(length, seed, cls):
    y0 = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)) / 3

    def f(t, y):
        return torch.tanh(matrix @ y) + torch.sin(t)

    algorithm = cls(rtol=1e-8, atol=1e-8)
    there = hj.solve(hj.ODEProblem(f, y0, (0.0, length)), algorithm, backend="pytorch").value
    back = hj.solve(hj.ODEProblem(f, there, (length, 0.0)), algorithm, backend="pytorch").value
    torch.testing.assert_close(back, y0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", EXPLICIT.values(), ids=EXPLICIT)
def test_dtype_shape_memory_format_and_inputs_are_kept(cls, dtype, backend):
    y0 = torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    before = y0.clone()
    solution = hj.solve(hj.ODEProblem(lambda t, y: -y * (1 + t), y0, (0.0, 0.5, 1.0)), cls(), backend=backend)
    assert torch.equal(y0, before)
    for y in solution.states:
        assert (y.dtype, y.shape, y.stride()) == (dtype, y0.shape, y0.stride())
    assert solution.ys.shape == (3, 2, 3, 4, 5)


def test_sliced_states_are_solved_right(backend):
    wide = torch.randn(6, 8, dtype=torch.float64)
    y0 = wide[::2, 1::3]
    solution = hj.solve(hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)), hj.Tsit5(rtol=1e-9, atol=1e-9), backend=backend)
    torch.testing.assert_close(solution.value, y0 * math.exp(-1), rtol=1e-7, atol=1e-7)


class TestFailure:
    """A solve that does not reach its end says so, with what to try."""

    def test_too_many_steps(self, backend):
        problem = hj.ODEProblem(lambda t, y: torch.sin(50 * t) * y, torch.ones(1), (0.0, 100.0))
        with pytest.raises(hj.SolveError, match=r"largest number of steps.*raise max_steps \(now 20\)") as caught:
            hj.solve(problem, hj.Tsit5(max_steps=20), backend=backend)
        partial = caught.value.solution
        assert partial.status is Status.MAX_STEPS
        assert partial.stats.n_accepted + partial.stats.n_rejected == 20
        assert 0 < partial.ts[-1] < 100

    def test_throw_false_returns_the_last_state(self, backend):
        problem = hj.ODEProblem(lambda t, y: -y, torch.ones(1, dtype=torch.float64), (0.0, 1.0, 100.0))
        solution = hj.solve(problem, hj.Tsit5(max_steps=12, rtol=1e-6), backend=backend, throw=False)
        assert solution.status is Status.MAX_STEPS
        assert "max_steps" in solution.message
        reached = solution.ts[-1].item()
        assert 1.0 < reached < 100
        assert solution.value.item() == pytest.approx(math.exp(-reached), rel=1e-3)

    def test_explosion_is_named(self, backend):
        problem = hj.ODEProblem(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), (0.0, 2.0))  # pole at t = 1
        with pytest.raises(hj.SolveError) as caught:
            hj.solve(problem, hj.Dopri5(), backend=backend)
        assert caught.value.solution.status in (Status.STEP_TOO_SMALL, Status.DIVERGED, Status.MAX_STEPS)
        assert caught.value.solution.ts[-1].item() == pytest.approx(1.0, abs=1e-2)

    def test_min_step(self, backend):
        problem = hj.ODEProblem(lambda t, y: -1e4 * (y - torch.cos(t)), torch.zeros(1), (0.0, 1.0))
        with pytest.raises(hj.SolveError, match="step size fell below") as caught:
            hj.solve(problem, hj.Tsit5(min_step=1e-2, first_step=0.1), backend=backend)
        assert caught.value.solution.status is Status.STEP_TOO_SMALL

    @pytest.mark.parametrize("algorithm", [hj.Tsit5(), hj.Tsit5(first_step=0.1), hj.RK4(step_size=0.1)])
    def test_nan_in_the_initial_state(self, algorithm, backend):
        problem = hj.ODEProblem(lambda t, y: -y, torch.tensor([1.0, math.nan]), (0.0, 1.0))
        with pytest.raises(hj.SolveError, match="no longer finite"):
            hj.solve(problem, algorithm, backend=backend)

    @pytest.mark.parametrize("algorithm", [hj.Tsit5(), hj.RK4(step_size=0.1)])
    def test_nan_from_the_field(self, algorithm, backend):
        def f(t, y):
            return torch.where(t > 0.5, torch.full_like(y, math.nan), -y)

        with pytest.raises(hj.SolveError, match="no longer finite") as caught:
            hj.solve(hj.ODEProblem(f, torch.ones(2), (0.0, 0.4, 1.0)), algorithm, backend=backend)
        assert caught.value.solution.status is Status.DIVERGED
        assert "0.4" in str(caught.value) or "0.5" in str(caught.value)

    def test_an_exception_in_the_field_keeps_its_class(self, backend):
        def f(t, y):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            hj.solve(hj.ODEProblem(f, torch.ones(1), (0.0, 1.0)), hj.Tsit5(), backend=backend)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_a_field_that_writes_over_its_last_result_is_solved_with_copies(batch):
    buffer = torch.zeros(2, 3)
    problem = hj.ODEProblem(lambda t, y: torch.mul(y, -1.0, out=buffer), torch.ones(2, 3), (0.0, 1.0))
    value = hj.solve(problem, hj.Tsit5(), backend="pytorch", batch=batch).value
    torch.testing.assert_close(value, torch.full((2, 3), math.exp(-1)), rtol=1e-3, atol=0)
    buffer = torch.zeros(2, 3)
    constant = hj.ODEProblem(lambda t, y: buffer.fill_(2.0) if t == 0 else buffer, torch.ones(2, 3), (0.0, 1.0))
    with torch.inference_mode():
        torch.testing.assert_close(hj.solve(constant, hj.Euler(), backend="pytorch").value, torch.full((2, 3), 3.0))
