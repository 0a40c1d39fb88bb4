"""Our optimisers take PyTorch's steps to the bit, and load nothing of its compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from homojl.training.optimizers import SGD, Adam, AdamW

CASES = {
    "sgd": (SGD, torch.optim.SGD, {"weight_decay": 0.01}),
    "momentum": (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "adam": (Adam, torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (AdamW, torch.optim.AdamW, {"weight_decay": 0.01}),
}


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    """A convolution's, channels last; a bias; one that gets a gradient only now and then; and one that never does."""
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    return [nn.Parameter(t) for t in (kernel, *torch.randn(3, 5, dtype=dtype).unbind())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_pytorch(case, dtype):
    make, reference, options = CASES[case]
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer, expected = make(ours, 0.1, **options), reference(theirs, 0.1, **options)
    before = [p.detach().clone() for p in ours]
    for step in range(6):
        lr = 0.1 / (1 + step)
        optimizer.lr = expected.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        expected.zero_grad()
        torch.manual_seed(step)
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn_like(pair[0])
            if place < 2 or (place == 2 and step % 3 == 1):
                pair[0].grad, pair[1].grad = gradient.clone(), gradient.clone()
        optimizer.step()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
    assert [torch.equal(a, b) for a, b in zip(before, ours, strict=True)] == [False, False, False, True]
    kept = {
        place: {name: value for name, value in state.items() if value is not None}
        for place, state in expected.state_dict()["state"].items()
    }
    assert optimizer.state.keys() == {place for place, state in kept.items() if state}
    for place, state in optimizer.state.items():
        assert state.keys() == kept[place].keys() == optimizer.keeps
        for name, value in state.items():
            assert torch.equal(value, kept[place][name])
            assert value.dtype == kept[place][name].dtype


def test_pytorch_s_compiler_is_not_loaded():
    code = """
import sys, torch
from homojl.training.optimizers import SGD, Adam, AdamW
for make in (SGD, Adam, AdamW):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make([weight], 0.1)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
