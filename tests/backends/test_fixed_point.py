"""Equilibria against exact answers: accuracy, each sample on its own, what is evaluated, and how solves end."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.marks import PerSample, Shared
from homojl.solution import Status

METHODS = {
    "picard": hj.Picard,
    "anderson": hj.Anderson,
    "broyden": hj.Broyden,
    "newton-krylov": hj.NewtonKrylov,
    "pseudo-transient": hj.PseudoTransient,
    "relaxation": hj.Relaxation,
    "homotopy": hj.Homotopy,
}
QUASI = {name: METHODS[name] for name in ("picard", "anderson", "broyden")}
each_method = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)


class Tanh(torch.nn.Module):
    """z -> tanh(W z + x), a contraction where norm(W) < 1; notes the rows it was given."""

    def __init__(self, width: int = 8, norm: float = 0.8, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        w = torch.randn(width, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.w = torch.nn.Parameter((norm * w / torch.linalg.matrix_norm(w, 2)).to(dtype))
        self.rows: list[int] = []

    def forward(self, z, x):
        self.rows.append(z.shape[0])
        return torch.tanh(z @ self.w + x)


def batch(count: int, width: int = 8, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Conditions of very different difficulty: tanh saturates for the later ones."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (x * torch.logspace(-2, 1, count, dtype=torch.float64)[:, None]).to(dtype)


def residuals(f, z, *args) -> torch.Tensor:
    with torch.no_grad():
        fz = f(z, *args)
    return (fz - z).flatten(1).norm(dim=1) / fz.flatten(1).norm(dim=1)


@each_method
def test_a_linear_map(cls, backend):
    a = torch.tensor([[0.5, 0.3, 0.0], [-0.3, 0.4, 0.1], [0.0, 0.2, -0.6]], dtype=torch.float64)
    b = torch.randn(5, 3, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - a, b.T).T
    problem = hj.FixedPointProblem(lambda z, b: z @ a.T + b, torch.zeros(5, 3, dtype=torch.float64), args=(b,))
    solution = hj.solve(problem, cls(rtol=1e-10, atol=0.0, max_steps=1000), backend=backend)
    torch.testing.assert_close(solution.value, exact, rtol=1e-8, atol=1e-8)


@each_method
def test_the_number_whose_cosine_it_is(cls, backend):
    problem = hj.FixedPointProblem(torch.cos, torch.ones(1, dtype=torch.float64))
    solution = hj.solve(problem, cls(rtol=1e-12, atol=0.0), backend=backend)
    assert solution.value.item() == pytest.approx(0.7390851332151607, abs=1e-10)


@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_every_sample_meets_the_tolerance(cls, dtype, rtol, backend):
    f, x = Tanh(dtype=dtype), batch(16, dtype=dtype)
    z0 = torch.zeros_like(x)
    solution = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), cls(rtol=rtol, atol=0.0), backend=backend)
    assert solution.status is Status.SUCCESS
    assert solution.message == ""
    assert solution.converged.all()
    assert (solution.residuals <= rtol).all()
    torch.testing.assert_close(
        solution.residuals, residuals(f, solution.value, x).double(), rtol=1e-2, atol=10 * torch.finfo(dtype).eps
    )
    assert solution.value.dtype == dtype
    assert torch.equal(z0, torch.zeros_like(x))
    assert solution.stats.nfe > 0
    assert solution.stats.backend == backend
    assert solution.stats.seconds > 0


def test_methods_that_need_no_contraction(backend):
    """The Jacobian has eigenvalues far outside the unit disc, where Picard's iteration runs away."""
    f, x = Tanh(), batch(8)
    problem = hj.FixedPointProblem(lambda z, x: x - 4 * z + f(z, x), torch.zeros_like(x), args=(x,), params=(f.w,))
    assert not hj.solve(problem, hj.Picard(), backend=backend, throw=False).status.ok
    for cls in (hj.NewtonKrylov, hj.PseudoTransient):
        solution = hj.solve(problem, cls(rtol=1e-8, atol=0.0), backend=backend)
        assert (residuals(problem.f, solution.value, x) <= 2e-8).all()


@pytest.mark.parametrize("slope", [0.9, -0.9, -3.0, 5.0])
@pytest.mark.parametrize("cls", [hj.Anderson, hj.Broyden, hj.NewtonKrylov], ids=lambda c: c.__name__)
def test_in_one_dimension_a_line_is_solved_by_one_secant(cls, slope, backend):
    problem = hj.FixedPointProblem(lambda z: slope * z + 1.0, torch.zeros(1, 1, dtype=torch.float64))
    solution = hj.solve(problem, cls(rtol=1e-6), backend=backend)
    assert solution.value.item() == pytest.approx(1 / (1 - slope), rel=1e-5)
    assert solution.iterations.item() <= 3


class TestEachSampleOnItsOwn:
    @each_method
    def test_batch_mates_change_nothing(self, cls, backend):
        f, x = Tanh(), batch(12)
        algorithm = cls(rtol=1e-7, atol=0.0, max_steps=300)
        together = hj.solve(hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,)), algorithm, backend=backend)
        assert (
            len(set(together.iterations.tolist())) > 1 or cls in (hj.PseudoTransient, hj.Homotopy) or backend == "julia"
        )
        # Newton-like methods in Julia take the batch as one system: only the equilibria are each sample's own.
        coupled = backend == "julia" and cls not in (hj.Picard, hj.Anderson)
        for i in range(len(x)):
            alone = hj.solve(
                hj.FixedPointProblem(f, torch.zeros(1, 8, dtype=torch.float64), args=(x[i : i + 1],)),
                algorithm,
                backend=backend,
            )
            tolerance = 1e-5 if coupled else 1e-9
            torch.testing.assert_close(alone.value[0], together.value[i], rtol=tolerance, atol=tolerance)
            assert coupled or alone.iterations.item() == together.iterations[i]

    @pytest.mark.parametrize("cls", QUASI.values(), ids=QUASI)
    def test_finished_samples_cost_nothing(self, cls):
        backend = "pytorch"  # Julia evaluates the whole batch each time
        f, x = Tanh(), 3 * batch(32)
        z0 = torch.zeros_like(x)
        with torch.no_grad():
            solution = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), cls(rtol=1e-10, atol=0.0), backend=backend)
        rows = [r for r in f.rows if r > 3]  # some are taken alone, to see whether they may be
        assert len(f.rows) - solution.stats.nfe <= 6
        assert rows[0] == 32
        assert rows[-1] <= 16
        assert sorted(rows, reverse=True) == rows
        # An eighth of the batch may be done before the rest moves together.
        assert sum(f.rows) <= 8 / 7 * (solution.iterations + 1).sum() + 40
        assert sum(f.rows) < 0.9 * 32 * len(rows)

    def test_a_start_that_is_the_answer(self, backend):
        x = batch(4)
        problem = hj.FixedPointProblem(lambda z, x: x + 0.0 * z, x.clone(), args=(x,))
        solution = hj.solve(problem, hj.Anderson(), backend=backend)
        assert solution.stats.nfe == 1
        assert solution.iterations.tolist() == [0] * 4
        assert torch.equal(solution.value, x)

    def test_an_equilibrium_at_zero(self, backend):
        problem = hj.FixedPointProblem(lambda z: 0.5 * z, torch.zeros(3, 2))
        solution = hj.solve(problem, hj.Picard(rtol=1e-3, atol=0.0), backend=backend)
        assert solution.residuals.tolist() == [0.0] * 3

    def test_a_condition_hidden_in_the_map_is_pointed_out(self):
        """Its rows cannot be taken: the whole batch goes on, those that are done at rest, with the same answers."""
        f, x = Tanh(), batch(12)
        f.requires_grad_(False)
        algorithm, z0 = hj.Picard(rtol=1e-12, atol=0.0, max_steps=1000), torch.zeros_like(x)
        expected = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), algorithm, backend="pytorch")
        for hidden in (lambda z: f(z, x), lambda z: f(z, x)[: max(len(z), 2)]):
            f.rows.clear()
            with pytest.warns(UserWarning, match="pass tensors with a row for each sample in args"):
                solution = hj.solve(hj.FixedPointProblem(hidden, z0), algorithm, backend="pytorch")
            torch.testing.assert_close(solution.value, expected.value, rtol=1e-12, atol=1e-14)
            assert solution.iterations.tolist() == expected.iterations.tolist()
            assert f.rows[-1] == 12

    @given(st.integers(1, 12), st.integers(1, 6), st.randoms(use_true_random=False), st.sampled_from(list(QUASI)))
    @settings(max_examples=25, deadline=None)
    def test_order_of_the_batch_does_not_matter(self, count, width, random, name):
        f, x = Tanh(width), batch(count, width)
        order = list(range(count))
        random.shuffle(order)
        algorithm = QUASI[name](rtol=1e-8)
        one = hj.solve(hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,)), algorithm, backend="pytorch")
        other = hj.solve(hj.FixedPointProblem(f, torch.zeros_like(x), args=(x[order],)), algorithm, backend="pytorch")
        assert other.iterations.tolist() == one.iterations[order].tolist()
        torch.testing.assert_close(other.value, one.value[order], rtol=1e-9, atol=1e-9)


class TestHowSolvesEnd:
    def test_too_many_steps(self, backend):
        f, x = Tanh(norm=0.95), batch(8)
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        algorithm = hj.Picard(rtol=1e-10, atol=0.0, max_steps=7)
        with pytest.raises(hj.SolveError, match=r"raise max_steps \(now 7\)") as error:
            hj.solve(problem, algorithm, backend=backend)
        solution = hj.solve(problem, algorithm, backend=backend, throw=False)
        assert error.value.solution.status is solution.status is Status.MAX_STEPS
        assert solution.stats.nfe == 8
        assert solution.iterations.max() == 7
        assert (~solution.converged).sum() > 0
        assert "\n" not in solution.message
        worst = int(solution.residuals.argmax())
        assert f"{int((~solution.converged).sum())} of 8 samples; sample {worst} is the worst" in solution.message
        torch.testing.assert_close(solution.residuals, residuals(f, solution.value, x), rtol=1e-6, atol=1e-14)

    def test_the_best_iterate_is_returned(self, backend):
        problem = hj.FixedPointProblem(lambda z: -1.5 * z + 1.0, torch.full((1, 1), 0.4001, dtype=torch.float64))
        solution = hj.solve(problem, hj.Picard(rtol=1e-12, max_steps=10), backend=backend, throw=False)
        assert solution.value.item() == 0.4001
        assert solution.status is Status.MAX_STEPS

    def test_below_the_rounding_floor(self, backend):
        f, x = Tanh(dtype=torch.float32), batch(4, dtype=torch.float32)
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        solution = hj.solve(problem, hj.Picard(rtol=1e-12, atol=0.0, max_steps=300), backend=backend, throw=False)
        assert solution.status in (Status.STALLED, Status.SUCCESS)
        stalled = hj.FixedPointProblem(lambda z: z + 1.0, torch.zeros(2, 3))
        solution = hj.solve(stalled, hj.Picard(rtol=1e-3, max_steps=10_000), backend=backend, throw=False)
        # norm(f(z)) grows, so that norm(f(z) - z) is soon small beside it, which is no equilibrium.
        assert not solution.status.ok

    def test_a_small_start_has_time_to_grow(self, backend):
        """Positive and concave: Picard's iterates double from 1e-15 on, their relative residual 1/2 all the way."""
        z0 = torch.zeros(3, 1, dtype=torch.float64)
        x = torch.tensor([[1e-15], [1e-5], [1.0]], dtype=torch.float64)
        problem = hj.FixedPointProblem(lambda z, x: torch.tanh(2 * z + x), z0, args=(x,))
        solution = hj.solve(problem, hj.Picard(rtol=1e-6, atol=0.0, max_steps=200), backend=backend)
        assert solution.iterations[0] > 45
        torch.testing.assert_close(torch.tanh(2 * solution.value + x), solution.value, rtol=2e-6, atol=0.0)

    @pytest.mark.parametrize("cls", [*QUASI.values(), hj.NewtonKrylov], ids=lambda c: c.__name__)
    def test_no_equilibrium(self, cls, backend):
        problem = hj.FixedPointProblem(lambda z: z + 1.0 + z * z, torch.full((1, 1), 0.5, dtype=torch.float64))
        solution = hj.solve(problem, cls(rtol=1e-6, max_steps=1000), backend=backend, throw=False)
        assert solution.status in (Status.STALLED, Status.DIVERGED)
        assert not solution.converged.item()
        assert math.isfinite(solution.value.item())

    @each_method
    def test_the_sample_that_is_not_finite_is_named(self, cls, backend):
        f, x = Tanh(), batch(6)
        x[4, 2] = math.nan
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        with pytest.raises(hj.SolveError, match="NaN or infinity in z or f\\(z\\) of sample 4, at z0"):
            hj.solve(problem, cls(), backend=backend)
        solution = hj.solve(problem, cls(), backend=backend, throw=False)
        assert solution.status is Status.DIVERGED
        assert solution.converged.tolist() == [i != 4 for i in range(6)]
        assert torch.equal(solution.value[4], torch.zeros_like(x[4]))

    @pytest.mark.parametrize("cls", [*QUASI.values(), hj.NewtonKrylov, hj.PseudoTransient, hj.Relaxation])
    def test_where_the_map_is_not_finite_on_the_way_the_sample_is_named(self, cls):
        """From 1 on in z there is no map, and the middle sample's equilibrium would lie there."""

        def f(z, x):
            return torch.where(z > 1, math.nan, 0.5 * z + x)

        x = torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.2, 0.2]], dtype=torch.float64)
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        solution = hj.solve(problem, cls(max_steps=1000), backend="pytorch", throw=False)
        assert solution.status is Status.DIVERGED
        assert "NaN or infinity in z or f(z) of sample 1, after " in solution.message
        assert solution.converged.tolist() == [True, False, True]
        assert solution.value.isfinite().all()

    def test_a_newton_step_out_of_the_domain_is_shortened(self, backend):
        problem = hj.FixedPointProblem(lambda z: z - torch.log(z), torch.full((1, 1), 4.0, dtype=torch.float64))
        for cls in (hj.NewtonKrylov, hj.PseudoTransient):
            assert hj.solve(problem, cls(rtol=1e-10), backend=backend).value.item() == pytest.approx(1.0)

    def test_an_exception_in_the_map_is_kept(self, backend):
        def f(z):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            hj.solve(hj.FixedPointProblem(f, torch.zeros(2, 2)), hj.Anderson(), backend=backend)


class TestForm:
    def test_what_f_returns_is_checked(self, backend):
        z0 = torch.zeros(2, 3)
        for f in (lambda z: z[:, :2], lambda z: z.double(), lambda z: 1.0):
            with pytest.raises(hj.ConfigError, match="f must return"):
                hj.solve(hj.FixedPointProblem(f, z0), hj.Anderson(), backend=backend)

    def test_kinds_must_fit(self, backend):
        problem = hj.FixedPointProblem(torch.cos, torch.zeros(1))
        with pytest.raises(hj.ConfigError, match="one for fixed points such as Anderson"):
            hj.solve(problem, hj.Tsit5(), backend=backend)
        with pytest.raises(hj.ConfigError, match="one for fixed points such as ImplicitAdjoint"):
            hj.solve(problem, hj.Anderson(), adjoint=hj.DirectAdjoint(), backend=backend)

    @each_method
    def test_memory_format(self, cls, backend):
        seen = []

        def f(z, x):
            seen.append(z.is_contiguous(memory_format=torch.channels_last))
            return 0.5 * torch.tanh(z.roll(1, 3)) + x

        x = torch.randn(5, 3, 4, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
        z0 = torch.zeros_like(x)
        with torch.no_grad():
            solution = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), cls(), backend=backend)
        assert all(seen)
        assert solution.value.stride() == z0.stride()
        plain = hj.solve(hj.FixedPointProblem(f, z0.contiguous(), args=(x.contiguous(),)), cls(), backend=backend)
        torch.testing.assert_close(solution.value, plain.value, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 2, 1, 3)])
    def test_shapes_and_strides(self, shape, backend):
        x = torch.randn(shape, dtype=torch.float64)
        for z0 in (
            torch.zeros_like(x),
            torch.zeros(shape[::-1], dtype=torch.float64).permute(*range(len(shape))[::-1]),
        ):
            problem = hj.FixedPointProblem(lambda z, x: 0.5 * z + x, z0, args=(x,))
            value = hj.solve(problem, hj.Anderson(rtol=1e-10), backend=backend).value
            torch.testing.assert_close(value, 2 * x, rtol=1e-8, atol=1e-8)
            assert value.stride() == z0.stride()
            assert torch.equal(z0, torch.zeros_like(x))
        expanded = torch.zeros((), dtype=torch.float64).expand(shape)
        problem = hj.FixedPointProblem(lambda z, x: 0.5 * z + x, expanded, args=(x,))
        torch.testing.assert_close(hj.solve(problem, hj.Broyden(rtol=1e-10), backend=backend).value, 2 * x)


def test_a_history_that_fills_up():
    f, x = Tanh(width=12, norm=0.9), batch(4, width=12)
    for algorithm in (
        hj.Broyden(memory=3, rtol=1e-9, atol=0.0),
        hj.Anderson(memory=2, rtol=1e-9, atol=0.0),
        hj.Anderson(memory=1, rtol=1e-9, atol=0.0),
    ):
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        solution = hj.solve(problem, algorithm, backend="pytorch")
        assert (residuals(f, solution.value, x) <= 2e-9).all()


def test_damping_and_mixing(backend):
    """z -> -1.5 z + 1 repels; half of the way towards f(z) brings every start to 0.4."""
    problem = hj.FixedPointProblem(lambda z: -1.5 * z + 1.0, torch.tensor([[3.0], [-2.0]], dtype=torch.float64))
    for algorithm in (
        hj.Picard(damping=0.5, rtol=1e-10, atol=0.0),
        hj.Anderson(mixing=0.5, memory=1, rtol=1e-10, atol=0.0),
    ):
        torch.testing.assert_close(
            hj.solve(problem, algorithm, backend=backend).value, torch.full((2, 1), 0.4, dtype=torch.float64)
        )


@each_method
@pytest.mark.parametrize("grad", [False, True])
def test_a_map_that_writes_over_what_it_is_given_or_gave(cls, grad):
    """Picard's iterates would lie in that memory, so that f(z) - z would be zero at once."""
    buffer, x = torch.zeros(2, 3), torch.tensor([[1.0], [2.0]])
    maps = (
        lambda z, x: torch.mul(z, 0.5, out=buffer).add_(x),
        lambda z, x: z.mul_(0.5).add_(x),
    )
    for f in maps[1 if grad or cls in (hj.NewtonKrylov, hj.PseudoTransient, hj.Homotopy) else 0 :]:
        z0 = torch.zeros(2, 3)
        with torch.set_grad_enabled(grad):
            value = hj.solve(hj.FixedPointProblem(f, z0, (x,)), cls(rtol=1e-6), backend="pytorch").value
        torch.testing.assert_close(value, (2 * x).expand(2, 3), rtol=1e-5, atol=1e-5)
        assert not z0.any()


class TestRowsAreSaidNotGuessed:
    def test_a_shared_argument_as_long_as_the_batch(self):
        b, z0 = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, 3)
        z0[2] = 50.0
        z = torch.zeros(3, dtype=torch.float64)
        for _ in range(500):
            z = 0.5 * torch.tanh(z) + b.double()
        for arg in (b, Shared(b)):
            problem = hj.FixedPointProblem(lambda z, b: 0.5 * torch.tanh(z) + b, z0, args=(arg,))
            value = hj.solve(problem, hj.Picard(max_steps=500, rtol=1e-6), backend="pytorch").value
            torch.testing.assert_close(value.double(), z.expand(3, 3), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("start", [0.0, 1.0])
    @each_method
    def test_a_batch_whose_samples_mix_converges_as_a_whole(self, cls, start, backend):
        """BatchNorm from rows that are all alike, where mixing shows in nothing; a mean from others."""
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm1d(2).double()
        x = torch.cat([torch.zeros(6, 2), 3 * torch.randn(2, 2)]).double()
        z0 = torch.zeros(8, 2).double() if start == 0 else torch.cat([torch.zeros(6, 2), torch.randn(2, 2)]).double()
        mixed = norm if start == 0 else lambda z: z + z.mean(0) * z.mean()

        def f(z, x):
            return 0.5 * mixed(torch.tanh(z)) + x * (start == 0)

        algorithm = cls(rtol=1e-6, max_steps=500)
        with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = hj.solve(hj.FixedPointProblem(f, z0, (x,)), algorithm, throw=False, backend=backend)
        told = [w for w in caught if "mixes the samples" in str(w.message)]
        assert len(told) <= 1
        with torch.no_grad():
            true = (f(solution.value, x) - solution.value).norm(dim=1)
        if cls in (hj.Picard, hj.Anderson, hj.Broyden, hj.Relaxation):
            assert solution.status is Status.SUCCESS
            assert told
        assert len(set(solution.converged.tolist())) == 1
        if solution.status.ok:
            assert (true <= 1e-5).all()

    def test_what_is_marked_is_taken_at_its_word(self):
        f, x = Tanh(), batch(8)
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(PerSample(x),))
        plain = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        one, other = (hj.solve(p, hj.Anderson(), backend="pytorch").value for p in (problem, plain))
        assert torch.equal(one, other)


class TestEquilibriaThatAreNone:
    @each_method
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_growth_alone_is_not_convergence(self, cls, dtype, backend):
        problem = hj.FixedPointProblem(lambda z: z + 1, torch.zeros(2, 3, dtype=dtype))
        solution = hj.solve(problem, cls(max_steps=3000), throw=False, backend=backend)
        assert not solution.status.ok
        assert not solution.converged.any()

    def test_a_residual_that_stays_while_the_state_runs_away(self):
        n = torch.arange(1, 11.0)

        def r(x):
            return 10 - torch.cos(x).sum(1, keepdim=True) + n * (1 - torch.cos(x)) - torch.sin(x)

        problem = hj.FixedPointProblem(lambda z: z - r(z), torch.full((1, 10), 0.1))
        solution = hj.solve(problem, hj.Broyden(), throw=False, backend="pytorch")
        assert not solution.status.ok or r(solution.value).norm() < 1e-2

    @pytest.mark.parametrize("cls", [hj.Picard, hj.Anderson, hj.Broyden, hj.Relaxation])
    @pytest.mark.parametrize("far", [1e3, 1e6])
    def test_an_equilibrium_far_away_is_found(self, cls, far, backend):
        problem = hj.FixedPointProblem(lambda z: 0.5 * z + far / 2, torch.zeros(2, 1, dtype=torch.float64))
        value = hj.solve(problem, cls(rtol=1e-6, atol=0.0), backend=backend).value
        torch.testing.assert_close(value, torch.full_like(value, far), rtol=1e-5, atol=0.0)
        if cls in (hj.Picard, hj.Relaxation):  # the others find the one that repels, near zero
            small = hj.FixedPointProblem(lambda z: far * torch.tanh(2 * z / far + 1e-12), torch.zeros(2, 1).double())
            value = hj.solve(small, cls(rtol=1e-6, atol=0.0, max_steps=300), backend=backend).value
            torch.testing.assert_close(value, torch.full_like(value, 0.9575 * far), rtol=1e-3, atol=0.0)


@each_method
def test_an_empty_batch(cls):
    w = torch.tensor(0.5, requires_grad=True)
    z0 = torch.zeros(0, 3, requires_grad=True)
    solution = hj.solve(hj.FixedPointProblem(lambda z, w: torch.cos(w * z), z0, (w,)), cls(), backend="pytorch")
    assert solution.status is Status.SUCCESS
    assert solution.value.shape == (0, 3)
    assert solution.residuals.shape == solution.converged.shape == (0,)
    solution.value.sum().backward()
    assert w.grad == 0
    assert z0.grad.shape == (0, 3)


@each_method
def test_in_inference_mode_and_in_threads(cls):
    f, x = Tanh(dtype=torch.float32), batch(4, dtype=torch.float32)
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
    expected = hj.solve(problem, cls(), backend="pytorch").value
    with torch.inference_mode():
        value = hj.solve(problem, cls(), backend="pytorch").value
    torch.testing.assert_close(value.clone(), expected)

    def solved(_):
        return hj.solve(problem, cls(), backend="pytorch").value

    with ThreadPoolExecutor(4) as pool:
        for value in pool.map(solved, range(8)):
            torch.testing.assert_close(value, expected)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_newtons_method_gives_no_warning_of_numpys():
    x = torch.tensor([[0.0], [3.0], [0.5]], dtype=torch.float64)
    problem = hj.FixedPointProblem(lambda z, x: torch.tanh(z * x) + 0 * x, torch.zeros_like(x), args=(x,))
    for cls in (hj.NewtonKrylov, hj.PseudoTransient):
        assert hj.solve(problem, cls(), backend="pytorch").status.ok
    moved = hj.FixedPointProblem(lambda z, x: 0.5 * z + x, torch.zeros_like(x), args=(x,))
    assert hj.solve(moved, hj.NewtonKrylov(), backend="pytorch").status.ok


@pytest.mark.parametrize("cls", [hj.Anderson, hj.NewtonKrylov])
def test_complex_states_and_states_of_several_tensors(cls):
    a = torch.tensor(0.3 + 0.4j, dtype=torch.complex128)
    b = torch.randn(3, 2, dtype=torch.complex128)
    problem = hj.FixedPointProblem(lambda z, b: a * z + b, torch.zeros_like(b), args=(b,))
    value = hj.solve(problem, cls(rtol=1e-10), backend="pytorch").value
    torch.testing.assert_close(value, b / (1 - a), rtol=1e-8, atol=1e-8)
    x = torch.randn(3, 2, dtype=torch.float64)

    def f(z, x):
        return {"u": 0.3 * z["v"].sum(1) + x[:, 0], "v": 0.3 * torch.tanh(z["u"])[:, None] * x}

    start = {"u": torch.zeros(3).double(), "v": torch.zeros(3, 2).double()}
    algorithm = cls(rtol=1e-10, atol=0.0)
    z = hj.solve(hj.FixedPointProblem(f, start, args=(x,)), algorithm, backend="pytorch").value
    for one, other in zip(f(z, x).values(), z.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
