"""Fixtures of several test files."""

import pytest
from inputs.helpers import torch_threads


@pytest.fixture
def one_thread():
    """Small products: threads would only wait for one another."""
    with torch_threads(1):
        yield
