"""No evaluation is thrown away: adaptive solves need the field where no other way has its value, and once each."""

from __future__ import annotations

import pytest
import torch

import homojl as hj
from homojl.algorithms import AbstractAdaptive
from tests.catalogue import EXPLICIT

ADAPTIVE = [cls for cls in EXPLICIT.values() if issubclass(cls, AbstractAdaptive)]


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("ts", [(0.0, 4.0), (0.0, 1.0, 1.5, 4.0)], ids=["ends", "four times"])
@pytest.mark.parametrize("first_step", [None, 2.0, "remembered"])
@pytest.mark.parametrize("cls", ADAPTIVE, ids=lambda c: c.__name__)
def test_every_evaluation_is_needed(cls, first_step, ts, batch):
    """A try costs its stages but for the first, which a rejected step keeps and a method first-same-as-last has."""
    seen = []

    def f(t, y):
        seen.append((t.item(), *y.flatten().tolist()))
        return torch.stack([y[:, 1], 3 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], dim=1)

    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    given = hj.StepMemory(onwards=2.0) if first_step == "remembered" else first_step
    algorithm = cls(rtol=1e-3, atol=1e-3, first_step=given)
    stats = hj.solve(hj.ODEProblem(f, y0, ts), algorithm, backend="pytorch", batch=batch).stats
    tries = stats.n_accepted + stats.n_rejected
    if first_step is not None:
        assert stats.n_rejected > 0, "or the test shows less than it should"
    first_stages = 1 if cls.tableau.fsal else stats.n_accepted
    probe = 1 if first_step is None else 0
    assert len(seen) == stats.nfe == (cls.tableau.stages - 1) * tries + first_stages + probe
    assert len(set(seen)) == len(seen)
