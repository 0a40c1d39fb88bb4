"""Evaluations in bfloat16 and float16 beside a float32 state."""

from __future__ import annotations

import warnings

import pytest
import torch

import homojl as hj
from homojl.errors import ConfigError
from homojl.precision import PRECISIONS
from homojl.splitting import AbstractMonotoneMap

ODE_ADJOINTS = [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint()]
EQUILIBRIUM_ADJOINTS = [hj.ImplicitAdjoint(), hj.PhantomAdjoint(steps=20), hj.UnrolledAdjoint()]
LOW = PRECISIONS[1:]
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}  # relative, of one operation


class Net(torch.nn.Module):
    """A field (t, y, x) and, called with two arguments, a contractive map (z, x); notes the types that it computes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 32), torch.nn.Linear(32, 6)
        self.seen = set()

    def forward(self, *inputs):
        *_, y, x = inputs
        hidden = self.first(y)
        self.seen |= {("state", y.dtype), ("hidden", hidden.dtype)}
        return 0.7 * self.second(torch.tanh(hidden + x))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def tensors():
    return torch.randn(5, 6, requires_grad=True), torch.randn(5, 32, requires_grad=True)


def ode(net, tensors, algorithm=None, **options):
    """The solution, and the gradient of a weighted sum of its saved states by start, condition and parameters."""
    y0, x = tensors
    problem = hj.ODEProblem(net, y0, (0.0, 0.7, 1.0), args=(x,))
    solution = hj.solve(problem, algorithm or hj.Tsit5(rtol=1e-2, atol=1e-2), backend="pytorch", **options)
    return solution, gradients_of(solution.ys, [y0, x, *net.parameters()])


def equilibrium(net, tensors, algorithm=None, **options):
    y0, x = tensors
    problem = hj.FixedPointProblem(net, torch.zeros_like(y0), args=(x,))
    solution = hj.solve(problem, algorithm or hj.Anderson(rtol=1e-2), backend="pytorch", **options)
    return solution, gradients_of(solution.value, [x, *net.parameters()])


def gradients_of(value, wrt):
    weights = torch.linspace(-1, 1, value.numel()).view(value.shape)
    return torch.autograd.grad(value, wrt, weights)


def assert_near(found, expected, relative):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= relative * b.norm()


def assert_evaluated_in(net, precision):
    assert net.seen == {("state", torch.float32), ("hidden", getattr(torch, precision))}


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("adjoint", ODE_ADJOINTS, ids=lambda a: a.name)
def test_every_adjoint_of_an_ode(adjoint, precision, net, tensors):
    expected, expected_gradients = ode(net, tensors, adjoint=adjoint)
    net.seen.clear()
    solution, found = ode(net, tensors, adjoint=adjoint, precision=precision)
    assert_evaluated_in(net, precision)  # in the backward pass too
    assert_near([solution.ys], [expected.ys], 2 * ROUNDING[precision])
    assert_near(found, expected_gradients, 8 * ROUNDING[precision])
    assert not torch.equal(solution.ys, expected.ys)


def test_the_gradient_is_that_of_the_operations_as_they_were_done(net, tensors):
    _, direct = ode(net, tensors, adjoint=hj.DirectAdjoint(), precision="bfloat16")
    _, again = ode(net, tensors, adjoint=hj.CheckpointAdjoint(), precision="bfloat16")
    # Cotangents differ in the last bit of float32, and some of them are then rounded to another bfloat16.
    assert_near(again, direct, 0.1 * ROUNDING["bfloat16"])


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("adjoint", EQUILIBRIUM_ADJOINTS, ids=lambda a: a.name)
def test_every_adjoint_of_an_equilibrium(adjoint, precision, net, tensors):
    expected, expected_gradients = equilibrium(net, tensors, adjoint=adjoint)
    net.seen.clear()
    solution, found = equilibrium(net, tensors, adjoint=adjoint, precision=precision)
    assert_evaluated_in(net, precision)
    assert_near([solution.value], [expected.value], 4 * ROUNDING[precision])
    assert_near(found, expected_gradients, 8 * ROUNDING[precision])


@pytest.mark.parametrize(
    "algorithm",
    [hj.RK4(step_size=0.1), hj.Dopri8(rtol=1e-2), hj.KenCarp4(rtol=3e-2, atol=3e-2), hj.SciPy(rtol=1e-2)],
    ids=lambda a: a.name,
)
def test_methods_of_every_kind(algorithm, net, tensors):
    adjoint = hj.GaussAdjoint() if isinstance(algorithm, hj.SciPy) else hj.CheckpointAdjoint()
    expected, expected_gradients = ode(net, tensors, algorithm, adjoint=adjoint)
    net.seen.clear()
    solution, found = ode(net, tensors, algorithm, adjoint=adjoint, precision="bfloat16")
    assert ("hidden", torch.bfloat16) in net.seen
    assert_near([solution.ys], [expected.ys], 4 * ROUNDING["bfloat16"])
    assert_near(found, expected_gradients, 8 * ROUNDING["bfloat16"])


def test_newton_s_products_are_of_the_same_evaluations(net, tensors):
    expected, _ = equilibrium(net, tensors)
    solution, _ = equilibrium(net, tensors, hj.NewtonKrylov(rtol=1e-2), precision="bfloat16")
    assert_near([solution.value], [expected.value], 4 * ROUNDING["bfloat16"])


@pytest.mark.parametrize("adjoint", ODE_ADJOINTS[:2], ids=lambda a: a.name)
def test_steps_of_each_sample_s_own(adjoint, net, tensors):
    _, expected = ode(net, tensors, batch="per-sample", adjoint=adjoint)
    net.seen.clear()
    _, found = ode(net, tensors, batch="per-sample", adjoint=adjoint, precision="bfloat16")
    assert_evaluated_in(net, "bfloat16")
    assert_near(found, expected, 8 * ROUNDING["bfloat16"])


@pytest.mark.parametrize("adjoint", ODE_ADJOINTS, ids=lambda a: a.name)
def test_an_autocast_around_the_solve_is_the_function_s_alone(adjoint, net, tensors):
    expected, expected_gradients = ode(net, tensors, adjoint=adjoint, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        y0, x = tensors
        problem = hj.ODEProblem(net, y0, (0.0, 0.7, 1.0), args=(x,))
        solution = hj.solve(problem, hj.Tsit5(rtol=1e-2, atol=1e-2), backend="pytorch", adjoint=adjoint)
    assert torch.equal(solution.ys, expected.ys)
    for a, b in zip(gradients_of(solution.ys, [y0, x, *net.parameters()]), expected_gradients, strict=True):
        assert torch.equal(a, b)


def test_weights_cast_without_a_graph_are_not_taken_for_those_of_an_evaluation_with_one(net, tensors):
    y0, x = tensors
    problem = hj.ODEProblem(net, y0, (0.0, 1.0), args=(x,))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            hj.solve(problem, hj.Tsit5(), backend="pytorch")
        value = hj.solve(problem, hj.Tsit5(), backend="pytorch").value
    (grad,) = torch.autograd.grad(value.sum(), net.first.weight)
    assert grad.norm() > 0


def test_times_and_events_have_their_gradients(net, tensors):
    y0, x = tensors
    ts = torch.tensor([0.0, 1.0], requires_grad=True)
    event = hj.Event(lambda t, y, x: t - 0.6)

    def found(precision):
        problem = hj.ODEProblem(net, y0, ts, args=(x,), event=event)
        solution = hj.solve(problem, hj.Tsit5(rtol=1e-2, atol=1e-2), backend="pytorch", precision=precision)
        assert solution.ts[-1].item() == pytest.approx(0.6)
        return torch.autograd.grad(solution.value.square().sum(), [ts, y0])

    assert_near(found("bfloat16"), found("full"), 8 * ROUNDING["bfloat16"])


class Halving(AbstractMonotoneMap):
    def affine(self, z, bias):
        return 0.5 * z + bias

    def proximal(self, y):
        return y.relu()

    def resolvent(self, alpha, bias):
        return alpha, bias

    def resolve(self, u, alpha, bias):
        return (u + alpha * bias) / (1 + 0.5 * alpha)


def test_what_has_no_lower_precision_is_refused():
    y0, split = torch.ones(2, 3), hj.PeacemanRachford()

    def decay(t, y):
        return -y

    map_ = hj.FixedPointProblem(Halving(), y0, args=(torch.ones(1, 3),))
    path = hj.HomotopyProblem(lambda z: z - 1, y0)
    for problem, algorithm, why in (
        (hj.ODEProblem(decay, y0.double(), (0.0, 1.0)), hj.Tsit5(), "float64"),
        (hj.ODEProblem(decay, y0.cfloat(), (0.0, 1.0)), hj.Tsit5(), "complex64"),
        (map_, split, "PeacemanRachford"),
        (path, hj.ArcLength(), "zero paths"),
    ):
        with pytest.raises(ConfigError, match=f"precision='bfloat16' does not go with .*{why}"):
            hj.solve(problem, algorithm, precision="bfloat16")
    with pytest.raises(ConfigError, match="unknown precision 'bf16'; did you mean 'bfloat16'"):
        hj.solve(map_, split, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):  # not asked of these: it leaves them as they are
        assert hj.solve(map_, split, backend="pytorch").value.dtype == torch.float32
        assert hj.solve(path, hj.ArcLength(), backend="pytorch").value.dtype == torch.float32


@pytest.mark.needs("julia")
def test_a_field_held_in_julia_has_its_own_precision():
    problem = hj.ODEProblem(hj.JuliaField("f!(du, u, p, t) = (du .= -u)"), torch.ones(2), (0.0, 1.0))
    with pytest.raises(ConfigError, match="does not go with a JuliaField"):
        hj.solve(problem, hj.Tsit5(), backend="julia", precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        assert hj.solve(problem, hj.Tsit5(), backend="julia").value.dtype == torch.float32


@pytest.mark.parametrize(
    ("algorithm", "precision"),
    [
        (hj.Tsit5(rtol=1e-4, atol=1e-4), "bfloat16"),
        (hj.Tsit5(rtol=1e-5, atol=torch.full((6,), 1e-5)), "float16"),
        (hj.Anderson(rtol=3e-3), "bfloat16"),
    ],
    ids=lambda p: getattr(p, "name", p),
)
def test_a_tolerance_that_the_evaluations_do_not_hold_is_warned_of(algorithm, precision, net, tensors):
    stated = ode if isinstance(algorithm, hj.Tsit5) else equilibrium
    with pytest.warns(UserWarning, match=f"less than evaluations in {precision} hold"):
        stated(net, tensors, algorithm, precision=precision, throw=False)


@pytest.mark.parametrize(
    ("algorithm", "precision"), [(hj.Tsit5(), "bfloat16"), (hj.Tsit5(rtol=1e-4), "float16"), (hj.RK4(), "bfloat16")]
)
def test_other_tolerances_are_not_warned_of(algorithm, precision, net, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ode(net, tensors, algorithm, precision=precision)


@pytest.mark.slow
@pytest.mark.needs("compiler")
def test_compiled_steps_make_the_same_evaluations_and_are_found_again():
    net, y0 = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 6)), torch.randn(5, 6)
    # Forty thousand elements: enough for the steps to be compiled one by one.
    problem = hj.ODEProblem(lambda t, y: net(y), y0.repeat(1400, 1), (0.0, 1.0))

    @torch.no_grad()
    def value(backend, precision):
        return hj.solve(problem, hj.Tsit5(rtol=1e-2, atol=1e-2), backend=backend, precision=precision).value

    compiled, expected = value("pytorch-compiled", "bfloat16"), value("pytorch", "bfloat16")
    assert_near([compiled], [expected], ROUNDING["bfloat16"])
    assert not torch.equal(expected, value("pytorch", "full"))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.equal(value("pytorch-compiled", "bfloat16"), compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
