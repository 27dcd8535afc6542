"""silu_mul against the reference, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, check_op, isa, randn, threads

import pykernels as pk

FEATURES = 24


def arguments(batch: int = 2, features: int = FEATURES, dtype: torch.dtype = torch.float32) -> dict:
    return dict(gate=randn(batch, features, dtype=dtype), up=randn(batch, features, dtype=dtype, seed=1))


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.silu_mul(**given, out=out), pk.reference.silu_mul(**given), given["gate"].dtype)


@pairwise
@pytest.mark.parametrize("features", [1, 7, 17, *RAGGED])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, batch, features):
    with isa(isa_name):
        check(arguments(batch, features, dtype))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(dtype, count):
    with threads(count):
        check(arguments(8, 18944, dtype))


@pairwise
@pytest.mark.parametrize("gate", [-3e4, -200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0, 3e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_gates_that_overflow_an_exponential(isa_name, dtype, gate):
    given = dict(gate=torch.full((2, FEATURES), gate, dtype=dtype), up=torch.full((2, FEATURES), 2.0, dtype=dtype))
    # Not the reference's measure, which is relative to the row: silu(-200) is 0 here and tiny, but not 0, there.
    expected = torch.nn.functional.silu(given["gate"].float()) * 2
    with isa(isa_name):
        torch.testing.assert_close(pk.ops.silu_mul(**given), expected.to(dtype))


@pairwise
@pytest.mark.parametrize("features", [7, 24, 1000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_gelu(isa_name, dtype, scale, features):
    given = arguments(3, features, dtype)
    with isa(isa_name):
        check(given | dict(gate=given["gate"] * scale, gelu=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_reads_its_inputs_only(isa_name, dtype):
    given = arguments(3, 7, dtype)
    for name, values in given.items():
        memory = torch.full((values.numel() + 130,), float("nan"), dtype=dtype)  # unaligned, NaN on both sides
        given[name] = memory[65:-65].view_as(values).copy_(values)
    with isa(isa_name):
        check(given)


def test_opcheck():
    torch.library.opcheck(torch.ops.pykernels.silu_mul.default, (*arguments().values(), torch.zeros(2, FEATURES)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype):
    def function(gate, up):
        return pk.ops.silu_mul(gate * 2, up) + 1

    given = arguments(dtype=dtype)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(gate=randn(FEATURES)), r"gate must be of shape \[any, any\], got \[24\]"),
        (dict(gate=randn(2, 0)), r"gate must be of shape \[any, any\], got \[2, 0\]"),
        (dict(gate=randn(9, FEATURES)), "gate must be of batch 1 to 8, got batch 9"),
        (dict(gate=randn(FEATURES, 2).T), r"gate must be contiguous, got strides \[1, 2\]"),
        (dict(gate=randn(2, FEATURES).double()), "gate must be float32, bfloat16 or float16, got float64"),
        (dict(up=randn(2, 23)), r"up must be of shape \[2, 24\], got \[2, 23\]"),
        (dict(up=randn(FEATURES, 2).T), "up must be contiguous"),
        (dict(up=randn(2, FEATURES).half()), r"up must be of the dtype of gate \(float32\), got float16"),
        (dict(up=torch.empty(2, FEATURES, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(out=randn(1, FEATURES)), r"out must be of shape \[2, 24\], got \[1, 24\]"),
        (dict(out=randn(FEATURES, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(2, FEATURES).bfloat16()), r"out must be of the dtype of gate \(float32\), got bfloat16"),
        (dict(out=torch.empty(2, FEATURES, device="meta")), "all tensors must be on one device, got cpu, meta"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"silu_mul: {message}"):
        pk.ops.silu_mul(**arguments() | changes)


@pytest.mark.parametrize("name", ["gate", "up"])
@pytest.mark.parametrize("shift", [0, 2 * FEATURES - 1])
def test_out_overlaps_an_input(name, shift):
    given = arguments()
    memory = torch.zeros(1000)
    given[name] = memory[: 2 * FEATURES].view(2, FEATURES)
    message = f"silu_mul: out must be memory of its own, got memory that overlaps {name}"
    with pytest.raises(ValueError, match=message):
        pk.ops.silu_mul(**given, out=memory[shift:][: 2 * FEATURES].view(2, FEATURES))
