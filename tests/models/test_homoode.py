"""HomoODE computes what its definition says, with the published sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import homojl as hj
from homojl.models import count_parameters
from homojl.nn.parts import MovingPoint, channel_dropout_mask

TIGHT = hj.Tsit5(rtol=1e-9, atol=1e-9)


def small(**options):
    options = {"channels": 4, "algorithm": TIGHT} | options
    return hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=3, **options).double()


@pytest.mark.parametrize(
    ("input_shape", "n_classes", "channels", "parameters"),
    [
        ((3, 32, 32), 10, 64, 132_938),
        ((3, 32, 32), 100, 128, 565_988),
        ((3, 64, 64), 200, 128, 617_288),
        ((1, 28, 28), 10, 32, 34_154),
    ],
)
def test_published_parameter_counts(input_shape, n_classes, channels, parameters):
    model = hj.create_model("homoode", input_shape=input_shape, n_classes=n_classes, channels=channels)
    assert count_parameters(model) == parameters
    assert model.layer.initial_point.value.numel() == channels  # a buffer beside them


def test_field_is_its_formula():
    model = small()
    f, z, x = model.layer.field, torch.randn(2, 4, 5, 5).double(), torch.randn(2, 4, 5, 5).double()
    mask = channel_dropout_mask(z, 0.5)
    with torch.no_grad():
        for p in f.parameters():
            p.normal_()
    y = F.conv2d(z, f.conv1.weight, f.conv1.bias, padding=1)
    y = F.group_norm(y, 4, f.norm1.weight, f.norm1.bias)
    y = F.conv2d(torch.relu(y) + x, f.conv2.weight, f.conv2.bias, padding=1)
    y = F.group_norm(y * mask, 4, f.norm2.weight, f.norm2.bias)
    torch.testing.assert_close(f(torch.tensor(0.0), z, x, mask), y)


@pytest.mark.parametrize(("channels", "groups"), [(4, 4), (32, 32), (64, 32), (128, 32)])
def test_group_norm_has_min_32_c_groups(channels, groups):
    model = hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=3, channels=channels)
    assert {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)} == {groups}


def test_a_solve_that_fails_at_its_start_leaves_gradients_for_the_head():
    """PyTorch's normalisation of a state without gradient, in channels-last order, would end the process."""
    model = small(backend="pytorch").float()
    model.throw = False
    with torch.no_grad():
        model.encoder[5].weight.fill_(torch.inf)
    logits, solution = model(torch.randn(2, 1, 8, 8), return_solution=True)
    assert solution.status is hj.Status.DIVERGED
    assert not solution.value.requires_grad
    assert solution.value.is_contiguous(memory_format=torch.channels_last)
    logits[:, 0].sum().backward()
    assert torch.isfinite(model.decoder[0].weight.grad).all()
    assert model.decoder[-1].weight.grad[0].abs().sum() > 0


def test_forward_is_encode_solve_decode(backend):
    model = small(backend=backend).eval()
    with torch.no_grad():
        model.layer.initial_point.value.normal_()
    image = torch.randn(2, 1, 8, 8).double()
    x = model.encode(image)
    assert x.shape == (2, 4, 4, 4)
    z = model.layer.initial_point.value.view(1, 4, 1, 1).expand_as(x)
    n = 2000
    for _ in range(n):  # the midpoint rule by hand
        k = model.layer.field(None, z, x)
        z = z + model.layer.field(None, z + k / (2 * n), x) / n
    torch.testing.assert_close(model(image), model.decoder(z), rtol=1e-4, atol=1e-4)


def test_one_dropout_mask_serves_the_whole_solve(backend):
    model = small(dropout=0.5, adjoint=hj.CheckpointAdjoint(), backend=backend).train()
    masks = []

    def note(module, args):
        masks.append(args[3])

    handle = model.layer.field.register_forward_pre_hook(note)
    logits, solution = model(torch.randn(3, 1, 8, 8).double(), return_solution=True)
    logits.sum().backward()
    assert len(masks) == solution.stats.nfe + solution.stats.nfe_backward
    assert all(m is masks[0] for m in masks)
    assert masks[0].shape == (3, 4, 1, 1)
    assert set(masks[0].unique().tolist()) <= {0.0, 2.0}

    first = masks[0]
    masks.clear()
    model(torch.randn(3, 1, 8, 8).double())
    assert masks[0] is not first, "each forward pass draws anew"
    model.eval()
    masks.clear()
    model(torch.randn(3, 1, 8, 8).double())
    assert masks[0] is None
    handle.remove()


def test_dropout_mask_keeps_the_mean():
    mask = channel_dropout_mask(torch.empty(400, 100, 1, 1), 0.25)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint()]
)
def test_the_classification_loss_never_reaches_the_initial_point(adjoint, backend):
    model = small(adjoint=adjoint, backend=backend, algorithm=hj.Tsit5()).train()
    F.cross_entropy(model(torch.randn(4, 1, 8, 8).double()), torch.tensor([0, 1, 2, 0])).backward()
    assert not model.layer.initial_point.value.requires_grad
    weights = dict(model.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights.values())
    assert all(weights[n].grad.abs().max() > 0 for n in weights if n.endswith("weight"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adjoint", "tolerance"),
    # The continuous adjoints meet the kinks of the field's ReLU, where they converge slowly with the tolerance.
    [(hj.CheckpointAdjoint(), 1e-12), (hj.GaussAdjoint(), 5e-3), (hj.BacksolveAdjoint(), 5e-3)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_adjoint_gives_the_direct_gradient(adjoint, tolerance, backend):
    image, labels = torch.randn(3, 1, 8, 8).double(), torch.tensor([0, 1, 2])
    grads = []
    for how, where in ((hj.DirectAdjoint(), backend), (adjoint, backend)):
        torch.manual_seed(3)
        model = small(adjoint=how, backend=where, dropout=0.3).train()
        with torch.no_grad():
            model.layer.initial_point.value.normal_()
        torch.manual_seed(4)
        F.cross_entropy(model(image), labels).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    largest = max(float(g.abs().max()) for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=tolerance, atol=tolerance * largest, msg=name)


class TestInitialPoint:
    """The shared start and its rule, (18) and (32)."""

    def test_one_number_per_channel_broadcast_without_gradient(self):
        point = MovingPoint(3, learned=True)
        point.value.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3))
        x = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
        z0 = point.expand_like(x)
        assert point.value.shape == (1, 1, 3)
        assert not z0.requires_grad
        assert z0.stride() == x.stride()
        torch.testing.assert_close(z0, torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5))

    def test_it_moves_as_sgd_on_its_loss_would(self):
        """z0 <- (1 - a) z0 + a mean(z*) with a = 2 eta."""
        point = MovingPoint(3, learned=True, rate=0.02).double()
        before = torch.nn.Parameter(point.value.clone())
        z_star = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        loss = ((z_star.detach() - before.view(1, 3, 1, 1)) ** 2).sum(dim=1).mean()
        loss.backward()
        torch.optim.SGD([before], lr=0.02).step()
        point.follow_(z_star)
        torch.testing.assert_close(point.value, before.detach())
        assert z_star.grad is None
        assert point.loss.item() == pytest.approx(loss.item())

    def test_parts_of_a_batch_move_it_as_the_whole(self):
        whole, part = (MovingPoint(3, learned=True, rate=0.5).double() for _ in range(2))
        part.value.copy_(whole.value)
        z = torch.randn(6, 3, 4, 4, dtype=torch.float64)
        whole.follow_(z)
        sums = []
        part.total = lambda own: sums.append(own) or own
        part.follow_(z[2:])
        own = sums.pop()
        part.value.copy_(torch.zeros_like(whole.value))
        other = MovingPoint(3, learned=True).double()
        other.value.copy_(part.value)
        other.total = lambda own: sums.append(own) or own
        other.follow_(z[:2])
        means = (own[:3] + sums.pop()[:3]) / (6 * 16)
        torch.testing.assert_close(whole.value.flatten(), means)

    def test_zero_stays_at_zero(self):
        model = small(init="zero").train()
        model(torch.randn(2, 1, 8, 8).double())
        assert model.layer.initial_point.loss is None
        assert torch.equal(model.layer.initial_point.value, torch.zeros(1, 1, 4, dtype=torch.float64))


def test_evaluation_repeats_and_a_solution_comes_on_request(backend):
    model = small(backend=backend).eval()
    image = torch.randn(2, 1, 8, 8).double()
    logits, solution = model(image, return_solution=True)
    assert torch.equal(logits, model(image))
    assert solution.stats.backend == backend
    assert solution.value.shape == (2, 4, 4, 4)
    path = model.solve(image, save_at=(0.0, 0.25, 1.0))
    assert path.ys.shape == (3, 2, 4, 4, 4)
    torch.testing.assert_close(path.value, solution.value)


def test_answers_do_not_depend_on_batch_mates_beyond_the_tolerance(backend):
    model = small(backend=backend).eval()
    images = torch.randn(6, 1, 8, 8).double()
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_failed_solve_raises_unless_told_otherwise():
    model = small(algorithm=hj.Tsit5(max_steps=1)).eval()
    with pytest.raises(hj.SolveError, match="max_steps"):
        model(torch.randn(1, 1, 8, 8).double())
    model.throw = False
    _, solution = model(torch.randn(1, 1, 8, 8).double(), return_solution=True)
    assert not solution.status.ok
