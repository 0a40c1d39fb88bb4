"""Zero paths against known roots: the gallery, the path itself, its end's gradient, and how a path can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import homojl as hj
from homojl import gallery
from homojl.backends.julia.methods import PREDICTORS
from homojl.backends.pytorch.gmres import gmres
from homojl.solution import Status
from tests.catalogue import EXPLICIT

TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def _tolerances(solution, algorithm) -> torch.Tensor:
    sizes = torch.stack([z.double().square().mean().sqrt() for z in solution.states])
    return algorithm.atol + algorithm.rtol * sizes


def _points(solution) -> torch.Tensor:
    """The path as points (T, n + 1) of z and lambda."""
    states = torch.stack([z.double().reshape(-1) for z in solution.states])
    return torch.cat([states, solution.lambdas[:, None]], dim=1)


def _hausdorff(a: torch.Tensor, b: torch.Tensor) -> float:
    distances = torch.cdist(a, b)
    return max(distances.min(dim=0).values.max().item(), distances.min(dim=1).values.max().item())


@pytest.mark.parametrize("name", gallery.names())
def test_the_gallery_from_its_own_starts(name, backend):
    example, algorithm = gallery.get(name), hj.ArcLength()
    solution = hj.solve(example.problem(), algorithm, backend=backend)
    assert example.is_root(solution.value)
    assert solution.lambdas[0] == 0
    assert solution.lambdas[-1] == 1
    assert (solution.residuals <= _tolerances(solution, algorithm)).all()
    assert (solution.s.diff() > 0).all()
    assert len(solution.s) == len(solution.states) == solution.stats.n_accepted + 1
    assert solution.stats.nfe > 0
    assert solution.stats.n_jvp > 0
    assert solution.stats.backend == backend
    assert example.r(solution.value).square().mean().sqrt() <= _tolerances(solution, algorithm)[-1]


@pytest.mark.parametrize("name", ["arctan", "cubic", "fold", "several", "ripples", "himmelblau", "freudenstein-roth"])
def test_random_starts_reach_a_root(name, backend):
    example = gallery.get(name)
    for z0 in example.random_starts(6, seed=1):
        solution = hj.solve(example.problem(z0), hj.ArcLength(), backend=backend)
        assert example.is_root(solution.value)


@pytest.mark.parametrize("name", gallery.names())
def test_the_roots_of_the_gallery_are_roots(name):
    example = gallery.get(name)
    for root in example.roots:
        assert example.r(root).abs().max() < 1e-9
        assert example.is_root(root)
        assert not example.is_root(root + 1e-3)
    assert gallery.get(name).problem(kind="newton").kind == "newton"


def test_unknown_examples_name_the_nearest():
    with pytest.raises(hj.ConfigError, match="arctan"):
        gallery.get("arctn")


def test_the_start_decides_which_of_several_roots_is_found(backend):
    example = gallery.get("several")
    ends = [
        hj.solve(example.problem(torch.tensor([z0]).double(), kind=kind), hj.ArcLength(), backend=backend).value.item()
        for z0, kind in ((-4.0, "fixed-point"), (9.0, "fixed-point"), (2.1, "newton"))
    ]
    # A fixed-point homotopy cannot end where r falls: the middle root is for Newton's.
    assert ends == pytest.approx([1, 4, 2], abs=1e-4)


@pytest.mark.parametrize("name", ["fold", "himmelblau"])
def test_velocity_changes_the_parametrisation_and_not_the_path(name, backend):
    problem = gallery.get(name).problem()
    solutions = {
        v: hj.solve(problem, hj.ArcLength(velocity=v), backend=backend)
        for v in (1.0, 5.0, 10.0, lambda s: 1 + math.sin(s) ** 2)
    }
    reference = solutions[1.0]
    for v, solution in solutions.items():
        assert _hausdorff(_points(solution), _points(reference)) <= 1e-5
        assert torch.allclose(solution.value, reference.value, atol=1e-6)
        if not callable(v):
            assert torch.allclose(solution.s * v, reference.s, rtol=1e-9)
        else:
            # Along the path ds = d(length) / v(s), whose solution is the length as the integral of v.
            length = solution.s * 1.5 - torch.sin(2 * solution.s) / 4
            assert torch.allclose(length, reference.s, rtol=1e-3)


def test_predictors_differ_in_their_points_and_not_in_their_path(backend):
    problem = gallery.get("fold").problem()
    fine = _points(hj.solve(problem, hj.ArcLength(max_step=5e-3, max_steps=5000, **TIGHT), backend=backend))
    ends = []
    for cls in EXPLICIT.values():
        if backend == "julia" and cls not in PREDICTORS:
            continue
        solution = hj.solve(problem, hj.ArcLength(predictor=cls(), **TIGHT), backend=backend)
        assert solution.folds == 2
        # The reference's points are 5e-3 apart, and no point of a path lies further from the nearest than half of that.
        assert torch.cdist(_points(solution), fine).min(dim=1).values.max() <= 2.6e-3
        ends.append(solution)
    lengths = torch.stack([solution.s[-1] for solution in ends])
    assert (lengths / lengths[0] - 1).abs().max() < 0.01


def test_length_and_root_as_an_ode_solver_finds_them(backend):
    # The fixed-point homotopy of arctan from 3 does not fold: z and the length as functions of lambda.
    def slope(lam, y):
        z, _ = y
        dz = -(math.atan(z) - (z - 3)) / (lam / (1 + z * z) + 1 - lam)
        return dz, math.hypot(1, dz)

    reference = solve_ivp(slope, (0, 1), (3.0, 0.0), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    algorithm = hj.ArcLength(max_step=0.02, **TIGHT)
    solution = hj.solve(gallery.get("arctan").problem(), algorithm, backend=backend)
    assert abs(solution.value.item() - reference[0]) < 1e-8
    assert abs(solution.s[-1].item() - reference[1]) < 1e-5


def test_newton_diverges_where_the_path_does_not():
    z = torch.tensor([3.0], dtype=torch.float64)
    for _ in range(5):
        z = z - torch.atan(z) * (1 + z * z)
    assert z.abs() > 1e6


def test_one_euler_step_of_the_newton_homotopy_is_newtons_step(backend):
    example = gallery.get("himmelblau")
    algorithm = hj.NaturalParameter(first_step=1.0, predictor=hj.Euler(), max_corrections=0)
    solution = hj.solve(example.problem(kind="newton"), algorithm, backend=backend, throw=False)
    jacobian = torch.autograd.functional.jacobian(example.r, example.z0)
    expected = example.z0 - torch.linalg.solve(jacobian, example.r(example.z0))
    assert torch.allclose(solution.value, expected, rtol=1e-13, atol=1e-13)
    assert solution.stats.n_accepted == 1
    assert solution.status is Status.STALLED  # one step of Newton's is not a root yet, and does not pass for one


@pytest.mark.parametrize("kind", ["fixed-point", "newton"])
def test_lambda_leads_where_the_path_does_not_fold(kind, backend):
    example = gallery.get("arctan")
    solution = hj.solve(example.problem(kind=kind), hj.NaturalParameter(), backend=backend)
    assert example.is_root(solution.value, tolerance=1e-5)
    assert (solution.lambdas.diff() > 0).all()


def test_lambda_cannot_lead_round_a_fold(backend):
    problem = gallery.get("fold").problem()
    with pytest.raises(hj.SolveError, match=r"turns back in lambda.*ArcLength") as caught:
        hj.solve(problem, hj.NaturalParameter(), backend=backend)
    assert caught.value.solution.status is Status.FOLD
    along = hj.solve(problem, hj.ArcLength(), backend=backend)
    assert along.folds == 2
    # The fold is where the path first turns back.
    assert abs(caught.value.solution.lambdas[-1] - along.lambdas[: along.lambdas.diff().argmin()].max()) < 0.05


def test_steps_without_corrections_are_the_plain_ode(backend):
    example = gallery.get("arctan")
    errors = []
    for h in (0.02, 0.01):
        algorithm = hj.NaturalParameter(first_step=h, predictor=hj.RK4(), max_corrections=0)
        solution = hj.solve(example.problem(kind="newton"), algorithm, backend=backend, throw=False)
        assert solution.stats.n_accepted == round(1 / h)
        errors.append(solution.value.abs().item())
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.5


@pytest.mark.parametrize("linear_solver", ["dense", "krylov"])
def test_gradient_of_the_end_against_finite_differences(linear_solver, backend):
    generator = torch.Generator().manual_seed(3)
    weight, x, z0 = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 4), (4,), (4,)))
    algorithm = hj.ArcLength(linear_solver=linear_solver, **TIGHT)

    def end(weight, x):
        problem = hj.HomotopyProblem(lambda z, w, x: z - torch.tanh(w @ z + x), z0, args=(weight, x))
        return hj.solve(problem, algorithm, backend=backend).value

    weight, x = weight.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(end, (weight, x), eps=1e-6, atol=1e-6)


def test_gradient_reaches_what_the_residual_holds_and_costs_are_counted(backend):
    layer = torch.nn.Linear(3, 3).double()
    problem = hj.HomotopyProblem(lambda z: z - torch.tanh(layer(z)), torch.zeros(3, dtype=torch.float64))
    solution = hj.solve(problem, hj.ArcLength(), backend=backend)
    assert solution.value.requires_grad
    assert not any(z.requires_grad for z in solution.states)
    assert torch.equal(solution.value, solution.states[-1])
    solution.value.sum().backward()
    z = solution.states[-1].clone().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda z: z - torch.tanh(layer(z)), z.detach())
    w = torch.linalg.solve(jacobian.T.detach(), torch.ones(3, dtype=torch.float64))
    (expected,) = torch.autograd.grad(torch.tanh(layer(z.detach())), layer.weight, w)
    assert torch.allclose(layer.weight.grad, expected, rtol=1e-9)
    assert solution.stats.n_vjp == 1  # beside the matrix
    assert solution.stats.nfe_backward == 2
    assert solution.stats.seconds_backward > 0


@pytest.mark.parametrize("kind", ["fixed-point", "newton"])
@pytest.mark.parametrize("z0", [3.0, 1.5])
def test_a_root_where_the_path_only_touches_the_end(kind, z0):
    """(z - 1)^2: the path of the Newton homotopy turns round at lambda = 1."""
    start = torch.tensor([z0], dtype=torch.float64)
    solution = hj.solve(hj.HomotopyProblem(lambda z: (z - 1) ** 2, start, kind=kind), hj.ArcLength(), backend="pytorch")
    assert solution.status is Status.SUCCESS
    assert solution.value.item() == pytest.approx(1.0, abs=1e-3)
    assert solution.lambdas[-1] == 1


def test_dtype_form_and_inputs_are_kept(backend):
    example = gallery.get("conv-layer")
    z0 = example.z0.float().to(memory_format=torch.channels_last)
    before = z0.clone()
    solution = hj.solve(example.problem(z0), hj.ArcLength(rtol=1e-4, atol=1e-5), backend=backend)
    assert solution.value.dtype == torch.float32
    assert solution.value.shape == z0.shape
    assert solution.value.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(z0, before)
    assert example.is_root(solution.value, tolerance=1e-2)
    assert solution.s.dtype == solution.lambdas.dtype == solution.residuals.dtype == torch.float64


def test_a_scalar_state_of_no_dimension(backend):
    problem = hj.HomotopyProblem(torch.atan, torch.tensor(3.0, dtype=torch.float64))
    assert hj.solve(problem, hj.ArcLength(), backend=backend).value.shape == ()


_ONE = torch.ones(1, dtype=torch.float64)
FAILURES = {
    # name: (r, z0, kind, algorithm, status, part of the message)
    "no root, and a start beside the minimum": (
        lambda z: z**2 + 1,
        _ONE,
        "newton",
        hj.ArcLength(),
        Status.RETURNED,
        "no root",
    ),
    "bounded residual without a root": (
        lambda z: torch.exp(-z),
        _ONE,
        "newton",
        hj.ArcLength(bound=10.0, **TIGHT),
        Status.LEFT_BOUNDS,
        "raise bound",
    ),
    "not finite at the start": (lambda z: z * math.nan, _ONE, "newton", hj.ArcLength(), Status.DIVERGED, "z0"),
    "singular at the start": (lambda z: z**2 - 1, 0 * _ONE, "newton", hj.ArcLength(), Status.STEP_TOO_SMALL, "z0"),
    "too few steps": (torch.atan, 3 * _ONE, "newton", hj.ArcLength(max_steps=2), Status.MAX_STEPS, "max_steps"),
    "tolerance beyond the dtype": (
        lambda z: torch.atan(z) - 0.5,
        (3 * _ONE).float(),
        "newton",
        hj.ArcLength(rtol=0.0, atol=1e-14),
        Status.STALLED,
        "float64",
    ),
    "not finite on the way": (
        lambda z: torch.where(z < 2, math.nan, z),
        3 * _ONE,
        "fixed-point",
        hj.ArcLength(),
        Status.DIVERGED,
        "NaN",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_path_that_fails_says_how_and_where(case, backend):
    r, z0, kind, algorithm, status, advice = FAILURES[case]
    solution = hj.solve(hj.HomotopyProblem(r, z0, kind=kind), algorithm, backend=backend, throw=False)
    assert solution.status is status
    assert "lambda = " in solution.message
    assert advice.lower() in solution.message.lower()  # float64 is Julia's Float64
    with pytest.raises(hj.SolveError, match="ArcLength"):
        hj.solve(hj.HomotopyProblem(r, z0, kind=kind), algorithm, backend=backend)


@pytest.mark.parametrize(
    "options",
    [
        {"velocity": 0.0},
        {"velocity": math.inf},
        {"rtol": -1.0},
        {"rtol": 0.0, "atol": 0.0},
        {"first_step": 0.0},
        {"max_step": 0.0},
        {"max_steps": 0},
        {"max_corrections": 0},
        {"linear_solver": "lu"},
        {"predictor": hj.Rodas5P()},
        {"predictor": "tsit5"},
        {"bound": 0.0},
        {"krylov_steps": 0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(hj.ConfigError, match=next(iter(options))):
        hj.ArcLength(**options)


def test_parts_that_do_not_fit_are_refused(backend):
    problem = gallery.get("arctan").problem()
    with pytest.raises(hj.ConfigError, match="ArcLength"):
        hj.solve(problem, hj.Tsit5(), backend=backend)
    with pytest.raises(hj.ConfigError, match="adjoint"):
        hj.solve(problem, hj.ArcLength(), adjoint=hj.DirectAdjoint(), backend=backend)
    with pytest.raises(hj.ConfigError, match="shape"):
        hj.solve(hj.HomotopyProblem(lambda z: z[:1], torch.ones(2)), hj.ArcLength(), backend=backend)
    with pytest.raises(hj.ConfigError, match="velocity"):
        hj.solve(problem, hj.ArcLength(velocity=lambda s: 1 - s), backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_gmres_solves_each_row(n, dtype):
    eps = torch.finfo(dtype).eps
    matrix = torch.randn(3, n, n, dtype=dtype) + 3 * math.sqrt(n) * torch.eye(n, dtype=dtype)
    rhs, guess = torch.randn(2, 3, n, dtype=dtype)

    def product(v):
        return (matrix @ v[:, :, None])[:, :, 0]

    for start in (None, guess):
        x, left = gmres(product, rhs, np.full(3, 1e3 * eps), 2 * n, guess=start)
        assert (torch.linalg.vector_norm(product(x) - rhs, dim=1) <= 1e4 * eps * rhs.norm(dim=1)).all()
        assert (left <= 1e3 * eps).all()
    with np.errstate(all="raise"):
        x, left = gmres(product, rhs * torch.tensor([[0.0], [1.0], [1.0]]), np.array([np.inf, np.inf, 1e-2]), n)
    assert torch.equal(x[:2], torch.zeros(2, n, dtype=dtype))
    assert left[0] == 0
    assert left[2] <= 1e-2
    _, left = gmres(lambda v: v * math.nan, rhs, np.full(3, 1e-12), 5)
    assert (left == math.inf).all()
    x, left = gmres(product, torch.zeros_like(rhs), np.full(3, 1e-12), 5, guess=guess)
    assert torch.equal(x, torch.zeros_like(rhs))
    assert (left == 0).all()


def test_gmres_stops_where_the_space_ends():
    """After one product the answer lies in the space; the rows are not spoilt by what rounding leaves."""
    scale = torch.tensor([[2.0], [5.0], [0.0]])
    rhs = torch.randn(3, 6)
    x, left = gmres(lambda v: scale * v, rhs, np.full(3, 1e-12), 6)
    torch.testing.assert_close(x[:2], rhs[:2] / scale[:2])
    assert left[2] == 1  # singular, nothing found
