"""Equilibria and roots as PyTorch's functions: autograd's own rules, further derivatives, and `torch.func`."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch.autograd import forward_ad

import homojl as hj

TIGHT = hj.Anderson(rtol=1e-12, atol=0.0, max_steps=300)


def tensors(*shapes, scale=0.4):
    generator = torch.Generator().manual_seed(4)
    return tuple(scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def solved(x, w, z0=None, algorithm=TIGHT, adjoint=None, **how):
    """z = tanh(z w + x)"""
    z0 = torch.zeros_like(x) if z0 is None else z0
    problem = hj.FixedPointProblem(lambda z, x, w: torch.tanh(z @ w + x), z0, args=(x, w))
    return hj.solve(problem, algorithm, adjoint=adjoint, backend="pytorch", **how).value


def iterated(x, w):
    z = torch.zeros_like(x)
    for _ in range(200):
        z = torch.tanh(z @ w + x)
    return z


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        (self.w,) = (torch.nn.Parameter(w) for w in tensors((3, 3)))

    def forward(self, z, x):
        return torch.tanh(z @ self.w + x)


class Model(torch.nn.Module):
    def __init__(self, adjoint=None):
        super().__init__()
        self.layer, self.adjoint = Layer(), adjoint

    def forward(self, x):
        problem = hj.FixedPointProblem(self.layer, torch.zeros_like(x), args=(x,))
        return hj.solve(problem, TIGHT, adjoint=self.adjoint, backend="pytorch").value


class TestAutogradsRules:
    def test_a_parameter_that_has_changed_is_autograds_error(self):
        model, (x,) = Model(), tensors((4, 3))
        value = model(x)
        with torch.no_grad():
            model.layer.w.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.sum().backward()

    def test_a_parameter_that_has_been_replaced_is_not_asked(self):
        model, (x,) = Model(), tensors((4, 3))
        old = model.layer.w
        (expected,) = torch.autograd.grad(model(x).square().sum(), old)
        value = model(x)
        model.layer.w = torch.nn.Parameter(torch.zeros(3, 3).double())
        torch.testing.assert_close(torch.autograd.grad(value.square().sum(), old)[0], expected)

    def test_functional_call_with_the_backward_pass_outside(self):
        model, (x, w) = Model(), tensors((4, 3), (3, 3))
        w.requires_grad_()
        value = torch.func.functional_call(model, {"layer.w": w}, (x,))
        (grad,) = torch.autograd.grad(value.square().sum(), w)
        torch.testing.assert_close(grad, torch.autograd.grad(iterated(x, w).square().sum(), w)[0])

    def test_hooks_of_parameters_run_once(self):
        model, (x,) = Model(), tensors((4, 3))
        (expected,) = torch.autograd.grad(model(x).sum(), model.layer.w)
        model.layer.w.register_hook(lambda g: 2 * g)
        model(x).sum().backward()
        torch.testing.assert_close(model.layer.w.grad, 2 * expected)

    def test_a_module_that_keeps_its_solution_is_freed(self):
        gone = []
        for _ in range(3):
            model, (x,) = Model(), tensors((4, 3))
            model.layer.last = model(x)
            gone.append(weakref.ref(model.layer))
            del model
            gc.collect()
        assert not any(r() for r in gone)

    @pytest.mark.parametrize(
        "adjoint", [hj.ImplicitAdjoint(), hj.PhantomAdjoint(), hj.UnrolledAdjoint()], ids=lambda a: a.name
    )
    def test_meta_learning(self, adjoint):
        """The gradient of a loss after a step of gradient descent on another, by finite differences."""
        model, (x, y) = Model(adjoint), tensors((4, 3), (4, 3))

        def adapted(w):
            loss = torch.func.functional_call(model, {"layer.w": w}, (x,)).square().sum()
            (g,) = torch.autograd.grad(loss, w, create_graph=True)
            return torch.func.functional_call(model, {"layer.w": w - 0.3 * g}, (y,)).sin().sum()

        w = model.layer.w.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(adapted(w), w)
        direction = tensors((2, 3, 3))[0][1]
        ends = [adapted((w.detach() + s * 1e-4 * direction).requires_grad_()).item() for s in (1, -1)]
        tolerance = 1e-6 if not isinstance(adjoint, hj.PhantomAdjoint) else 0.2  # an inexact gradient
        assert (grad * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=tolerance)

    def test_a_gradient_that_does_not_exist(self):
        """Of an argument it is zero, of what f holds None."""
        x, w = (t.requires_grad_() for t in tensors((4, 3), (3, 3)))
        layer = Layer()
        problem = hj.FixedPointProblem(
            lambda z, x, w: 0.5 * z + x + 0 * len(list(layer.parameters())), torch.zeros(4, 3).double(), args=(x, w)
        )
        value = hj.solve(problem, TIGHT, backend="pytorch").value
        grads = torch.autograd.grad(value.sum(), [x, w, layer.w], allow_unused=True)
        torch.testing.assert_close(grads[0], torch.full_like(x, 2.0))
        assert not grads[1].any()
        assert grads[2] is None

    def test_the_values_own_gradient(self):
        x, w = tensors((4, 3), (3, 3))
        value = solved(x.requires_grad_(), w)
        assert torch.equal(torch.autograd.grad((5 * value).sum(), value)[0], torch.full_like(x, 5.0))

    def test_a_map_that_is_not_deterministic_is_refused(self):
        x, _ = tensors((4, 3), (1,))
        drop = torch.nn.Dropout(0.5)
        calls = []

        def f(z, x):
            calls.append(1)
            return torch.tanh(0.3 * z + x) if len(calls) < 50 else torch.tanh(0.3 * z + drop(x))

        problem = hj.FixedPointProblem(f, torch.zeros_like(x), (x.requires_grad_(),))
        value = hj.solve(problem, TIGHT, backend="pytorch").value
        calls += [1] * 50
        with pytest.raises(hj.ConfigError, match="not deterministic"):
            value.sum().backward()


class TestSamplesThatFail:
    @pytest.mark.parametrize("algorithm", [TIGHT, hj.NewtonKrylov(rtol=1e-12, atol=0.0)], ids=lambda a: a.name)
    @pytest.mark.parametrize("adjoint", [hj.ImplicitAdjoint(), hj.PhantomAdjoint()], ids=lambda a: a.name)
    @pytest.mark.parametrize("twice", [False, True])
    def test_they_take_no_part_in_anyones_gradient(self, algorithm, adjoint, twice):
        x, w = tensors((5, 3), (3, 3))
        x[1, 0], x[3, 2] = math.nan, math.inf
        x[3] *= 0
        sound = [0, 2, 4]
        grads = []
        for part in (x, x[sound]):
            part, w = part.clone().requires_grad_(), w.clone().requires_grad_()
            problem = hj.FixedPointProblem(
                lambda z, x, w: torch.tanh(z @ w + x), torch.zeros_like(part), args=(part, w)
            )
            s = hj.solve(problem, algorithm, adjoint=adjoint, throw=False, backend="pytorch")
            assert s.converged.sum() == 3
            found = torch.autograd.grad(s.value[s.converged].sin().sum(), [part, w], create_graph=twice)
            if twice:
                found = torch.autograd.grad(found[1].sum(), [part, w])
            grads.append(found)
        torch.testing.assert_close(grads[0][1], grads[1][1])
        torch.testing.assert_close(grads[0][0][sound], grads[1][0])
        assert not grads[0][0][[1, 3]].any()

    @pytest.mark.parametrize("value", [math.inf, math.nan])
    def test_a_loss_that_is_not_finite_reaches_the_scaler(self, value):
        x, w = (t.requires_grad_() for t in tensors((4, 3), (3, 3)))
        (solved(x, w)[1] * value).sum().backward()
        assert not torch.isfinite(w.grad).any()
        assert torch.isfinite(x.grad[[0, 2, 3]]).all()
        assert not torch.isfinite(x.grad[1]).any()


class TestFurtherDerivatives:
    @pytest.mark.parametrize("algorithm", [TIGHT, hj.NewtonKrylov(rtol=1e-12, atol=0.0)], ids=lambda a: a.name)
    def test_second_ones_by_finite_differences(self, algorithm):
        x, w = (t.requires_grad_() for t in tensors((3, 2), (2, 2)))
        assert torch.autograd.gradgradcheck(lambda x, w: solved(x, w, algorithm=algorithm), (x, w), atol=1e-5)

    def test_third_ones(self):
        (x,) = (t.requires_grad_() for t in tensors((1,), scale=1.0))

        def third(value):
            for _ in range(3):
                (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            return value

        problem = hj.FixedPointProblem(lambda z, x: 0.5 * torch.sin(z) + x[:, None], torch.zeros(1, 1).double(), (x,))
        z = torch.zeros(1, 1).double()
        for _ in range(100):
            z = 0.5 * torch.sin(z) + x[:, None]
        torch.testing.assert_close(third(hj.solve(problem, TIGHT, backend="pytorch").value), third(z))

    def test_those_by_captured_parameters(self):
        (x,), found = tensors((4, 3)), []
        for adjoint in (hj.ImplicitAdjoint(), hj.UnrolledAdjoint()):
            model = Model(adjoint)
            (g,) = torch.autograd.grad(model(x).square().sum(), model.layer.w, create_graph=True)
            found.append(torch.autograd.grad(g.square().sum(), model.layer.w)[0])
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)

    def test_those_of_a_batch_that_mixes(self):
        x, w = (t.requires_grad_() for t in tensors((4, 2), (2, 2)))

        def value(x, w):
            problem = hj.FixedPointProblem(
                lambda z, x, w: torch.tanh(z @ w + 0.3 * z.mean(0) + x), torch.zeros(4, 2).double(), (x, w)
            )
            with pytest.warns(UserWarning, match="mixes the samples"):
                return hj.solve(problem, TIGHT, backend="pytorch").value

        assert torch.autograd.gradcheck(value, (x, w), atol=1e-6)
        assert torch.autograd.gradgradcheck(value, (x, w), atol=1e-5)


class TestTorchFunc:
    x, w = tensors((3, 2), (2, 2))

    def loss(self, x, w):
        return solved(x, w).sin().sum()

    def known(self, x, w):
        return iterated(x, w).sin().sum()

    def test_grad_and_vjp(self):
        for one, other in zip(
            torch.func.grad(self.loss, argnums=(0, 1))(self.x, self.w),
            torch.func.grad(self.known, argnums=(0, 1))(self.x, self.w),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
        _, pull = torch.func.vjp(solved, self.x, self.w)
        _, known = torch.func.vjp(iterated, self.x, self.w)
        for one, other in zip(pull(self.x), known(self.x), strict=True):
            torch.testing.assert_close(one, other)

    def test_jacobians_of_both_modes(self):
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            for argument in (0, 1):
                one, other = (transform(f, argnums=argument)(self.x, self.w) for f in (solved, iterated))
                torch.testing.assert_close(one, other)

    def test_forward_mode(self):
        tangents = 2 * self.x, self.w.T
        one, other = (torch.func.jvp(f, (self.x, self.w), tangents)[1] for f in (solved, iterated))
        torch.testing.assert_close(one, other)
        with forward_ad.dual_level():
            dual = solved(forward_ad.make_dual(self.x, tangents[0]), forward_ad.make_dual(self.w, tangents[1]))
            torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, other)

    def test_second_derivatives_of_every_order_of_modes(self):
        for outer in (torch.func.jacrev, torch.func.jacfwd):
            for inner in (torch.func.jacrev, torch.func.jacfwd):
                one, other = (outer(inner(f, argnums=1), argnums=1)(self.x, self.w) for f in (self.loss, self.known))
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)

    def test_vmap(self):
        xs, ws = tensors((5, 3, 2), (5, 2, 2))
        moved = xs.movedim(0, 1), ws.movedim(0, 2)
        for dims, args in (((0, None), (xs, self.w)), ((None, 0), (self.x, ws)), ((0, 0), (xs, ws)), ((1, 2), moved)):
            one, other = (torch.func.vmap(f, in_dims=dims)(*args) for f in (solved, iterated))
            torch.testing.assert_close(one, other)
            one, other = (torch.func.vmap(torch.func.grad(f), in_dims=dims)(*args) for f in (self.loss, self.known))
            torch.testing.assert_close(one, other)
        twice = torch.func.vmap(torch.func.vmap(solved, in_dims=(0, None)), in_dims=(None, 0))(xs, ws)
        torch.testing.assert_close(twice[2, 3], iterated(xs[3], ws[2]))

    def test_a_gradient_through_vmap(self):
        xs, w = *tensors((5, 3, 2)), self.w.clone().requires_grad_()
        found = [
            torch.autograd.grad(torch.func.vmap(f, in_dims=(0, None))(xs, w).sin().sum(), w)[0]
            for f in (solved, iterated)
        ]
        torch.testing.assert_close(*found)

    def test_gradients_by_a_batch_of_cotangents(self):
        x = self.x.clone().requires_grad_()
        one, other = (torch.autograd.functional.jacobian(lambda x, f=f: f(x, self.w), x) for f in (solved, iterated))
        torch.testing.assert_close(one, other)
        with pytest.raises(hj.ConfigError, match=r"use torch\.func\.jacrev"):
            torch.autograd.functional.jacobian(lambda x: solved(x, self.w), x, vectorize=True)

    def test_parameters_by_functional_call(self):
        model, known = Model(), Layer()

        def loss(params, x):
            return torch.func.functional_call(model, params, (x,)).square().sum()

        x = tensors((6, 4, 3))[0]
        params = {"layer.w": known.w.detach()}
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)["layer.w"]
        for i in range(6):
            w = known.w.detach().clone().requires_grad_()
            (expected,) = torch.autograd.grad(iterated(x[i], w).square().sum(), w)
            torch.testing.assert_close(per_sample[i], expected)

    @pytest.mark.parametrize("adjoint", [hj.PhantomAdjoint(), hj.OneStepAdjoint(), hj.UnrolledAdjoint()])
    def test_what_does_not_go_through_is_refused(self, adjoint):
        for run in (
            lambda: torch.func.grad(lambda x: solved(x, self.w, adjoint=adjoint).sum())(self.x),
            lambda: torch.func.vmap(lambda x: solved(x, self.w, adjoint=adjoint))(self.x[None]),
            lambda: torch.func.jvp(lambda x: solved(x, self.w, adjoint=adjoint), (self.x,), (self.x,)),
        ):
            with pytest.raises(hj.ConfigError, match=r"torch\.func"):
                run()


class TestRoots:
    def end(self, a, algorithm=None):
        algorithm = algorithm or hj.ArcLength(rtol=1e-12, atol=1e-12)
        problem = hj.HomotopyProblem(lambda z, a: z**3 + 0.1 * z.sum() - a, torch.ones(2).double(), args=(a,))
        return hj.solve(problem, algorithm, backend="pytorch").value

    @pytest.mark.parametrize("linear_solver", ["dense", "krylov"])
    def test_derivatives_by_finite_differences(self, linear_solver):
        a = torch.tensor([3.0, 2.0], dtype=torch.float64, requires_grad=True)
        algorithm = hj.ArcLength(rtol=1e-12, atol=1e-12, linear_solver=linear_solver)
        assert torch.autograd.gradcheck(lambda a: self.end(a, algorithm), a, atol=1e-6)
        assert torch.autograd.gradgradcheck(lambda a: self.end(a, algorithm), a, atol=1e-5)

    def test_the_values_own_gradient_and_an_argument_that_has_changed(self):
        a = torch.tensor([3.0, 2.0], dtype=torch.float64, requires_grad=True)
        value = self.end(a)
        assert torch.equal(torch.autograd.grad((5 * value).sum(), value)[0], torch.full_like(a, 5.0))
        with torch.no_grad():
            a.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.sum().backward()

    def test_a_loss_that_is_not_finite_reaches_the_scaler(self):
        a = torch.tensor([3.0, 2.0], dtype=torch.float64, requires_grad=True)
        (math.inf * self.end(a)).sum().backward()
        assert not torch.isfinite(a.grad).any()

    def test_transforms_are_refused(self):
        a = torch.tensor([3.0, 2.0], dtype=torch.float64)
        for run in (
            lambda: torch.func.grad(lambda a: self.end(a).sum())(a),
            lambda: torch.func.jvp(self.end, (a,), (a,)),
        ):
            with pytest.raises(hj.ConfigError, match=r"torch\.func"):
                run()
