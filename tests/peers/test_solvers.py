"""Every adapter solves what it is asked for: answers, gradients and counts agree across the libraries."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers.problems import layer_problem, network_problem, system_problem
from benchmarks.peers.solvers import SOLVERS, Case

pytestmark = pytest.mark.slow

OURS = ["homojl-pytorch", pytest.param("homojl-julia", marks=pytest.mark.needs("julia"))]
ODE_PEERS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("torchdiffeq", "torchode", "diffrax")]


def outcomes(solver: str, case: Case) -> dict:
    assert SOLVERS[solver].missing() is None
    return {name: make()() for name, make in SOLVERS[solver].variants(case).items()}


@pytest.mark.parametrize("solver", [*OURS, *ODE_PEERS])
def test_adaptive_solves_and_their_gradients(solver):
    problem = system_problem("vanderpol", batch=3, saves=5, dtype="float64", interval=2.0)
    found = outcomes(solver, Case(problem, "dopri5", 1e-7, gradient=True))
    assert found
    for outcome in found.values():
        np.testing.assert_allclose(np.asarray(outcome.ys), problem.reference, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(np.asarray(outcome.gradient), problem.reference_gradient, rtol=1e-4, atol=1e-4)
        assert 10 < outcome.steps < 100
        assert 6 * outcome.steps <= outcome.nfe <= 6 * outcome.steps + 3
    (alone,) = outcomes(solver, Case(problem, "dopri5", 1e-7)).values()
    assert alone.gradient is None
    np.testing.assert_array_equal(np.asarray(alone.ys).shape, problem.reference.shape)


@pytest.mark.parametrize("solver", [OURS[0], *ODE_PEERS])
def test_equal_steps(solver):
    problem = network_problem(batch=2, width=8)
    for outcome in outcomes(solver, Case(problem, "midpoint", steps=120, gradient=True)).values():
        assert outcome.steps in (120, 121)  # a last step of rounding's size
        np.testing.assert_allclose(np.asarray(outcome.ys), problem.reference, atol=2e-4)
        np.testing.assert_allclose(np.asarray(outcome.gradient), problem.reference_gradient, atol=1e-3)


@pytest.mark.parametrize("solver", ["homojl-pytorch", pytest.param("torchdeq", marks=pytest.mark.needs("torchdeq"))])
def test_equilibria(solver):
    problem = layer_problem(batch=2, channels=8, size=4, equilibrium=True)
    case = Case(problem, "anderson", 1e-5, gradient=True)
    (expected,) = outcomes("homojl-pytorch", Case(problem, "broyden", 1e-6, gradient=True)).values()
    (found,) = outcomes(solver, case).values()
    # A layer with random weights: an equilibrium moves by some hundred times its residual.
    np.testing.assert_allclose(found.ys.numpy(), expected.ys.numpy(), atol=1e-2)
    relative = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
    assert relative < 1e-2


@pytest.mark.parametrize("solver", [OURS[0], pytest.param("diffrax", marks=pytest.mark.needs("diffrax"))])
def test_a_stiff_system_by_an_implicit_method(solver):
    problem = system_problem("kaps", batch=1, saves=5, dtype="float64")
    (outcome,) = outcomes(solver, Case(problem, "kvaerno5", 1e-5)).values()
    np.testing.assert_allclose(np.asarray(outcome.ys), problem.reference, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_a_library_lacks_it_does_not_offer(solver):
    problem = system_problem("kaps", batch=1, saves=5)
    assert SOLVERS[solver].variants(Case(problem, "anderson", 1e-5)) == {}
