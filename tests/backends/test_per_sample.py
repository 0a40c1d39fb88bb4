"""Solves in which every sample has steps of its own: right, independent of batch mates, and no dearer than it needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.algorithms import AbstractAdaptive, PIController, PIDController, PredictiveController
from homojl.solution import Status
from tests.catalogue import EXPLICIT

ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive)]
TRUTHFUL = [cls for cls in ADAPTIVE if cls is not hj.Fehlberg2]  # its estimate is far below its error
HIGHER = [cls for cls in ADAPTIVE if cls.tableau.order > 2]


class Relax:
    """dy/dt = -rate (y - cos t), a rate for each sample; notes how many rows it saw and at which times."""

    def __init__(self, batch: str = "per-sample") -> None:
        self.batch, self.rows = batch, []

    def __call__(self, t, y, rate):
        assert t.shape == ((len(y), *[1] * (y.ndim - 1)) if self.batch == "per-sample" else ())
        assert t.dtype == y.dtype
        assert len(rate) == len(y)
        self.rows.append(len(y))
        return -rate * (y - torch.cos(t))

    @staticmethod
    def exact(t: float, rate, y0, t0: float):
        """The forced part (rate^2 cos t + rate sin t) / (1 + rate^2) and what is left of the start."""

        def forced(s):
            return (rate**2 * math.cos(s) + rate * math.sin(s)) / (1 + rate**2)

        return forced(t) + torch.exp(-rate * (t - t0)) * (y0 - forced(t0))


def rates(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def solve(f, y0, ts, algorithm, *, args=(), batch="per-sample", **options):
    return hj.solve(hj.ODEProblem(f, y0, ts, args=args), algorithm, batch=batch, backend="pytorch", **options)


def start(count: int, width: int = 2) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cls", TRUTHFUL, ids=lambda c: c.__name__)
@pytest.mark.parametrize("ts", [(0.0, 2.0), (0.0, 0.05, 0.7, 0.71, 2.0), (1.0, 0.9, 0.5)])
def test_exact_answers_at_every_save_time(cls, ts):
    tolerance = 1e-4 if cls.tableau.order == 2 else 1e-7
    rate, y0 = rates(0.3, 1.0, 5.0, 20.0), start(4)
    if ts[0] > ts[-1]:
        rate = -rate  # the other way round in time the same field is as stiff and as stable with the other sign
    solution = solve(Relax(), y0, ts, cls(rtol=tolerance, atol=tolerance), args=(rate,))
    assert solution.status is Status.SUCCESS
    assert solution.ts.tolist() == list(ts)
    for t, y in zip(ts, solution.states, strict=True):
        exact = Relax.exact(t, rate, y0, ts[0])
        torch.testing.assert_close(y, exact, rtol=20 * tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("controller", [PIController(), PredictiveController(prediction=0.9), PIDController()])
@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("first_step", [None, 4.0])
def test_a_sample_alone_takes_the_steps_of_a_joint_solve(cls, controller, first_step):
    def f(t, y):
        return torch.stack([y[:, 1], 5 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], dim=1)

    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    algorithm = cls(rtol=1e-4, atol=1e-4, controller=controller, first_step=first_step)
    ts = (0.0, 1.0, 3.0, 4.0)
    joint = solve(f, y0, ts, algorithm, batch="joint")
    alone = solve(f, y0, ts, algorithm)
    assert first_step is None or joint.stats.n_rejected > 0
    for name in ("nfe", "n_accepted", "n_rejected"):
        assert getattr(alone.stats, name) == getattr(joint.stats, name)
    torch.testing.assert_close(alone.ys, joint.ys, rtol=1e-6, atol=1e-6)


@given(
    st.lists(st.floats(0.1, 40.0), min_size=1, max_size=9),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.sampled_from(HIGHER),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_result_does_not_depend_on_batch_mates(values, gaps, cls, backwards):
    ts = np.concatenate([[0.0], np.cumsum(gaps)]) * (-1 if backwards else 1)
    rate, y0 = rates(*values), start(len(values))
    rate = -rate if backwards else rate
    algorithm = cls(rtol=1e-5, atol=1e-5)
    together = solve(Relax(), y0, ts, algorithm, args=(rate,))
    for i in range(len(values)):
        alone = solve(Relax(), y0[i : i + 1], ts, algorithm, args=(rate[i : i + 1],))
        assert torch.equal(alone.ys[:, 0], together.ys[:, i])
        for name in ("n_accepted", "n_rejected"):
            assert getattr(alone.samples, name)[0] == getattr(together.samples, name)[i]


def test_one_stiff_sample_costs_the_others_nothing():
    field, rate = Relax(), torch.ones(64, 1, dtype=torch.float64)
    rate[17] = 300.0
    y0 = start(64)
    algorithm = hj.Tsit5(rtol=1e-5, atol=1e-5)
    own = solve(field, y0, (0.0, 3.0), algorithm, args=(rate,))
    torch.testing.assert_close(own.value, Relax.exact(3.0, rate, y0, 0.0), rtol=1e-4, atol=1e-4)
    # Row by row: what the field saw is what the statistics say, and most of it is the stiff sample's.
    few = [rows for rows in field.rows if rows <= 3]  # those that find out whether samples may leave are not counted
    assert sum(field.rows) - own.samples.nfe.sum() <= sum(few[:6])
    assert len(field.rows) - own.stats.nfe <= 6
    assert field.rows[-1] == 1
    joint = solve(Relax("joint"), y0, (0.0, 3.0), algorithm, args=(rate,), batch="joint")
    assert sum(field.rows) < 0.1 * 64 * joint.stats.nfe
    stiff = own.samples.n_accepted[17] + own.samples.n_rejected[17]
    assert own.stats.nfe == 2 + 6 * stiff == own.samples.nfe[17]
    assert own.stats.n_accepted == own.samples.n_accepted[17] == own.samples.n_accepted.max()


def test_rows_that_ended_are_few_while_they_are_still_evaluated():
    """Samples that all end at other times: at most an eighth of the rows is evaluated for nothing, and one try more."""
    rate, y0, field = torch.logspace(0, 2, 40, dtype=torch.float64)[:, None], start(40), Relax()
    solution = solve(field, y0, (0.0, 2.0), hj.Tsit5(rtol=1e-6, atol=1e-6), args=(rate,))
    samples = solution.samples
    needed = 2 + 6 * (samples.n_accepted + samples.n_rejected)
    assert needed.sum() <= samples.nfe.sum() <= needed.sum() / (1 - 1 / 8)
    assert (samples.nfe >= needed).all()


def test_an_arg_without_a_row_for_each_sample_is_left_whole():
    matrix = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    def f(t, y, matrix, speed, name):
        assert matrix.shape == (2, 2)
        assert name == "x"
        return speed * (y @ matrix.T)

    y0, speed = start(5), rates(1.0, 2.0, 4.0, 8.0, 30.0)
    solution = solve(f, y0, (0.0, 1.0), hj.Tsit5(rtol=1e-8, atol=1e-8), args=(matrix, speed, "x"))
    for i in range(5):
        exact = torch.linalg.matrix_exp(matrix * speed[i]) @ y0[i]
        torch.testing.assert_close(solution.value[i], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rate",
    [rates(1.0, 1.0, 1.0, 200.0, 200.0), rates(1.0, 200.0, 1.0)],
    ids=["two rows are left", "one row is left, which broadcasts"],
)
def test_a_batch_in_the_field_itself_goes_on_whole_and_says_so(rate):
    with pytest.warns(UserWarning, match="cannot be evaluated for some samples alone"):
        solution = solve(lambda t, y: -rate * y, start(len(rate)), (0.0, 1.0), hj.Tsit5(rtol=1e-7, atol=1e-9))
    torch.testing.assert_close(solution.value, start(len(rate)) * torch.exp(-rate), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_memory_format_and_inputs_are_kept(dtype):
    y0 = torch.randn(3, 2, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    speed = torch.tensor([0.1, 1.0, 10.0], dtype=dtype).view(3, 1, 1, 1)
    before, seen = y0.clone(), []

    def f(t, y, speed):
        seen.append(y.is_contiguous(memory_format=torch.channels_last))
        return -speed * y * (1 + t)

    solution = solve(f, y0, (0.0, 0.5, 1.0), hj.Tsit5(rtol=1e-5, atol=1e-5), args=(speed,))
    assert torch.equal(y0, before)
    assert all(seen)
    for y in solution.states:
        assert (y.dtype, y.shape, y.stride()) == (dtype, y0.shape, y0.stride())
    torch.testing.assert_close(solution.value, y0 * torch.exp(-1.5 * speed), rtol=1e-4, atol=1e-4)


def test_a_batch_of_numbers():
    y0 = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    solution = solve(lambda t, y: -y * (1 + t), y0, (0.0, 1.0), hj.Tsit5(rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(solution.value, y0 * math.exp(-1.5), rtol=1e-7, atol=1e-7)


def test_complex_states():
    y0 = torch.tensor([[1.0 + 1j], [2.0j]], dtype=torch.complex128)
    speed = rates(1.0, 10.0)
    solution = solve(lambda t, y, w: 1j * w * y, y0, (0.0, 1.0), hj.Tsit5(rtol=1e-9, atol=1e-9), args=(speed,))
    torch.testing.assert_close(solution.value, y0 * torch.exp(1j * speed), rtol=1e-6, atol=1e-6)


class TestFailure:
    """A sample that fails is named, and does not spoil the others."""

    @staticmethod
    def poles():
        """dy/dt = y^2 has its pole at t = 1/y0: sample 2 of five reaches it, the others are smooth."""
        y0 = torch.tensor([[0.1], [0.2], [2.0], [-3.0], [0.05]], dtype=torch.float64)
        return (lambda t, y: y**2), y0

    def test_the_sample_is_named(self):
        f, y0 = self.poles()
        with pytest.raises(hj.SolveError, match=r"\(sample 2, at t = 0\.[45]") as caught:
            solve(f, y0, (0.0, 1.0), hj.Tsit5())
        assert caught.value.solution.samples.statuses[2] is caught.value.solution.status

    def test_the_others_reach_their_ends(self):
        f, y0 = self.poles()
        ts = (0.0, 0.25, 0.75, 1.0)
        solution = solve(f, y0, ts, hj.Tsit5(rtol=1e-9, atol=1e-9), throw=False)
        statuses = solution.samples.statuses
        assert not solution.status.ok
        assert [s.ok for s in statuses] == [True, True, False, True, True]
        smooth = [0, 1, 3, 4]
        for t, y in zip(ts, solution.states, strict=True):
            torch.testing.assert_close(y[smooth], (y0 / (1 - y0 * t))[smooth], rtol=1e-6, atol=1e-6)
        reached = solution.samples.times
        assert reached[smooth].tolist() == [1.0] * 4
        assert reached[2].item() == pytest.approx(0.5, abs=1e-2)
        # What it did not reach holds its last state.
        torch.testing.assert_close(solution.states[1][2], 2.0 / (1 - 2.0 * torch.tensor([0.25]).double()))
        assert torch.equal(solution.states[2][2], solution.states[3][2])
        assert abs(solution.value[2].item()) > 1e6

    def test_too_many_steps_are_counted_for_each(self):
        rate, y0 = rates(1.0, 500.0, 1.0, 800.0), start(4)
        algorithm = hj.Tsit5(max_steps=40)
        with pytest.raises(hj.SolveError, match=r"sample 1 and 1 more of 4, .*raise max_steps \(now 40\)") as caught:
            solve(Relax(), y0, (0.0, 5.0), algorithm, args=(rate,))
        samples = caught.value.solution.samples
        assert samples.statuses == (Status.SUCCESS, Status.MAX_STEPS, Status.SUCCESS, Status.MAX_STEPS)
        assert (samples.n_accepted + samples.n_rejected)[[1, 3]].tolist() == [40, 40]

    def test_min_step(self):
        rate, y0 = rates(1.0, 1e4), torch.zeros(2, 1, dtype=torch.float64)
        with pytest.raises(hj.SolveError, match=r"step size fell below.*sample 1, ") as caught:
            solve(Relax(), y0, (0.0, 1.0), hj.Tsit5(min_step=1e-2, first_step=0.1), args=(rate,))
        assert caught.value.solution.samples.statuses == (Status.SUCCESS, Status.STEP_TOO_SMALL)

    @pytest.mark.parametrize("first_step", [None, 0.1])
    def test_nan_at_the_start(self, first_step):
        y0 = torch.tensor([[1.0], [math.nan], [2.0]], dtype=torch.float64)
        algorithm = hj.Tsit5(rtol=1e-8, atol=1e-8, first_step=first_step)
        with pytest.raises(hj.SolveError, match=r"no longer finite \(sample 1, at t = 0 after 0 accepted"):
            solve(lambda t, y: -y, y0, (0.0, 1.0), algorithm)
        solution = solve(lambda t, y: -y, y0, (0.0, 1.0), algorithm, throw=False)
        assert solution.samples.statuses == (Status.SUCCESS, Status.DIVERGED, Status.SUCCESS)
        torch.testing.assert_close(solution.value[[0, 2]], y0[[0, 2]] * math.exp(-1), rtol=1e-6, atol=1e-6)

    def test_nan_from_the_field(self):
        def f(t, y):
            return torch.where((t > 0.5) & (y > 1.5), torch.full_like(y, math.nan), 0 * y)

        y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        solution = solve(f, y0, (0.0, 1.0), hj.Tsit5(), throw=False)
        assert solution.samples.statuses == (Status.SUCCESS, Status.DIVERGED)
        assert solution.samples.times[1].item() == pytest.approx(0.5, abs=1e-6)
        assert solution.value.tolist() == y0.tolist()

    def test_an_exception_in_the_field_keeps_its_class(self):
        def f(t, y):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            solve(f, start(2), (0.0, 1.0), hj.Tsit5())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": hj.RK4(step_size=0.1)}, "needs an adaptive explicit method"),
        ({"algorithm": hj.Vern7()}, "needs an adaptive explicit method"),
        ({"algorithm": hj.Rodas5P()}, "needs an adaptive explicit method"),
        ({"adjoint": hj.GaussAdjoint()}, "DirectAdjoint"),
        ({"adjoint": hj.BacksolveAdjoint()}, "DirectAdjoint"),
        ({"backend": "julia"}, "needs backend='pytorch'"),
        ({"batch": "sample"}, "batch must be 'joint' or 'per-sample', got 'sample'"),
    ],
)
def test_what_has_no_samples_is_refused(changes, message):
    problem = hj.ODEProblem(lambda t, y: -y, start(2), (0.0, 1.0))
    options = {"algorithm": hj.Tsit5(), "batch": "per-sample"} | changes
    with pytest.raises(hj.ConfigError, match=message):
        hj.solve(problem, options.pop("algorithm"), **options)


def test_problems_without_samples_of_their_own_are_refused():
    single = hj.ODEProblem(lambda t, y: -y, torch.tensor(1.0), (0.0, 1.0))
    with pytest.raises(hj.ConfigError, match="write y0\\[None\\]"):
        hj.solve(single, hj.Tsit5(), batch="per-sample")
    event = hj.ODEProblem(lambda t, y: -y, start(2), (0.0, 1.0), event=hj.Event(lambda t, y: y.sum()))
    with pytest.raises(hj.ConfigError, match="has a row for each sample"):
        hj.solve(event, hj.Tsit5(), batch="per-sample")
    jumps = hj.ODEProblem(lambda t, y: -y, start(2), (0.0, 1.0), discontinuities=(0.5,))
    with pytest.raises(hj.ConfigError, match="discontinuities"):
        hj.solve(jumps, hj.Tsit5(), batch="per-sample")
    fixed = hj.FixedPointProblem(torch.cos, start(2))
    with pytest.raises(hj.ConfigError, match="always end one by one"):
        hj.solve(fixed, hj.Anderson(), batch="per-sample")


def test_auto_takes_pytorch():
    solution = hj.solve(hj.ODEProblem(lambda t, y: -y, start(2), (0.0, 1.0)), hj.Tsit5(), batch="per-sample")
    assert solution.stats.backend == "pytorch"
    assert solution.samples.statuses == (Status.SUCCESS,) * 2
    joint = hj.solve(hj.ODEProblem(lambda t, y: -y, start(2), (0.0, 1.0)), hj.Tsit5(), backend="pytorch")
    assert joint.samples is None
