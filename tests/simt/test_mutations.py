"""The mutations of tests/mutations: each pattern finds its statements, and one that is quick to build is found."""

import re
import shutil

import pytest
from mutations.mutate import BUILD, FUNCTIONS, KERNELS, NOT_FOUND, REPLACED, mutations, what_found

MADE = mutations()


@pytest.mark.parametrize("what", [f"without {name}" for name in FUNCTIONS] + [what for *_, what in REPLACED])
def test_a_pattern_finds_its_statements(what):
    assert what in {one.what for one in MADE} or what == "without fence_device", "no kernel needs that fence today"


def test_the_functions_are_those_of_ptx():
    text = "".join(path.read_text() for path in (KERNELS / "common").glob("ptx*.cuh"))
    for name in FUNCTIONS:
        assert re.search(rf" {name}\(.*\) {{", text), f"ptx.cuh has no {name}"


def test_every_kernel_waits_for_its_producers():
    """But the controls, the probe of a device, the empty kernels and those of a graph's loop: no PDL."""
    waits = sum(one.what == "without wait_for_producers" for one in MADE)
    files = {*KERNELS.rglob("*.cu"), *KERNELS.rglob("*.cuh")}
    files = [path for path in files if path.stem not in ("ceiling", "controls", "device", "empty", "graph_loop")]
    kernels = sum(len(re.findall(r"^__global__ void", path.read_text(), re.MULTILINE)) for path in files)
    assert waits == kernels > 10


def test_what_is_not_found_is_a_mutation():
    assert {one.name for one in MADE} >= NOT_FOUND.keys()


@pytest.mark.skipif(not (BUILD / "compile_commands.json").exists(), reason="needs the build's commands")
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
def test_a_removed_wait_is_found():
    """Of the plain elementwise kernel, whose wait no test missed once."""
    [_, plain] = [one for one in MADE if one.kind == "common/elementwise.cuh: without wait_for_producers"]
    chained = ["tests/simt/test_simt_chained.py"]
    assert what_found(None, {"add"}, chained) == ""
    assert what_found(plain, {"add"}, chained).startswith("unordered launches (test_behind_")
