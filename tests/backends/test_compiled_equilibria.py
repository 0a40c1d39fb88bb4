"""Compiled iterations for equilibria are the eager ones, to rounding: iterates, ends of each sample, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import homojl as hj
from homojl.backends.pytorch.native import build, equilibrium

pytestmark = [pytest.mark.slow, pytest.mark.needs("compiler")]

METHODS = {
    "Anderson": hj.Anderson(rtol=1e-6),
    "mixing": hj.Anderson(rtol=1e-6, memory=3, mixing=0.7, regularization=1e-4),
    "without memory": hj.Anderson(rtol=1e-6, memory=1),
    "Broyden": hj.Broyden(rtol=1e-6),
    "a full ring": hj.Broyden(rtol=1e-6, memory=4),
    "a ring of one": hj.Broyden(rtol=1e-6, memory=1),
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "folder", lambda: folder)
        equilibrium._entries.cache_clear()
        assert equilibrium._entries()
        yield
    equilibrium._entries.cache_clear()


class Tanh(nn.Module):
    """tanh(z W + x), whose samples converge at different times: x is of different sizes."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.8 * torch.linalg.qr(torch.randn(n, n, dtype=dtype))[0])  # it contracts

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ self.weight + x)


def both(problem: hj.FixedPointProblem, algorithm, **options) -> tuple[hj.EquilibriumSolution, hj.EquilibriumSolution]:
    return tuple(hj.solve(problem, algorithm, backend=b, **options) for b in ("pytorch", "pytorch-compiled"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 600])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_they_are_the_eager_ones(method, n, dtype):
    x = torch.randn(24, n, dtype=dtype) * torch.logspace(-1, 1, 24, dtype=dtype)[:, None]
    problem = hj.FixedPointProblem(Tanh(n, dtype), torch.zeros_like(x), args=(hj.PerSample(x),))
    eager, compiled = both(problem, METHODS[method])
    assert compiled.stats.backend == "pytorch-compiled"
    assert len(set(eager.iterations.tolist())) > 3
    # Where the last iterates are near rounding, one more or one less may be needed.
    few = 0 if dtype == torch.float64 else 2
    assert (compiled.iterations - eager.iterations).abs().max() <= few
    torch.testing.assert_close(compiled.value, eager.value, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)
    assert bool((compiled.residuals <= 1e-6 + 1e-6 / eager.value.norm(dim=1)).all())


def test_no_iteration_is_made_the_eager_way(monkeypatch):
    monkeypatch.setattr("homojl.backends.pytorch.history.AbstractMethod.measure", None)
    x = torch.randn(4, 3)
    problem = hj.FixedPointProblem(Tanh(3, torch.float32), torch.zeros_like(x), args=(x,))
    for algorithm in (hj.Anderson(), hj.Broyden()):
        assert hj.solve(problem, algorithm, backend="pytorch-compiled").status.ok


def test_a_sample_that_is_not_finite_spoils_no_other():
    def f(z, x):
        return torch.where(x > 2, torch.nan, 0.5 * torch.cos(z) + x)

    x = torch.linspace(-1, 3, 12, dtype=torch.float64)[:, None].repeat(1, 2)
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(hj.PerSample(x),))
    for algorithm in (hj.Anderson(), hj.Broyden()):
        eager, compiled = both(problem, algorithm, throw=False)
        assert compiled.status is eager.status is hj.Status.DIVERGED
        assert compiled.message == eager.message
        assert compiled.converged.tolist() == (x[:, 0] <= 2).tolist()
        torch.testing.assert_close(compiled.value, eager.value, equal_nan=True)


def test_growth_is_no_convergence():
    problem = hj.FixedPointProblem(lambda z: 1.5 * z.abs() + 1, torch.ones(3, 2, dtype=torch.float64))
    for algorithm in (hj.Anderson(max_steps=60), hj.Broyden(max_steps=60)):
        eager, compiled = both(problem, algorithm, throw=False)
        assert compiled.status is eager.status
        assert not compiled.converged.any()


def test_a_batch_that_mixes_converges_as_one():
    def f(z, x):
        return 0.5 * torch.tanh(z + x - z.mean(0))

    x = torch.randn(6, 3, dtype=torch.float64) * torch.logspace(-2, 1, 6, dtype=torch.float64)[:, None]
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(hj.PerSample(x),))
    with pytest.warns(UserWarning, match="mixes"):
        eager, compiled = both(problem, hj.Anderson(rtol=1e-10))
    assert len(set(compiled.iterations.tolist())) == 1
    torch.testing.assert_close(compiled.value, eager.value)


def test_memory_format_and_threads():
    conv = nn.Conv2d(3, 3, 3, padding=1).double()
    nn.init.uniform_(conv.weight, -0.1, 0.1)
    x = torch.randn(16, 3, 40, 40, dtype=torch.float64).to(memory_format=torch.channels_last)
    problem = hj.FixedPointProblem(lambda z, x: torch.tanh(conv(z) + x), torch.zeros_like(x), args=(x,))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            eager, compiled = both(problem, hj.Anderson(rtol=1e-8))
    finally:
        torch.set_num_threads(before)
    assert compiled.value.stride() == eager.value.stride()
    torch.testing.assert_close(compiled.value, eager.value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("adjoint", [hj.ImplicitAdjoint(), hj.PhantomAdjoint(), hj.UnrolledAdjoint()])
def test_gradients(adjoint):
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    f = Tanh(5, torch.float64)
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
    grads = []
    for solution in both(problem, hj.Anderson(rtol=1e-10), adjoint=adjoint):
        grads.append(torch.autograd.grad(solution.value.square().sum(), [x, f.weight]))
    torch.testing.assert_close(grads[1], grads[0])


def test_without_a_compiler_they_are_made_the_eager_way(monkeypatch):
    def nothing(*_):
        raise build.Unsupported("no compiler")

    monkeypatch.setattr(equilibrium, "known", lambda key: None)
    monkeypatch.setattr(equilibrium, "compile_source", nothing)
    equilibrium._entries.cache_clear()
    x = torch.randn(4, 3)
    eager, other = both(hj.FixedPointProblem(torch.cos, x), hj.Anderson())
    equilibrium._entries.cache_clear()
    assert torch.equal(eager.value, other.value)
