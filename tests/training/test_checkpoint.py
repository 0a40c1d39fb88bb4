"""Checkpoints come back exactly, or not at all."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from hypothesis import given, settings, strategies as st

from homojl.errors import CheckpointError
from homojl.files import atomic_write
from homojl.models import create_model
from homojl.training import checkpoint as module
from homojl.training.checkpoint import load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from homojl.training.optimizers import SGD, Adam, AdamW

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])


@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 4), max_size=4)), max_size=5), st.integers(0, 2**30))
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory, forms, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{i}": torch.randint(0, 2, shape, generator=generator).to(dtype) for i, (dtype, shape) in enumerate(forms)
    }
    path = tmp_path_factory.mktemp("c") / "x.safetensors"
    write_checkpoint(path, tensors, {"epoch": 3, "text": "é", "number": 0.1})
    back, header = read_checkpoint(path)
    assert header == {"epoch": 3, "text": "é", "number": 0.1, "schema": module.SCHEMA}
    assert back.keys() == tensors.keys()
    for name, t in tensors.items():
        assert back[name].dtype == t.dtype
        assert torch.equal(back[name], t)


def test_every_damaged_byte_and_length_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}, {"epoch": 1})
    good = path.read_bytes()
    unnoticed = []
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            tensors, header = read_checkpoint(path)
        except CheckpointError:
            continue
        # Only a byte that means nothing, such as a space that pads the header, may change unnoticed.
        unnoticed.append(position)
        assert header == {"epoch": 1}
        assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert len(unnoticed) < 10
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    path.write_bytes(good + b"more")
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    torch.save({"a": Evil()}, path)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_another_schema_and_foreign_files_are_refused(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of homojl"):
        read_checkpoint(path)
    monkeypatch.setattr(module, "SCHEMA", 3)
    write_checkpoint(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="schema 3; this version of homojl reads schemas 1 and 2"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_weights_of_schema_1_have_the_names_of_today(tmp_path, monkeypatch):
    """Names as models had them before they were made of layers."""
    path, model = tmp_path / "x.safetensors", {"name": "pcdeq", "form": "multi"}
    names = [
        *("layers.0.injection.0.weight", "layers.0.weight.gain", "layers.0.after.1.bias", "layers.1.injection.0.bias"),
        *("layers.2.weight.direction", "layers.2.after.1.weight", "head.2.bias"),
    ]
    monkeypatch.setattr(module, "SCHEMA", 1)
    tensors = {f"model.{name}": torch.full((1,), float(i)) for i, name in enumerate(names)}
    write_checkpoint(path, tensors | {"optimizer.0.step": torch.zeros(())}, {"model": model})
    monkeypatch.undo()
    found, header = read_checkpoint(path)
    assert header["schema"] == 1
    assert {name.removeprefix("model."): int(x) for name, x in found.items()} == {
        "encoder.1.0.weight": 0, "layer.0.weight.gain": 1, "layer.1.1.bias": 2, "layer.2.0.bias": 3,
        "layer.6.weight.direction": 4, "decoder.0.1.weight": 5, "decoder.3.bias": 6,
    }  # fmt: skip
    own = create_model("pcdeq", input_shape=(1, 12, 12), n_classes=3, form="multi", channels=(3, 4, 5)).state_dict()
    assert {name.removeprefix("model.") for name in found} <= own.keys()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"a": torch.ones(3)}, {})

    def full(*_: object, **__: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("homojl.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, {"a": torch.zeros(3)}, {})
    assert torch.equal(read_checkpoint(path)[0]["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_atomic_write_keeps_the_old_file_when_its_body_fails(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("make", [Adam, AdamW, functools.partial(SGD, momentum=0.9)])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(make, tmp_path):
    def model():
        torch.manual_seed(0)
        return torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)

    def step(m, optimizer, i):
        torch.manual_seed(i)
        optimizer.zero_grad()
        m(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()

    straight = model()
    optimizer = make(straight.parameters(), 0.01)
    for i in range(6):
        step(straight, optimizer, i)

    first = model()
    optimizer = make(first.parameters(), 0.01)
    for i in range(3):
        step(first, optimizer, i)
    write_checkpoint(tmp_path / "x", optimizer_tensors(optimizer, "o"), {})
    second = model()
    second.load_state_dict(first.state_dict())
    optimizer = make(second.parameters(), 0.01)
    load_optimizer(optimizer, "o", read_checkpoint(tmp_path / "x")[0])
    for i in range(3, 6):
        step(second, optimizer, i)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
