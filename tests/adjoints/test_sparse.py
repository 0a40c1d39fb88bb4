"""Sparse matrices as arguments: values and gradients are those of the dense matrix at the entries it has."""

from __future__ import annotations

import pytest
import torch

import homojl as hj

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ADJOINTS = [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.BacksolveAdjoint(), hj.GaussAdjoint()]
EQUILIBRIA = [hj.Anderson(rtol=1e-10, atol=1e-12), hj.NewtonKrylov(rtol=1e-10, atol=1e-12)]
MATRIX = torch.tensor([[-2.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -2.0]], dtype=torch.float64)


def columns() -> torch.Tensor:
    return torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_gradient_through_an_ode_with_respect_to_a_sparse_matrix(adjoint, layout):
    a = getattr(MATRIX, layout)().requires_grad_()
    problem = hj.ODEProblem(lambda t, y, a: torch.sparse.mm(a, y), columns(), [0.0, 1.0], args=(a,))
    value = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint).value
    dense = MATRIX.clone().requires_grad_()
    expected = torch.linalg.matrix_exp(dense) @ columns()
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    (grad,) = torch.autograd.grad(value.sum(), a)
    (want,) = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(grad.to_dense(), want * (MATRIX != 0), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("algorithm", EQUILIBRIA, ids=lambda a: a.name)
def test_gradient_of_an_equilibrium_with_respect_to_a_sparse_matrix(algorithm):
    a, b = MATRIX.to_sparse().requires_grad_(), torch.ones(3, 1, dtype=torch.float64)
    problem = hj.FixedPointProblem(lambda z: 0.2 * torch.sparse.mm(a, z) + b, torch.zeros_like(b))
    value = hj.solve(problem, algorithm).value
    dense = MATRIX.clone().requires_grad_()
    expected = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - 0.2 * dense, b)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    (grad,) = torch.autograd.grad(value.sum(), a)
    (want,) = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(grad.to_dense(), want * (MATRIX != 0), rtol=1e-6, atol=0)


def test_a_sparse_state_is_refused():
    with pytest.raises(hj.ConfigError, match=r"y0 must be dense, got a sparse tensor; convert it with y0.to_dense\(\)"):
        hj.solve(hj.ODEProblem(lambda t, y: -y, MATRIX.to_sparse(), [0.0, 1.0]), hj.Tsit5())
