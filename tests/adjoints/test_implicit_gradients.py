"""Gradients through implicit methods: against finite differences, exact answers, and each other."""

from __future__ import annotations

import math

import pytest
import torch

import homojl as hj
from homojl.algorithms import AbstractFixedStep
from tests.catalogue import IMPLICIT

pytestmark = pytest.mark.slow

FIXED = [cls for cls in IMPLICIT.values() if issubclass(cls, AbstractFixedStep)]
ADAPTIVE = [cls for cls in IMPLICIT.values() if not issubclass(cls, AbstractFixedStep)]
SOLVERS = ["dense", "krylov"]
DISCRETE = [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.CheckpointAdjoint(max_states=2)]
each_solver = pytest.mark.parametrize("linear_solver", SOLVERS)
each_discrete = pytest.mark.parametrize("adjoint", DISCRETE, ids=["direct", "checkpoint", "bounded"])


def _options(cls) -> dict[str, float]:
    return {"step_size": 0.25, "rtol": 1e-12, "atol": 1e-13} if cls in FIXED else {"rtol": 1e-3, "atol": 1e-5}


class Field(torch.nn.Module):
    """A small stiff network with a condition x and a time input."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w = torch.nn.Parameter(torch.randn(2, 2, generator=generator, dtype=dtype))
        self.rates = torch.tensor([1.0, 40.0], dtype=dtype)

    def forward(self, t, z, x):
        return torch.tanh(z @ self.w + x * torch.cos(t)) - self.rates * z


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    y0 = torch.randn(2, 2, generator=generator, dtype=dtype).requires_grad_()
    x = torch.randn(2, 2, generator=generator, dtype=dtype).requires_grad_()
    return y0, x


def gradients_of(field, y0, x, algorithm, adjoint, ts=(0.0, 0.4, 1.0)) -> tuple[list[torch.Tensor], hj.Stats]:
    solution = hj.solve(hj.ODEProblem(field, y0, ts, args=(x,)), algorithm, adjoint=adjoint, backend="pytorch")
    loss = torch.sin(2 * solution.ys).sum()
    return list(torch.autograd.grad(loss, [y0, x, *field.parameters()])), solution.stats


@pytest.mark.parametrize("cls", FIXED, ids=lambda c: c.__name__)
@each_solver
def test_gradcheck(cls, linear_solver):
    def states(y0, x, w):
        def f(t, z, x, w):
            return torch.tanh(z @ w + x * torch.cos(t)) - torch.tensor([1.0, 40.0], dtype=z.dtype) * z

        algorithm = cls(linear_solver=linear_solver, **_options(cls))
        problem = hj.ODEProblem(f, y0, (0.0, 0.5), args=(x, w))
        return hj.solve(problem, algorithm, adjoint=hj.CheckpointAdjoint(), backend="pytorch").value

    y0, x = inputs()
    w = Field().w.detach().requires_grad_()
    assert torch.autograd.gradcheck(states, (y0[:1].detach().requires_grad_(), x[:1].detach().requires_grad_(), w))


@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
@each_solver
def test_adaptive_gradients_are_those_of_the_steps_taken(cls, linear_solver):
    """By finite differences, the step sizes held as they are."""
    from homojl.backends.pytorch.steppers import stepper_for
    from homojl.functions import DerivedField

    field, (y0, x) = Field(), inputs()
    solution = hj.solve(
        hj.ODEProblem(field, y0, (0.0, 1.0), args=(x,)),
        cls(linear_solver=linear_solver, **_options(cls)),
        adjoint=hj.CheckpointAdjoint(),
        backend="pytorch",
    )
    gradient = torch.autograd.grad(solution.value.sum(), [y0, x, field.w])
    exact = cls(rtol=1e-13, atol=1e-13)  # so that the differences are of the step itself

    @torch.no_grad()
    def replayed(y, x, w):
        def f(t, z):
            return torch.tanh(z @ w + x * torch.cos(t)) - field.rates * z

        stepper, derivative = stepper_for(exact), DerivedField(f)
        for t, h in zip(solution.steps.starts, solution.steps.sizes, strict=True):
            y = stepper.step(derivative, t, h, y).y_next
        return y.sum().item()

    points = [y0.detach(), x.detach(), field.w.detach()]
    for i, grad in enumerate(gradient):
        direction = torch.randn(points[i].shape, dtype=torch.float64)
        shifted = [
            replayed(*(p + sign * 1e-5 * direction if i == j else p for j, p in enumerate(points))) for sign in (1, -1)
        ]
        difference = (shifted[0] - shifted[1]) / 2e-5
        assert (grad * direction).sum().item() == pytest.approx(difference, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("cls", "linear_solver"),
    [*((cls, "dense") for cls in IMPLICIT.values()), (hj.KenCarp4, "krylov"), (hj.GaussLegendre4, "krylov")],
)
def test_checkpoint_equals_direct_to_rounding(cls, linear_solver, dtype):
    field, (y0, x) = Field(dtype), inputs(dtype)
    options = {"step_size": 0.25} if cls in FIXED else _options(cls)
    algorithm = cls(linear_solver=linear_solver, **options)
    direct, _ = gradients_of(field, y0, x, algorithm, DISCRETE[0])
    # GMRES stops at a relative residual of eps^(3/4).
    rounding = 100 * torch.finfo(dtype).eps ** (1.0 if linear_solver == "dense" else 0.75)
    for adjoint in DISCRETE[1:]:
        other, _ = gradients_of(field, y0, x, algorithm, adjoint)
        for a, b in zip(direct, other, strict=True):
            torch.testing.assert_close(b, a, rtol=rounding, atol=rounding * float(a.abs().max()))


@pytest.mark.parametrize(
    ("adjoint", "linear_solver"),
    [
        (hj.BacksolveAdjoint(), "dense"),
        (hj.BacksolveAdjoint(seminorm=True), "dense"),
        (hj.GaussAdjoint(), "dense"),
        (hj.GaussAdjoint(), "krylov"),
    ],
)
def test_continuous_adjoints_agree_with_the_direct_one(adjoint, linear_solver):
    field, (y0, x) = Field(), inputs()
    field.rates = torch.tensor([1.0, 4.0], dtype=torch.float64)
    algorithm = hj.KenCarp4(rtol=1e-5, atol=1e-7, linear_solver=linear_solver)
    direct, _ = gradients_of(field, y0, x, algorithm, hj.DirectAdjoint(), (0.0, 0.2, 0.5))
    other, stats = gradients_of(field, y0, x, algorithm, adjoint, (0.0, 0.2, 0.5))
    for a, b in zip(direct, other, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    assert stats.n_jvp > 0


@each_discrete
@each_solver
def test_a_stiff_linear_problem_has_its_exact_gradient(adjoint, linear_solver):
    """y' = -k (y - c) with k = 1e5: y(1) = c, whatever y0 and k are."""
    k, c, y0 = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (1e5, 0.3, 2.0))
    problem = hj.ODEProblem(lambda t, y, k, c: -k * (y - c), y0, (0.0, 1.0), args=(k, c))
    algorithm = hj.KenCarp4(rtol=1e-6, atol=1e-8, linear_solver=linear_solver)
    value = hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch").value
    gy, gk, gc = torch.autograd.grad(value, [y0, k, c])
    assert abs(gy.item()) < 1e-6
    assert abs(gk.item()) < 1e-9
    assert gc.item() == pytest.approx(1.0, abs=1e-6)


def test_complex_states():
    rate = torch.tensor([-1.0 + 3j, -60.0 + 1j], dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0 + 0.5j, -1.0j], dtype=torch.complex128, requires_grad=True)

    def states(y0, rate, algorithm):
        problem = hj.ODEProblem(lambda t, y, rate: rate * y + 0.1 * y.conj(), y0, (0.0, 0.5), args=(rate,))
        return hj.solve(problem, algorithm, adjoint=hj.CheckpointAdjoint(), backend="pytorch").value

    for linear_solver in SOLVERS:
        algorithm = hj.RadauIIA3(step_size=0.25, rtol=1e-12, atol=1e-13, linear_solver=linear_solver)
        assert torch.autograd.gradcheck(lambda y0, rate, a=algorithm: states(y0, rate, a), (y0, rate))


@each_solver
def test_a_large_state_in_channels_last(linear_solver):
    """Against the explicit method, in which nothing is solved for."""
    convolution = torch.nn.Conv2d(2, 2, 3, padding=1).double().to(memory_format=torch.channels_last)
    y0 = torch.randn(1, 2, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = convolution

        def forward(self, t, y):
            return torch.tanh(self.convolution(y)) - 20 * y

    grads = []
    for algorithm in (
        hj.KenCarp4(rtol=1e-6, atol=1e-7, linear_solver=linear_solver),
        hj.Dopri8(rtol=1e-8, atol=1e-8),
    ):
        value = hj.solve(
            hj.ODEProblem(F(), y0, (0.0, 0.2)), algorithm, adjoint=hj.CheckpointAdjoint(), backend="pytorch"
        ).value
        assert value.is_contiguous(memory_format=torch.channels_last)
        grads.append(torch.autograd.grad(value.square().sum(), [y0, *convolution.parameters()]))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@each_solver
@pytest.mark.parametrize("cls", [hj.KenCarp4, hj.RadauIIA3])
def test_only_the_parameters_want_gradients(cls, linear_solver):
    """The first stages then depend on nothing that does."""
    k = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    problem = hj.ODEProblem(lambda t, y: -k * y, y0, (0.0, 1.0))  # through a tensor that is not listed
    options = {"step_size": 0.1} if cls in FIXED else {}
    value = hj.solve(problem, cls(linear_solver=linear_solver, **options), backend="pytorch").value
    (gradient,) = torch.autograd.grad(value, k)
    assert gradient.item() == pytest.approx(-math.exp(-3), rel=2e-2)


@each_solver
def test_without_gradients_nothing_is_recorded(linear_solver):
    for algorithm in (hj.KenCarp4(linear_solver=linear_solver), hj.RadauIIA3(linear_solver=linear_solver)):
        problem = hj.ODEProblem(lambda t, y: -y, torch.ones(3), (0.0, 1.0))
        assert not hj.solve(problem, algorithm, backend="pytorch").value.requires_grad


@each_solver
@each_discrete
def test_a_field_that_ignores_the_state(linear_solver, adjoint):
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y0 = torch.zeros(2, requires_grad=True)
    problem = hj.ODEProblem(lambda t, y, x: x * torch.cos(t), y0, (0.0, 1.0), args=(x,))
    value = hj.solve(problem, hj.KenCarp4(linear_solver=linear_solver), adjoint=adjoint, backend="pytorch").value
    gy, gx = torch.autograd.grad(value.sum(), [y0, x])
    torch.testing.assert_close(gy, torch.ones(2))
    torch.testing.assert_close(gx, torch.full((2,), math.sin(1)), rtol=1e-3, atol=0)


@each_discrete
def test_second_derivatives_are_refused(adjoint):
    y0, x = inputs()
    problem = hj.ODEProblem(Field(), y0, (0.0, 1.0), args=(x,))
    value = hj.solve(problem, hj.KenCarp4(), adjoint=adjoint, backend="pytorch").value
    with pytest.raises(hj.ConfigError, match="first derivatives only"):
        torch.autograd.grad(value.sum(), [y0], create_graph=True)


@each_solver
def test_what_the_backward_pass_costs_is_counted(linear_solver):
    field, (y0, x) = Field(), inputs()
    algorithm = hj.KenCarp4(linear_solver=linear_solver)
    _, direct = gradients_of(field, y0, x, algorithm, hj.DirectAdjoint())
    _, checkpoint = gradients_of(field, y0, x, algorithm, hj.CheckpointAdjoint())
    assert direct.n_vjp == checkpoint.n_vjp
    assert checkpoint.nfe_backward > checkpoint.n_accepted * 6
    if linear_solver == "dense":  # the explicit stage and one evaluation of each of the five implicit ones
        assert direct.n_vjp == 6 * direct.n_accepted
    else:
        assert direct.n_vjp > 6 * direct.n_accepted


def test_a_linear_system_that_gmres_cannot_solve_is_an_error(monkeypatch):
    from homojl.backends.pytorch import stage_equations

    y0, x = inputs()
    problem = hj.ODEProblem(Field(), y0, (0.0, 1.0), args=(x,))
    value = hj.solve(problem, hj.ImplicitEuler(linear_solver="krylov"), backend="pytorch").value
    monkeypatch.setattr(stage_equations, "KRYLOV_STEPS", 1)
    monkeypatch.setattr(stage_equations, "RESTARTS", 1)
    with pytest.raises(hj.SolveError, match=r"GMRES left a relative residual.*linear_solver='dense'"):
        torch.autograd.grad(value.sum(), y0)
