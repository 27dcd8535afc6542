"""Lists: no line is longer than 100 characters or the terminal, and nothing of them is cut."""

import pytest
from inputs.command_line import flat, run_here

from bench.backends.int4.torchao import Torchao
from bench.core.library import library_reason, only_found
from bench.core.listing import item


@pytest.mark.parametrize("columns", [20, 60, 100, 300, 0])
def test_an_item(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    words = "one two three " * 20 + "a-very-long-word-" * 10
    lines = item("head", words, 10).splitlines()
    assert lines[0].startswith("head      one") and all(line.startswith(" " * 10 + line[10]) for line in lines[1:])
    assert flat(" ".join(line[10:] for line in lines)) == flat(words)
    widest = max(min(columns or 100, 100), 30)
    assert all(len(line) <= widest for line in lines if "a-very" not in line)


def test_a_long_head(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert item("native/block:graph-pdl:", "R_floor 0.9, " * 6, 4).splitlines() == [
        "native/block:graph-pdl: R_floor 0.9, R_floor 0.9, R_floor", "    0.9, R_floor 0.9, R_floor 0.9, R_floor 0.9,",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [("bench.doctor",), *((name, "--list") for name in ("bench.layer", "bench.op",
                         "bench.launch", "bench.int4", "bench.step", "bench.attention"))], ids=" ".join)  # fmt: skip
def test_a_list_fits(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "100")
    result = run_here(capsys, *arguments)
    assert result.status == 0 and [line for line in result.out.splitlines() if len(line) > 100] == []


def test_a_list_loads_no_library(capsys, monkeypatch):
    def load():
        raise AssertionError("loaded")

    with only_found():
        assert library_reason("wave", load) is None and library_reason("wave.more", load) is None
        assert library_reason("no_such_package", load) == "no_such_package cannot be loaded: loaded"
    assert library_reason("wave", load) == "wave cannot be loaded: loaded"
    monkeypatch.setattr(Torchao, "package", "wave")  # of the standard library
    monkeypatch.setattr(Torchao, "library", load)
    for module in ("bench.sweep", "bench.layer", "bench.int4"):
        result = run_here(capsys, module, "--list")
        assert result.status == 0 and "torchao" in result.out and "cannot be loaded: loaded" not in result.out
        assert "were not loaded" in result.out
