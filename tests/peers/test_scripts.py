"""The scripts in benchmarks/ find what they import."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NOT_HERE = {"fuzz_guided", "rows"}  # which needs atheris; what the others print tables with
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_HERE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_loaded(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    assert callable(importlib.import_module(name).main)
