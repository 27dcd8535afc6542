"""Fixtures of several test files."""

import pytest
import torch
from inputs.helpers import GPU, torch_threads


def pytest_sessionstart():
    """Tests say `cuda`, which is the current device."""
    if GPU.index:
        torch.cuda.set_device(GPU)


@pytest.fixture
def one_thread():
    """Small products: threads would only wait for one another."""
    with torch_threads(1):
        yield
