"""Errors at every save time, against SciPy at 1e-12, by every adaptive method on the whole catalogue."""

from __future__ import annotations

import functools

import pytest
import torch

import homojl as hj
from benchmarks.peers.bars import ALLOWED_ERROR
from benchmarks.peers.experiments import ACCURACY_SAVES
from benchmarks.peers.magnification import magnification
from benchmarks.peers.problems import SYSTEMS, Problem, system_problem
from homojl.algorithms import ODE_ALGORITHMS, AbstractErrorControlled, AbstractImplicit

# Fehlberg's pair of order 2 has an estimate of the error that is up to 512 times too small: see its docstring.
METHODS = [
    cls
    for cls in ODE_ALGORITHMS.values()
    if issubclass(cls, AbstractErrorControlled) and cls.tableau is not None and cls is not hj.Fehlberg2
]
# An explicit method takes thousands of steps for the stiff system; benchmarks/accuracy.py takes them.
CASES = [
    pytest.param(name, cls, id=f"{name}-{cls.__name__}")
    for name, system in SYSTEMS.items()
    for cls in METHODS
    if issubclass(cls, AbstractImplicit) or not system.stiff
]


@functools.cache
def one_sample(name: str) -> Problem:
    return system_problem(name, batch=1, saves=ACCURACY_SAVES, dtype="float64")


def tolerances_of(cls):
    """Those that the method is for: TRBDF2's error falls more slowly than its tolerance, as the power 2/3."""
    if cls.order == 2:
        return 1e-3, 1e-4
    return (1e-3, 1e-5) if issubclass(cls, AbstractImplicit) else (1e-3, 1e-5, 1e-7)


@pytest.mark.parametrize(("name", "cls"), CASES)
def test_at_most_ten_times_the_tolerance_and_what_the_system_makes_of_it(name, cls):
    problem = one_sample(name)
    field, reference = problem.torch_field(1), torch.from_numpy(problem.reference)
    # Systems with a formula for their solution hardly magnify errors: they have no allowance.
    allowed = ALLOWED_ERROR * (1.0 if SYSTEMS[name].exact is not None else magnification(name, ACCURACY_SAVES))
    for tolerance in tolerances_of(cls):
        ode = hj.ODEProblem(field, torch.from_numpy(problem.y0), problem.ts)
        with torch.no_grad():
            ys = hj.solve(ode, cls(rtol=tolerance, atol=tolerance), backend="pytorch").ys
        error = ((ys - reference).abs() / (1 + reference.abs())).max().item()
        assert error <= allowed * tolerance, tolerance


def test_magnification_of_a_linear_system_is_that_of_its_matrix():
    problem, size = one_sample("linear"), 1 + torch.from_numpy(one_sample("linear").reference)[:, 0].abs()
    matrix = torch.tensor([[-0.5, 2.0, 0.3], [-2.0, -0.2, 0.1], [0.4, -0.3, -1.0]], dtype=torch.float64)
    largest = 1.0
    for i, t in enumerate(problem.ts):
        for j, later in enumerate(problem.ts[i:], start=i):
            carried = torch.linalg.matrix_exp(matrix * (later - t)) * size[i] / size[j][:, None]
            largest = max(largest, torch.linalg.matrix_norm(carried, torch.inf).item())
    assert magnification("linear", ACCURACY_SAVES) == pytest.approx(largest, rel=1e-6)


def test_magnification_of_an_orbit_grows_with_its_length():
    """A Kepler orbit's period follows its size, so that an error along it grows by as much in every turn."""
    assert 100 < magnification("kepler", ACCURACY_SAVES) < 10_000
    assert magnification("logistic", ACCURACY_SAVES) < 3
