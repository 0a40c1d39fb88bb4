"""Steps that `CheckpointAdjoint` takes again."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import homojl as hj

DTYPE = torch.float64


class Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3, dtype=DTYPE)
        self.evaluations = 0

    def forward(self, t, y, *args):
        self.evaluations += 1
        return torch.tanh(self.linear(y)) + sum(args)


def _gradients(field, adjoint, ts, args=(), algorithm=None, y0=None):
    y0 = torch.ones(2, 3, dtype=DTYPE, requires_grad=True) if y0 is None else y0
    problem = hj.ODEProblem(field, y0, ts, args)
    solution = hj.solve(problem, algorithm or hj.Tsit5(), adjoint=adjoint, backend="pytorch")
    loss = sum((i + 1) * y.square().sum() for i, y in enumerate(solution.states[1:]))
    wanted = [y0, *field.parameters(), *(x for x in args if x.is_leaf)]
    return solution, torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.0, 0.3, 0.31, 0.32, 1.0), (1.0, 0.2, 0.0)])
@pytest.mark.parametrize("algorithm", [hj.RK4(), hj.Tsit5(), hj.Dopri5(max_step=0.2), hj.KenCarp4()])
def test_their_gradient_is_that_of_the_direct_adjoint(algorithm, ts):
    torch.manual_seed(0)
    field = Field()
    direct, expected = _gradients(field, hj.DirectAdjoint(), ts, algorithm=algorithm)
    solution, found = _gradients(field, hj.CheckpointAdjoint(), ts, algorithm=algorithm)
    assert solution.stats.nfe == direct.stats.nfe or isinstance(algorithm, hj.KenCarp4)
    assert torch.equal(solution.ys, direct.ys)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_an_argument_that_is_computed_from_a_parameter_counts_once():
    field = Field()

    def gradient(adjoint):
        y0 = torch.ones(2, 3, dtype=DTYPE)
        args = (field.linear.weight.sum(0),)
        problem = hj.ODEProblem(field, y0, (0.0, 1.0), args)
        value = hj.solve(problem, hj.RK4(), adjoint=adjoint, backend="pytorch").value
        return torch.autograd.grad(value.sum(), field.linear.weight)[0]

    torch.testing.assert_close(gradient(hj.CheckpointAdjoint()), gradient(hj.DirectAdjoint()), rtol=1e-12, atol=1e-12)


def test_hooks_of_parameters_run_once_and_the_field_counts_for_itself():
    field, ran = Field(), []
    field.linear.weight.register_hook(lambda g: ran.append(1))
    solution, _ = _gradients(field, hj.CheckpointAdjoint(), (0.0, 1.0))
    ran.clear()
    problem = hj.ODEProblem(field, torch.ones(2, 3, dtype=DTYPE), (0.0, 1.0))
    field.evaluations = 0
    solution = hj.solve(problem, hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), backend="pytorch")
    solution.value.sum().backward()
    assert ran == [1]
    assert field.evaluations == solution.stats.nfe + solution.stats.nfe_backward


def test_a_parameter_that_was_frozen_or_written_to():
    field = Field()
    y0 = torch.ones(2, 3, dtype=DTYPE, requires_grad=True)
    problem = hj.ODEProblem(field, y0, (0.0, 1.0))
    _, expected = _gradients(field, hj.CheckpointAdjoint(), (0.0, 1.0))
    solution = hj.solve(problem, hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), backend="pytorch")
    field.linear.bias.requires_grad_(False)
    found = torch.autograd.grad(solution.value.square().sum(), [y0, field.linear.weight])
    torch.testing.assert_close(found, tuple(expected[:2]), rtol=1e-9, atol=1e-9)
    field.linear.bias.requires_grad_()
    solution = hj.solve(problem, hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), backend="pytorch")
    with torch.no_grad():
        field.linear.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.value.sum().backward()


def test_a_field_that_draws_is_refused_where_steps_are_taken_again():
    linear = torch.nn.Linear(3, 3, dtype=DTYPE)

    def field(t, y):
        return torch.nn.functional.dropout(linear(y), 0.5)

    y0 = torch.ones(2, 3, dtype=DTYPE)
    problem = hj.ODEProblem(field, y0, (0.0, 1.0))
    solution = hj.solve(problem, hj.RK4(step_size=0.2), adjoint=hj.CheckpointAdjoint(), backend="pytorch")
    with pytest.raises(hj.ConfigError, match="another value in the backward pass"):
        solution.value.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_a_checkpoint_of_pytorch(reentrant):
    field = Field()
    y0 = torch.ones(2, 3, dtype=DTYPE, requires_grad=True)
    problem = lambda y: hj.ODEProblem(field, y, (0.0, 1.0))  # noqa: E731

    def solve(y, algorithm):
        return hj.solve(problem(y), algorithm, adjoint=hj.CheckpointAdjoint(), backend="pytorch").value

    value = checkpoint(solve, y0, hj.Tsit5(), use_reentrant=reentrant)
    found = torch.autograd.grad(value.sum(), y0) if not reentrant else [value.sum().backward(), y0.grad][1:]
    expected = torch.autograd.grad(solve(y0, hj.Tsit5()).sum(), y0)
    torch.testing.assert_close(found[0], expected[0])
    value = checkpoint(solve, y0, hj.Tsit5(first_step=hj.StepMemory()), use_reentrant=reentrant)
    with pytest.raises(hj.ConfigError, match="StepMemory has learnt in between"):
        value.sum().backward()
