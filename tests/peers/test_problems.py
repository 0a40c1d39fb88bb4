"""The problems of the benchmark: references that are right, and the same field in every library."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import homojl as hj
from benchmarks.peers.problems import SYSTEMS, Problem, layer_problem, network_problem, system_problem

pytestmark = pytest.mark.slow

EXACT = [name for name, system in SYSTEMS.items() if system.exact is not None]


@functools.cache
def one_sample(name: str) -> Problem:
    """A system from its own start; its reference is computed once."""
    return system_problem(name, batch=1, saves=50, dtype="float64")


@pytest.mark.parametrize("name", EXACT)
def test_the_reference_is_the_exact_solution(name):
    problem = one_sample(name)
    exact = np.array([SYSTEMS[name].exact(float(t)) for t in problem.ts])
    np.testing.assert_allclose(problem.reference[:, 0], exact, rtol=1e-9, atol=1e-11)


@pytest.mark.needs("diffrax")
@pytest.mark.parametrize(
    "problem",
    [
        *[system_problem(name, batch=3, saves=2) for name in SYSTEMS],
        layer_problem(batch=2, channels=8, size=5),
        network_problem(batch=3),
    ],
    ids=lambda problem: problem.name,
)
def test_jax_has_the_same_field(problem):
    import jax.numpy as jnp

    field, parameters = problem.jax_field()
    with torch.no_grad():
        expected = problem.torch_field(problem.batch)(torch.tensor(0.7), torch.from_numpy(problem.y0))
    found = field(jnp.asarray(0.7), jnp.asarray(problem.y0), parameters)
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=2e-4, atol=2e-4)


@pytest.mark.needs("julia")
@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.julia])
def test_julia_has_the_same_field(name):
    problem = system_problem(name, batch=3, saves=2, dtype="float64")
    y0 = torch.from_numpy(problem.y0)
    found = hj.JuliaField(problem.julia)(torch.tensor(0.7, dtype=torch.float64), y0)
    torch.testing.assert_close(found, problem.torch_field(3)(None, y0), rtol=1e-12, atol=1e-12)


def test_fewer_rows_of_the_layer_are_the_first_rows():
    problem = layer_problem(batch=3, channels=8, size=4)
    y0 = torch.from_numpy(problem.y0)
    with torch.no_grad():
        torch.testing.assert_close(problem.torch_field(2)(None, y0[:2]), problem.torch_field(3)(None, y0)[:2])
