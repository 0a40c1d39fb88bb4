"""Fixtures for the whole suite."""

from __future__ import annotations

import os

import pytest
import torch

from homojl.errors import BackendUnavailable

AVAILABLE = {"cuda": torch.cuda.is_available}


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
            pytest.skip(f"needs {what}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["pytorch"])
def backend(request) -> str:
    """Every backend that solves; a test that takes it runs once on each."""
    from homojl.backends import get_backend

    try:
        get_backend(request.param)
    except BackendUnavailable as error:
        pytest.fail(f"backend {request.param} is not usable: {error}")
    return request.param
