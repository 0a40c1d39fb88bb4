"""lambda(s) and v(s) of trajectories where they are known, and of trained models where their properties are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.models.correspondence import recover, recover_from_model

A = 0.6


def known(points: int):
    """The zero path of f(z) = (a z1, b - z2 / 2) from z0 by a constant velocity, on equidistant s from 0 to 1.

    Returns s, z (T, 1, 2), g, lambda (T,), v and f.
    """
    z0, b = (2.0, -1.0), 3.0

    def at(lam):
        z = torch.stack([(1 - lam) * z0[0] / (1 - lam * A), ((1 - lam) * z0[1] + lam * b) / (1 + lam / 2)], dim=-1)
        first = z0[0] * (A - 1) / (1 - lam * A) ** 2
        second = (b - z0[1] - z[..., 1] / 2) / (1 + lam / 2)
        return z, torch.stack([first, second], dim=-1)

    # The length by Gauss's rule; lambda(s) by Newton's method on it.
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(60))

    def length(lam):
        _, slope = at(lam[:, None] / 2 * (nodes + 1))
        return (torch.sqrt(1 + slope.square().sum(-1)) * weights).sum(-1) * lam / 2

    s, total = torch.linspace(0, 1, points, dtype=torch.float64), length(torch.ones(1, dtype=torch.float64))
    lam = s.clone()
    for _ in range(30):
        lam = lam - (length(lam) - s * total) / torch.sqrt(1 + at(lam)[1].square().sum(-1))
    z, by_lambda = at(lam)
    dlam = total / torch.sqrt(1 + by_lambda.square().sum(-1))
    scale, shift = torch.tensor([[A, -0.5], [0.0, b]], dtype=torch.float64)
    return s, z[:, None], (by_lambda * dlam[:, None])[:, None], lam, total.item(), lambda z: scale * z + shift


def test_a_path_of_constant_velocity_is_recovered_from_its_trajectory_alone():
    errors = []
    for points in (21, 41):
        s, z, g, lam, v, f = known(points)
        found = recover(s, z, g, velocity="constant")
        errors.append((found.lambdas[:, 0] - lam).abs().max().item())
        assert found.velocities[:, 0] == pytest.approx(v, rel=1e-4)
        assert torch.allclose(found.targets[1:, 0], f(z[1:, 0]), rtol=0.02)
        assert found.fits.all()
    assert errors[1] < 1e-5
    assert math.log2(errors[0] / errors[1]) > 3  # order 4, but for the ends


def test_a_path_is_recovered_from_its_map_by_least_squares():
    s, z, g, lam, v, f = known(9)
    found = recover(s, z, g, f=f)
    assert torch.allclose(found.lambdas[:, 0], lam, atol=1e-12)
    assert found.velocities[:, 0] == pytest.approx(v, rel=1e-10)
    assert found.residuals.max() < 1e-12
    assert found.tangent_residuals.max() < 1e-12


def test_a_map_whose_path_it_is_not_leaves_a_residual():
    s, z, g, _, _, f = known(9)
    found = recover(s, z, g, f=lambda z: f(z).flip(-1))
    assert found.residuals[1:].min() > 0.1
    # What least squares leaves is orthogonal to f - z0: no other lambda does better.
    for factor in (0.99, 1.01):
        worse = z[-1] - z[0] - factor * found.lambdas[-1, 0] * (found.targets[-1] - z[0])
        assert worse.norm() / (z[-1] - z[0]).norm() > found.residuals[-1, 0]


def test_the_path_of_a_solve_is_recovered():
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(6, 6, generator=generator).double() / 3, torch.randn(6, generator=generator).double()

    def f(z):
        return torch.tanh(z @ w + x)

    path = hj.solve(hj.HomotopyProblem(lambda z: z - f(z), torch.ones(6).double()), hj.ArcLength(max_step=0.02))
    z = torch.stack(path.states)[:, None]
    dz = torch.gradient(z, spacing=(path.s,), dim=0, edge_order=2)[0]
    found = recover(path.s, z, dz, f=f)
    assert torch.allclose(found.lambdas[:, 0], path.lambdas, atol=1e-5)
    assert found.velocities[1:-1, 0] == pytest.approx(1.0, rel=1e-2)  # the unit speed of equation (3)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_properties_of_any_trajectory(samples, width, seed):
    generator = torch.Generator().manual_seed(seed)
    s = torch.linspace(0, 2, 41, dtype=torch.float64)
    c = torch.randn(4, samples, width, generator=generator, dtype=torch.float64)
    z = sum(c[k] * s[:, None, None] ** k for k in range(4))
    g = sum(k * c[k] * s[:, None, None] ** (k - 1) for k in range(1, 4))
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    for velocity in ("natural", "constant"):
        found, turned = recover(s, z, g, velocity=velocity), recover(s, z @ turn, g @ turn, velocity=velocity)
        lam = found.lambdas[:, found.fits]
        assert (lam[0] == 0).all()
        torch.testing.assert_close(lam[-1], torch.ones_like(lam[-1]), rtol=1e-9, atol=0)
        torch.testing.assert_close(found.velocities**2, found.speeds**2 + found.slopes**2, equal_nan=True)
        torch.testing.assert_close(found.lambdas, turned.lambdas, equal_nan=True)  # norms know no directions
        assert found.residuals[:, found.fits].max().item() < 1e-9 if found.fits.any() else True
        alone = recover(s, z[:, :1], g[:, :1], velocity=velocity)
        torch.testing.assert_close(alone.lambdas, found.lambdas[:, :1], equal_nan=True)
        if velocity == "constant" and found.fits.any():
            v = found.velocities[:, found.fits]
            torch.testing.assert_close(v, v[:1].expand_as(v))


def test_speeds_that_vary_too_much_fit_no_constant_velocity():
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    z = torch.stack([s, 20 * s**2], dim=1)[:, :, None]  # two samples of one element
    g = torch.stack([torch.ones_like(s), 40 * s], dim=1)[:, :, None]
    found = recover(s, z, g, velocity="constant")
    assert found.fits.tolist() == [True, False]
    assert torch.isnan(found.lambdas[:, 1]).all()
    assert recover(s, z, g).fits.all()


@pytest.mark.parametrize("name", ["homoode", "node", "anode"])
def test_models_are_read_from_their_start_to_their_output(name):
    options = {"channels": 4} if name == "homoode" else {"filters": 4}
    model = hj.create_model(name, input_shape=(1, 8, 8), n_classes=3, backend="pytorch", **options)
    image = torch.randn(3, 1, 8, 8)
    found = recover_from_model(model, image, points=21)
    model.eval()
    with torch.no_grad():
        solution = model.solve(image)
        start = model.problem(model.encode(image)).y0
    torch.testing.assert_close(found.states[-1].float(), solution.value, rtol=0.05, atol=0.05)
    assert torch.equal(found.states[0].float(), start)
    # With lambda = s the implied equilibrium is the output itself: f(z(1)) = z(1).
    torch.testing.assert_close(found.targets[-1], found.states[-1])
    assert found.tangent_residuals[5:-5].max() < 0.05


def test_anode_is_a_homoode_in_its_appended_channels():
    model = hj.create_model("anode", input_shape=(1, 8, 8), n_classes=3, filters=4, augment=2, backend="pytorch")
    found = recover_from_model(model, torch.randn(3, 1, 8, 8), points=21, augmented=True)
    assert found.states.shape == (21, 3, 2, 8, 8)
    assert (found.states[0] == 0).all()  # one start for every image
    whole = recover_from_model(model, torch.randn(3, 1, 8, 8), points=21)
    assert whole.states.shape == (21, 3, 3, 8, 8)


def test_what_does_not_fit_is_refused():
    s, z, g, _, _, f = known(9)
    with pytest.raises(hj.ConfigError, match=r"\(T, B"):
        recover(s, z[:, 0], g[:, 0])
    with pytest.raises(hj.ConfigError, match="grow from 0"):
        recover(s.flip(0), z, g)
    with pytest.raises(hj.ConfigError, match="velocity"):
        recover(s, z, g, velocity="fast")
    with pytest.raises(hj.ConfigError, match="f must return"):
        recover(s, z, g, f=lambda z: f(z)[:, :1])
    image = torch.randn(2, 1, 8, 8)
    deq = hj.create_model("deq", input_shape=(1, 8, 8), n_classes=3, channels=4)
    with pytest.raises(hj.ConfigError, match="equilibrium"):
        recover_from_model(deq, image)
    node = hj.create_model("node", input_shape=(1, 8, 8), n_classes=3, filters=4)
    with pytest.raises(hj.ConfigError, match="appends"):
        recover_from_model(node, image, augmented=True)
