"""Fixtures of several test files."""

import resource

import pytest
import torch
from inputs.helpers import GPU, torch_threads


def pytest_sessionstart():
    """Tests say `cuda`, which is the current device."""
    if GPU.index:
        torch.cuda.set_device(GPU)


@pytest.fixture(autouse=True)
def own_limits():
    """A plug-in's process limits its memory; a test that runs its code in this one must not limit those after it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def one_thread():
    """Small products: threads would only wait for one another."""
    with torch_threads(1):
        yield
