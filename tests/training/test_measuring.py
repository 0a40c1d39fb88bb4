"""Memory of a part of a process."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from homojl.training.measuring import added_memory, peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process measures its peak anew")
def test_what_a_part_adds_at_its_peak_is_measured_anew():
    torch.ones(2**24).sum()  # a peak before
    with added_memory(CPU) as first:
        torch.ones(2**24).sum()  # 64 MiB that are free again afterwards
    with added_memory(CPU) as second:
        torch.ones(2**22).sum()
    assert first[0] == pytest.approx(64, abs=8)
    assert second[0] == pytest.approx(16, abs=8)
    assert peak_memory(CPU) > 16


def test_nan_where_it_cannot_be_measured(monkeypatch):
    def refused(*args, **options):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.write_text", refused)
    with added_memory(CPU) as added:
        pass
    assert math.isnan(added[0])
