"""GMRES for batches of linear systems, against the direct solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import homojl as hj
from homojl.backends.pytorch import gmres as module
from homojl.backends.pytorch.gmres import Deflation, gmres

Tensor = torch.Tensor


def systems(b: int, n: int, dtype: torch.dtype = torch.float64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(n, dtype=dtype) + 0.5 / n**0.5 * torch.randn(b, n, n, generator=generator, dtype=dtype)
    return matrix, torch.randn(b, n, generator=generator, dtype=dtype)


def times(matrix: Tensor):
    return lambda v: (matrix @ v[:, :, None])[:, :, 0]


def residual(matrix: Tensor, x: Tensor, right: Tensor) -> np.ndarray:
    left = torch.linalg.vector_norm(right - times(matrix)(x), dim=1)
    return (left / torch.linalg.vector_norm(right, dim=1)).numpy()


@pytest.fixture(params=["looking", "in one go"])
def looks(request, monkeypatch):
    """At every few products, as on a CPU, or once, as on a device."""
    if request.param == "in one go":
        monkeypatch.setattr(module, "LOOKS", 100.0)
        monkeypatch.setattr(module, "MOST_LOOKS", 100.0)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_solves_to_the_tolerance_and_knows_what_is_left(looks, dtype, accuracy):
    matrix, right = systems(5, 80, dtype)
    for relative in (1e-1, 1e-3, accuracy):
        x, left = gmres(times(matrix), right, np.full(5, relative), 79)
        found = residual(matrix, x, right)
        assert (found <= 1.1 * relative + 2 * accuracy).all()
        np.testing.assert_allclose(left, found, rtol=0.05, atol=2 * accuracy)


def test_a_row_takes_no_more_steps_than_it_needs(looks):
    matrix, right = systems(3, 60)
    alone = [gmres(times(matrix[i : i + 1]), right[i : i + 1], np.array([t]), 50)[0] for i, t in enumerate((0.3, 1e-6))]
    x, left = gmres(times(matrix), right, np.array([0.3, 1e-6, np.inf]), 50)
    torch.testing.assert_close(x[:2], torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert left[0] <= 0.3
    assert left[1] <= 1e-6
    assert left[2] == 1.0
    assert not x[2].any()


def test_a_guess_and_what_needs_nothing(looks):
    matrix, right = systems(4, 30)
    right[1] = 0.0
    exact = torch.linalg.solve(matrix, right)
    x, left = gmres(times(matrix), right, np.full(4, 1e-10), 29, guess=exact + 1e-3)
    torch.testing.assert_close(x, exact, rtol=1e-8, atol=1e-9)
    assert left[1] == 0.0
    assert not x[1].any()


def test_a_space_that_ends_early_holds_the_answer(looks):
    # Two different eigenvalues: two products suffice, and a third has nothing to add.
    matrix = torch.diag_embed(torch.tensor([[2.0, 2.0, 3.0, 3.0, 2.0] * 4, [5.0] * 20], dtype=torch.float64))
    right = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, left = gmres(times(matrix), right, np.full(2, 1e-14), 12)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, right), rtol=1e-12, atol=1e-12)
    assert (left < 1e-13).all()


def test_rows_that_are_not_finite_say_so_and_leave_others_alone(looks):
    matrix, right = systems(3, 40)
    matrix[1, 3, 3], right[2, 0] = torch.nan, torch.inf
    x, left = gmres(times(matrix), right, np.full(3, 1e-8), 39)
    assert np.isinf(left[1:]).all()
    assert residual(matrix[:1], x[:1], right[:1])[0] <= 1.1e-8


def stiff(n: int = 120) -> Tensor:
    """A matrix with few small eigenvalues, which are what GMRES finds last."""
    values = torch.cat([torch.tensor([1e-4, 3e-4, 1e-3, 3e-3], dtype=torch.float64), torch.linspace(0.5, 2.0, n - 4)])
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return (q * values) @ q.T


def test_directions_that_were_slow_are_where_the_next_solve_begins(looks):
    matrix, count = stiff()[None], []

    def product(v: Tensor) -> Tensor:
        count.append(1)
        return times(matrix)(v)

    deflation, generator = Deflation(), torch.Generator().manual_seed(2)
    needed = []
    for _ in range(3):
        right = torch.randn(1, 120, dtype=torch.float64, generator=generator)
        count.clear()
        x, left = gmres(product, right, np.array([1e-6]), 60, deflation=deflation)
        needed.append(len(count))
        if len(needed) > 1:
            assert residual(matrix, x, right)[0] <= 1.1e-6
            np.testing.assert_allclose(left, residual(matrix, x, right), rtol=0.05)
    if module.LOOKS < 1:
        assert max(needed[1:]) <= 0.75 * needed[0]


def test_deflation_of_rows_that_have_none(looks):
    # The second row's space ends after one product, so that it has no directions; and then gets another matrix.
    matrix = torch.stack([stiff(), 2 * torch.eye(120, dtype=torch.float64)])
    deflation, generator = Deflation(), torch.Generator().manual_seed(3)
    for _ in range(3):
        right = torch.randn(2, 120, dtype=torch.float64, generator=generator)
        x, left = gmres(times(matrix), right, np.array([1e-6, 1e-10]), 60, deflation=deflation)
        assert np.isfinite(left).all()
        assert torch.isfinite(x).all()
    matrix[1] = stiff()
    x, left = gmres(times(matrix), right, np.full(2, 1e-6), 60, deflation=deflation)
    assert (residual(matrix, x, right) <= 1.1e-6).all()


def bratu(z: Tensor) -> Tensor:
    """z + (Laplacian of z + 6 e^z) / 4 h^2 on a square grid with zeros around it; z is (b, m, m)."""
    p = torch.nn.functional.pad(z, (1, 1, 1, 1))
    around = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2]
    return 0.25 * (around + 6.0 / (z.shape[1] + 1) ** 2 * torch.exp(z))


def poisson(v: Tensor, z: Tensor) -> Tensor:
    """(I - J)^-1 v without the exponential, by the sines that diagonalise it; for `bratu`."""
    m = v.shape[1]
    k = torch.arange(1, m + 1, dtype=v.dtype)
    sines = (2 / (m + 1)) ** 0.5 * torch.sin(torch.pi * k[:, None] * k / (m + 1))
    values = torch.sin(torch.pi * k / (2 * m + 2)) ** 2
    return sines @ ((sines @ v @ sines) / (values[:, None] + values)) @ sines


def test_bratu_needs_few_products_and_fewer_with_a_preconditioner():
    z0 = torch.zeros(1, 32, 32, dtype=torch.float64)
    plain = hj.solve(hj.FixedPointProblem(bratu, z0), hj.NewtonKrylov(rtol=0, atol=1e-8), backend="pytorch")
    algorithm = hj.NewtonKrylov(rtol=0, atol=1e-8, preconditioner=poisson)
    quick = hj.solve(hj.FixedPointProblem(bratu, z0), algorithm, backend="pytorch")
    torch.testing.assert_close(plain.value, quick.value, rtol=0, atol=1e-5)
    assert plain.stats.n_jvp <= 100  # without those directions 168
    assert quick.stats.n_jvp <= 35


def test_preconditioned_samples_leave_one_by_one():
    c = torch.tensor([0.5, 3.0, 1.0, 0.1], dtype=torch.float64)[:, None]
    sizes = []

    def preconditioner(v: Tensor, z: Tensor) -> Tensor:
        assert v.shape == z.shape
        sizes.append(len(v))
        return v / 2

    problem = hj.FixedPointProblem(
        lambda z, c: torch.cos(c * z), torch.full((4, 3), 0.7, dtype=torch.float64), args=(c,)
    )
    sol = hj.solve(problem, hj.NewtonKrylov(rtol=1e-12, atol=0, preconditioner=preconditioner), backend="pytorch")
    torch.testing.assert_close(torch.cos(c * sol.value), sol.value, rtol=1e-11, atol=0)
    assert len(set(sizes)) > 1


def test_differences_in_the_place_of_products():
    """Bratu's problem by evaluations alone; a map without derivatives; float32 is too coarse."""
    start = torch.zeros(2, 16, 16, dtype=torch.float64)
    factors = torch.tensor([6.0, 3.0], dtype=torch.float64).view(2, 1, 1)

    def bratu(z: Tensor, factor: Tensor) -> Tensor:
        p = torch.nn.functional.pad(z, (1, 1, 1, 1))
        around = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2]
        return 0.25 * (around + factor / 17**2 * torch.exp(z))

    problem = hj.FixedPointProblem(bratu, start, args=(hj.PerSample(factors),))
    exact, differences = (
        hj.solve(problem, hj.NewtonKrylov(rtol=0, atol=1e-11, differences=d), backend="pytorch") for d in (False, True)
    )
    assert differences.stats.n_jvp == 0
    assert differences.stats.nfe <= 1.3 * (exact.stats.nfe + exact.stats.n_jvp)
    torch.testing.assert_close(differences.value, exact.value, rtol=0, atol=1e-8)

    def outside(z: Tensor) -> Tensor:
        return torch.from_numpy(np.cos(z.detach().numpy()))

    for dtype, z0 in ((torch.float64, 0.5), (torch.float32, 0.5)):
        alone = hj.FixedPointProblem(outside, torch.full((3, 1), z0, dtype=dtype))
        algorithm = hj.NewtonKrylov(rtol=1e-12, atol=0, differences=True)
        if dtype == torch.float64:
            assert hj.solve(alone, algorithm, backend="pytorch").value[0].item() == pytest.approx(0.7390851332151607)
        else:
            with pytest.raises(hj.ConfigError, match="float64"):
                hj.solve(alone, algorithm, backend="pytorch")


def test_a_preconditioner_is_a_function():
    with pytest.raises(hj.ConfigError, match="preconditioner must be a function"):
        hj.NewtonKrylov(preconditioner=torch.eye(2))
