"""Fixtures for the whole suite."""

from __future__ import annotations

import pytest
import torch

from homojl.errors import BackendUnavailable


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
