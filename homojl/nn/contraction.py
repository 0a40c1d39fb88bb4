"""Initial weights with which a block contracts, so that it has an equilibrium and every method finds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from homojl.functions.captured import Captured
from homojl.functions.evaluated import check_form
from homojl.functions.states import Form

Tensor = torch.Tensor

GOAL = 0.5  # growth that a block that is made to contract starts with, at most
LEAST = 0.05  # of the factors
SAMPLES = 8  # that are looked at
ROUNDS = 3  # of weights that are shrunk
SETTLING, POWERS = 3, 6


def growth(block: Callable[..., Any], z: Any, args: tuple[Any, ...] = ()) -> float:
    """How fast differences in z grow when the block is iterated: below 1 it contracts around z.

    The factor by which products with the transposed Jacobian lengthen a vector, the geometric mean of the last of some,
    of the worst sample: an estimate of the Jacobian's spectral radius there. Random numbers are drawn from a generator
    of its own.

    Args:
        block: `block(z, *args)` to what z is.
        z: (B, ...), or a tuple, list or dict of such tensors.
        args: further arguments.
    """
    form = Form(z, "z", batched=True)
    at = form.join(z).detach().requires_grad_()
    rows = len(at)
    with torch.enable_grad():
        value = form.join(block(form.split(at.clone()), *args), "block")
    check_form("block", value, "z", at)
    if not value.requires_grad:
        return 0.0
    generator = torch.Generator(at.device).manual_seed(0)
    v = torch.randn(at.shape, dtype=at.dtype, device=at.device, generator=generator)
    rates = []
    for i in range(POWERS):
        v = v / _norms(v).clamp_min(torch.finfo(v.dtype).tiny).view(rows, *[1] * (v.ndim - 1))
        (v,) = torch.autograd.grad(value, at, v, retain_graph=i + 1 < POWERS, allow_unused=True, materialize_grads=True)
        rates.append(_norms(v))
    return float(torch.stack(rates[POWERS // 2 :]).double().log().mean(0).exp().nan_to_num(torch.inf).max())


@torch.no_grad()
def contract_(block: Callable[..., Any], z: Any, args: tuple[Any, ...] = (), *, goal: float = GOAL) -> dict[str, float]:
    """Shrink weights of a block that does not contract until it does; one that contracts is left as it is.

    Each parameter is tried: of those that make the block contract when they are shrunk, the one that leaves the
    arguments the most influence on the value is taken. As a rule that is the weight, or the gain of the normalisation,
    that z passes before x comes in.

    Args:
        block: `block(z, *args)`, a module or a function whose closure holds modules or parameters.
        z: a start, (B, ...), or a tuple, list or dict of such tensors.
        args: further arguments, such as x.
        goal: below 1: the growth that a block that does not contract is brought to, at most.

    Returns:
        The factors of the parameters that were shrunk, by name.
    """
    z, args = _some(block, z, args)
    parameters = _parameters(block)
    before, factors = _settled_growth(block, z, args), dict[str, float]()
    while before >= 1 and parameters and len(factors) < ROUNDS:
        factor, found = max(LEAST, min(1.0, goal / before)), []
        for name, p in parameters.items():
            kept = p.clone()
            p.mul_(factor)
            after = _settled_growth(block, z, args)
            found.append((after < (1 + goal) / 2, _influence(block, z, args), -after, name))
            p.copy_(kept)
        # The one with the most influence among those that contract, else the one that comes nearest.
        contract, _, after, name = max(found)
        if not contract:
            _, _, after, name = max(found, key=lambda item: item[2])
        if not -after < before:
            break
        parameters.pop(name).mul_(factor)
        factors[name], before = factor, -after
    return factors


def drawn(z: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A start and arguments of that form with numbers that are the same in every process: zeros, and standard normal.

    Several processes that train one network must come to the same weights, and have different samples.
    """
    rows = len(pytree.tree_leaves(z)[0])
    generator = torch.Generator().manual_seed(0)

    def numbers(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != rows or not x.is_floating_point():
            return x
        return torch.randn((SAMPLES, *x.shape[1:]), generator=generator).to(x)

    start = pytree.tree_map(lambda x: x.new_zeros((SAMPLES, *x.shape[1:])), z)
    return start, pytree.tree_map(numbers, args)


def _parameters(block: Callable[..., Any]) -> dict[str, nn.Parameter]:
    if isinstance(block, nn.Module):
        return {n: p for n, p in block.named_parameters() if p.requires_grad and not n.endswith("bias")}
    held = [p for p in Captured(block).tensors if isinstance(p, nn.Parameter) and p.requires_grad]
    return {f"{i}: {tuple(p.shape)}": p for i, p in enumerate(held)}


def _some(block: Callable[..., Any], z: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A few samples, where the block takes them; else all."""
    rows = len(pytree.tree_leaves(z)[0])
    if rows <= SAMPLES:
        return z, args

    def head(x: Any) -> Any:
        return x[:SAMPLES] if isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows else x

    some = pytree.tree_map(head, (z, args))
    try:
        block(some[0], *some[1])
    except Exception:  # as of a graph, whose nodes depend on each other
        return z, args
    return some


def _settled(block: Callable[..., Any], z: Any, args: tuple[Any, ...]) -> Any:
    """z after a few damped iterations."""
    form = Form(z, "z", batched=True)
    at = form.join(z)
    for _ in range(SETTLING):
        value = form.join(block(form.split(at.clone()), *args), "block")
        check_form("block", value, "z", at)
        at = (at + value) / 2
    return form.split(at)


def _settled_growth(block: Callable[..., Any], z: Any, args: tuple[Any, ...]) -> float:
    return growth(block, _settled(block, z, args), args)


def _influence(block: Callable[..., Any], z: Any, args: tuple[Any, ...]) -> float:
    """How far the value moves when the samples exchange their arguments."""
    rows = len(pytree.tree_leaves(z)[0])

    def exchanged(x: Any) -> Any:
        return x.roll(1, 0) if isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows else x

    z = _settled(block, z, args)
    pairs = zip(
        pytree.tree_leaves(block(z, *args)),
        pytree.tree_leaves(block(z, *pytree.tree_map(exchanged, args))),
        strict=True,
    )
    return float(sum((a - b).square().sum() for a, b in pairs))


def _norms(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)
