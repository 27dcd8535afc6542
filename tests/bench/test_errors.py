"""Others' errors in one line, and what is said of a library that is not there."""

import logging
import sys
import warnings

import pytest

from bench.core.errors import first_line, one_line
from bench.core.library import library_reason
from bench.plugins.user_file import run_file


@pytest.mark.parametrize(
    ("error", "first", "one"),
    [
        (ValueError("off"), "off", "ValueError: off"),
        (ValueError("\n first\nsecond"), "first", "ValueError: first"),
        (RuntimeError(), "RuntimeError", "RuntimeError"),
        (RuntimeError(" \n"), "RuntimeError", "RuntimeError"),
        (KeyError("name"), "'name'", "KeyError: 'name'"),
    ],
    ids=repr,
)
def test_one_line(error, first, one):
    assert (first_line(error), one_line(error)) == (first, one)


def raising(error):
    def load():
        raise error

    return load


def test_a_library_is_loaded_without_its_own_lines(caplog, recwarn):
    def load():
        logging.getLogger("library").warning("Failed to load library/_C_extension.so")
        warnings.warn("deprecated", stacklevel=1)

    assert library_reason("library", load) is None
    assert caplog.records == [] and recwarn.list == []
    load()
    assert len(caplog.records) == len(recwarn.list) == 1


def test_what_is_said_of_a_library():
    assert library_reason("thing", lambda: object()) is None
    assert library_reason("thing", raising(ImportError("no thing\nreinstall it"))) == "thing is not installed: no thing"
    assert (
        library_reason("thing", raising(OSError("x.so: no such file"))) == "thing cannot be loaded: x.so: no such file"
    )
    assert library_reason("thing", raising(AssertionError())) == "thing cannot be loaded: AssertionError"


def test_a_file_that_raises_leaves_no_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "broken.py"
    path.write_text("import beside\nraise ValueError('broken')")
    (tmp_path / "beside.py").write_text("")
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            run_file(path)
    assert "launchtax_plugin_broken" not in sys.modules
    assert sys.path.count(str(tmp_path)) == 1, "what lies beside it is found, by one entry"
    path.write_text("import beside\nName = 1")
    assert run_file(path).Name == 1
    sys.modules.pop("beside")
    sys.modules.pop("launchtax_plugin_broken")
