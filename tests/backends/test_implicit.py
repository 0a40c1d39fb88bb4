"""Implicit methods in PyTorch: order, stiff problems with known answers, linear solvers, failure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import solve_ivp

import homojl as hj
from homojl.algorithms import AbstractFixedStep
from homojl.backends.pytorch.steppers import stepper_for
from homojl.functions import DerivedField
from homojl.solution import Status
from tests.catalogue import EXACT_ODES, IMPLICIT

FIXED = [cls for cls in IMPLICIT.values() if issubclass(cls, AbstractFixedStep)]
ADAPTIVE = [cls for cls in IMPLICIT.values() if not issubclass(cls, AbstractFixedStep)]
SOLVERS = ["dense", "krylov"]
each_adaptive = pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
each_fixed = pytest.mark.parametrize("cls", FIXED, ids=lambda c: c.__name__)
each_solver = pytest.mark.parametrize("linear_solver", SOLVERS)


def _tensor(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def _solve(problem: hj.ODEProblem, algorithm, **options) -> hj.Solution:
    with torch.no_grad():
        return hj.solve(problem, algorithm, backend="pytorch", **options)


def robertson(t, y):
    a, b, c = y.unbind()
    r1, r2, r3 = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack([r2 - r1, r1 - r2 - r3, r3])


# Hairer, Wanner (1996), IV.10, at t = 40 to ten figures.
ROBERTSON_40 = _tensor(0.7158270688, 9.185534765e-6, 0.2841637457)


def prothero_robinson(rate: float):
    """y' = -rate (y - cos t) - sin t, with the solution cos t."""
    return lambda t, y: -rate * (y - torch.cos(t)) - torch.sin(t)


@pytest.mark.parametrize("cls", IMPLICIT.values(), ids=IMPLICIT)
def test_order_of_convergence(cls):
    # A forced rigid body: nonlinear, coupled and dependent on time, so that no error term vanishes by accident.
    def rates(t, y, sin):
        return y[1] * y[2], -1.25 * y[0] * y[2], -0.5 * y[0] * y[1] * (1 + 0.2 * sin(t))

    def field(t, y):
        return torch.stack(rates(t, y, torch.sin))

    start, length = _tensor(1.0, 0.5, 0.9), 6.0
    reference = solve_ivp(
        lambda t, y: rates(t, y, math.sin), (0, length), start.numpy(), method="DOP853", rtol=1e-13, atol=1e-15
    ).y[:, -1]
    counts = {1: (256, 512), 2: (64, 128), 3: (64, 128), 4: (48, 96), 5: (40, 60), 6: (16, 32)}[cls.tableau.order]
    stepper, derivative = stepper_for(cls(rtol=1e-13, atol=1e-14)), DerivedField(field)
    errors = []
    for n in counts:
        y = start
        for i in range(n):
            y = stepper.step(derivative, i * length / n, length / n, y).y_next
        errors.append(np.linalg.norm(y.numpy() - reference))
    assert min(errors) > 1e-12, "on the rounding floor the slope means nothing"
    slope = np.log(errors[0] / errors[1]) / np.log(counts[1] / counts[0])
    assert abs(slope - cls.tableau.order) < 0.2, (slope, errors)


def test_order_of_the_continuous_extension():
    """Of TRBDF2, for steps from another backend."""

    def field(t, y):
        return torch.cos(t) * y

    stepper, derivative = stepper_for(hj.TRBDF2(rtol=1e-13, atol=1e-14)), DerivedField(field)
    errors = []
    for n in (8, 16):
        y, h = _tensor(1.0), 2.0 / n
        for i in range(n):
            step = stepper.step(derivative, i * h, h, y)
            y = step.y_next
            if i == n // 2:
                inside = stepper.inside(step, [0.4])[0].item()
                errors.append(abs(inside - math.exp(math.sin((i + 0.4) * h))))
    assert math.log2(errors[0] / errors[1]) > 1.7, errors


@each_adaptive
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_adaptive_accuracy_at_every_save_time(cls, problem, tolerance):
    if cls is hj.TRBDF2:
        tolerance = max(tolerance, 1e-4)  # a method of order 2
    ts = np.linspace(problem.t0, problem.t1, 8)
    solution = _solve(hj.ODEProblem(problem.f, problem.y0, ts), cls(rtol=tolerance, atol=tolerance))
    assert solution.status is Status.SUCCESS
    for t, y in zip(ts, solution.states, strict=True):
        exact = problem.exact(t)
        error = ((y - exact).abs() / (1 + exact.abs())).max()
        assert error < 20 * tolerance, (t, error)


@each_fixed
@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
def test_fixed_steps_meet_every_save_time(cls, problem):
    ts = np.linspace(problem.t0, problem.t1, 3)
    solution = _solve(hj.ODEProblem(problem.f, problem.y0, ts), cls(step_size=0.05))
    assert all(fraction == 1.0 for _, fraction in solution.steps.saves)
    tolerance = {1: 0.2, 2: 1e-2, 3: 1e-4, 4: 1e-5, 5: 1e-7, 6: 1e-7}[cls.tableau.order]
    for t, y in zip(ts, solution.states, strict=True):
        torch.testing.assert_close(y, problem.exact(t), rtol=tolerance, atol=tolerance)


@each_adaptive
@each_solver
@pytest.mark.parametrize("rate", [1e4, 1e6])
def test_prothero_robinson(cls, linear_solver, rate):
    """From the solution's start, and from far away; at save times that the steps alone would jump over."""
    ts = np.linspace(0.0, 3.0, 12)
    for start in (1.0, 2.5):
        problem = hj.ODEProblem(prothero_robinson(rate), _tensor(start), ts)
        solution = _solve(problem, cls(rtol=1e-5, atol=1e-5, linear_solver=linear_solver))
        errors = [abs(y.item() - math.cos(t)) for t, y in zip(ts[1:], solution.states[1:], strict=True)]
        assert max(errors) < 1e-4
        assert solution.stats.n_accepted < 300


@each_fixed
def test_prothero_robinson_with_steps_far_longer_than_its_transient(cls):
    problem = hj.ODEProblem(prothero_robinson(1e6), _tensor(1.0), (0.0, 3.0))
    error = abs(_solve(problem, cls(step_size=0.1)).value.item() - math.cos(3.0))
    assert error < 5e-3


@each_fixed
def test_l_stable_methods_forget_a_stiff_transient_and_the_others_keep_its_size(cls):
    problem = hj.ODEProblem(lambda t, y: -1e8 * y, _tensor(1.0), (0.0, 1.0))
    left = abs(_solve(problem, cls(step_size=0.25)).value.item())
    if cls in (hj.ImplicitMidpoint, hj.Trapezoid, hj.GaussLegendre4, hj.GaussLegendre6):
        assert left == pytest.approx(1.0, abs=1e-4)
    else:
        assert left < 1e-12


@each_adaptive
@each_solver
def test_robertson(cls, linear_solver):
    algorithm = cls(rtol=1e-5, atol=1e-9, linear_solver=linear_solver)
    solution = _solve(hj.ODEProblem(robertson, _tensor(1.0, 0.0, 0.0), (0.0, 40.0)), algorithm)
    torch.testing.assert_close(solution.value, ROBERTSON_40, rtol=1e-3, atol=1e-9)
    assert solution.value.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert solution.stats.n_accepted < 300


@pytest.mark.parametrize("cls", [hj.KenCarp4, hj.Kvaerno5], ids=lambda c: c.__name__)
def test_van_der_pol_with_mu_1000_against_scipy(cls):
    mu = 1e3
    reference = solve_ivp(
        lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
        (0, 1000),
        [2.0, 0.0],
        method="Radau",
        rtol=1e-10,
        atol=1e-10,
    ).y[:, -1]
    problem = hj.ODEProblem(
        lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]), _tensor(2.0, 0.0), (0.0, 1000.0)
    )
    solution = _solve(problem, cls(rtol=1e-6, atol=1e-8))
    np.testing.assert_allclose(solution.value.numpy(), reference, rtol=1e-4)
    assert solution.stats.n_accepted < 500


@each_adaptive
def test_a_stiff_linear_system(cls):
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    matrix = q @ torch.diag(-(10.0 ** torch.arange(6, dtype=torch.float64))) @ q.T
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    solution = _solve(hj.ODEProblem(lambda t, y: matrix @ y, start, (0.0, 0.5, 2.0)), cls(rtol=1e-5, atol=1e-6))
    for t, y in zip((0.5, 2.0), solution.states[1:], strict=True):
        exact = torch.linalg.matrix_exp(matrix * t) @ start
        torch.testing.assert_close(y, exact, rtol=1e-3, atol=2e-5)
    assert solution.stats.n_accepted < 200


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16), st.sampled_from(ADAPTIVE + FIXED))
@settings(max_examples=12, deadline=None)
def test_both_linear_solvers_find_the_same(batch, width, seed, cls):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rates = 10.0 ** torch.linspace(0, 3, width, dtype=torch.float64)
    y0 = torch.randn(batch, width, generator=generator, dtype=torch.float64)

    def f(t, y):
        return torch.tanh(y @ matrix + torch.sin(t)) - rates * y

    options = {"step_size": 0.125} if cls in FIXED else {"rtol": 1e-5, "atol": 1e-7, "first_step": 1e-3}
    dense, krylov = (
        _solve(hj.ODEProblem(f, y0, (0.0, 0.3, 0.5)), cls(linear_solver=solver, **options)).ys for solver in SOLVERS
    )
    tolerance = 1e-8 if cls in FIXED else 1e-6
    torch.testing.assert_close(dense, krylov, rtol=tolerance, atol=tolerance)


def test_a_large_stiff_system_without_its_jacobian():
    """Heat in a rod: the Jacobian is never made."""
    n = 200
    x = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]

    def heat(t, u):
        padded = torch.nn.functional.pad(u, (1, 1))
        return (padded[2:] - 2 * u + padded[:-2]) * (n + 1) ** 2

    mode = -4 * (n + 1) ** 2 * math.sin(math.pi / (2 * (n + 1))) ** 2
    solution = _solve(hj.ODEProblem(heat, torch.sin(math.pi * x), (0.0, 0.2)), hj.KenCarp4(rtol=1e-6, atol=1e-8))
    torch.testing.assert_close(solution.value, math.exp(0.2 * mode) * torch.sin(math.pi * x), rtol=1e-5, atol=1e-7)
    # Without a preconditioner GMRES takes about sqrt(h times the stiffness) products for a system.
    assert solution.stats.n_jvp < 400 * solution.stats.n_accepted
    assert solution.stats.n_accepted < 60


@each_solver
def test_costs_are_counted(linear_solver):
    values, linearised = [], []

    def f(t, y):
        (linearised if y.requires_grad else values).append(float(t))
        return -100 * (y - torch.cos(t))

    y0 = torch.ones(3, dtype=torch.float64)
    solution = _solve(hj.ODEProblem(f, y0, (0.0, 1.0)), hj.KenCarp4(linear_solver=linear_solver))
    assert solution.stats.nfe == len(values)
    # The products at one point share an evaluation. A dense Jacobian is as many as the state has elements.
    if linear_solver == "dense":
        assert solution.stats.n_jvp == 3 * len(linearised) > 0
    else:
        assert solution.stats.n_jvp >= len(linearised) > 0


def test_a_field_that_pytorch_cannot_vectorise_has_its_jacobian_column_by_column():
    def f(t, y):
        scale = 2.0 if y.sum().item() > -1e9 else 1.0  # asks for a number, which vmap has not
        return -scale * y

    algorithm = hj.KenCarp4(rtol=1e-7, atol=1e-9, linear_solver="dense")
    solution = _solve(hj.ODEProblem(f, torch.ones(3, dtype=torch.float64), (0.0, 1.0)), algorithm)
    torch.testing.assert_close(solution.value, torch.full((3,), math.exp(-2), dtype=torch.float64), rtol=1e-6, atol=0)
    assert solution.stats.n_jvp > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", IMPLICIT.values(), ids=IMPLICIT)
@each_solver
def test_dtype_shape_memory_format_and_inputs_are_kept(cls, dtype, linear_solver):
    y0 = torch.randn(2, 2, 3, 2, dtype=dtype).to(memory_format=torch.channels_last)
    before, seen = y0.clone(), []

    def f(t, y):
        seen.append(y.stride())
        return -y * (1 + t)

    solution = _solve(hj.ODEProblem(f, y0, (0.0, 0.5, 1.0)), cls(linear_solver=linear_solver))
    assert torch.equal(y0, before)
    assert set(seen) == {y0.stride()}
    for y in solution.states:
        assert (y.dtype, y.shape, y.stride()) == (dtype, y0.shape, y0.stride())
    tolerance = 0.1 if cls in FIXED else 1e-2
    torch.testing.assert_close(solution.value, y0 * math.exp(-1.5), rtol=tolerance, atol=tolerance)


@each_adaptive
@each_solver
def test_float32(cls, linear_solver):
    """Tolerances at which rounding begins to show, on a stiff system."""
    y0 = _tensor(1.0, 0.0, 0.0, dtype=torch.float32)
    algorithm = cls(rtol=1e-4, atol=1e-8, linear_solver=linear_solver)
    solution = _solve(hj.ODEProblem(robertson, y0, (0.0, 40.0)), algorithm)
    torch.testing.assert_close(solution.value, ROBERTSON_40.float(), rtol=5e-3, atol=1e-7)


@each_solver
def test_complex_states(linear_solver):
    rate = torch.tensor([-1.0 + 20j, -300.0 + 1j], dtype=torch.complex128)
    y0 = torch.tensor([1.0 + 0.5j, -1.0j], dtype=torch.complex128)
    problem = hj.ODEProblem(lambda t, y: rate * y + 0.1 * y.conj(), y0, (0.0, 1.0))
    implicit = _solve(problem, hj.Kvaerno5(rtol=1e-5, atol=1e-7, linear_solver=linear_solver)).value
    explicit = _solve(problem, hj.Dopri8(rtol=1e-10, atol=1e-12)).value
    torch.testing.assert_close(implicit, explicit, rtol=1e-3, atol=1e-4)


@each_adaptive
def test_the_step_sequence_is_the_one_taken(cls):
    problem, algorithm = EXACT_ODES[1], cls(rtol=1e-5, atol=1e-5)
    solution = _solve(hj.ODEProblem(problem.f, problem.y0, (0.0, 0.7, 2.0)), algorithm)
    stepper, derivative, y = stepper_for(algorithm), DerivedField(problem.f), problem.y0
    for t, h in zip(solution.steps.starts, solution.steps.sizes, strict=True):
        y = stepper.step(derivative, t, h, y).y_next
    assert torch.equal(y, solution.value)


@each_adaptive
def test_an_event(cls):
    """The solution cos t crosses 1/2."""
    event = hj.Event(lambda t, y: y - 0.5)
    problem = hj.ODEProblem(
        lambda t, y: -1e3 * (y - torch.cos(t)) - torch.sin(t), _tensor(1.0), (0.0, 3.0), event=event
    )
    solution = _solve(problem, cls(rtol=1e-7, atol=1e-7))
    assert solution.status is Status.EVENT
    assert solution.ts[-1].item() == pytest.approx(math.pi / 3, abs=1e-5)


class TestFailure:
    """A step whose equations are not solved is not taken, and the solve says why."""

    @staticmethod
    def hidden(t, y):
        """A stiff field whose Jacobian cannot be seen."""
        return -1e9 * y.detach() + 0 * y

    def test_newton_does_not_converge(self):
        problem = hj.ODEProblem(self.hidden, _tensor(0.3, 0.7), (0.0, 1.0))
        with pytest.raises(hj.SolveError, match=r"step size fell below.*Newton's iteration.*loosen rtol") as caught:
            _solve(problem, hj.KenCarp4(first_step=0.1, min_step=1e-6))
        assert caught.value.solution.status is Status.STEP_TOO_SMALL

    def test_newton_does_not_converge_with_fixed_steps(self):
        problem = hj.ODEProblem(self.hidden, _tensor(0.3, 0.7), (0.0, 1.0))
        with pytest.raises(hj.SolveError, match=r"t = 0 after 0 steps.*Newton's.*smaller step_size") as caught:
            _solve(problem, hj.RadauIIA5(step_size=0.1))
        assert caught.value.solution.status is Status.STALLED

    @pytest.mark.parametrize("algorithm", [hj.KenCarp4(), hj.TRBDF2(), hj.RadauIIA3(step_size=0.1)])
    def test_a_field_that_is_not_finite_is_told_from_that(self, algorithm):
        def f(t, y):
            return torch.where(t > 0.5, torch.full_like(y, math.nan), -y)

        with pytest.raises(hj.SolveError, match="no longer finite") as caught:
            _solve(hj.ODEProblem(f, torch.ones(2), (0.0, 0.4, 1.0)), algorithm)
        assert caught.value.solution.status is Status.DIVERGED

    def test_too_many_steps(self):
        problem = hj.ODEProblem(robertson, _tensor(1.0, 0.0, 0.0), (0.0, 40.0))
        with pytest.raises(hj.SolveError, match=r"raise max_steps \(now 5\)"):
            _solve(problem, hj.KenCarp4(max_steps=5))

    def test_an_explicit_method_that_crawls_names_a_stiff_one(self):
        problem = hj.ODEProblem(robertson, _tensor(1.0, 0.0, 0.0), (0.0, 40.0))
        with pytest.raises(hj.SolveError, match="a method for stiff fields such as KenCarp4"):
            _solve(problem, hj.Tsit5(max_steps=100))

    def test_bad_options(self):
        with pytest.raises(hj.ConfigError, match=r"linear_solver must be one of .*got 'lu'"):
            hj.KenCarp4(linear_solver="lu")
        with pytest.raises(hj.ConfigError, match="rtol must be a finite number >= 0"):
            hj.RadauIIA5(rtol=-1.0)
        with pytest.raises(hj.ConfigError, match="step_size must be positive"):
            hj.ImplicitEuler(step_size=0.0)
