"""Programs as people write them, whose gradients are to be those of the solve's own operations."""

from __future__ import annotations

import functools
import math
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import homojl as hj

RECOMPUTING = {
    "checkpoint": hj.CheckpointAdjoint(),
    "gauss": hj.GaussAdjoint(),
    "backsolve": hj.BacksolveAdjoint(),
}
TIGHT = hj.Tsit5(rtol=1e-9, atol=1e-9)
Weights = namedtuple("Weights", "W b")


@dataclass(frozen=True)
class Frozen:
    W: torch.Tensor
    b: torch.Tensor


class Slotted:
    __slots__ = ("W", "b")

    def __init__(self, W: torch.Tensor, b: torch.Tensor) -> None:
        self.W, self.b = W, b


class Plain:
    def __init__(self, W: torch.Tensor, b: torch.Tensor) -> None:
        self.W, self.b = W, b


def solved(f, y0, adjoint, ts=(0.0, 1.0), algorithm=TIGHT, **options):
    return hj.solve(hj.ODEProblem(f, y0, ts, **options), algorithm, adjoint=adjoint, backend="pytorch").value


def states(rows=3, size=2):
    return torch.linspace(-1.0, 1.0, rows * size, dtype=torch.float64).view(rows, size)


def agree(loss, parameters, adjoint):
    """The gradients of loss(adjoint) by the parameters are those of DirectAdjoint."""
    found, expected = (torch.autograd.grad(loss(a), parameters) for a in (adjoint, hj.DirectAdjoint()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.fixture(params=RECOMPUTING)
def adjoint(request):
    return RECOMPUTING[request.param]


class TestWhatHoldsItself:
    def test_a_layer_of_a_modules_own_method(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2, 2).double()
                self.ode = hj.nn.ODE(self.field, TIGHT)
                self.parts = [self, (self.field,)]
                self.partial = functools.partial(self.field, scale=1.0)
                self.other = hj.nn.ODE(self.partial, TIGHT)

            def field(self, t, y, scale=1.0):
                return torch.tanh(scale * self.linear(y))

        model, y0 = Model(), states()
        for layer in (model.ode, model.other):
            found = torch.autograd.grad(layer(y0).sum(), model.linear.weight)
            expected = torch.autograd.grad(solved(model.field, y0, hj.DirectAdjoint()).sum(), model.linear.weight)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    def test_a_block_of_an_equilibrium(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2, 2).double()
                self.layer = hj.nn.Equilibrium(self.block, hj.Picard(rtol=1e-10, max_steps=500), init=None)

            def block(self, z, x):
                return 0.3 * torch.tanh(self.linear(z)) + x

        model = Model()
        model.layer(states()).sum().backward()
        assert model.linear.weight.grad.abs().sum() > 0


class TestSharedGradients:
    """Autograd may return one tensor as the gradient of two inputs, or one that is expanded."""

    @pytest.mark.parametrize("algorithm", [hj.Euler, hj.Midpoint, hj.ImplicitEuler, hj.RK4])
    def test_two_conditions_that_are_added(self, algorithm):
        def loss(adjoint):
            return solved(lambda t, y: a + b - y, torch.ones(3, dtype=torch.float64), adjoint, algorithm=method).sum()

        a, b = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        method = algorithm(step_size=0.25)
        agree(loss, (a, b), hj.CheckpointAdjoint())

    def test_an_expanded_one(self):
        x = torch.ones(2, 3, requires_grad=True)
        y = solved(
            lambda t, y: x - 0.5 * y, torch.zeros(2, 3), hj.CheckpointAdjoint(), (0.0, 4.0), hj.Euler(step_size=1.0)
        )
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.full((2, 3), sum(0.5**k for k in range(4))))


class TestTensorsInObjects:
    def test_what_a_forward_method_reads_from_around_it(self, adjoint):
        torch.manual_seed(0)
        net, k = nn.Linear(2, 2).double(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

        class Field(nn.Module):
            def forward(self, t, y):
                return k * torch.tanh(net(y))

        agree(lambda a: solved(Field(), states(), a).sum(), (net.weight, k), adjoint)

    @pytest.mark.parametrize(
        "make",
        [
            Weights,
            Frozen,
            Slotted,
            Plain,
            lambda W, b: SimpleNamespace(W=W, b=b),
            lambda W, b: OrderedDict(W=W, b=b),
            lambda W, b: defaultdict(list, W=W, b=b),
            lambda W, b: deque([W, b]),
            lambda W, b: {"deep": [(W, {"b": b})]},
        ],
    )
    def test_of_a_hypernetwork(self, make):
        def parts(held):
            if isinstance(held, dict):
                return (held["deep"][0][0], held["deep"][0][1]["b"]) if "deep" in held else (held["W"], held["b"])
            return tuple(held) if isinstance(held, deque) else (held.W, held.b)

        torch.manual_seed(0)
        hyper, base = nn.Linear(1, 6).double(), nn.Linear(2, 2).double()

        def loss(adjoint):
            h = hyper(torch.ones(1, dtype=torch.float64))
            held = make(h[:4].view(2, 2), h[4:])

            def field(t, y):
                W, b = parts(held)
                return torch.tanh(y @ W + b) + base(y)

            return solved(field, states(), adjoint).square().sum()

        agree(loss, tuple(hyper.parameters()), hj.CheckpointAdjoint())

    def test_what_cannot_be_found_is_refused(self):
        """Held where nobody looks, though the parameters that it comes from are known."""
        net = nn.Linear(2, 2).double()
        hidden = 2 * net.weight
        held = {1: frozenset([hidden])}

        def field(t, y):
            return net(y) @ next(iter(held[1]))

        y = solved(field, states(), hj.CheckpointAdjoint())
        with pytest.raises(hj.ConfigError, match="does not follow"):
            y.sum().backward()


class TestWhatChanges:
    def test_numbers_of_a_loop(self, adjoint):
        w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        loss = 0.0
        for k in (1.0, 2.0):
            loss = loss + solved(lambda t, y: -k * w * y, torch.ones(1, 1, dtype=torch.float64), adjoint).sum()  # noqa: B023
        (found,) = torch.autograd.grad(loss, w)
        assert found.item() == pytest.approx(-math.exp(-1) - 2 * math.exp(-2), rel=1e-6)

    def test_what_the_first_evaluation_sets_up(self, adjoint):
        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.w, self.noise = nn.Parameter(torch.tensor(0.5, dtype=torch.float64)), None

            def forward(self, t, y):
                if self.noise is None:
                    self.noise = torch.randn_like(y)
                    self.squared = self.w**2
                return -self.squared * self.noise * y

        f = Field()
        solved(f, torch.ones(3, 1, dtype=torch.float64), adjoint).sum().backward()
        expected = -2 * 0.5 * (f.noise * torch.exp(-0.25 * f.noise)).sum()
        torch.testing.assert_close(f.w.grad, expected, rtol=1e-6, atol=1e-9)

    def test_another_attribute_is_refused_where_it_is_live(self):
        class Field:
            k = 1.0

            def __init__(self):
                self.w = w

            def __call__(self, t, y):
                return -Field.k * self.w * y

        w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        for adjoint in RECOMPUTING.values():
            Field.k = 1.0
            y = solved(Field(), torch.ones(1, dtype=torch.float64), adjoint)
            Field.k = 2.0
            with pytest.raises(hj.ConfigError, match="another value in the backward pass"):
                y.sum().backward()

    def test_a_part_of_the_model_that_the_field_does_not_use(self, adjoint):
        model = nn.ModuleDict({"g": nn.Linear(2, 2).double(), "d": nn.Linear(2, 1).double()})
        model.register_buffer("mean", torch.zeros(20_000))
        loss = solved(lambda t, y: torch.tanh(model["g"](y)), states(), adjoint).square().sum()
        (expected,) = torch.autograd.grad(loss, model["g"].weight, retain_graph=True)
        with torch.no_grad():
            model["d"].weight.add_(1.0)
            model.mean.add_(1.0)
        (found,) = torch.autograd.grad(loss, model["g"].weight)
        torch.testing.assert_close(found, expected)

    def test_a_large_buffer_that_it_uses(self, adjoint):
        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
                self.register_buffer("scale", torch.ones(20_000, dtype=torch.float64))

            def forward(self, t, y):
                return -self.w * self.scale[: y.shape[1]] * y

        f = Field()
        y = solved(f, states(), adjoint)
        f.scale.mul_(2)
        with pytest.raises(hj.HomoJLError):
            y.sum().backward()

    def test_a_small_buffer_keeps_its_value(self, adjoint):
        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
                self.register_buffer("scale", torch.ones(2, dtype=torch.float64))

            def forward(self, t, y):
                return -self.w * self.scale * y

        f, y0 = Field(), states()
        y = solved(f, y0, adjoint)
        f.scale.mul_(2)
        y.sum().backward()
        assert f.w.grad.item() == pytest.approx(-(y0 * math.exp(-1)).sum().item(), abs=1e-7)

    def test_freezing_before_the_backward_pass(self):
        linear, x = nn.Linear(2, 2).double(), states().requires_grad_()
        z = hj.nn.Equilibrium(lambda z, x: torch.tanh(0.3 * linear(z) + x), hj.Anderson(rtol=1e-8))(x)
        y = hj.nn.ODE(lambda t, y: torch.tanh(linear(y)))(x)
        linear.requires_grad_(False)
        (z.sum() + y.sum()).backward()
        assert x.grad.abs().sum() > 0

    def test_a_compiled_module_is_evaluated_as_it_was(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        net.compile(backend="eager")
        agree(
            lambda adjoint: solved(lambda t, y: net(y), states(), adjoint).sum(),
            tuple(net.parameters()),
            hj.CheckpointAdjoint(),
        )

    def test_lazy_layers(self, adjoint):
        net = nn.LazyLinear(2)
        solved(lambda t, y: torch.tanh(net(y)), states().float(), adjoint, algorithm=hj.Tsit5()).sum().backward()
        assert net.weight.grad is not None


class TestOtherWays:
    """By which a function reaches its parameters."""

    def test_hooks_of_modules(self, adjoint):
        torch.manual_seed(0)
        net, extra = nn.Linear(2, 2).double(), nn.Parameter(torch.ones(2, dtype=torch.float64))
        net.register_forward_hook(lambda module, inputs, output: output * extra)
        agree(lambda a: solved(lambda t, y: torch.tanh(net(y)), states(), a).sum(), (net.weight, extra), adjoint)

    def test_a_parent_by_weak_reference(self, adjoint):
        class Child(nn.Module):
            def forward(self, t, y):
                return -self.parent().w * y

        parent = nn.Module()
        parent.w, parent.child = nn.Parameter(torch.ones(2, dtype=torch.float64)), Child()
        parent.child.parent = weakref.ref(parent)
        agree(lambda a: solved(parent.child, states(), a).sum(), (parent.w,), adjoint)

    @pytest.mark.parametrize("kept", ["itself", "getattr", "own new", "checked", "copy", "state"])
    def test_objects_that_are_made_or_copied_in_their_own_way(self, kept):
        class Attributes(dict):
            def __init__(self, **items):
                super().__init__(**items)
                self.__dict__ = self

        class Wrapper:
            def __init__(self, w):
                self.w = w

            def __getattr__(self, name):
                return getattr(self.inner, name)

        class Own:
            def __new__(cls, w):
                made = super().__new__(cls)
                made.w = w
                return made

        class Checked:
            def __init__(self, w):
                self.w = w

            @property
            def w(self):
                return self.__dict__["_w"]

            @w.setter
            def w(self, value):
                assert value is not None
                self.__dict__["_w"] = value

        class Same(Plain):
            def __copy__(self):
                return self

        class Forgetful(Plain):
            def __getstate__(self):
                return {}

        w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        held = {
            "itself": lambda: Attributes(w=w),
            "getattr": lambda: Wrapper(w),
            "own new": lambda: Own(w),
            "checked": lambda: Checked(w),
            "copy": lambda: Same(w, w),
            "state": lambda: Forgetful(w, w),
        }[kept]()
        name = "W" if kept in ("copy", "state") else "w"
        agree(lambda a: solved(lambda t, y: -getattr(held, name) * y, states(), a).sum(), (w,), hj.CheckpointAdjoint())
        assert getattr(held, name) is w

    def test_activations_that_are_kept(self, adjoint):
        class Field(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 2).double()

            def forward(self, t, y):
                self.hidden = self.net(y)
                self.out = torch.tanh(self.hidden)
                return self.out

        torch.manual_seed(0)
        f = Field()
        agree(lambda a: solved(f, states(), a).sum(), (f.net.weight,), adjoint)

    def test_a_cache_is_refused(self, adjoint):
        w = torch.ones(2, dtype=torch.float64, requires_grad=True)

        @functools.cache
        def weight():
            return w

        def field(t, y):
            return -weight() * y + 0 * w

        y = solved(field, states(), adjoint)
        with pytest.raises(hj.ConfigError, match="does not follow"):
            y.sum().backward()

    def test_threads(self, adjoint):
        w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        with ThreadPoolExecutor(1) as pool:
            agree(lambda a: solved(lambda t, y: pool.submit(lambda: -w * y).result(), states(), a).sum(), (w,), adjoint)


def test_a_functions_own_counter(adjoint):
    def f(t, y):
        f.nfe += 1
        return -w * y

    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    f.nfe = 0
    y = solved(f, states(), adjoint)
    forward = f.nfe
    y.sum().backward()
    assert f.nfe > forward > 0


def test_own_counters_count_the_backward_pass():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.nfe = nn.Linear(2, 2), 0

        def forward(self, t, y):
            self.nfe += 1
            return self.linear(y)

    f = Field()
    y = hj.odeint_adjoint(f, torch.ones(1, 2), torch.tensor([0.0, 1.0]))
    forward, f.nfe = f.nfe, 0
    y[-1].sum().backward()
    assert forward > 0
    assert f.nfe > 0


class TestTimes:
    @pytest.mark.parametrize(
        "make", [lambda T: (0.0, T), lambda T: [torch.zeros(()), T], lambda T: torch.stack([0 * T, T])]
    )
    def test_one_of_several_that_requires_a_gradient(self, make, adjoint):
        T = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        y = solved(lambda t, y: -y, torch.ones(1, dtype=torch.float64), adjoint, make(T))
        (found,) = torch.autograd.grad(y.sum(), T)
        assert found.item() == pytest.approx(-math.exp(-1), rel=1e-6)

    def test_those_a_field_cannot_tell_apart_are_warned_of(self):
        with pytest.warns(UserWarning, match="too coarse"):
            solved(lambda t, y: -y, torch.ones(1), hj.DirectAdjoint(), (1.7e9, 1.7e9 + 1))

    def test_no_gradient_under_func(self):
        with pytest.raises(hj.ConfigError, match=r"torch\.func"):
            torch.func.grad(
                lambda T: solved(lambda t, y: -y, torch.ones(1), hj.DirectAdjoint(), torch.stack([0 * T, T])).sum()
            )(torch.tensor(1.0))


class TestForm:
    def test_a_constant_field_may_return_a_view_of_its_parameter(self, adjoint):
        v = nn.Parameter(torch.ones(2))
        solved(lambda t, y: v.expand_as(y), torch.zeros(3, 2), adjoint, algorithm=hj.Tsit5()).sum().backward()
        torch.testing.assert_close(v.grad, torch.full((2,), 3.0))

    @pytest.mark.parametrize("later", [lambda y: 0.0, lambda y: y[:1], lambda y: y.double()])
    def test_another_kind_of_value_later_is_refused(self, later):
        with pytest.raises(hj.ConfigError, match="must return"):
            solved(lambda t, y: -y if t < 0.5 else later(y), torch.ones(3, 1), hj.DirectAdjoint(), algorithm=hj.Tsit5())

    def test_a_zero_without_absolute_tolerance(self):
        y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
        y = solved(lambda t, y: -y, y0, hj.DirectAdjoint(), algorithm=hj.Tsit5(rtol=1e-8, atol=0.0))
        torch.testing.assert_close(y, y0 * math.exp(-1), rtol=1e-7, atol=0.0)

    def test_batched_gradients_of_continuous_adjoints_are_refused(self):
        with pytest.raises(hj.ConfigError, match="vectorize"):
            torch.autograd.functional.jacobian(
                lambda y: solved(lambda t, y: -y, y, hj.GaussAdjoint()), torch.ones(2), vectorize=True
            )

    def test_tokens_have_a_start_that_is_given(self):
        embedding, linear = nn.Embedding(10, 8), nn.Linear(8, 8)
        layer = hj.nn.Equilibrium(lambda z, x: torch.tanh(0.3 * linear(z) + embedding(x)), start=(5, 8))
        assert layer(torch.randint(0, 10, (4, 5))).shape == (4, 5, 8)


class TestSamplesThatDependOnEachOther:
    @pytest.mark.parametrize(
        "algorithm",
        [
            hj.Picard(rtol=1e-7, max_steps=500),
            hj.Anderson(rtol=1e-7),
            hj.Broyden(rtol=1e-7),
            hj.NewtonKrylov(rtol=1e-7),
        ],
    )
    def test_rows_of_a_graph(self, algorithm):
        A = torch.tensor([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.float64)
        x = torch.tensor([[1.0], [1.0], [0.0], [1.0]], dtype=torch.float64, requires_grad=True)
        problem = hj.FixedPointProblem(lambda z, x: 0.5 * A @ z + x, torch.zeros(4, 1, dtype=torch.float64), (x,))
        with pytest.warns(UserWarning, match="as a whole"):
            s = hj.solve(problem, algorithm)
        torch.testing.assert_close(s.value, torch.linalg.solve(torch.eye(4) - 0.5 * A, x), rtol=1e-5, atol=1e-6)
        (found,) = torch.autograd.grad(s.value.sum(), x)
        torch.testing.assert_close(found, torch.full((4, 1), 2.0, dtype=torch.float64), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("coupling", [1.0, 1e-3, 1e-5])
    def test_a_mean_beside_large_rows(self, coupling):
        x = torch.tensor([[0.0], [0.0], [30.0], [0.1]], dtype=torch.float64)

        def f(z):
            return 0.3 * torch.tanh(z) + x + coupling * torch.tanh(z.mean(0, keepdim=True))

        with pytest.warns(UserWarning, match="as a whole"):
            s = hj.solve(
                hj.FixedPointProblem(f, torch.zeros(4, 1, dtype=torch.float64)), hj.Anderson(rtol=1e-9, atol=0.0)
            )
        torch.testing.assert_close(f(s.value), s.value, rtol=1e-7, atol=1e-8)

    def test_maps_that_check_what_they_are_given(self):
        def f(z, x):
            assert bool(((z >= 0) & (z <= 1)).all())
            return 0.5 * torch.sigmoid(z) + 0.25 * x

        x = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            problem = hj.FixedPointProblem(f, torch.full((6, 1), 0.5, dtype=torch.float64), (hj.PerSample(x),))
            s = hj.solve(problem, hj.Picard(rtol=1e-8))
        assert len(set(s.iterations.tolist())) > 1

    def test_random_ones_are_told_from_those_that_mix(self):
        problem = hj.FixedPointProblem(
            lambda z: 0.5 * torch.nn.functional.dropout(z, 0.5) + x, torch.zeros(6, 2, dtype=torch.float64)
        )
        x = torch.linspace(0, 1, 12, dtype=torch.float64).view(6, 2)
        with pytest.raises(hj.ConfigError, match="not deterministic"):
            hj.solve(problem, hj.Picard(max_steps=20))

    def test_a_vector(self):
        torch.manual_seed(0)
        b, W = torch.randn(6), 0.3 * torch.randn(6, 6)
        for algorithm in (hj.Anderson(), hj.NewtonKrylov(), hj.Broyden()):
            with pytest.warns(UserWarning, match="as a whole"):
                s = hj.solve(hj.FixedPointProblem(lambda z: torch.tanh(W @ z + b), torch.zeros(6)), algorithm)
            torch.testing.assert_close(s.value, torch.tanh(W @ s.value + b), rtol=1e-2, atol=1e-2)

    def test_separate_ones_in_a_script_of_another_default_dtype(self):
        linear = nn.Linear(2, 2)
        y0 = torch.tensor([[1.0, 1.0], [1.0, 2.0], [50.0, 1.0]])
        rates = torch.tensor([[1.0], [1.0], [40.0]])
        torch.set_default_dtype(torch.float64)
        try:
            problem = hj.ODEProblem(
                lambda t, y, r: -r * y + torch.tanh(linear(y)), y0, (0.0, 5.0), args=(hj.PerSample(rates),)
            )
            assert hj.solve(problem, hj.Tsit5(), batch="per-sample").status.ok
        finally:
            torch.set_default_dtype(torch.float32)

    def test_an_unsound_sample_spoils_no_gradient(self):
        x, w = torch.tensor([[0.5], [math.nan], [0.9]]), torch.tensor(0.5, requires_grad=True)
        found = []
        for adjoint in (hj.ImplicitAdjoint(), hj.UnrolledAdjoint()):
            problem = hj.FixedPointProblem(lambda z, x, w: torch.tanh(w * z + x), torch.zeros(3, 1), (x, w))
            s = hj.solve(problem, hj.Anderson(rtol=1e-6), adjoint=adjoint, throw=False)
            found.append(torch.autograd.grad(s.value[s.converged].sum(), w)[0])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


class TestEvents:
    def test_a_flight_within_one_step(self):
        """Thrown from the floor: the condition is zero at the start, and again in the first step."""
        y0 = torch.tensor([0.0, 1.0], dtype=torch.float64)
        problem = hj.ODEProblem(
            lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)]),
            y0,
            (0.0, 3.0),
            event=hj.Event(lambda t, y: y[0], direction=-1),
        )
        s = hj.solve(problem, hj.Tsit5(first_step=1.0))
        assert s.ts[-1].item() == pytest.approx(2 / 9.81, rel=1e-9)

    def test_a_ball_that_comes_to_rest_is_refused(self):
        bounce = hj.Event(
            lambda t, y: y[0], direction=-1, then=lambda t, y: torch.stack([torch.zeros_like(y[0]), -0.5 * y[1]])
        )
        problem = hj.ODEProblem(
            lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)]),
            torch.tensor([1.0, 0.0]),
            (0.0, 3.0),
            event=bounce,
        )
        with pytest.raises(hj.SolveError, match="ever faster"):
            hj.solve(problem, hj.Tsit5(rtol=1e-6, atol=1e-6))


class TestWhatWatchesOrTraces:
    @staticmethod
    def end(y):
        return hj.solve(hj.ODEProblem(lambda t, y: -y * y, y, (0.0, 1.0)), hj.Tsit5(), backend="pytorch").value

    @pytest.mark.filterwarnings("ignore")
    def test_a_trace_is_refused(self):
        """Its steps would be those of the example at any other value."""
        from torch.fx.experimental.proxy_tensor import make_fx

        y = torch.tensor([0.1])
        with pytest.raises(hj.ConfigError, match="which a trace would fix"):
            torch.jit.trace(self.end, y, check_trace=False)
        with pytest.raises(hj.ConfigError, match="which a trace would fix"):
            make_fx(self.end)(y)

    @pytest.mark.parametrize("backend", ["pytorch", "pytorch-compiled"])
    @pytest.mark.parametrize("adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint()], ids=repr)
    def test_operations_are_counted_forward_and_backward(self, adjoint, backend):
        net = torch.nn.Linear(3, 3)
        problem = hj.ODEProblem(lambda t, y: torch.tanh(net(y)), torch.ones(2, 3), (0.0, 1.0))
        with FlopCounterMode(display=False) as forward:
            value = hj.solve(problem, hj.RK4(), adjoint=adjoint, backend=backend).value
        with FlopCounterMode(display=False) as backward:
            value.sum().backward()
        assert forward.get_total_flops() >= 4 * 2 * 2 * 3 * 3
        assert backward.get_total_flops() > forward.get_total_flops()

    def test_operations_of_a_layer_are_counted(self):
        net = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 3))
        layer = hj.nn.Equilibrium(lambda z, x: torch.tanh(0.2 * net(z) + x), jacobian_weight=0.1)
        with FlopCounterMode(display=False) as counter:
            (layer(torch.ones(2, 3)).sum() + hj.nn.regularization(layer)).backward()
        assert counter.get_total_flops() > 0

    def test_a_block_that_returns_a_pair(self):
        attention = torch.nn.MultiheadAttention(6, 2, batch_first=True)
        with pytest.raises(hj.ConfigError, match=r"must return a torch.Tensor, got tuple"):
            hj.nn.Equilibrium(lambda z, x: attention(z, z, z))(torch.randn(2, 3, 6))
