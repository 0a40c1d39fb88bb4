"""How far a solve of many samples has come, as it is told."""

from __future__ import annotations

import io
import sys

import pytest
import torch

import homojl as hj
from homojl.backends import monitor


def problem(count: int, **options) -> hj.ODEProblem:
    rate = torch.linspace(0.5, 5, count)[:, None].requires_grad_(options.pop("gradient", False))
    y0 = torch.ones(count, 2)
    return hj.ODEProblem(lambda t, y, r: -r * y, y0, (0.0, 2.0), args=(hj.PerSample(rate),))


def told(run) -> list[tuple[str, int, int]]:
    heard: list[tuple[str, int, int]] = []
    with hj.progress(lambda *what: heard.append(what)):
        run()
    return heard


def grows_to(heard, what: str, total: int) -> int:
    """How often it was told; up to the end, each time more."""
    done = [d for w, d, t in heard if w == what and t == total]
    assert done == sorted(set(done))
    assert done[-1] == total
    return len(done)


def test_samples_that_have_ended():
    each = problem(8)
    heard = told(lambda: hj.solve(each, hj.Tsit5(), batch="per-sample", backend="pytorch"))
    assert grows_to(heard, "solve", 8) > 1


@pytest.mark.slow
@pytest.mark.needs("compiler")
def test_compiled_ones_with_their_gradient(monkeypatch):
    monkeypatch.setattr(monitor, "_LEAST", 256)
    monkeypatch.setattr("homojl.backends.pytorch.native.ensemble._AT_A_TIME", 64 * 2 * 256)
    each = problem(1000, gradient=True)
    (rate,) = (a.value for a in each.args)
    values = []

    def run() -> None:
        solution = hj.solve(
            each, hj.Tsit5(), batch="per-sample", backend="pytorch-compiled", adjoint=hj.CheckpointAdjoint()
        )
        values.append((solution.value, *torch.autograd.grad(solution.value.sum(), rate)))

    heard = told(run)
    assert grows_to(heard, "solve", 1000) == grows_to(heard, "gradient", 1000) == 4
    run()  # and what is told changes nothing
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_the_line_of_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, written in ((Terminal(), "\rsolve: 4,000 of 4,000 samples\n"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        with hj.progress():
            monitor.Told("solve", 4000).reached(4000)
        assert stream.getvalue() == written
