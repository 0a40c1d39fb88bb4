"""Gradients: against finite differences, exact answers, and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.algorithms import AbstractAdaptive
from tests.catalogue import EXPLICIT

ADJOINTS = {
    "direct": hj.DirectAdjoint(),
    "checkpoint": hj.CheckpointAdjoint(),
    "backsolve": hj.BacksolveAdjoint(),
    "backsolve, seminorm": hj.BacksolveAdjoint(seminorm=True),
    "gauss": hj.GaussAdjoint(),
}
ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive) and cls.order > 2]
each_adjoint = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)


class Field(torch.nn.Module):
    """A small network with a condition x and a time input."""

    def __init__(self, width: int = 3, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = torch.nn.Parameter(scale * torch.randn(width, width, generator=generator, dtype=dtype) / width**0.5)
        self.b = torch.nn.Parameter(scale * torch.randn(width, generator=generator, dtype=dtype) / 3)

    def forward(self, t, z, x):
        return torch.tanh(z @ self.w + x + self.b * torch.cos(t)) - 0.1 * z


def inputs(width: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    y0 = torch.randn(2, width, generator=generator, dtype=dtype).requires_grad_()
    x = torch.randn(2, width, generator=generator, dtype=dtype).requires_grad_()
    return y0, x


def gradients_of(field, y0, x, ts, algorithm, adjoint, backend) -> list[torch.Tensor]:
    """Of a loss that looks at every save time, with respect to y0, x and the parameters."""
    solution = hj.solve(hj.ODEProblem(field, y0, ts, args=(x,)), algorithm, adjoint=adjoint, backend=backend)
    weights = torch.linspace(0.5, 1.5, len(ts), dtype=y0.dtype).view(-1, 1, 1)
    loss = (weights * torch.sin(2 * solution.ys)).sum()
    return list(torch.autograd.grad(loss, [y0, x, *field.parameters()]))


@pytest.mark.slow
@each_adjoint
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.0, 0.31, 0.77, 1.0), (1.0, 0.4, -0.2)])
def test_gradcheck(adjoint, ts, backend):
    field, (y0, x) = Field(), inputs()

    def states(y0, x, w, b):
        def f(t, z, x, w, b):
            return torch.tanh(z @ w + x + b * torch.cos(t)) - 0.1 * z

        problem = hj.ODEProblem(f, y0, ts, args=(x, w, b))
        precise = hj.Dopri8 if backend == "pytorch" else hj.Tsit5
        return hj.solve(problem, precise(rtol=1e-12, atol=1e-12), adjoint=adjoint, backend=backend).ys

    assert torch.autograd.gradcheck(
        states, (y0, x, field.w.detach().requires_grad_(), field.b.detach().requires_grad_()), atol=1e-6
    )


@pytest.mark.slow
@each_adjoint
@pytest.mark.parametrize("algorithm", [hj.Euler(step_size=0.1), hj.Midpoint(step_size=0.2), hj.RK4(step_size=0.25)])
def test_gradcheck_of_fixed_steps(adjoint, algorithm, backend):
    if not isinstance(adjoint, hj.DirectAdjoint | hj.CheckpointAdjoint):
        algorithm = hj.RK4(step_size=0.01)  # the others differentiate the exact solution
    y0, x = inputs(2)
    field = Field(2)
    assert torch.autograd.gradcheck(
        lambda y0, x: (
            hj.solve(
                hj.ODEProblem(field, y0, (0.0, 0.5, 1.0), args=(x,)),
                algorithm,
                adjoint=adjoint,
                backend=backend,
            ).ys
        ),
        (y0, x),
        atol=1e-6,
    )


@each_adjoint
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("cls", [hj.Dopri5, hj.Tsit5, hj.Dopri8], ids=lambda c: c.__name__)
def test_all_adjoints_agree_with_the_direct_one(adjoint, cls, scale, backend):
    field, (y0, x) = Field(scale=scale), inputs()
    algorithm = cls(rtol=1e-11, atol=1e-11)
    ts = (0.0, 0.4, 1.0)
    direct = gradients_of(field, y0, x, ts, algorithm, hj.DirectAdjoint(), "pytorch")
    other = gradients_of(field, y0, x, ts, algorithm, adjoint, backend)
    for a, b in zip(direct, other, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a.abs().max()))


@each_adjoint
def test_the_condition_gets_its_gradient(adjoint, backend):
    """z' = w z + x, L = z(1): dL/dx = (e^w - 1)/w, dL/dz0 = e^w, dL/dw by differentiating those."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([-0.4], dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(lambda t, z, w, x: w * z + x, z0, (0.0, 1.0), args=(w, x))
    solution = hj.solve(problem, hj.Tsit5(rtol=1e-11, atol=1e-11), adjoint=adjoint, backend=backend)
    gz, gx, gw = torch.autograd.grad(solution.value.sum(), [z0, x, w])
    e = math.exp(0.7)
    assert gz.item() == pytest.approx(e, rel=1e-9)
    assert gx.item() == pytest.approx((e - 1) / 0.7, rel=1e-9)
    assert gw.item() == pytest.approx(-0.4 * e + 1.3 * (0.7 * e - e + 1) / 0.49, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
@pytest.mark.parametrize("ts", [(0.0, 3.0), (0.0, 0.5, 1.3, 3.0), (3.0, 0.0)])
def test_checkpoint_equals_direct_to_rounding_at_every_tolerance(cls, tolerance, dtype, ts, backend):
    field, (y0, x) = Field(scale=3.0, dtype=dtype), inputs(dtype=dtype)
    algorithm = cls(rtol=tolerance, atol=tolerance)
    direct = gradients_of(field, y0, x, ts, algorithm, hj.DirectAdjoint(), backend)
    checkpoint = gradients_of(field, y0, x, ts, algorithm, hj.CheckpointAdjoint(), backend)
    # Julia's checkpoints differ in the last bits from the states that PyTorch reaches; the field magnifies them.
    rounding = (100 if backend == "pytorch" else 10_000) * torch.finfo(dtype).eps
    for a, b in zip(direct, checkpoint, strict=True):
        torch.testing.assert_close(b, a, rtol=rounding, atol=rounding * float(a.abs().max()))


@given(
    st.integers(1, 5),
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=5),
    st.sampled_from(ADAPTIVE),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_checkpoint_equals_direct_wherever_the_save_times_lie(width, gaps, cls, backwards):
    ts = [0.0]
    for gap in gaps:
        ts.append(ts[-1] + gap)
    ts = [-t for t in ts] if backwards else ts
    field, (y0, x) = Field(width), inputs(width)
    algorithm = cls(rtol=1e-3, atol=1e-3)
    direct = gradients_of(field, y0, x, ts, algorithm, hj.DirectAdjoint(), "pytorch")
    checkpoint = gradients_of(field, y0, x, ts, algorithm, hj.CheckpointAdjoint(), "pytorch")
    for a, b in zip(direct, checkpoint, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12 * float(a.abs().max() + 1))


@pytest.mark.parametrize("adjoint", [a for n, a in ADJOINTS.items() if n != "direct"], ids=lambda a: a.name)
class TestRecomputing:
    """What holds for the adjoints with a backward pass of their own."""

    def test_values_equal_the_direct_ones(self, adjoint, backend):
        field, (y0, x) = Field(), inputs()
        problem = hj.ODEProblem(field, y0, (0.0, 0.5, 1.0), args=(x,))
        direct = hj.solve(problem, hj.Tsit5(), backend=backend)
        other = hj.solve(problem, hj.Tsit5(), adjoint=adjoint, backend=backend)
        # Over Julia the direct adjoint's values are PyTorch's, from the same steps.
        rounding = 0.0 if backend == "pytorch" else 1e-13
        torch.testing.assert_close(direct.ys, other.ys, rtol=rounding, atol=rounding)
        assert direct.steps == other.steps

    def test_tensors_in_a_closure_are_found(self, adjoint, backend):
        module, (y0, x) = Field(), inputs()
        tight = hj.Tsit5(rtol=1e-10, atol=1e-10)
        computed = 2 * x  # with a graph of its own
        for hidden in (lambda t, z: module(t, z, x.detach()), lambda t, z: z * x, lambda t, z: z * computed):
            grads = []
            for how in (adjoint, hj.DirectAdjoint()):
                solution = hj.solve(hj.ODEProblem(hidden, y0, (0.0, 1.0)), tight, adjoint=how, backend=backend)
                wrt = [y0, x, *module.parameters()]
                grads.append(
                    torch.autograd.grad(
                        solution.value.sum(), wrt, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                )
            torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-7)

    def test_hidden_tensors_are_refused_not_missed(self, adjoint, backend):
        class Holder:  # neither a module nor callable: nobody looks into it
            weight = torch.ones(1, dtype=torch.float64, requires_grad=True)

        y0, _ = inputs()
        problem = hj.ODEProblem(lambda t, z: z * Holder.weight, y0, (0.0, 1.0))
        with pytest.raises(hj.ConfigError, match="neither in args nor in params"):
            hj.solve(problem, hj.Tsit5(), adjoint=adjoint, backend=backend)

    def test_named_params_get_their_gradient(self, adjoint, backend):
        module, (y0, x) = Field(), inputs()
        algorithm = hj.Tsit5(rtol=1e-10, atol=1e-10)
        closure = hj.ODEProblem(
            lambda t, z, x: module(t, z, x), y0, (0.0, 1.0), args=(x,), params=tuple(module.parameters())
        )
        direct = hj.ODEProblem(module, y0, (0.0, 1.0), args=(x,))
        wrt = [y0, x, *module.parameters()]
        a = torch.autograd.grad(hj.solve(direct, algorithm, backend="pytorch").value.sum(), wrt)
        b = torch.autograd.grad(hj.solve(closure, algorithm, adjoint=adjoint, backend=backend).value.sum(), wrt)
        for u, v in zip(a, b, strict=True):
            torch.testing.assert_close(u, v, rtol=1e-6, atol=1e-8)

    def test_gradients_pass_on_to_what_the_condition_was_computed_from(self, adjoint, backend):
        module, (y0, x) = Field(), inputs()
        encoder = torch.nn.Linear(3, 3).double()
        algorithm = hj.Tsit5(rtol=1e-10, atol=1e-10)

        def loss(adjoint, backend):
            h = encoder(x)
            problem = hj.ODEProblem(module, torch.sin(y0), (0.0, 1.0), args=(h,))
            return hj.solve(problem, algorithm, adjoint=adjoint, backend=backend).value.square().sum()

        wrt = [y0, x, *encoder.parameters(), *module.parameters()]
        a = torch.autograd.grad(loss(hj.DirectAdjoint(), "pytorch"), wrt)
        b = torch.autograd.grad(loss(adjoint, backend), wrt)
        for u, v in zip(a, b, strict=True):
            torch.testing.assert_close(u, v, rtol=1e-6, atol=1e-8)

    def test_without_gradients_nothing_is_recorded(self, adjoint, backend):
        field, (y0, x) = Field(), inputs()
        problem = hj.ODEProblem(field, y0, (0.0, 1.0), args=(x,))
        with torch.no_grad():
            solution = hj.solve(problem, hj.Tsit5(), adjoint=adjoint, backend=backend)
        assert not solution.value.requires_grad
        field.requires_grad_(False)
        constant = hj.ODEProblem(field, y0.detach(), (0.0, 1.0), args=(x.detach(),))
        assert not hj.solve(constant, hj.Tsit5(), adjoint=adjoint, backend=backend).value.requires_grad

    def test_a_field_that_ignores_an_input_gives_zero(self, adjoint, backend):
        y0, x = inputs()
        problem = hj.ODEProblem(lambda t, z, x: torch.ones_like(z), y0, (0.0, 1.0), args=(x,))
        value = hj.solve(problem, hj.Tsit5(), adjoint=adjoint, backend=backend).value
        gy, gx = torch.autograd.grad(value.sum(), [y0, x])
        torch.testing.assert_close(gy, torch.ones_like(y0))
        assert torch.equal(gx, torch.zeros_like(x))

    def test_a_save_at_the_start_only_passes_its_gradient(self, adjoint, backend):
        field, (y0, x) = Field(), inputs()
        solution = hj.solve(
            hj.ODEProblem(field, y0, (0.0, 1.0), args=(x,)), hj.Tsit5(), adjoint=adjoint, backend=backend
        )
        (gy,) = torch.autograd.grad(solution.states[0].sum(), [y0])
        assert torch.equal(gy, torch.ones_like(y0))

    def test_a_second_derivative_is_right_or_refused(self, adjoint, backend):
        field, (y0, x) = Field(), inputs()
        problem, second = hj.ODEProblem(field, y0, (0.0, 1.0), args=(x,)), []
        for how in (adjoint, hj.DirectAdjoint()):
            value = hj.solve(problem, hj.Tsit5(), adjoint=how, backend=backend).value
            if isinstance(how, hj.GaussAdjoint | hj.BacksolveAdjoint):
                with pytest.raises(hj.ConfigError, match="use DirectAdjoint"):
                    torch.autograd.grad(value.sum(), [y0], create_graph=True)
                return
            (first,) = torch.autograd.grad(value.square().sum(), [y0], create_graph=True)
            second.append(torch.autograd.grad(first.square().sum(), [y0, x, *field.parameters()]))
        torch.testing.assert_close(*second)

    def test_stats_of_the_backward_pass(self, adjoint, backend):
        field, (y0, x) = Field(), inputs()
        solution = hj.solve(
            hj.ODEProblem(field, y0, (0.0, 1.0), args=(x,)), hj.Tsit5(), adjoint=adjoint, backend=backend
        )
        assert (solution.stats.n_vjp, solution.stats.nfe_backward, solution.stats.seconds_backward) == (
            0,
            0,
            0.0,
        )
        solution.value.sum().backward()
        # Continuous adjoints also evaluate the field once to see that it gives the values of the solve.
        looks = 1 if isinstance(adjoint, hj.GaussAdjoint | hj.BacksolveAdjoint) else 0
        assert solution.stats.n_vjp == solution.stats.nfe_backward - looks > 0
        assert solution.stats.seconds_backward > 0
        if isinstance(adjoint, hj.CheckpointAdjoint):
            assert solution.stats.n_vjp == 6 * solution.stats.n_accepted

    def test_float32_parameters_under_a_float64_state(self, adjoint, backend):
        linear = torch.nn.Linear(2, 2)
        y0 = torch.randn(2, dtype=torch.float64, requires_grad=True)

        class Mixed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = linear

            def forward(self, t, y):
                return self.linear(y.float()).double()

        solution = hj.solve(hj.ODEProblem(Mixed(), y0, (0.0, 1.0)), hj.Tsit5(), adjoint=adjoint, backend=backend)
        solution.value.sum().backward()
        assert (y0.grad.dtype, linear.weight.grad.dtype) == (torch.float64, torch.float32)


def test_direct_may_be_differentiated_twice():
    field, (y0, x) = Field(2), inputs(2)
    assert torch.autograd.gradgradcheck(
        lambda y0, x: (
            hj.solve(
                hj.ODEProblem(field, y0, (0.0, 0.4, 1.0), args=(x,)),
                hj.RK4(step_size=0.25),
                adjoint=hj.DirectAdjoint(),
            ).ys
        ),
        (y0, x),
    )


def test_direct_counts_vector_jacobian_products_of_accepted_stages_only():
    field, (y0, x) = Field(scale=20.0), inputs()
    problem = hj.ODEProblem(field, y0, (0.0, 3.0), args=(x,))
    solution = hj.solve(problem, hj.Dopri5(rtol=1e-6, atol=1e-6, first_step=3.0), adjoint=hj.DirectAdjoint())
    solution.value.sum().backward()
    assert solution.stats.n_rejected > 0
    assert solution.stats.n_vjp == 6 * solution.stats.n_accepted


def test_gradient_of_a_solve_that_stopped_early():
    y0 = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0, 100.0))
    algorithm = hj.Tsit5(max_steps=10, rtol=1e-6)
    grads = []
    for adjoint in (hj.DirectAdjoint(), hj.CheckpointAdjoint()):
        solution = hj.solve(problem, algorithm, adjoint=adjoint, throw=False)
        assert not solution.status.ok
        grads.append(torch.autograd.grad(solution.value.sum(), [y0])[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-13, atol=0)
    assert grads[0].item() == pytest.approx(solution.value.item(), rel=1e-9)


def test_memory_format_of_the_costate():
    """The adjoints with flat states see the same channels_last tensors as the forward solve."""
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1).double().to(memory_format=torch.channels_last)
    y0 = torch.randn(2, 3, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    seen = []

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = convolution

        def forward(self, t, y):
            seen.append(y.is_contiguous(memory_format=torch.channels_last))
            return torch.tanh(self.convolution(y))

    grads = {}
    for name, adjoint in ADJOINTS.items():
        value = hj.solve(hj.ODEProblem(F(), y0, (0.0, 1.0)), hj.Tsit5(rtol=1e-9, atol=1e-9), adjoint=adjoint).value
        assert value.is_contiguous(memory_format=torch.channels_last)
        grads[name] = torch.autograd.grad(value.square().sum(), [y0, *convolution.parameters()])
    assert all(seen)
    for other in grads.values():
        for a, b in zip(grads["direct"], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)
