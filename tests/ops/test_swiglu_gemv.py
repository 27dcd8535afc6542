"""swiglu_gemv against the reference, with and without its norm; its workspace; and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import (
    DTYPES,
    RAGGED,
    Guarded,
    assert_close,
    check_op,
    check_overlap_is_refused,
    isa,
    randn,
    threads,
)

import pykernels as pk

IN, OUT = 64, 24
EPS = 1e-5
SIZES = sorted({1, 7, 15, 17, *RAGGED})
# With the norm, whose result is rounded too, it is two ops in a row.
DEPTH_WITH_NORM = 2


def arguments(
    batch: int = 2,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
    norm: bool = True,
) -> dict:
    weight_scale = in_features**-0.5
    return dict(
        x=randn(batch, in_features, dtype=dtype),
        gate_weight=randn(out_features, in_features, dtype=dtype, seed=1, scale=weight_scale),
        up_weight=randn(out_features, in_features, dtype=dtype, seed=2, scale=weight_scale),
        norm_weight=randn(in_features, dtype=dtype, seed=3) if norm else None,
        eps=EPS,
    )


def check(given: dict) -> None:
    expected = pk.reference.swiglu_gemv(**given)
    depth = 1 if given["norm_weight"] is None else DEPTH_WITH_NORM
    check_op(lambda out: pk.ops.swiglu_gemv(**given, out=out), expected, given["x"].dtype, depth)


@pairwise
@pytest.mark.parametrize("in_features", SIZES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_length_of_a_row(isa_name, dtype, batch, norm, in_features):
    with isa(isa_name):
        check(arguments(batch, in_features, dtype=dtype, norm=norm))


@pairwise
@pytest.mark.parametrize("out_features", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_number_of_rows(isa_name, dtype, batch, out_features):
    with isa(isa_name):
        # Without the norm, whose rounding is large next to a row of one value that happens to cancel.
        check(arguments(batch, 72, out_features, dtype, norm=False))


@pairwise
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_gelu_and_a_norm_with_an_offset(isa_name, dtype, batch, gelu, norm):
    with isa(isa_name):
        check(arguments(batch, 72, dtype=dtype, norm=norm) | dict(gelu=gelu, norm_offset=1.0))


@pairwise
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_number_of_threads(isa_name, dtype, count, norm):
    given = arguments(3, 1000, 331, dtype, norm)
    with isa(isa_name):
        with threads(count):
            check(given)
            out = pk.ops.swiglu_gemv(**given)
        with threads(1):  # rows are independent, so who sums them changes nothing
            assert torch.equal(out, pk.ops.swiglu_gemv(**given))


@pairwise
@pytest.mark.parametrize("gate", [-3e4, -200.0, -88.0, 0.0, 88.0, 200.0, 3e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_gates_that_overflow_an_exponential(isa_name, dtype, gate):
    given = dict(
        x=torch.ones(2, 1, dtype=dtype),
        gate_weight=torch.full((OUT, 1), gate, dtype=dtype),
        up_weight=torch.ones(OUT, 1, dtype=dtype),
    )
    # Not the reference's measure, which is relative to the row: silu(-200) is 0 here and tiny, but not 0, there.
    expected = torch.nn.functional.silu(given["gate_weight"].float().T.expand(2, OUT))
    with isa(isa_name):
        torch.testing.assert_close(pk.ops.swiglu_gemv(**given), expected.to(dtype))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps(dtype, eps):
    given = arguments(dtype=dtype)
    check(given | dict(x=given["x"] * 0.01, eps=eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_parts(dtype):
    given = arguments(3, 136, 72, dtype)
    x = pk.ops.rmsnorm(given["x"], given["norm_weight"], EPS)
    gate, up = (pk.ops.gemv(x, given[name]) for name in ("gate_weight", "up_weight"))
    assert_close(pk.ops.swiglu_gemv(**given), pk.ops.silu_mul(gate, up).double(), dtype, DEPTH_WITH_NORM)


@pairwise
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace(dtype, batch, norm):
    given = arguments(batch, 1000, dtype=dtype, norm=norm)
    size = pk.ops.swiglu_gemv_workspace(given["x"], given["norm_weight"]).numel()
    workspace = Guarded(size, dtype=torch.uint8)  # all 0xFF: NaN
    out = pk.ops.swiglu_gemv(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.swiglu_gemv(**given))


@pytest.mark.parametrize("norm", [False, True])
def test_opcheck(norm):
    given = arguments(norm=norm)
    workspace = pk.ops.swiglu_gemv_workspace(given["x"], given["norm_weight"]).zero_() if norm else None
    operator = torch.ops.pykernels.swiglu_gemv.default
    torch.library.opcheck(operator, (*given.values(), torch.zeros(2, OUT), workspace))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype, norm):
    def function(x, gate_weight, up_weight, norm_weight, eps):
        return pk.ops.swiglu_gemv(x * 2, gate_weight, up_weight, norm_weight=norm_weight, eps=eps) + 1

    given = arguments(dtype=dtype, norm=norm)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


def workspace_of(size: int) -> dict:
    return dict(workspace=torch.zeros(size, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(IN)), r"x must be of shape \[any, any\], got \[64\]"),
        (dict(x=randn(9, IN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(IN, 2).T), r"x must be contiguous, got strides \[1, 2\]"),
        (dict(x=randn(2, IN).double()), "x must be float32, bfloat16 or float16, got float64"),
        (dict(gate_weight=randn(OUT, 63)), r"gate_weight must be of shape \[any, 64\], got \[24, 63\]"),
        (dict(gate_weight=randn(IN, OUT).T), "gate_weight must be contiguous"),
        (dict(gate_weight=randn(OUT, IN).half()), r"gate_weight must be of the dtype of x \(float32\), got float16"),
        (dict(up_weight=randn(OUT + 1, IN)), r"up_weight must be of shape \[24, 64\], got \[25, 64\]"),
        (dict(up_weight=randn(IN, OUT).T), "up_weight must be contiguous"),
        (dict(up_weight=randn(OUT, IN).half()), r"up_weight must be of the dtype of x \(float32\), got float16"),
        (dict(norm_weight=randn(OUT)), r"norm_weight must be of shape \[64\], got \[24\]"),
        (dict(norm_weight=randn(2 * IN)[::2]), "norm_weight must be contiguous"),
        (dict(norm_weight=randn(IN).bfloat16()), r"norm_weight must be of the dtype of x \(float32\), got bfloat16"),
        (dict(eps=-1e-6), r"eps must be in \[0, 1\), got -0.000001"),
        (dict(eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(eps=float("nan")), r"eps must be in \[0, 1\), got nan"),
        (dict(norm_weight=None, eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(out=randn(2, IN)), r"out must be of shape \[2, 24\], got \[2, 64\]"),
        (dict(out=randn(OUT, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(2, OUT).half()), r"out must be of the dtype of x \(float32\), got float16"),
        (dict(out=torch.empty(2, OUT, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (workspace_of(511), "workspace must be of at least 512 bytes, got 511 bytes"),
        (dict(workspace=torch.zeros(1024, dtype=torch.uint8)[1:]), "workspace must be 64-byte aligned"),
        (dict(workspace=torch.zeros(1024, dtype=torch.uint8)[::2]), "workspace must be contiguous"),
        (dict(workspace=torch.zeros(1, 1024, dtype=torch.uint8)), r"workspace must be of shape \[any\]"),
        (dict(workspace=torch.zeros(1024)), "workspace must be uint8, got float32"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"swiglu_gemv: {message}"):
        pk.ops.swiglu_gemv(**arguments() | changes)


@pytest.mark.parametrize("name", ["x", "gate_weight", "up_weight", "norm_weight"])
def test_out_overlaps_an_input(name):
    check_overlap_is_refused("swiglu_gemv", arguments(), name, 2, OUT)


def test_the_workspace_overlaps_a_weight():
    given = arguments()
    message = "swiglu_gemv: workspace must be memory of its own, got memory that overlaps gate_weight"
    with pytest.raises(ValueError, match=message):
        pk.ops.swiglu_gemv(**given, workspace=given["gate_weight"].view(torch.uint8).flatten())
