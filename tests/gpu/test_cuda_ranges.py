"""Index tensors out of range on a GPU: clamped by the kernels, and an error where ranges are checked. Skipped without a
GPU; tests/simt/test_simt_ranges.py has the clamps, tests/package/test_ranges.py the checks of a CPU.
"""

import os
import subprocess
import sys

import pytest
import torch
from inputs.index_programs import CASES

import pykernels as pk
from pykernels import runtime

pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

every_op = pytest.mark.parametrize(
    ("make", "name", "low", "high"), CASES, ids=lambda value: getattr(value, "__name__", "")
)


@every_op
def test_a_value_out_of_range_is_an_error_where_ranges_are_checked(make, name, low, high):
    program, values = make("cuda")
    with runtime.range_checks():
        program.run()
        for wrong in (low - 1, high + 1, 1 << 28, -(1 << 31)):
            values.fill_(low)
            values[-1] = wrong
            message = rf"pykernels::{make.__name__}: {name} must be in \[{low}, {high}\] .*, got {wrong}"
            for run in (program.run, program.launchers()[0]):
                with pytest.raises(ValueError, match=message):
                    run()
        values.fill_(low)
        program.run()
    torch.cuda.synchronize()


@every_op
def test_a_value_out_of_range_is_clamped_where_they_are_not(make, name, low, high):
    program, values = make("cuda")
    for wrong in (low - 1, high + 1, 1 << 28, -(1 << 31)):
        values[-1] = wrong
        program.run()
        torch.cuda.synchronize()  # no access left its tensor


@every_op
def test_launches_that_a_graph_captures_are_not_checked(make, name, low, high):
    program, values = make("cuda")
    with runtime.range_checks():
        program.run()
        torch.cuda.synchronize()
        values[-1] = high + 1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            program.run(torch.cuda.current_stream().cuda_stream)
        graph.replay()
    torch.cuda.synchronize()


def test_the_variable_of_the_environment_checks_ranges():
    words = (
        "import torch, pykernels as pk\n"
        "table = torch.zeros(10, 64, dtype=torch.bfloat16, device='cuda')\n"
        "pk.ops.embedding(torch.tensor([10], device='cuda'), table)\n"
        "torch.cuda.synchronize()\n"
    )
    for value in ("0", "1"):
        ended = subprocess.run(
            [sys.executable, "-c", words], env=os.environ | {"PYKERNELS_CHECK_RANGES": value}, capture_output=True,
            text=True,
        )  # fmt: skip
        assert ended.returncode == int(value), ended.stderr
    assert "pykernels::embedding: token must be in [0, 9]" in ended.stderr
