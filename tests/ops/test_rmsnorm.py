"""rmsnorm against the reference, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, check_op, check_overlap_is_refused, isa, randn, threads

import pykernels as pk

EPS = 1e-5
HIDDEN = 64


def arguments(batch: int = 2, hidden: int = HIDDEN, dtype: torch.dtype = torch.float32) -> dict:
    return dict(x=randn(batch, hidden, dtype=dtype), weight=randn(hidden, dtype=dtype, seed=1), eps=EPS)


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.rmsnorm(**given, out=out), pk.reference.rmsnorm(**given), given["x"].dtype)


@pairwise
@pytest.mark.parametrize("hidden", [1, 7, *RAGGED])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, batch, hidden):
    with isa(isa_name):
        check(arguments(batch, hidden, dtype))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(dtype, count):
    with threads(count):
        check(arguments(8, 4104, dtype))


@pairwise
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps_and_scale(dtype, scale, eps):
    check(arguments(dtype=dtype) | dict(x=randn(2, HIDDEN, dtype=dtype, scale=scale), eps=eps))


@pairwise
@pytest.mark.parametrize("hidden", [7, 64, 1000])
@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_offset_and_a_residual_of_any_number_of_rows(dtype, residual, rows, hidden):
    added = randn(rows, hidden, dtype=dtype, seed=2) if residual else None
    check(arguments(rows, hidden, dtype) | dict(residual=added, norm_offset=1.0))


def test_a_row_of_zeros_stays_zero():
    given = arguments() | dict(x=torch.zeros(2, HIDDEN))
    assert torch.equal(pk.ops.rmsnorm(**given), torch.zeros(2, HIDDEN))


@pairwise
@pytest.mark.parametrize("hidden", [7, 72])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_reads_its_inputs_only(isa_name, dtype, hidden):
    given = arguments(3, hidden, dtype)
    for name in ("x", "weight"):
        values = given[name]
        memory = torch.full((values.numel() + 130,), float("nan"), dtype=dtype)  # unaligned, NaN on both sides
        given[name] = memory[65:-65].view_as(values).copy_(values)
    with isa(isa_name):
        check(given)


def test_opcheck():
    given = arguments()
    torch.library.opcheck(torch.ops.pykernels.rmsnorm.default, (*given.values(), torch.empty(2, HIDDEN)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype):
    def function(x, weight):
        return pk.ops.rmsnorm(x * 2, weight, EPS) + 1

    x, weight, _ = arguments(dtype=dtype).values()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), function(x, weight))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(HIDDEN)), r"x must be of shape \[any, any\], got \[64\]"),
        (dict(x=randn(0, HIDDEN)), r"x must be of shape \[any, any\], got \[0, 64\]"),
        (dict(residual=randn(2, 8)), r"residual must be of shape \[2, 64\], got \[2, 8\]"),
        (dict(norm_offset=float("nan")), r"norm_offset must be in \(-1e38, 1e38\), got nan"),
        (dict(x=randn(HIDDEN, 2).T), r"x must be contiguous, got strides \[1, 2\]"),
        (dict(x=randn(2, HIDDEN, dtype=torch.float64)), "x must be float32, bfloat16 or float16, got float64"),
        (dict(weight=randn(63)), r"weight must be of shape \[64\], got \[63\]"),
        (dict(weight=randn(1, HIDDEN)), r"weight must be of shape \[64\], got \[1, 64\]"),
        (dict(weight=randn(2 * HIDDEN)[::2]), "weight must be contiguous"),
        (dict(weight=randn(HIDDEN).half()), r"weight must be of the dtype of x \(float32\), got float16"),
        (dict(weight=randn(HIDDEN).to("meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(out=randn(2, 63)), r"out must be of shape \[2, 64\], got \[2, 63\]"),
        (dict(out=randn(HIDDEN, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(2, HIDDEN).bfloat16()), r"out must be of the dtype of x \(float32\), got bfloat16"),
        (dict(out=torch.empty(2, HIDDEN, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(eps=-1e-6), r"eps must be in \[0, 1\), got -0.000001"),
        (dict(eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(eps=float("nan")), r"eps must be in \[0, 1\), got nan"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"rmsnorm: {message}"):
        pk.ops.rmsnorm(**arguments() | changes)


@pytest.mark.parametrize("name", ["x", "weight"])
def test_out_overlaps_an_input(name):
    check_overlap_is_refused("rmsnorm", arguments(), name, 2, HIDDEN)
