"""add against the reference, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, check_op, isa, randn, threads

import pykernels as pk

SHAPE = (2, 24)


def arguments(*shape: int, dtype: torch.dtype = torch.float32) -> dict:
    shape = shape or SHAPE
    return dict(a=randn(*shape, dtype=dtype), b=randn(*shape, dtype=dtype, seed=1))


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.add(**given, out=out), pk.reference.add(**given), given["a"].dtype)


@pairwise
@pytest.mark.parametrize("features", [1, 7, 17, *RAGGED])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, batch, features):
    with isa(isa_name):
        check(arguments(batch, features, dtype=dtype))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 7), (2, 1, 3, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_shape(dtype, shape):
    check(arguments(*shape, dtype=dtype))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(dtype, count):
    with threads(count):
        check(arguments(8, 4104, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_scaled(isa_name, dtype):
    with isa(isa_name):
        check(arguments(3, 71, dtype=dtype) | dict(scale=0.22))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_rounds_as_torch_does(isa_name, dtype):
    given = arguments(8, 1000, dtype=dtype)
    with isa(isa_name):
        assert torch.equal(pk.ops.add(**given), given["a"] + given["b"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_reads_its_inputs_only(isa_name, dtype):
    given = arguments(3, 7, dtype=dtype)
    for name, values in given.items():
        memory = torch.full((values.numel() + 130,), float("nan"), dtype=dtype)  # unaligned, NaN on both sides
        given[name] = memory[65:-65].view_as(values).copy_(values)
    with isa(isa_name):
        check(given)


def test_opcheck():
    torch.library.opcheck(torch.ops.pykernels.add.default, (*arguments().values(), torch.zeros(SHAPE)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype):
    def function(a, b):
        return pk.ops.add(a * 2, b) * 3

    given = arguments(dtype=dtype)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(a=randn(24, 2).T), r"a must be contiguous, got strides \[1, 2\]"),
        (dict(a=randn(*SHAPE).double()), "a must be float32, bfloat16 or float16, got float64"),
        (dict(b=randn(2, 23)), r"b must be of shape \[2, 24\], got \[2, 23\]"),
        (dict(b=randn(24)), r"b must be of shape \[2, 24\], got \[24\]"),
        (dict(b=randn(24, 2).T), "b must be contiguous"),
        (dict(b=randn(*SHAPE).half()), r"b must be of the dtype of a \(float32\), got float16"),
        (dict(b=torch.empty(SHAPE, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(out=randn(1, 24)), r"out must be of shape \[2, 24\], got \[1, 24\]"),
        (dict(out=randn(24, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(*SHAPE).bfloat16()), r"out must be of the dtype of a \(float32\), got bfloat16"),
        (dict(out=torch.empty(SHAPE, device="meta")), "all tensors must be on one device, got cpu, meta"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"add: {message}"):
        pk.ops.add(**arguments() | changes)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("shift", [0, 47])
def test_out_overlaps_an_input(name, shift):
    given = arguments()
    memory = torch.zeros(1000)
    given[name] = memory[:48].view(SHAPE)
    with pytest.raises(ValueError, match=f"add: out must be memory of its own, got memory that overlaps {name}"):
        pk.ops.add(**given, out=memory[shift:][:48].view(SHAPE))
