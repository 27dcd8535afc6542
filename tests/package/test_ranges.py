"""Index tensors that leave their range, and tensors that lose their memory, after a program was recorded."""

import os
import subprocess
import sys

import pytest
import torch
from inputs.helpers import randn
from inputs.index_programs import CASES

import pykernels as pk
from pykernels import runtime


@pytest.mark.parametrize(("make", "name", "low", "high"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_program_checks_what_it_reads_when_it_runs(make, name, low, high):
    program, values = make()
    program.run()
    for wrong in (low - 1, high + 1, 1 << 28, -(1 << 31)):
        values.fill_(low)
        values[-1] = wrong
        message = rf"pykernels::{make.__name__}: {name} must be in \[{low}, {high}\] .*, got {wrong}"
        for run in (program.run, program.launchers()[0], lambda: runtime.timed_loop([program], 1, 1)):
            with pytest.raises(ValueError, match=message):
                run()
    values.fill_(low)
    program.run()


@pytest.mark.parametrize(("make", "name", "low", "high"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_recording_checks_what_is_there_already(make, name, low, high):
    program, values = make()
    values[-1] = high + 1
    ops = program.ops
    assert ops == [make.__name__]
    with pytest.raises(ValueError, match=rf"{name} must be in \[{low}, {high}\]"):
        runtime.timed_ops([program], 0, 1)


def test_range_checks_are_set_and_put_back():
    before = runtime._runtime.range_checks()
    with runtime.range_checks():
        assert runtime._runtime.range_checks()
    assert runtime._runtime.range_checks() == before


def test_the_variable_of_the_environment_sets_them():
    words = "from pykernels import runtime; print(runtime._runtime.range_checks())"
    environment = os.environ | {"PYKERNELS_CHECK_RANGES": "1"}
    ended = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True)
    assert ended.stdout == "True\n", ended.stderr
    assert not runtime._runtime.range_checks()


def resize(x: torch.Tensor) -> None:
    x.resize_(1 << 20)


def shrink_storage(x: torch.Tensor) -> None:
    x.untyped_storage().resize_(0)


@pytest.mark.parametrize("change", [resize, shrink_storage])
@pytest.mark.parametrize("name", ["x", "weight", "out"])
def test_a_tensor_that_is_resized_after_recording_is_an_error(name, change):
    tensors = {"x": randn(1, 64), "weight": torch.ones(64), "out": torch.zeros(1, 64)}
    with runtime.record() as program:
        pk.ops.null(torch.zeros(1))
        pk.ops.rmsnorm(tensors["x"], tensors["weight"], 1e-6, out=tensors["out"])
    change(tensors[name])
    message = f"pykernels::rmsnorm: {name} was resized after it was recorded"
    for run in (program.run, program.launchers()[1], lambda: runtime.timed_loop([program], 0, 1)):
        with pytest.raises(RuntimeError, match=message):
            run()
    program.launchers()[0]()  # the other op's memory is where it was


def test_a_program_keeps_the_memory_of_tensors_that_get_other():
    x, out = randn(1, 64), torch.zeros(1, 64)
    expected = pk.reference.rmsnorm(x, torch.ones(64), 1e-6)
    recorded = out.view(1, 64)
    with runtime.record() as program:
        pk.ops.rmsnorm(x, torch.ones(64), 1e-6, out=out)
    out.data = torch.full((1, 64), 7.0)
    x.data = torch.zeros(1, 64)
    program.run()
    assert (out == 7).all() and torch.allclose(recorded.double(), expected.double(), atol=1e-5)


def test_a_view_at_an_offset_is_where_it_was():
    memory = torch.zeros(4, 64)
    x, out = memory[1:2].copy_(randn(1, 64)), memory[3:4]
    with runtime.record() as program:
        pk.ops.rmsnorm(x, torch.ones(64), 1e-6, out=out)
    program.run()
    assert out.any() and not memory[2].any()
