"""A batch's equilibria by continuation: from starts where other methods fail, and how its paths end."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl import gallery
from homojl.solution import Status

KINDS = ("fixed-point", "newton")


def equilibrium_of(r):
    """The map z - r(z), sample by sample, whose fixed points are the roots of r."""
    return lambda z: z - r(z)


def column(*starts: float) -> torch.Tensor:
    return torch.tensor(starts, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_starts_from_which_newtons_method_diverges(kind):
    problem = hj.FixedPointProblem(equilibrium_of(torch.atan), column(1.5, 3.0, -10.0, 0.1))
    solution = hj.solve(problem, hj.Homotopy(kind=kind, rtol=0.0, atol=1e-9), backend="pytorch")
    assert solution.value.abs().max() < 1e-8
    assert solution.converged.all()
    assert solution.stats.n_jvp > 0


def test_folds_are_passed():
    fold = gallery.get("fold")
    starts = column(1.5, 3.0, -4.0, 0.9)
    problem = hj.FixedPointProblem(equilibrium_of(fold.r), starts)
    solution = hj.solve(problem, hj.Homotopy(rtol=1e-9), backend="pytorch")
    torch.testing.assert_close(solution.value, fold.roots[0].expand(4, 1), rtol=1e-6, atol=1e-6)


def test_it_ends_where_the_path_of_each_sample_ends():
    several = gallery.get("several")
    starts = column(9.0, 0.0, 3.2, 1.9)  # from farther off a long step may pass over a root
    problem = hj.FixedPointProblem(equilibrium_of(several.r), starts)
    together = hj.solve(problem, hj.Homotopy(rtol=1e-8), backend="pytorch").value
    for start, end in zip(starts, together, strict=True):
        path = hj.solve(hj.HomotopyProblem(several.r, start), hj.ArcLength(), backend="pytorch")
        assert end.item() == pytest.approx(path.value.item(), abs=1e-5)


@pytest.mark.slow
def test_a_map_that_is_far_from_a_contraction():
    """tanh(W z + x) with spectral radius near 2: bounded, so that every path is."""
    generator = torch.Generator().manual_seed(1)
    w, x, z0 = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((8, 8), (6, 8), (6, 8)))
    w = 2 * w / math.sqrt(8)
    problem = hj.FixedPointProblem(lambda z, x: torch.tanh(z @ w + x), 10 * z0, args=(x,))
    assert not hj.solve(problem, hj.Picard(max_steps=500), backend="pytorch", throw=False).converged.all()
    solution = hj.solve(problem, hj.Homotopy(rtol=1e-6, atol=0.0), backend="pytorch")
    assert (solution.residuals <= 1e-6).all()
    assert len(set(solution.iterations.tolist())) > 1


def test_a_map_with_kinks():
    generator = torch.Generator().manual_seed(2)
    w, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((12, 12), (8, 12)))
    w = 0.9 * w / torch.linalg.matrix_norm(w, 2)
    problem = hj.FixedPointProblem(lambda z, x: torch.relu(z @ w + x), 30 + torch.zeros_like(x), args=(x,))
    solution = hj.solve(problem, hj.Homotopy(rtol=1e-8), backend="pytorch")
    exact = hj.solve(problem, hj.Picard(rtol=1e-10, max_steps=2000), backend="pytorch")
    torch.testing.assert_close(solution.value, exact.value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@given(st.integers(1, 8), st.randoms(use_true_random=False), st.sampled_from(KINDS))
@settings(max_examples=15, deadline=None)
def test_batch_mates_change_nothing(count, random, kind):
    starts = [random.uniform(-5, 5) for _ in range(count)]
    f = equilibrium_of(torch.atan)
    algorithm = hj.Homotopy(kind=kind, atol=1e-8)
    together = hj.solve(hj.FixedPointProblem(f, column(*starts)), algorithm, backend="pytorch")
    for i, start in enumerate(starts):
        alone = hj.solve(hj.FixedPointProblem(f, column(start)), algorithm, backend="pytorch")
        assert alone.iterations.item() == together.iterations[i]
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-10, atol=1e-12)


def test_a_path_without_an_end_says_so_and_the_others_arrive():
    # z^2 + c: without a real root for c = 1; the path of Newton's homotopy turns round and comes back to lambda = 0.
    c = column(1.0, -4.0)
    problem = hj.FixedPointProblem(lambda z, c: z - z**2 - c, column(1.0, 1.0), args=(c,))
    solution = hj.solve(problem, hj.Homotopy(kind="newton"), backend="pytorch", throw=False)
    assert solution.status is Status.RETURNED
    assert solution.converged.tolist() == [False, True]
    assert solution.value[1].item() == pytest.approx(2.0, abs=1e-3)
    with pytest.raises(hj.SolveError, match=r"came back to lambda = 0 .*1 of 2 samples.*other kind"):
        hj.solve(problem, hj.Homotopy(kind="newton"), backend="pytorch")


@pytest.mark.slow
def test_gradients_are_those_of_the_equilibrium():
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    z0 = torch.randn(3, 2, dtype=torch.float64)

    def end(w, x):
        problem = hj.FixedPointProblem(lambda z, w, x: torch.tanh(z @ w + x), z0, args=(w, x))
        adjoint = hj.ImplicitAdjoint(algorithm=hj.NewtonKrylov(rtol=1e-10, atol=0.0))
        return hj.solve(problem, hj.Homotopy(rtol=1e-10, atol=0.0), adjoint=adjoint, backend="pytorch").value

    assert torch.autograd.gradcheck(end, (w, x), eps=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    problem = hj.FixedPointProblem(torch.cos, column(1.0))
    with pytest.raises(hj.ConfigError, match="kind"):
        hj.Homotopy(kind="natural")
    with pytest.raises(hj.ConfigError, match="krylov_steps"):
        hj.Homotopy(krylov_steps=0)
    with pytest.raises(hj.ConfigError, match="cannot pass through Homotopy"):
        hj.solve(problem, hj.Homotopy(), adjoint=hj.UnrolledAdjoint(), backend="pytorch")
