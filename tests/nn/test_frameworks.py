"""The layers where networks are trained: compiled, under autocast, with gradient scaling, in several processes."""

from __future__ import annotations

import copy
import os
import subprocess

import pytest
import torch
from torch import nn

import homojl as hj
from tests import warm


class Block(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(self.conv(z) + x)


class Field(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, t, y):
        return torch.tanh(self.conv(y))


LAYERS = {
    "Equilibrium": lambda: hj.nn.Equilibrium(Block()),
    "ODE": lambda: hj.nn.ODE(Field()),
    "HomoODE": lambda: hj.nn.HomoODE(4, hj.RK4(step_size=0.25), every=1),
    "DEQ": lambda: hj.nn.DEQ(4, init="learned", every=1),
    "PcDEQ": lambda: hj.nn.PcDEQ(4),
    "MonDEQ": lambda: hj.nn.MonDEQ(4),
}


class Wild(Block):
    """A block that is made to contract."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.conv.weight)


@pytest.fixture(params=LAYERS)
def network(request) -> nn.Module:
    return network_with(request.param)


def network_with(name: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        (LAYERS | {"Wild": lambda: hj.nn.Equilibrium(Wild())})[name](),
        nn.Flatten(),
        nn.Linear(144, 3),
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 1, 6, 6)


def gradients(model, loss):
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert any(g.abs().sum() > 0 for g in grads)
    return grads


def test_compiled(network, images):
    torch._dynamo.reset()
    expected = copy.deepcopy(network)
    compiled = torch.compile(network, backend="eager")
    for _ in range(2):
        out, exact = compiled(images), expected(images)
        torch.testing.assert_close(out, exact)
        torch.testing.assert_close(gradients(network, out.sum()), gradients(expected, exact.sum()))
    assert network[2].last.nfe == expected[2].last.nfe


@pytest.mark.parametrize("within", [False, True], ids=["backward outside", "backward within"])
def test_autocast(network, images, within):
    """The layer works in float32 whatever is around it, and the rest in bfloat16."""
    seen = []
    network[2].register_forward_hook(lambda layer, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).float().square().sum()
        if within:
            grads = gradients(network, loss)
    if not within:
        grads = gradients(network, loss)
    assert seen == [(torch.bfloat16, torch.float32)]
    assert all(g.isfinite().all() for g in grads)
    assert network[2].last.converged.all()


def test_a_lower_precision(images):
    network = network_with("Equilibrium")
    network[2] = hj.nn.Equilibrium(Block(), hj.Anderson(rtol=2e-2, atol=1e-3), precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).float().sum()
    assert all(g.isfinite().all() for g in gradients(network, loss))


def test_scaled_losses(network, images):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = [p.detach().clone() for p in network.parameters()]
    scaler.scale(network(images).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(p.isfinite().all() for p in network.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_in_a_loop_in_the_manner_of_lightning(network, images):
    """Modules move, change modes and are saved as any others; accumulated gradients are those of the whole batch."""
    labels = torch.randint(0, 3, (6,))
    network.eval()  # of the layers with statistics of the batch
    whole = gradients(network, nn.functional.cross_entropy(network(images), labels))
    network.zero_grad(set_to_none=True)
    for part, label in zip(images.split(3), labels.split(3), strict=True):
        (nn.functional.cross_entropy(network(part), label) / 2).backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], list(whole), rtol=2e-2, atol=2e-3)
    assert network.to(torch.float64)(images.double()).dtype == torch.float64
    assert network.to("meta") is network


EXPORTED = {
    "Picard": lambda: hj.nn.Equilibrium(Block(), hj.Picard(rtol=1e-5, max_steps=30)),
    "Anderson": lambda: hj.nn.Equilibrium(Block(), hj.Anderson(rtol=1e-4, max_steps=15)),
    "ODE": lambda: hj.nn.ODE(Field(), hj.RK4(step_size=0.25)),
    "ODE, three times": lambda: hj.nn.ODE(lambda t, y: t - y, hj.Midpoint(step_size=0.3), times=(0.0, 0.5, 1.0)),
    "HomoODE": lambda: hj.nn.HomoODE(4, hj.RK4(step_size=0.25), init="zero"),
    "DEQ": lambda: hj.nn.DEQ(4, hj.Anderson(rtol=1e-4, max_steps=15)),
    "PcDEQ": lambda: hj.nn.PcDEQ(4, hj.Picard(rtol=1e-5, max_steps=30)),
    "MonDEQ": lambda: hj.nn.MonDEQ(4, hj.PeacemanRachford(rtol=1e-4, max_steps=15)),
    "MonDEQ, forward-backward": lambda: hj.nn.MonDEQ(4, hj.ForwardBackward(alpha=0.2, rtol=1e-4, max_steps=40)),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(name, tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), EXPORTED[name]()).eval()
    images = torch.randn(6, 1, 6, 6)
    batches = {0: torch.export.Dim("batch", min=2)} if "MonDEQ" not in name else None  # which has one size
    program = torch.export.export(network, (images,), dynamic_shapes=(batches,))
    torch.export.save(program, tmp_path / "network.pt2")
    again = torch.export.load(tmp_path / "network.pt2").module()
    for batch in (images, torch.randn(3 if batches else 6, 1, 6, 6)):
        torch.testing.assert_close(again(batch), network(batch), rtol=1e-3, atol=1e-3)
    assert network[2].last.status.ok


ONNX = [name for name in EXPORTED if "MonDEQ" not in name]  # whose Fourier transforms of complex numbers ONNX lacks


@pytest.mark.slow
@pytest.mark.needs("onnxruntime")
@pytest.mark.parametrize("name", ONNX)
def test_onnx(name, tmp_path):
    import onnxruntime

    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), EXPORTED[name]()).eval()
    images = torch.randn(3, 1, 6, 6)
    torch.onnx.export(torch.export.export(network, (images,)), f=tmp_path / "network.onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), network(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda: hj.nn.ODE(Field()), lambda: hj.nn.Equilibrium(Block(), hj.Broyden())], ids=["ODE", "Broyden"]
)
def test_what_cannot_be_exported_says_so(make):
    with pytest.raises(Exception, match=r"hj\.(RK4|Picard)"):
        torch.export.export(make().eval(), (torch.randn(2, 4, 6, 6),))


@pytest.mark.needs("lightning")
@pytest.mark.parametrize("name", LAYERS)
def test_lightning(name, tmp_path):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network_with(name)

        def training_step(self, batch, index):
            images, labels = batch
            loss = nn.functional.cross_entropy(self.network(images), labels) + hj.nn.regularization(self)
            self.log("nfe", float(self.network[2].last.nfe))
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    data = torch.utils.data.TensorDataset(torch.randn(12, 1, 6, 6), torch.randint(0, 3, (12,)))
    module = Module()
    before = [p.detach().clone() for p in module.parameters()]
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=6))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "saved.ckpt", weights_only=True).eval()
    images = data.tensors[0]
    torch.testing.assert_close(again.network(images), module.eval().network(images))
    assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert trainer.callback_metrics["nfe"] > 0


@pytest.mark.needs("accelerate")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(network, precision):
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    data = torch.utils.data.TensorDataset(torch.randn(12, 1, 6, 6), torch.randint(0, 3, (12,)))
    model, optimizer, loader = accelerator.prepare(network, optimizer, torch.utils.data.DataLoader(data, batch_size=6))
    before = [p.detach().clone() for p in network.parameters()]
    for images, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
    assert all(p.isfinite().all() for p in network.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


TRAIN = """
import sys, torch, torch.distributed as dist
from torch import nn
from tests.nn.test_frameworks import network_with

name, folder = sys.argv[1:3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(sys.argv[3]), world_size=2)
torch.manual_seed(dist.get_rank())  # weights differ until they are shared
model = nn.parallel.DistributedDataParallel(network_with(name))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
images, labels = torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))
for _ in range(3):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
model(images)
mine = torch.cat([x.double().flatten() for x in model.module.parameters()])
both = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert torch.equal(*both), (both[0] - both[1]).abs().max()
assert mine.isfinite().all()
assert name != "Wild" or model.module[2].contracted
dist.destroy_process_group()
print("the same")
"""


@pytest.mark.parametrize("name", [*LAYERS, "Wild"])
def test_two_processes_train_the_same_weights(name, tmp_path):
    command = [warm.python(), "-c", TRAIN, name, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert all("the same" in out for out in said), "\n".join(said)
