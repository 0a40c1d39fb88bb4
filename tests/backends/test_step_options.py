"""How steps are chosen, measured and watched: grids, floors, norms, observers, and methods with steps of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import homojl as hj
from homojl.backends.pytorch.steppers import weights
from tests.catalogue import EXACT_ODES

FORCED = next(p for p in EXACT_ODES if p.name == "forced")
TS = (0.3, 0.95, 2.0, 3.3)


def forced(algorithm, ts=TS, adjoint=None):
    y0 = FORCED.y0.clone().requires_grad_()
    solution = hj.solve(hj.ODEProblem(FORCED.f, y0, ts), algorithm, adjoint=adjoint, backend="pytorch")
    return solution, torch.autograd.grad(solution.ys.sum(), y0)[0]


def even(n: int):
    return lambda ts: np.linspace(ts[0], ts[-1], n + 1).tolist()


class TestGrid:
    @pytest.mark.parametrize("ts", [TS, TS[::-1]], ids=["ahead", "back"])
    @pytest.mark.parametrize(("interpolation", "order"), [("linear", 2), ("cubic", 4)])
    @pytest.mark.parametrize("method", [hj.RK4, hj.GaussLegendre4], ids=lambda c: c.__name__)
    def test_states_inside_steps_have_their_order(self, method, interpolation, order, ts):
        errors = []
        for n in (20, 40):
            grid = hj.Grid(points=even(n), interpolation=interpolation)
            solution, _ = forced(method(grid=grid), ts)
            start = solution.ys[0]
            exact = torch.stack([start * math.exp(math.sin(t) - math.sin(ts[0])) for t in ts])
            assert len(solution.steps) == n
            errors.append((solution.ys - exact).abs().max().item())
        # Where in its step a save time lies changes with the grid: hence the generous bounds.
        assert 2 ** (order - 1.2) < errors[0] / errors[1] < 2 ** (order + 2.5)

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("interpolation", ["linear", "cubic"])
    def test_the_exact_gradient_by_either_adjoint(self, interpolation, apart):
        algorithm = hj.Heun3(grid=hj.Grid(points=even(13), interpolation=interpolation, apart=apart))
        direct, by_y0 = forced(algorithm)
        checkpointed, by_y0_again = forced(algorithm, adjoint=hj.CheckpointAdjoint())
        assert torch.equal(direct.ys, checkpointed.ys)
        torch.testing.assert_close(by_y0_again, by_y0, rtol=1e-12, atol=0)
        torch.testing.assert_close(by_y0, (direct.ys / FORCED.y0).sum()[None].detach(), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("method", [hj.RK4, hj.Trapezoid, hj.Euler], ids=lambda c: c.__name__)
    def test_a_field_that_jumps_at_the_points_is_seen_from_inside_each_step(self, method, dtype):
        def stairs(t, y):
            return torch.ceil(4 * t) * torch.ones_like(y)

        for ts in ((0.0, 1.0), (1.0, 0.0)):
            algorithm = method(grid=hj.Grid(points=even(4), apart=True))
            solution = hj.solve(hj.ODEProblem(stairs, torch.zeros(1, dtype=dtype), ts), algorithm, backend="pytorch")
            sign = 1 if ts[0] == 0 else -1
            torch.testing.assert_close(solution.value, torch.full((1,), sign * 2.5, dtype=dtype))

    @pytest.mark.parametrize(
        ("points", "message"),
        [
            (lambda ts: ts[:1], "must begin and end with the save times"),
            (lambda ts: (0.0, 3.3), "must begin and end"),
            (lambda ts: (0.3, 2.0, 1.0, 3.3), "strictly"),
        ],
    )
    def test_a_grid_that_is_none_is_refused(self, points, message):
        with pytest.raises(hj.ConfigError, match=message):
            forced(hj.RK4(grid=hj.Grid(points=points)))


class TestControl:
    def test_no_step_is_shorter_than_the_floor(self):
        free = forced(hj.Dopri5(rtol=1e-9, atol=1e-9))[0]
        floored = forced(hj.Dopri5(rtol=1e-9, atol=1e-9, controller=hj.PIController(floor=0.4)))[0]
        assert min(free.steps.sizes[:-1]) < 0.2
        assert min(floored.steps.sizes[:-1]) >= 0.4 * (1 - 1e-12)
        assert floored.stats.n_rejected == 0

    def test_infinity_in_a_step_of_the_floor_is_a_failure(self):
        problem = hj.ODEProblem(lambda t, y: y / (1 - t).clamp(min=0), torch.ones(2), (0.0, 2.0))
        algorithm = hj.Tsit5(controller=hj.PIController(floor=0.3))
        solution = hj.solve(problem, algorithm, backend="pytorch", throw=False)
        assert solution.status is hj.Status.DIVERGED

    def test_an_observer_hears_of_every_step(self):
        class Diary(hj.StepObserver):
            def __init__(self) -> None:
                self.tried, self.taken, self.refused = [], [], 0

            def trying(self, t, y, h):
                assert not y.requires_grad
                self.tried.append((t, h))

            def accepted(self, t, y, h):
                self.taken.append((t, h))

            def rejected(self, t, y, h):
                self.refused += 1

        diary = Diary()
        algorithm = hj.Tsit5(rtol=1e-8, atol=1e-8, first_step=3.0, observer=diary)
        solution, _ = forced(algorithm, adjoint=hj.GaussAdjoint())  # its backward solve is not observed
        assert diary.taken == list(zip(solution.steps.starts, solution.steps.sizes, strict=True))
        assert diary.refused == solution.stats.n_rejected > 0
        assert len(diary.tried) == len(diary.taken) + diary.refused

    @pytest.mark.parametrize(
        "adjoint", [hj.DirectAdjoint(), hj.BacksolveAdjoint(), hj.GaussAdjoint()], ids=lambda a: a.name
    )
    def test_the_norm_decides_what_the_steps_follow(self, adjoint):
        """Of a slow and a fast component only the slow one is watched, and the other way round."""
        rates = torch.tensor([-0.1, -40.0], dtype=torch.float64)

        def solved(norm):
            y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
            algorithm = hj.Dopri5(rtol=1e-6, atol=1e-6, norm=norm, max_step=0.05)
            problem = hj.ODEProblem(lambda t, y: rates * y, y0, (0.0, 1.0))
            solution = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch")
            torch.autograd.grad(solution.value.sum(), y0)
            return solution

        slow, fast = (solved(hj.ErrorNorm(parts=(part,))) for part in ((0, 1), (1, 2)))
        by_function = solved(hj.ErrorNorm(function=lambda error: error[:1].abs().max()))
        assert len(slow.steps) < len(fast.steps) / 1.5
        assert by_function.steps == slow.steps

    def test_tolerances_may_differ_from_element_to_element(self):
        tolerances = torch.tensor([1e-9, 1e-2], dtype=torch.float64)
        problem = hj.ODEProblem(
            lambda t, y: torch.stack([-y[0], torch.cos(20 * t)]), torch.ones(2, dtype=torch.float64), (0.0, 3.0)
        )
        counts = {}
        for name, tolerance in (("each", tolerances), ("first", 1e-9)):
            solution = hj.solve(problem, hj.Dopri5(rtol=tolerance, atol=tolerance), backend="pytorch")
            counts[name] = len(solution.steps)
            assert solution.value[0].item() == pytest.approx(math.exp(-3), abs=1e-7)
        assert counts["each"] < counts["first"]

    @pytest.mark.parametrize("batch", ["joint", "per-sample"])
    def test_one_that_does_not_fit_the_state_is_refused(self, batch):
        problem = hj.ODEProblem(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0))
        for shape in ((3,), (1, 2, 1)):
            with pytest.raises(hj.ConfigError, match=r"tolerances in tensors|does not fit a state of"):
                hj.solve(problem, hj.Tsit5(atol=torch.ones(shape)), batch=batch, backend="pytorch")
        with pytest.raises(hj.ConfigError, match="rtol and atol must fit each other"):
            hj.Tsit5(rtol=torch.ones(2), atol=torch.ones(3))

    @pytest.mark.parametrize("adjoint", [hj.BacksolveAdjoint(), hj.GaussAdjoint()], ids=lambda a: a.name)
    @pytest.mark.parametrize("shape", [(2, 3), (2, 1), (3,), (1,)])
    def test_continuous_adjoints_take_them_too(self, adjoint, shape):
        y0 = torch.linspace(0.1, 0.6, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        problem = hj.ODEProblem(lambda t, y, rate: -rate * y * torch.cos(t), y0, (0.0, 1.0, 2.0), args=(rate,))
        tolerance = torch.full(shape, 1e-9, dtype=torch.float64)
        solution = hj.solve(problem, hj.Tsit5(rtol=tolerance, atol=tolerance), adjoint=adjoint, backend="pytorch")
        by_y0, by_rate = torch.autograd.grad(solution.value.sum(), [y0, rate])
        shrunk = math.exp(-1.3 * math.sin(2.0))
        torch.testing.assert_close(by_y0, torch.full_like(y0, shrunk), rtol=1e-7, atol=0)
        torch.testing.assert_close(by_rate, -math.sin(2.0) * shrunk * y0.detach().sum(), rtol=1e-7, atol=0)


class TestAdams:
    def test_weights_are_exact(self):
        assert weights((0, -1, -2, -3)) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-15)
        assert weights((1, 0, -1, -2)) == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24], rel=1e-15)

    @pytest.mark.parametrize(
        ("algorithm", "order"), [(hj.AdamsBashforth, 4), (hj.AdamsMoulton, 5)], ids=["explicit", "implicit"]
    )
    def test_order(self, algorithm, order):
        extra = {"rtol": 1e-13, "atol": 1e-13, "max_iter": 50} if algorithm is hj.AdamsMoulton else {}
        errors = []
        for n in (60, 120):
            solution, _ = forced(algorithm(step_size=3.0 / n, max_order=5, **extra), (0.3, 3.3))
            errors.append(abs(solution.value.item() - FORCED.exact(3.3).item()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)

    def test_one_evaluation_a_step_after_the_start(self):
        solution, _ = forced(hj.AdamsBashforth(step_size=0.03), (0.3, 3.3))
        assert len(solution.steps) == 100
        assert solution.stats.nfe == 100 + 2 * 3

    def test_adjoints_that_take_steps_one_by_one_are_refused(self):
        with pytest.raises(hj.ConfigError, match="GaussAdjoint"):
            forced(hj.AdamsBashforth(step_size=0.1), adjoint=hj.CheckpointAdjoint())

    def test_a_correction_that_does_not_converge_is_reported(self):
        problem = hj.ODEProblem(lambda t, y: -40 * y, torch.ones(1, dtype=torch.float64), (0.0, 1.0))
        with pytest.warns(UserWarning, match="did not converge at t = "):
            hj.solve(problem, hj.AdamsMoulton(step_size=0.1), backend="pytorch")


class TestSciPy:
    @pytest.mark.parametrize("solver", ["LSODA", "DOP853", "Radau"])
    @pytest.mark.parametrize("ts", [TS, TS[::-1]], ids=["ahead", "back"])
    def test_answers_and_gradients_by_the_continuous_adjoints(self, ts, solver):
        for adjoint in (hj.BacksolveAdjoint(), hj.GaussAdjoint()):
            solution, by_y0 = forced(hj.SciPy(solver=solver, rtol=1e-8, atol=1e-10), ts, adjoint)
            exact = torch.tensor([math.exp(math.sin(t) - math.sin(ts[0])) for t in ts], dtype=torch.float64)
            torch.testing.assert_close(solution.ys[:, 0], exact, rtol=1e-6, atol=0)
            torch.testing.assert_close(by_y0, exact.sum()[None], rtol=1e-5, atol=0)
            assert solution.stats.nfe > 10

    def test_a_solve_that_stops_early_says_so(self):
        problem = hj.ODEProblem(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), (0.0, 2.0))
        with pytest.raises(hj.SolveError, match="SciPy's RK45"):
            hj.solve(problem, hj.SciPy(solver="RK45"), backend="pytorch")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"algorithm": hj.SciPy()}, r"BacksolveAdjoint\(\) or GaussAdjoint\(\)"),
            ({"algorithm": hj.SciPy(solver="RK46"), "adjoint": hj.GaussAdjoint()}, "SciPy: `method` must be one of"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(hj.ConfigError, match=message):
            forced(**options)
