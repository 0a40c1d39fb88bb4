"""Gradients of equilibria: against finite differences, exact answers, and each other."""

from __future__ import annotations

import contextlib
import math
import warnings

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import homojl as hj
from tests.backends.test_fixed_point import METHODS, Tanh, batch

TIGHT = {"rtol": 1e-12, "atol": 0.0, "max_steps": 1000}


def tight(cls):
    """The algorithm at tolerances that leave no error; Julia follows the relaxation's ODE as closely, in many steps."""
    return cls(**TIGHT | ({"max_steps": 100_000} if cls is hj.Relaxation else {}))


def gradients_of(f, z0, x, algorithm, adjoint, backend) -> list[torch.Tensor]:
    value = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), algorithm, adjoint=adjoint, backend=backend).value
    return list(torch.autograd.grad(torch.sin(2 * value).sum(), [x, *f.parameters()]))


def close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * float(a.abs().max()))


def parametrized(adjoint, norm, *, cached, size=64):
    """Gradients of an equilibrium by a parametrized layer's own tensors."""
    torch.manual_seed(0)
    layer = norm(torch.nn.Linear(size, size, dtype=torch.float64))
    problem = hj.FixedPointProblem(
        lambda z, x: torch.tanh(0.7 * layer(z) + x),
        torch.zeros(4, size).double(),
        (hj.PerSample(batch(4, width=size)),),
    )
    with parametrize.cached() if cached else contextlib.nullcontext():
        value = hj.solve(problem, hj.Picard(rtol=1e-10, atol=0.0), adjoint=adjoint, backend="pytorch").value
        return torch.autograd.grad(value.sum(), list(layer.parameters()))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("adjoint", [hj.ImplicitAdjoint(), hj.PhantomAdjoint(steps=60, damping=0.0)])
def test_weights_that_are_computed_once_for_a_solve_and_its_gradient(adjoint, norm):
    expected = parametrized(hj.UnrolledAdjoint(), norm, cached=True)
    close(expected, parametrized(adjoint, norm, cached=True), 1e-5)


def test_a_norm_that_is_estimated_anew_at_every_call_is_refused_with_what_to_do():
    with pytest.raises(hj.ConfigError, match=r"not deterministic.*cached"):
        parametrized(hj.ImplicitAdjoint(), parametrizations.spectral_norm, cached=False)


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_implicit_gradcheck(cls, backend):
    f = Tanh(width=3)
    w = f.w.detach().clone().requires_grad_()
    # Four samples, so that the matrix with its three rows is not taken for an argument with a row for each sample.
    x, z0 = batch(4, width=3).requires_grad_(), torch.zeros(4, 3, dtype=torch.float64)

    def value(x, w):
        problem = hj.FixedPointProblem(lambda z, x, w: torch.tanh(z @ w + x), z0, args=(x, w))
        return hj.solve(problem, tight(cls), backend=backend).value

    assert torch.autograd.gradcheck(value, (x, w), atol=1e-6)


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", "relaxation"])
def test_implicit_equals_unrolled(name, backend):
    f, x = Tanh(), batch(6).requires_grad_()
    z0 = torch.zeros(6, 8, dtype=torch.float64)
    unrolled = gradients_of(f, z0, x, tight(METHODS[name]), hj.UnrolledAdjoint(), "pytorch")
    implicit = gradients_of(f, z0, x, tight(METHODS[name]), hj.ImplicitAdjoint(), backend)
    close(unrolled, implicit, 1e-6)


def test_a_different_algorithm_backwards(backend):
    f, x = Tanh(), batch(6).requires_grad_()
    z0 = torch.zeros(6, 8, dtype=torch.float64)
    one = gradients_of(f, z0, x, hj.Anderson(**TIGHT), hj.ImplicitAdjoint(), backend)
    for cls in METHODS.values():
        adjoint = hj.ImplicitAdjoint(algorithm=cls(**TIGHT))
        close(one, gradients_of(f, z0, x, hj.Anderson(**TIGHT), adjoint, backend), 1e-9)


def test_exact_gradient_of_a_line(backend):
    """z = a z + x, so z = x / (1 - a), dz/dx = 1 / (1 - a), dz/da = x / (1 - a)^2."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)
    z0 = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    problem = hj.FixedPointProblem(lambda z, a, x: a * z + x, z0, args=(a, x))
    value = hj.solve(problem, hj.Anderson(**TIGHT), backend=backend).value
    gz, ga, gx = torch.autograd.grad(value.sum(), [z0, a, x])
    assert gz.item() == 0.0
    assert gx.item() == pytest.approx(1 / 0.3, rel=1e-9)
    assert ga.item() == pytest.approx(1.3 / 0.09, rel=1e-9)


def test_the_size_of_the_loss_does_not_matter(backend):
    f, x = Tanh(), batch(6).requires_grad_()
    problem = hj.FixedPointProblem(f, torch.zeros(6, 8, dtype=torch.float64), args=(x,))
    algorithm = hj.Anderson(rtol=1e-6, atol=1e-6)
    grads = []
    for scale in (1.0, 1e-9):
        value = hj.solve(problem, algorithm, backend=backend).value
        (g,) = torch.autograd.grad(scale * value.square().sum(), x)
        grads.append(g / scale)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


def test_a_loss_of_some_samples_only(backend):
    f, x = Tanh(), batch(6).requires_grad_()
    problem = hj.FixedPointProblem(f, torch.zeros(6, 8, dtype=torch.float64), args=(x,))
    (g,) = torch.autograd.grad(hj.solve(problem, hj.Anderson(), backend=backend).value[2].sum(), x)
    assert g[2].abs().min() > 0
    assert torch.equal(g[[0, 1, 3, 4, 5]], torch.zeros(5, 8, dtype=torch.float64))


def test_one_step_is_the_first_term_of_the_series(backend):
    f, x = Tanh(), batch(5).requires_grad_()
    problem = hj.FixedPointProblem(f, torch.zeros(5, 8, dtype=torch.float64, requires_grad=True), args=(x,))
    solution = hj.solve(problem, hj.Anderson(**TIGHT), adjoint=hj.OneStepAdjoint(), backend=backend)
    wrt = [x, f.w]
    expected = torch.autograd.grad(f(solution.value.detach(), x).sum(), wrt)
    assert torch.autograd.grad(solution.value.sum(), problem.z0, retain_graph=True)[0].abs().sum() == 0
    close(expected, torch.autograd.grad(solution.value.sum(), wrt), 1e-12)
    assert (solution.stats.nfe_backward, solution.stats.n_vjp) == (1, 1)


def test_phantom_approaches_the_implicit_gradient(backend):
    f, x = Tanh(norm=0.6), batch(5).requires_grad_()
    z0 = torch.zeros(5, 8, dtype=torch.float64)
    exact = gradients_of(f, z0, x, hj.Anderson(**TIGHT), hj.ImplicitAdjoint(), backend)

    def error(steps, damping):
        adjoint = hj.PhantomAdjoint(steps=steps, damping=damping)
        inexact = gradients_of(f, z0, x, hj.Anderson(**TIGHT), adjoint, backend)
        return max(float((a - b).abs().max()) for a, b in zip(exact, inexact, strict=True))

    errors = [error(steps, 0.5) for steps in (1, 5, 20, 80)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7
    assert error(40, 0.0) < 1e-7


@pytest.mark.parametrize(
    "adjoint",
    [hj.ImplicitAdjoint(), hj.PhantomAdjoint(), hj.OneStepAdjoint()],
    ids=lambda a: a.name,
)
def test_the_value_is_the_backends_own(adjoint, backend):
    f, x = Tanh(), batch(5)
    problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
    with torch.no_grad():
        plain = hj.solve(problem, hj.Anderson(), adjoint=adjoint, backend=backend).value
    assert not plain.requires_grad
    value = hj.solve(problem, hj.Anderson(), adjoint=adjoint, backend=backend).value
    assert value.requires_grad
    assert torch.equal(value.detach(), plain)


class TestImplicit:
    def test_hidden_tensors_are_found(self, backend):
        module, x = Tanh(), batch(4).requires_grad_()
        z0, inner = torch.zeros(4, 8, dtype=torch.float64), 0.5 * x
        hidden = (lambda z: module(z, x), lambda z: 0.5 * z + x, lambda z: 0.5 * z + inner)
        for f in hidden:
            grads = []
            for adjoint in (hj.UnrolledAdjoint(), hj.ImplicitAdjoint()):
                problem = hj.FixedPointProblem(f, z0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the rows of x are not known to be samples'
                    value = hj.solve(problem, hj.Anderson(**TIGHT), adjoint=adjoint, backend="pytorch").value
                grads.append(torch.autograd.grad(value.sum(), x, retain_graph=True))
            close(grads[0], grads[1], 1e-6)

    def test_gradients_pass_on_to_what_the_condition_was_computed_from(self, backend):
        module, x = Tanh(), batch(4).requires_grad_()
        encoder = torch.nn.Linear(8, 8).double()
        wrt = [x, *encoder.parameters(), *module.parameters()]
        grads = []
        for adjoint in (hj.UnrolledAdjoint(), hj.ImplicitAdjoint()):
            problem = hj.FixedPointProblem(module, torch.zeros_like(x), args=(encoder(x),))
            name = "pytorch" if isinstance(adjoint, hj.UnrolledAdjoint) else backend
            value = hj.solve(problem, hj.Anderson(**TIGHT), adjoint=adjoint, backend=name).value
            grads.append(torch.autograd.grad(value.square().sum(), wrt))
        close(grads[0], grads[1], 1e-6)

    def test_stats_of_the_backward_pass(self, backend):
        f, x = Tanh(), batch(16).requires_grad_()
        solution = hj.solve(hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,)), hj.Anderson(), backend=backend)
        stats = solution.stats
        assert (stats.n_vjp, stats.nfe_backward, stats.seconds_backward) == (0, 0, 0.0)
        solution.value.sum().backward()
        assert stats.n_vjp > 2
        assert stats.nfe_backward >= 1
        assert stats.seconds_backward > 0
        assert stats.unconverged_backward == 0

    def test_a_linear_system_that_is_not_solved(self, backend):
        f, x = Tanh(norm=0.99), batch(4).requires_grad_()
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        short = hj.Picard(rtol=1e-9, max_steps=2)
        value = hj.solve(problem, hj.Anderson(), adjoint=hj.ImplicitAdjoint(algorithm=short), backend=backend).value
        with pytest.raises(hj.SolveError, match="the linear system of ImplicitAdjoint was not solved"):
            value.sum().backward()
        lenient = hj.ImplicitAdjoint(algorithm=short, throw=False)
        solution = hj.solve(problem, hj.Anderson(), adjoint=lenient, backend=backend)
        solution.value.sum().backward()
        assert solution.stats.unconverged_backward > 0
        assert torch.isfinite(x.grad).all()

    def test_a_map_that_ignores_its_inputs(self, backend):
        x = batch(4).requires_grad_()
        z0 = torch.zeros(4, 8, dtype=torch.float64)
        for f in (lambda z, x: torch.ones_like(z), lambda z, x: 0.5 * z + 1.0):
            value = hj.solve(hj.FixedPointProblem(f, z0, args=(x,)), hj.Anderson(), backend=backend).value
            assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.zeros_like(x))
        value = hj.solve(hj.FixedPointProblem(lambda z, x: x, z0, args=(x,)), hj.Anderson(), backend=backend).value
        assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.ones_like(x))

    def test_a_start_that_is_the_answer(self, backend):
        x = batch(4).requires_grad_()
        problem = hj.FixedPointProblem(lambda z, x: 0.5 * (z + x), x.detach().clone().requires_grad_(), args=(x,))
        value = hj.solve(problem, hj.Anderson(**TIGHT), backend=backend).value
        close([torch.ones_like(x)], torch.autograd.grad(value.sum(), x), 1e-9)


def test_unrolled_needs_the_operations():
    problem = hj.FixedPointProblem(torch.cos, torch.zeros(1, dtype=torch.float64))
    with pytest.raises(hj.ConfigError, match="cannot pass through NewtonKrylov"):
        hj.solve(problem, hj.NewtonKrylov(), adjoint=hj.UnrolledAdjoint(), backend="pytorch")


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_unrolled_gradcheck_also_of_an_unconverged_solve(name):
    f = Tanh(width=3)

    def value(z0, x):
        problem = hj.FixedPointProblem(f, z0, args=(x,))
        algorithm = METHODS[name](rtol=1e-14, atol=0.0, max_steps=4)
        return hj.solve(problem, algorithm, adjoint=hj.UnrolledAdjoint(), throw=False, backend="pytorch").value

    x = 0.3 * torch.randn(2, 3, dtype=torch.float64)
    z0 = 0.1 * torch.randn(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(value, (z0.requires_grad_(), x.requires_grad_()), atol=1e-5)


def test_unrolled_may_be_differentiated_twice():
    f, x = Tanh(width=2), batch(3, width=2).requires_grad_()

    def value(x):
        problem = hj.FixedPointProblem(f, torch.zeros_like(x), args=(x,))
        return hj.solve(problem, hj.Picard(rtol=1e-10), adjoint=hj.UnrolledAdjoint(), backend="pytorch").value

    assert torch.autograd.gradgradcheck(value, (x,), atol=1e-5)


def test_products_without_forward_mode(backend):
    """A function of one's own has no forward mode; Newton's products then come from reverse mode twice."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return torch.tanh(z)

        @staticmethod
        def backward(ctx, g):
            (z,) = ctx.saved_tensors
            return g * (1 - torch.tanh(z) ** 2)

    x = batch(3)
    problem = hj.FixedPointProblem(lambda z, x: 0.7 * Twice.apply(z) + x, torch.zeros_like(x), args=(x,))
    solution = hj.solve(problem, hj.NewtonKrylov(rtol=1e-10, atol=0.0), backend=backend)
    assert solution.stats.n_jvp > 0
    assert solution.residuals.max() <= 1e-10


def test_jacobian_regularization():
    f, x = Tanh(width=4), batch(3, width=4)
    z = 0.1 * torch.randn(3, 4, dtype=torch.float64)
    exact = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda u, i=i: f(u[None], x[i : i + 1])[0], z[i]).square().sum()
            for i in range(3)
        ]
    )
    estimate = hj.jacobian_regularization(f, z, (x,), probes=4000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(estimate.detach(), exact.detach(), rtol=0.1, atol=0.0)
    estimate.sum().backward()
    assert math.isfinite(float(f.w.grad.abs().sum()))
    assert f.w.grad.abs().sum() > 0
