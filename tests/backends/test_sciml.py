"""SciML's algorithms by name, from Python over a real Julia: values, gradients, events, equilibria, refusals."""

from __future__ import annotations

import math
import os

import pytest
import torch

import homojl as hj
from homojl.solution import Status
from tests.catalogue import EXACT_ODES

pytestmark = [pytest.mark.needs("julia"), pytest.mark.slow]

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def installed(name: str) -> bool:
    from homojl.backends.julia import methods

    try:
        methods.chosen(hj.SciML(name))
    except hj.ConfigError:
        return False
    return True


SOLVERS = [
    hj.SciML("Vern9", **TIGHT),
    hj.SciML("RK4", step_size=0.01),
    hj.SciML("KenCarp58", autodiff=False, **TIGHT),
    hj.SciML("AutoTsit5", hj.SciML("Rosenbrock23"), **TIGHT),
    hj.SciML("Rodas5P", linsolve=hj.SciML("KrylovJL_GMRES"), **TIGHT),
    hj.SciML("OrdinaryDiffEqTsit5.Tsit5", **TIGHT),
]


@pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
@pytest.mark.parametrize("algorithm", SOLVERS, ids=lambda a: a.name)
def test_exact_problems_with_saved_times(problem, algorithm):
    ts = (problem.t0, problem.t0 + 0.3 * (problem.t1 - problem.t0), problem.t1)
    solution = hj.solve(hj.ODEProblem(problem.f, problem.y0, ts), algorithm, backend="julia")
    assert solution.stats.algorithm == algorithm.name
    assert solution.stats.backend == "julia"
    for t, y in zip(ts, solution.ys, strict=True):
        torch.testing.assert_close(y, problem.exact(t), rtol=1e-5, atol=1e-5)


def require_installed(name: str, package: str) -> None:
    if not installed(name):
        if "julia" in os.environ.get("HOMOJL_REQUIRE", "").split(","):
            pytest.fail(f"HOMOJL_REQUIRE names julia, and {package} is not installed")
        pytest.skip(f"needs {package}, which is not installed")


@pytest.mark.parametrize(
    ("name", "package"), [("ROS3P", "OrdinaryDiffEqRosenbrock"), ("SSPRK932", "OrdinaryDiffEqSSPRK")]
)
def test_the_order_of_equal_steps(name, package):
    """Of a Rosenbrock method, which asks for the derivative in time, and of one that needs its interpolant's stages."""
    require_installed(name, package)
    problem = next(p for p in EXACT_ODES if p.name == "forced")
    ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
    steps = [(problem.t1 - problem.t0) / n for n in (64, 128)]
    ends = [hj.solve(ode, hj.SciML(name, step_size=h), backend="julia").value for h in steps]
    coarse, fine = (float((end - problem.exact(problem.t1)).norm()) for end in ends)
    assert 2.7 < math.log2(coarse / fine) < 3.3


@pytest.mark.parametrize("name", ["TsitPap8", "KenCarp5"])
def test_saved_times_of_a_method_without_an_interpolant_of_its_order(name):
    require_installed(name, "OrdinaryDiffEqHighOrderRK")
    y0, ts = torch.tensor([0.8, 2.0], dtype=torch.float64), (0.0, 0.31, 0.9, 2.0)
    problem = hj.ODEProblem(lambda t, y: -0.7 * y * y, y0, ts)
    solution = hj.solve(problem, hj.SciML(name, rtol=1e-7, atol=1e-7), backend="julia")
    for t, y in zip(ts, solution.ys, strict=True):
        torch.testing.assert_close(y, y0 / (1 + 0.7 * t * y0), rtol=1e-6, atol=1e-6)


def test_radau():
    require_installed("RadauIIA5", "OrdinaryDiffEqFIRK")
    problem = EXACT_ODES[0]
    ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
    value = hj.solve(ode, hj.SciML("RadauIIA5", **TIGHT), backend="julia").value
    torch.testing.assert_close(value, problem.exact(problem.t1), rtol=1e-6, atol=1e-6)


# Between its steps a polynomial of degree 3 is all that it has for the nodes of a quadrature.
KENCARP4 = hj.SciML("KenCarp4", rtol=1e-9, atol=1e-9)

FIELDS = {
    "PyTorch": lambda: lambda t, y, k: -k * y * y,
    "Julia": lambda: hj.JuliaField("f!(du, u, p, t) = (du .= .-p .* u .^ 2)"),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("adjoint", [hj.GaussAdjoint(), hj.BacksolveAdjoint()], ids=lambda a: a.name)
@pytest.mark.parametrize(
    "algorithm",
    [hj.Rodas5P(**TIGHT), hj.FBDF(**TIGHT), hj.SciML("Vern9", **TIGHT), KENCARP4],
    ids=lambda a: a.name,
)
def test_gradients(algorithm, adjoint, field):
    k = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([0.8, 2.0], dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(FIELDS[field](), y0, (0.0, 0.4, 1.0), args=(k,))
    ys = hj.solve(problem, algorithm, adjoint=adjoint, backend="julia").ys
    found = torch.autograd.grad(ys.square().sum(), (y0, k))
    exact = sum((y0 / (1 + k * t * y0)).square().sum() for t in problem.ts)
    for ours, theirs in zip(found, torch.autograd.grad(exact, (y0, k)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint()], ids=lambda a: a.name)
@pytest.mark.parametrize("algorithm", [hj.Rodas5P(), hj.SciML("Tsit5")], ids=lambda a: a.name)
def test_what_takes_steps_again_is_refused_before_solving(algorithm, adjoint):
    calls = []

    def field(t, y):
        calls.append(t)
        return -y

    problem = hj.ODEProblem(field, torch.ones(1, requires_grad=True), (0.0, 100.0))
    with pytest.raises(hj.ConfigError, match=r"no tableau of .*GaussAdjoint"):
        hj.solve(problem, algorithm, adjoint=adjoint, backend="julia")
    assert len(calls) <= 2


@pytest.mark.parametrize("cls", [hj.Tsit5, hj.Rodas5P], ids=lambda c: c.__name__)
def test_an_event_ends_a_solve_and_has_a_gradient(cls):
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)

    def fall(t, y, g):
        return torch.stack([y[1], -g])

    y0 = torch.tensor([10.0, 0.0], dtype=torch.float64)
    event = hj.Event(lambda t, y, g: y[0], direction=-1)
    problem = hj.ODEProblem(fall, y0, (0.0, 0.5, 5.0), args=(g,), event=event)
    solution = hj.solve(problem, cls(**TIGHT), adjoint=hj.GaussAdjoint(), backend="julia")
    assert solution.status is Status.EVENT
    exact = (20 / g).sqrt()
    assert solution.ts[-1].item() == pytest.approx(exact.item(), abs=1e-7)
    assert len(solution.ts) == 3
    (found,) = torch.autograd.grad(solution.ts[-1], g)
    (expected,) = torch.autograd.grad(exact, g)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_ball_that_bounces():
    def fall(t, y):
        return torch.stack([y[1], torch.full_like(y[1], -9.81)])

    event = hj.Event(
        lambda t, y: y[0], direction=-1, terminal=False, then=lambda t, y: torch.stack([0 * y[0], -0.5 * y[1]])
    )
    problem = hj.ODEProblem(fall, torch.tensor([1.0, 0.0], dtype=torch.float64), (0.0, 1.0), event=event)
    ours, theirs = (hj.solve(problem, hj.Tsit5(**TIGHT), backend=b) for b in ("pytorch", "julia"))
    assert len(ours.events) == len(theirs.events) == 2
    torch.testing.assert_close(theirs.value, ours.value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "algorithm",
    [
        hj.SciML("LevenbergMarquardt", rtol=1e-8, atol=1e-10),
        hj.SciML("NewtonRaphson", rtol=1e-8, atol=1e-10),
        hj.SciML("SimpleNewtonRaphson", autodiff=False, rtol=1e-8, atol=1e-10),
        hj.SciML("NewtonRaphson", linsolve=hj.SciML("KrylovJL_GMRES"), concrete_jac=False, rtol=1e-8, atol=1e-10),
        hj.SciML("DynamicSS", hj.SciML("Tsit5"), rtol=1e-8, atol=1e-10, max_steps=1000),
    ],
    ids=["LevenbergMarquardt", "NewtonRaphson", "SimpleNewtonRaphson", "Krylov", "DynamicSS"],
)
def test_equilibria_and_their_gradients(algorithm):
    x = torch.tensor([[0.3], [0.7]], dtype=torch.float64, requires_grad=True)
    problem = hj.FixedPointProblem(lambda z, x: torch.tanh(0.5 * z + x), torch.zeros(2, 1, dtype=torch.float64), (x,))
    reference = hj.solve(problem, hj.NewtonKrylov(rtol=1e-12, atol=1e-14), backend="pytorch").value
    solution = hj.solve(problem, algorithm, adjoint=hj.ImplicitAdjoint(), backend="julia")
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, reference, rtol=1e-7, atol=1e-8)
    (found,) = torch.autograd.grad(solution.value.sum(), x)
    (expected,) = torch.autograd.grad(reference.sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_root_without_a_path_and_its_gradient():
    p = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    # Coupled unknowns: x y = p0, x + y = p1, with the root (1, 2).
    problem = hj.HomotopyProblem(
        lambda z, p: torch.stack([z[0] * z[1] - p[0], z[0] + z[1] - p[1]]),
        torch.tensor([0.5, 3.0], dtype=torch.float64),
        kind="newton",
        args=(p,),
    )
    solution = hj.solve(problem, hj.SciML("LevenbergMarquardt", rtol=1e-10, atol=1e-12), backend="julia")
    torch.testing.assert_close(solution.value, torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-8, atol=1e-8)
    (found,) = torch.autograd.grad(solution.value[0], p)
    # x = (p1 - sqrt(p1^2 - 4 p0)) / 2
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0], dtype=torch.float64), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (hj.SciML("Tsit55"), r"no algorithm|did you mean 'Tsit5'"),
        (hj.SciML("OrdinaryDiffEqTsit5.Tsit6"), "OrdinaryDiffEqTsit5 has no algorithm 'Tsit6'"),
        (hj.SciML("NoSuchPackage.Method"), "homojl julia add NoSuchPackage"),
        (hj.SciML("Rodas5P", smoothness=3), "Rodas5P does not take these arguments.*smoothness"),
    ],
)
def test_what_julia_does_not_have_is_said(algorithm, message):
    with pytest.raises(hj.ConfigError, match=message):
        hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0)), algorithm, backend="julia")


def test_a_method_that_misses_its_order_warns():
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
    with pytest.warns(UserWarning, match="Kvaerno3 of OrdinaryDiffEqSDIRK misses its order"):
        hj.solve(problem, hj.SciML("Kvaerno3", rtol=1.25e-4), backend="julia")


def test_a_method_for_fields_in_two_parts_is_refused():
    require_installed("CNAB2", "OrdinaryDiffEqIMEXMultistep")
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
    with pytest.raises(hj.ConfigError, match="for fields in two parts"):
        hj.solve(problem, hj.SciML("CNAB2", step_size=0.1), backend="julia")


def test_a_mass_matrix_that_is_changed_in_place():
    mass = torch.eye(2, dtype=torch.float64)
    algorithm = hj.SciML("Rodas5P", mass_matrix=mass, **TIGHT)
    problem = hj.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=torch.float64), (0.0, 1.0))
    for scale in (1.0, 2.0):
        value = hj.solve(problem, algorithm, backend="julia").value
        torch.testing.assert_close(value, torch.full_like(value, math.exp(-1 / scale)), rtol=1e-6, atol=1e-6)
        mass.mul_(2.0)


def test_a_differential_algebraic_equation():
    def robertson(t, y):
        a, b, c = y.unbind()
        r1, r2, r3 = 0.04 * a, 1e4 * b * c, 3e7 * b * b
        return torch.stack([r2 - r1, r1 - r2 - r3, a + b + c - 1])

    mass = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    algorithm = hj.SciML("Rodas5P", mass_matrix=mass, rtol=1e-8, atol=1e-12)
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    value = hj.solve(hj.ODEProblem(robertson, y0, (0.0, 40.0)), algorithm, backend="julia").value
    expected = torch.tensor([0.7158270688, 9.185534765e-6, 0.2841637457], dtype=torch.float64)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-10)
    start = y0.clone().requires_grad_()
    with pytest.raises(hj.ConfigError, match="mass_matrix"):
        hj.solve(
            hj.ODEProblem(robertson, start, (0.0, 1.0)), algorithm, adjoint=hj.GaussAdjoint(), backend="julia"
        ).value.sum().backward()
    assert math.isfinite(value.sum())
