"""Gradients of solves in which every sample has steps of its own."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings, strategies as st

import homojl as hj
from homojl.algorithms import AbstractAdaptive
from tests.catalogue import EXPLICIT

ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive)]
ADJOINTS = {"direct": hj.DirectAdjoint(), "checkpoint": hj.CheckpointAdjoint()}
each_adjoint = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)


class Field(torch.nn.Module):
    """A small network with a condition and a speed for each sample, and a time input."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = torch.nn.Parameter(torch.randn(width, width, generator=generator, dtype=torch.float64) / 2)
        self.b = torch.nn.Parameter(torch.randn(width, generator=generator, dtype=torch.float64) / 3)

    def forward(self, t, z, x, speed):
        return speed * (torch.tanh(z @ self.w + x + self.b * torch.cos(t)) - 0.1 * z)


def inputs(speeds=(1.0, 30.0, 0.2, 4.0, 2.0), width: int = 3) -> list[torch.Tensor]:
    """Start, condition and speed."""
    generator = torch.Generator().manual_seed(11)
    shape = (len(speeds), width)
    y0, x = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [t.requires_grad_() for t in (y0, x, torch.tensor(speeds, dtype=torch.float64)[:, None])]


def states_of(field, given, ts, algorithm, adjoint, batch="per-sample"):
    y0, *args = given
    problem = hj.ODEProblem(field, y0, ts, args=tuple(args))
    return hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch", batch=batch)


def gradients_of(field, given, ts, algorithm, adjoint, batch="per-sample") -> list[torch.Tensor]:
    """Of a loss that looks at every save time, with respect to start, arguments and parameters."""
    solution = states_of(field, given, ts, algorithm, adjoint, batch)
    weights = torch.linspace(0.5, 1.5, len(ts), dtype=torch.float64).view(-1, 1, 1)
    loss = (weights * torch.sin(2 * solution.ys)).sum()
    return list(torch.autograd.grad(loss, [*given, *field.parameters()]))


@each_adjoint
@pytest.mark.parametrize("ts", [(0.0, 0.31, 0.77, 1.0), (1.0, 0.4, -0.2)])
@pytest.mark.parametrize("cls", [hj.Dopri8, hj.Tsit5], ids=lambda c: c.__name__)
def test_gradcheck(adjoint, ts, cls):
    field, given = Field(2), inputs((1.0, 4.0, 0.2), width=2)

    def states(y0, x, speed, w, b):
        def f(t, z, x, speed, w, b):
            return speed * (torch.tanh(z @ w + x + b * torch.cos(t)) - 0.1 * z)

        problem = hj.ODEProblem(f, y0, ts, args=(x, speed, w, b))
        return hj.solve(problem, cls(rtol=1e-10, atol=1e-10), adjoint=adjoint, batch="per-sample").ys

    parameters = [p.detach().requires_grad_() for p in (field.w, field.b)]
    assert torch.autograd.gradcheck(states, (*given, *parameters), atol=1e-5, fast_mode=True)


@each_adjoint
@pytest.mark.parametrize("ts", [(0.0, 0.4, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("cls", [hj.Tsit5, hj.Dopri8], ids=lambda c: c.__name__)
def test_agrees_with_a_joint_solve(adjoint, cls, ts):
    field, given, algorithm = Field(), inputs(), cls(rtol=1e-9, atol=1e-9)
    joint = gradients_of(field, given, ts, algorithm, hj.DirectAdjoint(), "joint")
    own = gradients_of(field, given, ts, algorithm, adjoint)
    for a, b in zip(joint, own, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * float(a.abs().max()))


@pytest.mark.slow
@given(
    st.lists(st.floats(0.1, 40.0), min_size=1, max_size=6),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.sampled_from(ADAPTIVE),
    st.booleans(),
    st.sampled_from([1e-1, 1e-3, 1e-5]),
)
@settings(max_examples=25, deadline=None)
def test_checkpoint_equals_direct_to_rounding_at_every_tolerance(speeds, gaps, cls, backwards, tolerance):
    ts = [0.0]
    for gap in gaps:
        ts.append(ts[-1] + (-gap if backwards else gap))
    field, given, algorithm = Field(), inputs(tuple(speeds)), cls(rtol=tolerance, atol=tolerance)
    direct = gradients_of(field, given, ts, algorithm, hj.DirectAdjoint())
    checkpoint = gradients_of(field, given, ts, algorithm, hj.CheckpointAdjoint())
    for a, b in zip(direct, checkpoint, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10 * float(a.abs().max() + 1))


@each_adjoint
def test_each_sample_has_the_gradient_that_it_has_alone(adjoint):
    """Also of what was computed, at a loose tolerance: no step depends on batch mates."""
    field, given, algorithm = Field(), inputs(), hj.Tsit5(rtol=1e-2, atol=1e-2)
    together = gradients_of(field, given, (0.0, 0.3, 1.0), algorithm, adjoint)
    parameters = [torch.zeros_like(p) for p in field.parameters()]
    for i in range(len(given[0])):
        row = [g[i : i + 1].detach().requires_grad_() for g in given]
        alone = gradients_of(field, row, (0.0, 0.3, 1.0), algorithm, adjoint)
        for a, b in zip(alone[:3], together[:3], strict=True):
            torch.testing.assert_close(b[i : i + 1], a, rtol=1e-9, atol=1e-11)
        for total, grad in zip(parameters, alone[3:], strict=True):
            total += grad
    for a, b in zip(parameters, together[3:], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@each_adjoint
def test_what_a_field_returns_in_rejected_tries_reaches_no_gradient(adjoint):
    """Beyond z = 3 the field and its derivative are not finite; the first try, a huge one, goes there."""

    def f(t, z, speed):
        return speed * torch.sqrt(3 - z) * 0.5

    y0 = torch.tensor([[1.0], [1.5]], dtype=torch.float64, requires_grad=True)
    speed = torch.tensor([[1.0], [0.1]], dtype=torch.float64, requires_grad=True)
    algorithm = hj.Tsit5(rtol=1e-9, atol=1e-9, first_step=30.0)
    problem = hj.ODEProblem(f, y0, (0.0, 1.0), args=(speed,))
    solution = hj.solve(problem, algorithm, adjoint=adjoint, batch="per-sample")
    assert solution.stats.n_rejected > 0
    grads = torch.autograd.grad(solution.value.sum(), [y0, speed])
    root = torch.sqrt(3 - y0.detach()) - speed.detach() / 4  # of 3 - z(1)
    torch.testing.assert_close(solution.value.detach(), 3 - root**2, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(grads[0], root / torch.sqrt(3 - y0.detach()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[1], root / 2, rtol=1e-6, atol=1e-6)


@each_adjoint
@pytest.mark.parametrize("start", [0.5, math.nan])
def test_a_sample_that_fails_spoils_no_gradient_of_the_others(adjoint, start):
    """The field of sample 1 is NaN beyond t = 0.6; its last state has the gradient up to there."""
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [start], [2.0]], dtype=torch.float64, requires_grad=True)
    breaks = torch.tensor([[False], [True], [False]])

    def f(t, z, w, breaks):
        return w * z * torch.where((t > 0.6) & breaks, torch.nan, 1.0)

    problem = hj.ODEProblem(f, y0, (0.0, 0.3, 1.0), args=(w, breaks))
    algorithm = hj.Tsit5(rtol=1e-10, atol=1e-10)
    solution = hj.solve(problem, algorithm, adjoint=adjoint, batch="per-sample", throw=False)
    assert [s.ok for s in solution.samples.statuses] == [True, False, True]
    end = solution.samples.times.tolist()
    gy, gw = torch.autograd.grad(solution.value[[0, 2]].sum(), [y0, w], retain_graph=True)
    e = math.exp(0.7)
    torch.testing.assert_close(gy, torch.tensor([[e], [0.0], [e]], dtype=torch.float64), rtol=1e-8, atol=1e-8)
    assert gw.item() == pytest.approx(3 * e, rel=1e-8)
    if not math.isnan(start):
        gy, gw = torch.autograd.grad(solution.value[1].sum(), [y0, w])
        assert gy[1].item() == pytest.approx(math.exp(0.7 * end[1]), rel=1e-8)
        assert gw.item() == pytest.approx(end[1] * start * math.exp(0.7 * end[1]), rel=1e-8)


@each_adjoint
def test_only_what_is_asked_for_is_counted(adjoint):
    field, given = Field(), inputs()
    solution = states_of(field, given, (0.0, 1.0), hj.Tsit5(), adjoint)
    assert solution.stats.n_vjp == 0
    solution.value.sum().backward()
    assert solution.stats.n_vjp > 0
    assert solution.stats.nfe_backward >= solution.stats.n_vjp
    assert given[0].grad.shape == given[0].shape
    with torch.no_grad():
        quiet = states_of(field, given, (0.0, 1.0), hj.Tsit5(), adjoint)
    assert not quiet.value.requires_grad
    assert (quiet.stats.nfe_backward, quiet.stats.nfe) == (0, solution.stats.nfe)
    assert torch.equal(quiet.value, solution.value) or adjoint == hj.DirectAdjoint()
    torch.testing.assert_close(quiet.value, solution.value.detach(), rtol=1e-14, atol=1e-14)


def test_direct_reaches_hidden_tensors_and_may_be_differentiated_twice():
    speed = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=torch.float64)

    def end(w):
        problem = hj.ODEProblem(lambda t, z, s: s * w * z, y0, (0.0, 1.0), args=(speed,))
        return hj.solve(problem, hj.Tsit5(rtol=1e-10, atol=1e-10), batch="per-sample").value.sum()

    (first,) = torch.autograd.grad(end(w), w, create_graph=True)
    (second,) = torch.autograd.grad(first, w)
    exact = [sum(s**n * math.exp(0.5 * s) for s in (1.0, 3.0)) for n in (1, 2)]
    assert first.item() == pytest.approx(exact[0], rel=1e-8)
    assert second.item() == pytest.approx(exact[1], rel=1e-7)


def test_checkpoint_finds_the_parameters_of_a_closure_and_may_be_differentiated_again():
    module, (y0, x, speed) = Field(), inputs()
    found = []
    for adjoint in (hj.DirectAdjoint(), hj.CheckpointAdjoint()):
        hidden = hj.ODEProblem(lambda t, z, s: module(t, z, 0 * z, s), y0, (0.0, 1.0), args=(speed,))
        value = hj.solve(hidden, hj.Tsit5(), adjoint=adjoint, batch="per-sample").value
        found.append(torch.autograd.grad(value.sum(), list(module.parameters())))
        value = states_of(module, (y0, x, speed), (0.0, 1.0), hj.Tsit5(), adjoint).value
        (first,) = torch.autograd.grad(value.square().sum(), [y0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y0, x, speed, *module.parameters()]))
    torch.testing.assert_close(found[:2], found[2:])


@each_adjoint
def test_memory_format_and_batches_of_images(adjoint):
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1).double().to(memory_format=torch.channels_last)
    y0 = torch.randn(4, 3, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    speed = torch.tensor([0.2, 1.0, 5.0, 0.1], dtype=torch.float64).view(4, 1, 1, 1)

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = convolution

        def forward(self, t, y, speed):
            return speed * torch.tanh(self.convolution(y) + t)

    grads = {}
    for batch in ("joint", "per-sample"):
        problem = hj.ODEProblem(F(), y0, (0.0, 0.5, 1.0), args=(speed,))
        value = hj.solve(problem, hj.Tsit5(rtol=1e-9, atol=1e-9), adjoint=adjoint, batch=batch, backend="pytorch").value
        assert value.stride() == y0.stride()
        grads[batch] = torch.autograd.grad(value.square().sum(), [y0, *convolution.parameters()])
    for a, b in zip(grads["joint"], grads["per-sample"], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)


@each_adjoint
def test_what_a_solve_kept_goes_with_its_solution(adjoint):
    """Without waiting for a collection of cycles."""
    field, given = Field(), inputs()
    gc.disable()
    try:
        solution = states_of(field, given, (0.0, 0.5, 1.0), hj.Tsit5(), adjoint)
        node = weakref.ref(solution.value)
        solution.value.sum().backward()
        del solution
        assert node() is None
    finally:
        gc.enable()
