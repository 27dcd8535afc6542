"""Index tensors that leave their range, and tensors that lose their memory, after a program was recorded."""

import dataclasses

import pytest
import torch
from inputs.helpers import randn

import pykernels as pk
from pykernels import runtime

MAX_LEN, HEADS, KV_HEADS, DIM, HIDDEN = 16, 4, 2, 32, 64


def cache() -> torch.Tensor:
    return randn(1, KV_HEADS, MAX_LEN, DIM)


def rope_kv_append() -> tuple[runtime.Program, torch.Tensor]:
    position, cos_sin = torch.zeros(1, dtype=torch.int32), randn(MAX_LEN, DIM)
    with runtime.record() as program:
        pk.ops.rope_kv_append(
            randn(1, HEADS, DIM), randn(1, KV_HEADS, DIM), randn(1, KV_HEADS, DIM), cos_sin, position, cache(), cache()
        )
    return program, position


def qkv_gemv() -> tuple[runtime.Program, torch.Tensor]:
    position, cos_sin = torch.zeros(1, dtype=torch.int32), randn(MAX_LEN, DIM)
    weights = [randn(heads * DIM, HIDDEN) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    with runtime.record() as program:
        pk.ops.qkv_gemv(
            randn(1, HIDDEN), *weights, cos_sin, position, cache(), cache(), norm_weight=torch.ones(HIDDEN), eps=1e-6
        )  # fmt: skip
    return program, position


def int4_qkv_gemv() -> tuple[runtime.Program, torch.Tensor]:
    position, cos_sin = torch.zeros(1, dtype=torch.int32), randn(MAX_LEN, DIM)
    weights = [pk.Int4Weight.quantize(randn(heads * DIM, HIDDEN), 32) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    with runtime.record() as program:
        pk.ops.int4_qkv_gemv(
            randn(1, HIDDEN), *weights, cos_sin, position, cache(), cache(), norm_weight=torch.ones(HIDDEN), eps=1e-6
        )  # fmt: skip
    return program, position


def gqa_decode() -> tuple[runtime.Program, torch.Tensor]:
    kv_len = torch.ones(1, dtype=torch.int32)
    with runtime.record() as program:
        pk.ops.gqa_decode(randn(1, HEADS, DIM), cache(), cache(), kv_len)
    return program, kv_len


def embedding() -> tuple[runtime.Program, torch.Tensor]:
    token = torch.zeros(1, dtype=torch.int64)
    with runtime.record() as program:
        pk.ops.embedding(token, randn(10, HIDDEN))
    return program, token


def argmax() -> tuple[runtime.Program, torch.Tensor]:
    position, kv_len = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with runtime.record() as program:
        pk.ops.argmax(randn(1, 50), position, kv_len, MAX_LEN)
    return program, position


def int4_gemv() -> tuple[runtime.Program, torch.Tensor]:
    perm = torch.arange(HIDDEN, dtype=torch.int32)
    weight = dataclasses.replace(pk.Int4Weight.quantize(randn(32, HIDDEN), 32), perm=perm)
    with runtime.record() as program:
        pk.ops.int4_gemv(randn(1, HIDDEN), weight)
    return program, perm


CASES = [
    (rope_kv_append, "position", 0, MAX_LEN - 1),
    (qkv_gemv, "position", 0, MAX_LEN - 1),
    (int4_qkv_gemv, "position", 0, MAX_LEN - 1),
    (gqa_decode, "kv_len", 1, MAX_LEN),
    (embedding, "token", 0, 9),
    (argmax, "position", 0, MAX_LEN - 1),
    (int4_gemv, "perm", 0, HIDDEN - 1),
]


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
