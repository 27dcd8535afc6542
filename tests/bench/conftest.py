"""Fixtures of several tests of bench."""

import pytest

from bench.backends import registry
from bench.backends.plain import LibraryLayer


@pytest.fixture
def any_device(monkeypatch):
    """Libraries for CUDA run on the CPU: their fakes do."""
    monkeypatch.setattr(LibraryLayer, "device_reason", classmethod(lambda cls, device: None))
    for backend in ("fa2", "fa3", "fa4", "xqa"):
        monkeypatch.setattr(registry()[backend], "device_reason", classmethod(lambda cls, device: None))
    for backend in ("fa2", "fa3"):
        monkeypatch.delenv(registry()[backend].library_variable, raising=False)


@pytest.fixture
def no_pictures(monkeypatch):
    """A report's pictures are laid out and not drawn: of tests that look at its words."""
    monkeypatch.setattr("bench.report.page.picture", lambda figure, kind: b"none")
