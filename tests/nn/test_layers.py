"""The layers: values against exact answers, gradients against finite differences and other adjoints, states, modes."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn

import homojl as hj

TIGHT = hj.Anderson(rtol=1e-11, atol=1e-12, max_steps=200)
FINE = hj.Tsit5(rtol=1e-9, atol=1e-9)


class Linear(nn.Module):
    """z -> W z + x with norm(W) = 0.5."""

    def __init__(self, width: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        w = torch.randn(width, width, dtype=dtype)
        self.w = nn.Parameter(0.5 * w / torch.linalg.matrix_norm(w, 2))

    def forward(self, z, x):
        return z @ self.w.T + x


class Tanh(nn.Module):
    def __init__(self, channels: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)

    def forward(self, z, x):
        return torch.tanh(self.conv(z) + x)


class Field(nn.Module):
    def __init__(self, width: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=dtype)

    def forward(self, t, y, x=None):
        return torch.tanh(self.linear(y)) + (0 if x is None else t * x)


LAYERS = {
    "Equilibrium": lambda: hj.nn.Equilibrium(Tanh(4), jacobian_weight=0.1),
    "ODE": lambda: hj.nn.ODE(lambda t, y: -y),
    "ODE, module": lambda: hj.nn.ODE(Field(6, torch.float32), hj.Tsit5(first_step=hj.StepMemory())),
    "HomoODE": lambda: hj.nn.HomoODE(4, dropout=0.1),
    "DEQ": lambda: hj.nn.DEQ(4, dropout=0.1, jacobian_weight=0.1),
    "PcDEQ": lambda: hj.nn.PcDEQ(4),
    "MonDEQ": lambda: hj.nn.MonDEQ(4),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    return LAYERS[request.param]()


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(5, 4, 6, 6)


def test_an_equilibrium_is_the_exact_one():
    block, x = Linear(), torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    layer = hj.nn.Equilibrium(block, TIGHT)
    before = block.w.detach().clone()
    z = layer(x)
    exact = torch.linalg.solve(torch.eye(3, dtype=x.dtype) - block.w, x.T).T
    torch.testing.assert_close(z, exact)
    torch.testing.assert_close(
        torch.autograd.grad(z.sum(), [x, block.w]), torch.autograd.grad(exact.sum(), [x, block.w])
    )
    assert torch.equal(block.w, before), "a block that contracts is left as it is"
    assert layer.contracted == {}


def test_an_ode_is_the_exact_one():
    y0 = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(
        hj.nn.ODE(lambda t, y: -y, FINE)(y0), y0 * torch.exp(torch.tensor(-1.0)), rtol=1e-7, atol=0
    )
    rates = torch.rand(4, 2, dtype=torch.float64)
    ends = hj.nn.ODE(lambda t, y, r: -r * y, FINE, times=(0.0, 1.0, 3.0))(y0, rates)
    torch.testing.assert_close(ends, torch.stack([y0, y0 * torch.exp(-rates), y0 * torch.exp(-3 * rates)]))
    torch.testing.assert_close(hj.nn.ODE(lambda t, y: 2 * t * torch.ones_like(y), FINE)(y0), y0 + 1)
    torch.testing.assert_close(
        hj.nn.ODE(lambda t, y: -y, FINE)(y0, times=(0.0, 2.0)), y0 * torch.exp(torch.tensor(-2.0))
    )


@pytest.mark.parametrize("adjoint", [hj.ImplicitAdjoint(), hj.UnrolledAdjoint(), hj.PhantomAdjoint(steps=60)])
def test_gradients_of_an_equilibrium_are_those_of_finite_differences(adjoint):
    layer = hj.nn.Equilibrium(Tanh(2, torch.float64), TIGHT, adjoint=adjoint)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = layer.block.conv.weight

    def f(x, weight):
        return hj.nn.Equilibrium(lambda z, x: torch.tanh(nn.functional.conv2d(z, weight, padding=1) + x), TIGHT,
                                 adjoint=adjoint)(x)  # fmt: skip

    assert torch.autograd.gradcheck(f, (x, weight.detach().clone().requires_grad_()), atol=1e-6)


@pytest.mark.parametrize(
    ("adjoint", "batch"),
    [
        *((adjoint, "joint") for adjoint in (hj.DirectAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint())),
        *((hj.CheckpointAdjoint(), batch) for batch in ("joint", "per-sample")),
        (hj.DirectAdjoint(), "per-sample"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_gradients_of_an_ode_are_those_of_finite_differences(adjoint, batch):
    field = Field()
    layer = hj.nn.ODE(field, FINE, adjoint=adjoint, batch=batch)
    y0, x = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda y, x, _: layer(y, x), (y0, x, field.linear.weight), atol=1e-5, rtol=1e-4)
    assert len(layer.last.converged) == (1 if batch == "joint" else 2)


@pytest.mark.parametrize("name", ["HomoODE", "PcDEQ", "MonDEQ"])
def test_gradients_of_the_papers_layers_are_those_of_finite_differences(name):
    layer = (
        {
            "HomoODE": lambda: hj.nn.HomoODE(2, hj.RK4(step_size=0.25)),
            "PcDEQ": lambda: hj.nn.PcDEQ(2, hj.Picard(rtol=1e-12, atol=1e-13, max_steps=500)),
            "MonDEQ": lambda: hj.nn.MonDEQ(2, hj.PeacemanRachford(rtol=1e-12, atol=1e-13, max_steps=500)),
        }[name]()
        .double()
        .eval()
    )
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "other",
    [hj.UnrolledAdjoint(), hj.Broyden(rtol=1e-11, atol=1e-12), hj.NewtonKrylov(rtol=1e-11, atol=1e-12)],
    ids=repr,
)
def test_passes_have_methods_of_their_own(other):
    block, x = Tanh(2, torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    unrolled = isinstance(other, hj.UnrolledAdjoint)
    first = hj.nn.Equilibrium(block, TIGHT)
    second = hj.nn.Equilibrium(block, TIGHT, **({"adjoint": other} if unrolled else {"backward": other}))
    grads = [torch.autograd.grad(layer(x).square().sum(), list(block.parameters())) for layer in (first, second)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


def test_pcdeq_and_mondeq_solve_their_equations():
    x = torch.randn(3, 4, 5, 7)
    layer = hj.nn.PcDEQ(4, hj.Picard(rtol=1e-6, max_steps=300), activation="tanh", norm=False)
    z = layer(x)
    positive = nn.functional.softplus(x, beta=5)
    torch.testing.assert_close(
        z, torch.tanh(nn.functional.conv2d(z, layer.weight(), padding=1) + positive), atol=1e-5, rtol=0
    )
    dense = hj.nn.MonDEQ(4, hj.PeacemanRachford(rtol=1e-6), convolution=False)
    u = torch.randn(6, 4)
    z, (w,) = dense(u), dense.operator()
    torch.testing.assert_close(z, torch.relu(z @ w[0].T + u), atol=1e-5, rtol=0)
    pictures = hj.nn.MonDEQ(4, hj.PeacemanRachford(rtol=1e-5))
    for size in ((5, 7), (8, 8)):
        assert pictures(torch.randn(2, 4, *size)).shape == (2, 4, *size)
        assert pictures.last.converged.all()


def test_states_of_several_tensors_sequences_and_graphs():
    # two tensors
    def block(z, x):
        return {"a": torch.tanh(0.3 * z["b"] + x["a"]), "b": torch.tanh(0.3 * z["a"].sum(1, keepdim=True) + x["b"])}

    x = {"a": torch.randn(4, 3, requires_grad=True), "b": torch.randn(4, 1)}
    layer = hj.nn.Equilibrium(block, hj.Anderson(rtol=1e-5), jacobian_weight=1.0)
    z = layer(x)
    torch.testing.assert_close(block(z, x), z, atol=1e-4, rtol=0)
    (z["a"].sum() + hj.nn.regularization(layer)).backward()
    assert x["a"].grad.abs().sum() > 0
    a, b = hj.nn.ODE(lambda t, y: (y[1], -y[0]), FINE)((torch.zeros(3).double(), torch.ones(3).double()))
    torch.testing.assert_close(
        (a[0].item(), b[0].item()), (torch.tensor(1.0).sin().item(), torch.tensor(1.0).cos().item())
    )

    # a sequence, by attention
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    sequence = torch.randn(3, 5, 8)
    mix = hj.nn.Equilibrium(lambda z, x: torch.tanh(0.5 * attention(z, z, z, need_weights=False)[0] + x))
    assert mix(sequence).shape == sequence.shape
    assert mix.last.converged.all()

    # a graph: nodes in rows, edges shared
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    nodes = torch.randn(4, 6, requires_grad=True)
    weight = nn.Parameter(0.05 * torch.randn(6, 6))

    def passed(z, x, edges):
        return torch.tanh(torch.zeros_like(z).index_add(0, edges[1], z[edges[0]] @ weight) + x)

    graph = hj.nn.Equilibrium(passed, hj.Anderson(rtol=1e-5))
    with pytest.warns(UserWarning, match="converges as a whole"):
        z = graph(nodes, hj.Shared(edges))
    torch.testing.assert_close(passed(z, nodes, edges), z, atol=1e-4, rtol=0)
    z.sum().backward()
    assert weight.grad.abs().sum() > 0


def test_starts():
    block, x = Linear(dtype=torch.float32), torch.randn(5, 3)
    exact = hj.nn.Equilibrium(block, hj.Anderson(rtol=1e-6))(x)
    warm = hj.nn.Equilibrium(block, hj.Anderson(rtol=1e-4))
    warm(x)
    cold = warm.last.nfe
    torch.testing.assert_close(warm(x, start=exact.detach()), exact, rtol=1e-3, atol=1e-4)
    assert warm.last.nfe < cold
    torch.testing.assert_close(hj.nn.Equilibrium(block, start=torch.ones_like)(x), exact, rtol=1e-2, atol=1e-2)
    wide = hj.nn.Equilibrium(lambda z, x: 0.5 * torch.tanh(z) + x.sum(1, keepdim=True), start=(7,))
    assert wide(x).shape == (5, 7)
    wide.start = None
    with pytest.raises(hj.ConfigError, match="start="):
        wide(torch.ones(5, 3, dtype=torch.int64))


class Expanding(nn.Module):
    """A block that has no equilibrium to be found as it is made."""

    def __init__(self, gain: float = 6.0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
        with torch.no_grad():
            self.inner.weight *= gain

    def forward(self, z, x):
        return self.outer(torch.relu(self.inner(z)) + x)


@pytest.mark.parametrize("closure", [False, True])
def test_a_block_that_does_not_contract_is_made_to(closure):
    block, x = Expanding(), torch.randn(16, 8)
    outer = block.outer.weight.detach().clone()
    assert hj.nn.growth(block, x, (x,)) > 1
    layer = hj.nn.Equilibrium((lambda z, x: block(z, x)) if closure else block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert layer.last.converged.all()
    assert len(layer.contracted) == 1
    assert hj.nn.growth(block, layer(x), (x,)) < 0.8
    assert torch.equal(block.outer.weight, outer), "what x passes keeps its size"
    weight = block.inner.weight.detach().clone()
    layer(x)
    assert torch.equal(block.inner.weight, weight), "once"


def test_loaded_weights_and_evaluation_are_left_alone():
    block, x = Expanding(), torch.randn(16, 8)
    layer = hj.nn.Equilibrium(block, hj.Anderson(max_steps=5)).eval()
    before = block.inner.weight.detach().clone()
    with pytest.warns(hj.ConvergenceWarning):
        layer(x)
    assert torch.equal(block.inner.weight, before)
    trained = hj.nn.Equilibrium(Expanding())
    trained(x)
    fresh = hj.nn.Equilibrium(Expanding())
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        fresh.block.inner.weight.mul_(100)
    before = fresh.block.inner.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh(x)
    assert torch.equal(fresh.block.inner.weight, before)
    same = hj.nn.Equilibrium(Expanding(), hj.Anderson(max_steps=5), init=None)
    assert "begun" not in same.state_dict()


def test_one_warning_in_each_mode_and_strict():
    x = torch.randn(6, 3, requires_grad=True)

    def away(z, x):
        return z + 1 + 0 * x

    layer = hj.nn.Equilibrium(away, hj.Anderson(max_steps=4), init=None)
    for mode, name in ((True, "training"), (False, "evaluation")):
        layer.train(mode)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                layer(x).sum().backward()
        assert [w.category for w in caught] == [hj.ConvergenceWarning]
        assert caught[0].filename == __file__
        assert f"in {name}: 6 of 6 did not converge" in str(caught[0].message)
        assert layer.last.training is mode
        assert (layer.last.unconverged, layer.last.status.ok) == (6, False)
        assert layer.last.residual > 0.01
    strict = hj.nn.Equilibrium(away, hj.Anderson(max_steps=4), init=None, strict=True)
    with pytest.raises(hj.SolveError):
        strict(x)
    pole = hj.nn.ODE(lambda t, y: y**2, hj.Tsit5(max_steps=50), times=(0.0, 2.0))
    with pytest.warns(hj.ConvergenceWarning, match="ODE in training"):
        pole(torch.ones(2, 1, requires_grad=True)).sum().backward()
    assert "0 of 1 converged" in repr(pole.last)


def test_a_gradient_that_was_not_found_is_told_of():
    block = Linear(dtype=torch.float32)
    layer = hj.nn.Equilibrium(block, hj.Anderson(rtol=1e-3), backward=hj.Picard(max_steps=1, rtol=1e-12))
    x = torch.randn(4, 3)
    layer(x).sum().backward()
    assert layer.last.stats.unconverged_backward == 4
    with pytest.warns(hj.ConvergenceWarning, match="linear system of the gradient"):
        layer(x)
    strict = hj.nn.Equilibrium(block, backward=hj.Picard(max_steps=1, rtol=1e-12), strict=True)
    with pytest.raises(hj.SolveError):
        strict(x).sum().backward()


def test_what_a_layer_did(layer, maps):
    assert layer.last is None
    out = layer(maps.requires_grad_())
    assert out.shape == maps.shape
    assert layer.last.nfe > 0
    assert layer.last.nfe_backward == 0 or layer.last.stats.adjoint == "DirectAdjoint"
    assert layer.last.converged.all()
    assert (layer.last.residuals is None) == isinstance(layer, hj.nn.ODE)
    out.sum().backward()
    assert layer.last.nfe_backward > 0
    assert "evaluations" in repr(layer.last)
    assert maps.grad.isfinite().all()
    layer.eval()(maps)
    assert layer.last.training is False


class Mark(torch.autograd.Function):
    """The identity, with a node in the graph that can be referred to weakly."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("name", LAYERS)
def test_a_report_keeps_neither_graph_nor_module(name, maps):
    layer, marked = LAYERS[name](), Mark.apply(maps.requires_grad_())
    out = layer(marked)
    node, module = weakref.ref(marked.grad_fn), weakref.ref(layer)
    report = layer.last
    layer.regularization()
    del out, marked, layer
    gc.collect()
    assert node() is None
    assert module() is None
    assert not any(isinstance(x, torch.Tensor) and x.requires_grad for x in vars(report).values())


def test_copies_files_and_states(layer, maps):
    out = layer(maps)
    again = copy.deepcopy(layer)
    layer.eval(), again.eval()
    torch.testing.assert_close(layer(maps), again(maps))
    if "lambda" not in repr(getattr(layer, "field", "")):
        pickled = pickle.loads(pickle.dumps(layer))
        torch.testing.assert_close(pickled(maps), again(maps))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(again)
    with torch.no_grad():
        for p in fresh.parameters():
            p.add_(1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(maps), again(maps))
    assert out.shape == maps.shape


def test_regularization_sums_and_is_handed_out_once(maps):
    one, two = (hj.nn.Equilibrium(Tanh(4), jacobian_weight=w) for w in (1.0, 2.0))
    model = nn.Sequential(one, hj.nn.HomoODE(4), two, one)
    model(maps)
    assert len(one._terms) == 2, "a layer that is used twice counts twice"
    total = hj.nn.regularization(model)
    assert total > 0
    grads = torch.autograd.grad(total, list(two.parameters()))
    assert grads[0].abs().sum() > 0
    assert hj.nn.regularization(model) == 0
    with torch.no_grad():
        model(maps)
    model.eval()(maps)
    assert hj.nn.regularization(model) == 0
    assert hj.nn.regularization(nn.Identity()) == 0


def test_the_jacobians_weight_is_that_of_its_norm():
    block, x = Linear(), torch.randn(400, 3, dtype=torch.float64)
    layer = hj.nn.Equilibrium(block, jacobian_weight=1.0)
    layer(x)
    exact = block.w.square().sum() / 3
    torch.testing.assert_close(hj.nn.regularization(layer), exact, rtol=0.15, atol=0)


def test_another_algorithm_on_a_trained_layer(maps):
    layer = hj.nn.ODE(lambda t, y: -y, hj.Tsit5(first_step=hj.StepMemory()))
    layer(maps)
    learned = layer.remembered.memory.onwards
    assert learned > 0
    layer.algorithm = hj.RK4(step_size=0.5)
    torch.testing.assert_close(layer(maps), maps * torch.exp(torch.tensor(-1.0)), rtol=1e-3, atol=1e-5)
    assert layer.last.nfe == 8
    again = hj.nn.ODE(lambda t, y: -y, hj.Tsit5(first_step=hj.StepMemory()))
    again.load_state_dict(layer.state_dict())
    assert again.remembered.memory.onwards == learned


def test_a_watch_tells_a_logger(maps):
    model, told = nn.Sequential(hj.nn.HomoODE(4), nn.ReLU(), hj.nn.PcDEQ(4)), []
    handle = hj.nn.watch(model, lambda name, report: told.append((name, report.nfe)))
    model(maps)
    assert [name for name, _ in told] == ["0", "2"]
    assert told[0][1] == model[0].last.nfe
    handle.remove()
    model(maps)
    assert len(told) == 2
    assert list(hj.nn.reports(model)) == ["0", "2"]


def test_the_initial_point_follows_its_rule(maps):
    layer = hj.nn.HomoODE(4, rate=0.1, every=2)
    assert not [name for name, _ in layer.named_parameters() if "initial" in name]
    point = hj.nn.HomoODE(4).initial_point
    by_hand = nn.Parameter(layer.initial_point.value.clone())
    sgd = torch.optim.SGD([by_hand], lr=0.1)
    for call in range(4):
        z = layer(maps)
        if call % 2 == 0:
            sgd.zero_grad()
            (z.detach() - by_hand.permute(0, 2, 1).unsqueeze(-1)).square().sum(dim=1).mean().backward()
            sgd.step()
        torch.testing.assert_close(layer.initial_point.value, by_hand.detach())
    before = layer.initial_point.value.clone()
    layer.eval()(maps)
    assert torch.equal(layer.initial_point.value, before)
    state = layer.state_dict()
    point.load_state_dict(
        {name.removeprefix("initial_point."): x for name, x in state.items() if "initial_point" in name}
    )
    assert (point._calls, torch.equal(point.value, before)) == (4, True)
    zero = hj.nn.HomoODE(4, init="zero")
    zero(maps)
    assert not zero.initial_point.value.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hj.nn.Equilibrium(Tanh(2), hj.Tsit5()),
        lambda: hj.nn.Equilibrium(Tanh(2), adjoint=hj.CheckpointAdjoint()),
        lambda: hj.nn.Equilibrium(Tanh(2), adjoint=hj.PhantomAdjoint(), backward=hj.Picard()),
        lambda: hj.nn.Equilibrium(Tanh(2), jacobian_weight=-1.0),
        lambda: hj.nn.Equilibrium(Tanh(2), init="kaiming"),
        lambda: hj.nn.ODE(Field(), hj.Anderson()),
        lambda: hj.nn.ODE(Field(), times=(1.0,)),
        lambda: hj.nn.ODE(Field(), batch="each"),
        lambda: hj.nn.HomoODE(33),
        lambda: hj.nn.HomoODE(4, dropout=1.0),
        lambda: hj.nn.HomoODE(4, init="mean"),
        lambda: hj.nn.HomoODE(4, rate=0.0),
        lambda: hj.nn.HomoODE(4, every=0),
        lambda: hj.nn.PcDEQ(4, activation="relu"),
        lambda: hj.nn.PcDEQ(4, constraint="none"),
        lambda: hj.nn.MonDEQ(4, m=0.0),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(hj.ConfigError):
        make()


@pytest.mark.parametrize(
    "block", [lambda z, x: x.new_ones(len(x), 4), lambda z, x: torch.tanh(z + x.new_ones(len(x), 4))]
)
def test_a_first_call_that_fails_for_the_shape_of_the_state_says_how_to_give_it(block):
    with pytest.raises((hj.ConfigError, RuntimeError)) as raised:
        hj.nn.Equilibrium(block)(torch.randn(5, 3))
    assert raised.value.__notes__ == [
        "the state began as zeros of x's shape (5, 3); where the block's state has another shape, say which: "
        "Equilibrium(block, start=(n, ...)), without the samples"
    ]
    assert hj.nn.Equilibrium(block, start=(4,))(torch.randn(5, 3)).shape == (5, 4)
