"""monDEQ's operators: what they compute, their guarantees, and the splitting methods on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

import homojl as hj
from homojl.nn.monotone import MonotoneConvolution, MonotoneLinear, fast_length
from homojl.splitting import AbstractMonotoneMap

SHAPES = {"single": ((3,), (4, 5)), "multi": ((2, 3, 2), (6, 5))}
TIGHT = {"rtol": 1e-12, "atol": 1e-12, "max_steps": 5000}


def operator(form: str, *, m: float = 1.0, scale: float = 1.0):
    torch.manual_seed(0)
    made = MonotoneLinear(6, m=m) if form == "linear" else MonotoneConvolution(*SHAPES[form], m=m)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(scale * torch.randn_like(p))
    return made.double()


def problem(made, batch: int = 3, *, z0=None) -> hj.FixedPointProblem:
    """The equilibrium for fixed random inputs."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(made, MonotoneLinear):
        bias = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    else:
        (channels, *_), size = made.map.shapes[0], made.map.maps[0]
        bias = made.map.place(torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64))
    start = torch.zeros_like(bias) if z0 is None else z0(bias)
    return hj.FixedPointProblem(made.map, start, args=(bias, *made()))


def dense(made) -> torch.Tensor:
    """W as a matrix."""
    state = problem(made).z0.shape[1]
    identity = torch.eye(state, dtype=torch.float64)
    return made.map.affine(identity, torch.zeros_like(identity), *made()).detach().T


@given(st.sampled_from(["linear", "single", "multi"]), st.floats(0.01, 10.0), st.floats(0.0, 4.0))
@settings(max_examples=15, deadline=None)
def test_monotone_for_every_parameter_value(form, m, scale):
    w = dense(operator(form, m=m, scale=scale))
    shown = torch.eye(len(w), dtype=torch.float64) - w
    least = torch.linalg.eigvals((shown + shown.T) / 2).real.min()  # eigvalsh fails on multiples of the identity
    assert least >= m - 1e-9 * (1 + shown.norm())


def test_a_single_scale_is_convolutions_padded_with_zeros():
    made = operator("single", m=0.7)
    a, b = made.A[0](), made.B[0]()
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    # A on the map's surroundings too, since its transpose brings back what has left the map.
    wide = F.conv2d(z, a, padding=2)
    expected = (1 - 0.7) * z - F.conv_transpose2d(wide, a, padding=2)
    expected = expected + F.conv2d(z, b, padding=1) - F.conv_transpose2d(z, b, padding=1)
    state = made.map.place(z)
    got = made.map.crop(made.map.affine(state, torch.zeros_like(state), *made()), 0)
    torch.testing.assert_close(got, expected)


def test_scales_are_coupled_by_convolutions_of_stride_two_from_fine_to_coarse():
    made = operator("multi")
    f = made.map
    z = f.proximal(torch.randn(2, sum(f._sizes), dtype=torch.float64))
    tori = f.unpack(f.affine(z, torch.zeros_like(z), *made()))
    fine, coarse = f.crop(z, 0), f.crop(z, 1)
    a = F.conv2d(fine, made.A[0](), padding=2)  # one pixel beyond the map, then one more for D
    into = F.conv2d(F.pad(a, (0, 1, 0, 1)), made.D[0](), stride=2)
    alone = torch.cat([torch.zeros_like(p) if i != 1 else p for i, p in enumerate(z.split(f._sizes, 1))], 1)
    of_itself = f.unpack(f.affine(alone, torch.zeros_like(z), *made()))[1]
    height, width = f.maps[1]
    assert coarse.shape[2:] == (height, width)
    expected = of_itself[:, :, :height, :width] - 2 * into[:, :, :height, :width]
    torch.testing.assert_close(tori[1][:, :, :height, :width], expected)
    w, sizes = dense(made), f._sizes
    assert w[: sizes[0], sizes[0] :].abs().max() < 1e-12, "nothing flows from coarse to fine"


@pytest.mark.parametrize("form", ["linear", "single", "multi"])
def test_resolvent_is_the_inverse(form):
    made, alpha = operator(form, m=0.5), 0.8
    w, p = dense(made), problem(made)
    bias, u = p.args[0], torch.randn_like(p.z0)
    identity = torch.eye(len(w), dtype=torch.float64)
    expected = torch.linalg.solve(identity + alpha * (identity - w), (u + alpha * bias).T).T
    torch.testing.assert_close(made.map.resolve(u, *made.map.resolvent(alpha, *p.args)), expected)


@pytest.mark.parametrize("form", ["linear", "single", "multi"])
def test_the_same_equilibrium_from_every_start_with_every_method(form, backend):
    made = operator(form, scale=0.5)
    methods = [
        hj.PeacemanRachford(alpha=0.3, **TIGHT),
        hj.PeacemanRachford(alpha=2.0, **TIGHT),
        hj.ForwardBackward(alpha=0.05, **TIGHT),
    ]
    found = [
        hj.solve(problem(made, z0=start), method, backend=backend).value
        for method in methods
        for start in (torch.zeros_like, lambda x: 10 * torch.randn_like(x))
    ]
    p = problem(made)
    for z in found:
        torch.testing.assert_close(z, found[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(p.f(z, *p.args), z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", ["linear", "single", "multi"])
@pytest.mark.parametrize(
    "method", [hj.PeacemanRachford(**TIGHT), hj.ForwardBackward(alpha=0.1, **TIGHT)], ids=lambda m: m.name
)
def test_implicit_equals_unrolled(form, method, backend):
    grads = []
    for adjoint, where in ((hj.UnrolledAdjoint(), "pytorch"), (hj.ImplicitAdjoint(), backend)):
        made = operator(form, scale=0.5)
        value = hj.solve(problem(made), method, adjoint=adjoint, backend=where).value
        grads.append(torch.autograd.grad(value.square().sum(), list(made.parameters())))
    largest = max(float(g.abs().max()) for g in grads[0])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6 * largest)


def test_the_backward_solve_is_the_same_splitting():
    made = operator("single", scale=0.5)
    solution = hj.solve(problem(made), hj.PeacemanRachford(rtol=1e-8, atol=0.0))
    assert (solution.stats.algorithm, solution.stats.backend) == ("PeacemanRachford", "pytorch")
    solution.value.sum().backward()
    assert 0 < solution.stats.n_vjp <= 2 * solution.stats.nfe
    assert solution.stats.unconverged_backward == 0


def test_too_long_steps_are_reported_under_the_methods_own_name():
    made = operator("single", scale=3.0)
    with pytest.raises(hj.SolveError, match=r"^ForwardBackward: "):
        hj.solve(problem(made), hj.ForwardBackward(alpha=50.0))


def test_a_map_without_parts_is_refused():
    with pytest.raises(hj.ConfigError, match="AbstractMonotoneMap"):
        hj.solve(hj.FixedPointProblem(torch.cos, torch.ones(1, 1)), hj.PeacemanRachford())
    with pytest.raises(hj.ConfigError, match="alpha must be positive"):
        hj.ForwardBackward(alpha=0.0)


def test_a_users_own_map():
    """The projection onto [-1, 1]^n of a diagonal W with its exact answer."""

    class Clipped(AbstractMonotoneMap):
        def affine(self, z, bias, d):
            return d * z + bias

        def proximal(self, y):
            return y.clamp(-1, 1)

        def resolvent(self, alpha, bias, d):
            return alpha * bias, 1 / (1 + alpha * (1 - d))

        def resolve(self, u, offset, inverse):
            return inverse * (u + offset)

    bias, d = torch.tensor([[0.5, 2.0, -8.0]]).double(), torch.tensor([[-3.0, 0.5, -1.0]]).double()
    for method in (hj.PeacemanRachford(**TIGHT), hj.ForwardBackward(alpha=0.2, **TIGHT)):
        z = hj.solve(hj.FixedPointProblem(Clipped(), torch.zeros(1, 3).double(), args=(bias, d)), method).value
        torch.testing.assert_close(z, torch.tensor([[0.125, 1.0, -1.0]]).double())


@pytest.mark.parametrize(("least", "length"), [(1, 3), (7, 8), (9, 9), (29, 30), (33, 36), (31, 32)])
def test_fast_lengths(least, length):
    assert fast_length(least) == length
