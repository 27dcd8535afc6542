"""int4_swiglu_gemv against the reference and its parts, its workspace, and what it refuses."""

import dataclasses

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, assert_close, check_op, isa, randn, threads
from inputs.int4_weights import ISAS, int4, shuffled

import pykernels as pk

IN, OUT = 128, 24
EPS = 1e-5
# The norm's result is rounded, and so is the product: two ops in a row.
DEPTH = 2


def arguments(
    batch: int = 2,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
    norm: bool = True,
    **weight: object,
) -> dict:
    return dict(
        x=randn(batch, in_features, dtype=dtype),
        gate=int4(out_features, in_features, dtype=dtype, seed=1, **weight),
        up=int4(out_features, in_features, dtype=dtype, seed=2, **weight),
        norm_weight=randn(in_features, dtype=dtype, seed=3) if norm else None,
        eps=EPS,
    )


def check(given: dict) -> None:
    expected = pk.reference.int4_swiglu_gemv(**given)
    check_op(lambda out: pk.ops.int4_swiglu_gemv(**given, out=out), expected, given["x"].dtype, DEPTH)


@pairwise
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("weight", [dict(), dict(symmetric=False), dict(symmetric=False, act_order=True)], ids=str)
@pytest.mark.parametrize(("in_features", "group_size"), [(96, 32), (192, 64), (384, 128), (160, -1)])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_group(isa_name, dtype, batch, in_features, group_size, weight, norm):
    with isa(isa_name):
        check(arguments(batch, in_features, 17, dtype, norm, group_size=group_size, **weight))


@pairwise
@pytest.mark.parametrize("out_features", [1, 15, 16, 65, 200])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows_and_threads(dtype, count, out_features):
    with threads(count):
        check(arguments(3, 256, out_features, dtype, symmetric=False))


def test_gate_and_up_of_two_kinds():
    given = arguments(3, 256)
    values = given["up"].dequantize(torch.float32)
    others = [
        pk.Int4Weight.quantize(values, 32, False),  # other groups: x is prepared for each
        pk.Int4Weight.quantize(values, 128, False),  # the same groups, zero points on one side alone
        shuffled(pk.Int4Weight.quantize(values, 128)),  # act-order on one side alone
    ]
    for other in others:
        check(given | dict(up=other))
        check(given | dict(gate=other))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_parts(dtype):
    given = arguments(2, 256, dtype=dtype, symmetric=False)
    x = pk.ops.rmsnorm(given["x"], given["norm_weight"], EPS)
    parts = pk.ops.silu_mul(pk.ops.int4_gemv(x, given["gate"]), pk.ops.int4_gemv(x, given["up"]))
    assert_close(pk.ops.int4_swiglu_gemv(**given), parts.double(), dtype, DEPTH)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace(dtype, norm):
    given = arguments(8, 992, dtype=dtype, norm=norm, group_size=-1, symmetric=False)
    given["up"] = shuffled(given["up"])
    size = pk.ops.int4_swiglu_gemv_workspace(given["x"], given["gate"], given["up"]).numel()
    workspace = Guarded(size, dtype=torch.uint8)
    out = pk.ops.int4_swiglu_gemv(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.int4_swiglu_gemv(**given))


@pytest.mark.parametrize("full", [False, True], ids=["plain", "everything"])
def test_opcheck(full):
    given = arguments(norm=full, symmetric=not full, act_order=full)
    workspace = pk.ops.int4_swiglu_gemv_workspace(given["x"], given["gate"], given["up"]).zero_() if full else None
    weights = (*given["gate"].tensors(), *given["up"].tensors())
    tensors = (given["x"], *weights, given["norm_weight"], EPS, torch.empty(2, OUT), workspace)
    torch.library.opcheck(torch.ops.pykernels.int4_swiglu_gemv.default, tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(9, IN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(2, 40)), "x must be of a multiple of 32 columns, got 40 columns"),
        (dict(gate=int4(OUT, 64)), r"gate_packed must be of shape \[any, 64\], got \[24, 32\]"),
        (dict(up=int4(OUT + 1, IN)), r"up_packed must be of shape \[24, 64\], got \[25, 64\]"),
        (dict(up=int4(OUT, IN).to(torch.float16)), r"up_scales must be of the dtype of x \(float32\), got float16"),
        (dict(norm_weight=randn(IN + 1)), r"norm_weight must be of shape \[128\], got \[129\]"),
        (dict(eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(out=randn(2, IN)), r"out must be of shape \[2, 24\], got \[2, 128\]"),
        (dict(workspace=torch.zeros(64, dtype=torch.uint8)), "workspace must be of at least 3200 bytes, got 64 bytes"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"int4_swiglu_gemv: {message}"):
        pk.ops.int4_swiglu_gemv(**arguments() | changes)


@pytest.mark.parametrize("name", ["packed", "scales"])
@pytest.mark.parametrize("side", ["gate", "up"])
def test_out_overlaps_a_weight(side, name):
    given = arguments()
    memory = torch.zeros(4096, dtype=torch.uint8)
    values = getattr(given[side], name)
    view = memory[: values.numel() * values.element_size()].view(values.dtype).view_as(values).copy_(values)
    given[side] = dataclasses.replace(given[side], **{name: view})
    with pytest.raises(ValueError, match=f"out must be memory of its own, got memory that overlaps {side}_{name}"):
        pk.ops.int4_swiglu_gemv(**given, out=memory[:192].view(torch.float32).view(2, OUT))
