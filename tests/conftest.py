"""Fixtures for the whole suite."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from importlib.util import find_spec

# One thread in each process, those that tests start included: as many work at a time as there are cores.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest
import torch

from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm
from homojl.backends.julia.methods import SHORT
from tests.browser import browser_is_here

AVAILABLE = {"cuda": torch.cuda.is_available, "browser": browser_is_here}
# Of the group `peers` and of extras; trackio reads where it is to write when it is imported.
for peer in ("torchdiffeq", "torchode", "diffrax", "torchdeq", "wandb", "trackio", "optuna"):
    AVAILABLE[peer] = functools.partial(lambda name: find_spec(name) is not None, peer)


def _can_be_imported(name: str) -> bool:
    """Whether it is here and loads, as lightning does not beside a torchvision built for another torch."""
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


for framework in ("lightning", "accelerate", "onnxruntime", "onnxscript"):  # of the group `frameworks`
    AVAILABLE[framework] = functools.partial(_can_be_imported, framework)
AVAILABLE["git"] = lambda: shutil.which("git") is not None
# Root does without its rights over files by setpriv, so that permissions bind it too.
AVAILABLE["setpriv"] = lambda: os.geteuid() != 0 or shutil.which("setpriv") is not None
AVAILABLE["compiler"] = lambda: any(map(shutil.which, ("c++", "g++", "clang++")))  # of C++, which torch.compile needs


# Modules that one worker runs from beginning to end; all other tests are dealt out one by one. (xdist_group does
# not do it: pytest 9.2 no longer sees the names that pytest-xdist 3.8 gives the tests of a group.)
TOGETHER = {
    "tests/backends/test_compiled.py",  # what has been compiled is there for the next test
    "tests/backends/test_whole.py",
    "tests/comparison/test_compare.py",  # its tests read one comparison, and some make it again
    "tests/test_wheel.py",  # one wheel
}

# Modules that `make check` leaves out whole: many short tests, or ones that start processes and draw.
LONG = {
    "tests/cli/test_start.py",
    "tests/nn/test_frameworks.py",
    "tests/promises/test_promises.py",
    "tests/results/test_plots.py",
    "tests/test_hostile_files.py",
    "tests/training/test_outcome.py",
    "tests/training/test_own.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if module in TOGETHER else nodeid

    return Scheduler(config, log)


def pytest_configure(config):
    torch.set_num_threads(1)
    config.addinivalue_line(
        "markers", "needs(what): skipped, loudly, without it; HOMOJL_REQUIRE=what makes that a failure"
    )
    config.addinivalue_line("markers", "slow: starts processes, compiles or trains; `make check` leaves it out")


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


def _julia_has(package: str) -> bool:
    from homojl.backends.julia import runtime

    return runtime.usable() and package in runtime.find().packages


AVAILABLE["julia"] = _julia_is_usable
AVAILABLE["lux"] = lambda: _julia_has("Lux")
AVAILABLE["diffeqgpu"] = lambda: _julia_has("DiffEqGPU")


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
        on_julia = params.get("backend") == "julia" and "backend" in item.fixturenames
        methods = (p if isinstance(p, type) else type(p) for p in params.values())
        solvers = [m for m in methods if issubclass(m, AbstractODEAlgorithm | AbstractFixedPointAlgorithm)]
        return not (on_julia and any(m not in SHORT for m in solvers))

    left_out = [item for item in items if not exists(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if exists(item)]
    for item in items:
        if item.nodeid.split("::")[0] in LONG:
            item.add_marker("slow")
    # The long ones first, so that all workers end at the same time; otherwise in the order that chance has given them.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
