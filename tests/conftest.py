"""Fixtures for the whole suite."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from importlib.util import find_spec

import pytest
import torch

from homojl.algorithms import PYTORCH_ONLY
from tests.browser import browser_is_here

AVAILABLE = {"cuda": torch.cuda.is_available, "browser": browser_is_here}
for peer in ("torchdiffeq", "torchode", "diffrax", "torchdeq"):  # of the extra `bench`
    AVAILABLE[peer] = functools.partial(lambda name: find_spec(name) is not None, peer)


def _can_be_imported(name: str) -> bool:
    """Whether it is here and loads, as lightning does not beside a torchvision built for another torch."""
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


for framework in ("lightning", "accelerate"):  # of the extra `frameworks`
    AVAILABLE[framework] = functools.partial(_can_be_imported, framework)
AVAILABLE["git"] = lambda: shutil.which("git") is not None
# Root does without its rights over files by setpriv, so that permissions bind it too.
AVAILABLE["setpriv"] = lambda: os.geteuid() != 0 or shutil.which("setpriv") is not None
AVAILABLE["compiler"] = lambda: any(map(shutil.which, ("c++", "g++", "clang++")))  # of C++, which torch.compile needs


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "needs(what): skipped, loudly, without it; HOMOJL_REQUIRE=what makes that a failure"
    )


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        (what,) = mark.args
        if not AVAILABLE[what]():
            if what in os.environ.get("HOMOJL_REQUIRE", "").split(","):
                pytest.fail(f"HOMOJL_REQUIRE names {what}, which is not here")
            pytest.skip(f"needs {what}, which is not here")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _julia_is_usable() -> bool:
    from homojl.backends.julia import runtime

    return runtime.usable()


AVAILABLE["julia"] = _julia_is_usable


@pytest.fixture
def no_julia() -> dict[str, str]:
    """The environment of a process on a machine without Julia, wherever this runs: one is named that is not there."""
    return os.environ | {"PYTHON_JULIACALL_EXE": "no-such-julia", "PYTHON_JULIACALL_PROJECT": "no-such-project"}


@pytest.fixture(params=["pytorch", pytest.param("julia", marks=pytest.mark.needs("julia"))])
def backend(request) -> str:
    """Every backend that solves; a test that takes it runs once on each."""
    return request.param


def pytest_collection_modifyitems(config, items):
    """Leave out what is no test: Julia's backend with a method that it lacks. A skip would say something is missing."""

    def exists(item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        in_julia = params.get("backend") == "julia" and "backend" in item.fixturenames
        methods = (p if isinstance(p, type) else type(p) for p in params.values())
        return not (in_julia and any(issubclass(m, PYTORCH_ONLY) for m in methods))

    left_out = [item for item in items if not exists(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if exists(item)]
