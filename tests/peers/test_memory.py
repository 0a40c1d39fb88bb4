"""Solves leave nothing behind, and memory is measured where it is taken."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from benchmarks.peers import memory
from benchmarks.peers.bars import ALLOWED_GROWTH, leak_growth
from tests import warm

pytestmark = pytest.mark.slow

SOLVES = 2000  # `benchmarks/side_by_side.py` makes 10,000; what is allowed is the same for each of them


def test_solves_with_gradients_leave_nothing_behind():
    resident = memory.leak(SOLVES)
    assert len(resident) == 50
    assert leak_growth(resident) <= ALLOWED_GROWTH * SOLVES / 10_000, resident


@pytest.mark.parametrize("name", memory.gradients_to_repeat())
def test_what_a_solve_and_its_gradient_made_is_gone_with_them(name):
    """Without waiting for the garbage collector: nothing of a solve refers to itself."""
    gradient = memory.gradients_to_repeat()[name]
    for _ in range(3):  # what is loaded once
        gradient()
    gc.collect()
    gc.disable()
    try:
        objects, tensors = _alive()
        for _ in range(20):
            gradient()
        objects_after, tensors_after = _alive()
        assert objects_after - objects < 20, "one for each solve, or more"
        assert tensors_after == tensors
    finally:
        gc.enable()


def _alive() -> tuple[int, int]:
    """Objects that may refer to others, and tensors among them."""
    objects = gc.get_objects()
    return len(objects), sum(issubclass(type(x), torch.Tensor) for x in objects)


def test_growth_is_what_the_last_tenth_adds():
    steady = [100.0] * 10 + [120.0] * 90
    assert leak_growth(steady) == 0
    assert leak_growth([*steady[:-1], 123.0]) == pytest.approx(3.0)


def test_kept_states_take_less_memory_than_the_graph():
    peaks = {
        name: memory.peak_of_steps("homojl-pytorch", name, 1000, seed=0, threads=1) for name in ("direct", "30 states")
    }
    assert peaks["direct"] > 10  # MiB
    assert peaks["30 states"] < 0.2 * peaks["direct"]


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", warm.python())
    with pytest.raises(memory.MeasurementFailed, match="KeyError"):
        memory.peak_of_steps("homojl-pytorch", "no such adjoint", 3, seed=0, threads=1)
