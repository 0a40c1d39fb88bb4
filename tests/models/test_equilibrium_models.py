"""DEQ, monDEQ and pcDEQ: what their papers guarantee, and their gradients."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

import homojl as hj
from homojl.models.settings import ACTIVATIONS

TIGHT = {"rtol": 1e-12, "atol": 1e-12, "max_steps": 3000}
PCDEQ = [("pcdeq", {"form": form, "activation": a, "channels": (3, 4, 5) if form == "multi" else (4,)})
         for form in ("linear", "single", "multi") for a in ACTIVATIONS]  # fmt: skip
MONDEQ = [("mondeq", {"form": form, "channels": (3, 4, 2) if form == "multi" else (4,)})
          for form in ("linear", "single", "multi")]  # fmt: skip
ids = [" ".join(str(v) for v in (name, *options.values())) for name, options in (*PCDEQ, *MONDEQ)]


def small(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return hj.create_model(name, input_shape=(1, 8, 8), n_classes=3, **options).double()


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "options"), [("deq", {"channels": 4}), *PCDEQ, *MONDEQ], ids=["deq", *ids])
def test_implicit_equals_unrolled(name, options):
    own = small(name, **options)
    algorithm = type(own.algorithm)(**TIGHT)
    grads = []
    for adjoint in (hj.UnrolledAdjoint(), hj.ImplicitAdjoint()):
        model = small(name, **options, algorithm=algorithm, adjoint=adjoint, backend="pytorch").train()
        torch.manual_seed(2)
        F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0, 1])).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert all(g.isfinite().all() for g in grads[-1].values())
    largest = max(float(g.abs().max()) for g in grads[0].values())
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-6, atol=1e-6 * largest, msg=key)


@pytest.mark.parametrize(("name", "options"), [*PCDEQ, *MONDEQ], ids=ids)
def test_the_same_equilibrium_from_every_nonnegative_start(name, options):
    model = small(name, **options, algorithm=hj.PeacemanRachford(**TIGHT) if name == "mondeq" else hj.Picard(**TIGHT))
    with torch.no_grad():
        if name == "pcdeq":  # far from where it starts: rows of W that add up to several
            for layer in model.layers:
                layer.weight.gain.mul_(8)
        problem = model.eval().problem(model.encode(images()))
        found = []
        for start in (0.0, 1e-3, 1.0, 50.0):
            z0 = start * torch.rand_like(problem.z0)
            moved = hj.FixedPointProblem(problem.f, z0, problem.args)
            found.append(hj.solve(moved, model.algorithm).value)
    for z in found:
        torch.testing.assert_close(z, found[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pcdeq_converges_geometrically(activation):
    """In Thompson's metric, max |log z - log z*|, every iteration shrinks the distance by a factor."""
    model = small("pcdeq", activation=activation, channels=(4,)).eval()
    with torch.no_grad():
        model.layer.weight.gain.mul_(4)
        problem = model.problem(model.encode(images()))
        z_star = hj.solve(problem, hj.Picard(**TIGHT)).value
        for z in (problem.f(torch.zeros_like(z_star), *problem.args), torch.full_like(z_star, 20.0)):
            distances = []
            for _ in range(60):
                distances.append(float((z.log() - z_star.log()).abs().max()))
                z = problem.f(z, *problem.args)
            kept = [d for d in distances if d > 1e-9]
            rates = [after / before for before, after in itertools.pairwise(kept)]
            assert max(rates) < 0.99
            assert kept[-1] < 1e-8, f"rate {max(rates):.3f}"


@pytest.mark.parametrize(("side", "channels"), [(8, 16), (8, 32), (28, 32)])
def test_deq_starts_as_a_contraction(side, channels):
    """Plain iteration reaches one equilibrium from anywhere, in training and evaluation mode."""
    torch.manual_seed(0)
    model = hj.create_model("deq", input_shape=(1, side, side), n_classes=10, channels=channels)
    x = torch.randn(8, 1, side, side)
    for training in (True, False):
        with torch.no_grad():
            problem = model.train(training).problem(model.encode(x))
            moved = hj.FixedPointProblem(problem.f, 100 * torch.randn_like(problem.z0), problem.args)
            zero, far = (hj.solve(p, hj.Picard(rtol=1e-4, max_steps=50), backend="pytorch") for p in (problem, moved))
        torch.testing.assert_close(far.value, zero.value, rtol=0.0, atol=0.01)


@pytest.mark.parametrize("form", ["linear", "single", "multi"])
@pytest.mark.parametrize("constraint", ["projection", "absolute"])
def test_pcdeq_weights_stay_nonnegative(form, constraint):
    options = {"form": form, "channels": (3, 4, 5) if form == "multi" else (4,), "constraint": constraint}
    model = small("pcdeq", **options)
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.direction.normal_()
            layer.weight.gain.normal_()
            layer.weight.direction[0] = -1.0  # a row that a projection empties
            layer.weight.gain[1] = 1.0
    model.project_()
    for layer in model.layers:
        w = layer.weight()
        assert w.isfinite().all()
        assert (w >= 0).all()
        assert w.max() > 0
        norms = torch.linalg.vector_norm(w.flatten(1), dim=1)
        torch.testing.assert_close(norms[1:], layer.weight.gain.abs()[1:])
    model.algorithm = hj.Picard(max_steps=3000)
    assert model.eval()(images()).shape == (5, 3)


def test_pcdeq_conditions_are_positive_or_nonnegative():
    one, two = small("pcdeq", channels=(4,)), small("pcdeq", channels=(4,), activation="sigmoid")
    conditions = [model.problem(model.encode(images())).args[0] for model in (one, two)]
    assert conditions[0].min() > 0
    assert conditions[1].min() == 0
    for model in (one, two):
        solution = model.eval().solve(images())
        assert solution.value.min() > 0


def test_pcdeq_multi_reports_all_its_solves():
    model = small("pcdeq", form="multi", channels=(3, 4, 5), backend="pytorch").eval()
    logits, solution = model(images(), return_solution=True)
    h, nfe, iterations = model.encode(images()), 0, 0
    for module in model.layer:
        if isinstance(module, hj.nn.PcDEQ):
            part = hj.solve(module.problem(h), model.algorithm)
            nfe, iterations = nfe + part.stats.nfe, iterations + part.iterations
        h = module(h)
    torch.testing.assert_close(model.decode(h), logits)
    assert solution.stats.nfe == nfe
    assert torch.equal(solution.iterations, iterations)
    assert (solution.stats.backend, solution.stats.algorithm) == ("pytorch", "Picard")
    assert solution.status.ok
    assert solution.converged.all()
    assert solution.stats.n_vjp == 0
    logits.sum().backward()
    assert solution.stats.n_vjp >= 6, "read after the backward pass, which adds to it"

    model.algorithm, model.throw = hj.Picard(rtol=1e-12, atol=0.0, max_steps=2), False
    solution = model.solve(images())
    assert solution.status is hj.Status.MAX_STEPS
    assert not solution.converged.any()
    with pytest.raises(hj.ConfigError, match="no states in between"):
        model.solve(images(), save_at=(0.0, 1.0))


def test_mondeq_tunes_alpha_by_halving():
    model = small("mondeq", channels=(4,), algorithm=hj.PeacemanRachford(alpha=16.0, max_steps=1000), backend="pytorch")
    assert model.layer.alpha is None
    before = model.solve(images()).stats.nfe
    model.begin_epoch(images())
    assert model.layer.alpha < 16
    assert model.solve(images()).stats.nfe < before
    again = small("mondeq", channels=(4,), algorithm=model.algorithm, backend="pytorch")
    again.load_state_dict(model.state_dict())
    assert again.solve(images()).stats.nfe == model.solve(images()).stats.nfe
    fixed = small("mondeq", channels=(4,), algorithm=model.algorithm, tune_alpha=False, backend="pytorch")
    fixed.begin_epoch(images())
    assert fixed.solve(images()).stats.nfe == before


def test_precision_and_batch_reach_mondeqs_solves():
    x = images().float()
    model = small("mondeq", form="linear", channels=(20,), backend="pytorch").float().eval()
    model.algorithm = hj.Anderson(rtol=1e-2, max_steps=200)
    full = model.solve(x).value
    model.precision = "bfloat16"
    low = model.solve(x).value
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.1)
    model.algorithm = hj.PeacemanRachford(rtol=1e-2)
    for attempt in (model.solve, model.begin_epoch):
        with pytest.raises(hj.ConfigError, match="precision='bfloat16' does not go with PeacemanRachford"):
            attempt(x)
    model.precision, model.batch = "full", "per-sample"
    for attempt in (model.solve, model.begin_epoch):
        with pytest.raises(hj.ConfigError, match="batch='per-sample' is for an ODEProblem"):
            attempt(x)
    convolution = small("mondeq", channels=(4,), algorithm=hj.Anderson(rtol=1e-2), backend="pytorch").float()
    convolution.precision = "bfloat16"
    with pytest.raises(hj.ConfigError, match="changes nothing for a MonDEQ of convolutions"):
        convolution.solve(x)


@pytest.mark.parametrize("name", ["deq", "mondeq"])
def test_any_algorithm_solves_a_trained_model(name):
    model = small(name, channels=4 if name == "deq" else (4,), backend="pytorch").eval()
    model.algorithm = type(model.algorithm)(**TIGHT)
    expected = model(images())
    methods = [hj.Anderson, hj.Broyden, hj.PseudoTransient, hj.Relaxation]
    if name == "mondeq":  # on a DEQ Newton can fail from zero, where the field divides by almost nothing
        methods += [hj.NewtonKrylov, functools.partial(hj.ForwardBackward, alpha=0.1)]
    for method in methods:
        model.algorithm = method(rtol=1e-8, atol=1e-10, max_steps=2000)
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-6, msg=str(model.algorithm))


def test_deq_shares_homoodes_parts():
    torch.manual_seed(0)
    deq = hj.create_model("deq", input_shape=(1, 8, 8), n_classes=3, channels=4)
    ode = hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=3, channels=4)
    shared = {name.replace("block.field", "field"): tensor for name, tensor in deq.state_dict().items()}
    ode.load_state_dict(shared)
    x = deq.eval().encode(images().float())
    torch.testing.assert_close(ode.eval().encode(images().float()), x)
    z = torch.randn_like(x)
    torch.testing.assert_close(deq.layer.block(z, x, None), ode.layer.field(torch.zeros(()), z, x))


def test_deq_regularization_is_the_jacobians_norm():
    model = small("deq", channels=4, dropout=0.0, jacobian_weight=2.0, backend="pytorch").train()
    logits, solution = model(images(2), return_solution=True)
    penalty = model.regularization()
    assert model.regularization() == 0, "handed out once"
    logits.sum().backward(retain_graph=True)
    penalty.backward()
    estimates = []
    for _ in range(60):
        model(images(2))
        estimates.append(model.regularization().item())
    x = model.encode(images(2)).detach()
    jacobian = torch.autograd.functional.jacobian(lambda z: model.layer.block(z, x, None), solution.value.detach())
    exact = 2.0 * float(jacobian.square().sum()) / 2 / solution.value[0].numel()
    assert sum(estimates) / 60 == pytest.approx(exact, rel=0.1)
    model.eval()(images(2))
    assert model.regularization() == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pcdeq", {"form": "triple"}, "unknown form 'triple'"),
        ("pcdeq", {"form": "multi"}, "three positive numbers for form 'multi'"),
        ("mondeq", {"channels": (3, 4)}, "one positive number"),
        ("mondeq", {"m": 0.0}, "m must be positive"),
        ("pcdeq", {"activation": "tahn"}, "did you mean 'tanh'"),
        ("pcdeq", {"constraint": "hope"}, "projection, absolute"),
        ("deq", {"jacobian_weight": -1.0}, "must not be negative"),
        ("deq", {"init": "random"}, "init must be"),
        ("deq", {"gain": 0.0}, "gain must be positive"),
        ("homoode", {"gain": math.nan}, "gain must be positive"),
        ("deq", {"algorithm": hj.Dopri5()}, "DEQ solves a fixed point: its algorithm"),
        ("homoode", {"algorithm": hj.Anderson()}, "HomoODE solves an ODE: its algorithm"),
        ("mondeq", {"adjoint": hj.GaussAdjoint()}, "MonDEQ solves a fixed point: its adjoint"),
    ],
)
def test_refused(name, options, message):
    with pytest.raises(hj.ConfigError, match=message):
        hj.create_model(name, input_shape=(1, 8, 8), n_classes=3, **options)
