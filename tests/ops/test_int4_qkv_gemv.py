"""int4_qkv_gemv against the reference and its parts, the slots it must leave alone, and what it refuses."""

import dataclasses

import pytest
import torch
from inputs import qkv_arguments as dense
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, assert_close, check_appended, isa, randn, threads
from inputs.int4_weights import ISAS, int4, shuffled

import pykernels as pk

HIDDEN, HEADS, KV_HEADS, DIM = 96, dense.HEADS, dense.KV_HEADS, dense.DIM
CACHES = dense.CACHES
DEPTH = dense.DEPTH


def arguments(
    positions: list[int],
    hidden: int = HIDDEN,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    group_size: int = 32,
    **weight: object,
) -> dict:
    """Those of qkv_gemv, with 4-bit weights in place of the three tensors."""
    given = dense.arguments(positions, hidden, heads, kv_heads, dim, dtype, bias)
    for seed, name in enumerate("qkv", 2):
        rows = given.pop(f"{name}_weight").shape[0]
        given[name] = int4(rows, hidden, group_size, dtype=dtype, seed=seed, **weight)
    return given


def check(given: dict) -> None:
    """The rotated q, the two appended rows, and every other slot as it was."""
    check_appended(pk.ops.int4_qkv_gemv, pk.reference.int4_qkv_gemv, given, DEPTH)


@pairwise
@pytest.mark.parametrize("weight", [dict(), dict(symmetric=False), dict(symmetric=False, act_order=True)], ids=str)
@pytest.mark.parametrize(("hidden", "group_size"), [(96, 32), (192, 64), (384, 128), (160, -1)])
@pytest.mark.parametrize("positions", [[3], [0, 9, 5], [7, 6, 5, 4, 3, 9, 1, 0]], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_group(isa_name, dtype, positions, hidden, group_size, weight):
    with isa(isa_name):
        check(arguments(positions, hidden, dtype=dtype, group_size=group_size, **weight))


@pairwise
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dim", [8, 24, 128, 256])
@pytest.mark.parametrize("heads", [(1, 1), (7, 1), (8, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_heads_and_head_dim(dtype, heads, dim, bias):
    check(arguments([9, 0], 32, *heads, dim, dtype, bias))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(dtype, count):
    given = arguments([3, 9], 8192, heads=2, kv_heads=1, dtype=dtype, group_size=128)  # a chunk is less than a head
    with threads(count):
        check(given)


def test_three_weights_of_three_kinds():
    given = arguments([3, 9], 256, group_size=128)
    given["k"] = pk.Int4Weight.quantize(given["k"].dequantize(torch.float32), 32, False)
    given["v"] = shuffled(pk.Int4Weight.quantize(given["v"].dequantize(torch.float32), 128, False))
    check(given)
    given["q"] = dataclasses.replace(given["q"], perm=given["v"].perm)  # q and v share their preparation now
    check(given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_parts(dtype):
    given = arguments([3, 9], dtype=dtype, symmetric=False)
    caches = {name: given[name].clone() for name in CACHES}
    x = pk.ops.rmsnorm(given["x"], given["norm_weight"], given["eps"])
    q, k, v = (pk.ops.int4_gemv(x, given[name], given[f"{name}_bias"]).unflatten(1, (-1, DIM)) for name in "qkv")
    expected = pk.ops.rope_kv_append(q, k, v, given["cos_sin"], given["position"], **caches)
    assert_close(pk.ops.int4_qkv_gemv(**given), expected.double(), dtype, DEPTH)
    for name in CACHES:
        assert_close(given[name], caches[name].double(), dtype, DEPTH)


@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace(dtype):
    given = arguments([4] * 8, 992, dtype=dtype, group_size=-1, symmetric=False)
    given["k"], given["v"] = shuffled(given["k"], 1), shuffled(given["v"], 2)
    size = pk.ops.int4_qkv_gemv_workspace(given["x"], *(given[name] for name in "qkv")).numel()
    workspace = Guarded(size, dtype=torch.uint8)
    out = pk.ops.int4_qkv_gemv(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.int4_qkv_gemv(**given))


@pytest.mark.parametrize("full", [False, True], ids=["plain", "everything"])
def test_opcheck(full):
    given = arguments([3, 9], bias=full, symmetric=not full, act_order=full)
    weights = [tensor for name in "qkv" for tensor in given[name].tensors()]
    workspace = None
    if full:
        workspace = pk.ops.int4_qkv_gemv_workspace(given["x"], *(given[name] for name in "qkv")).zero_()
    order = ("q_bias", "k_bias", "v_bias", "cos_sin", "position", *CACHES)
    arguments_ = (given["x"], given["norm_weight"], given["eps"], *weights, *(given[name] for name in order))
    out = torch.zeros(2, HEADS, DIM)
    torch.library.opcheck(torch.ops.pykernels.int4_qkv_gemv.default, (*arguments_, out, workspace))


Q, KV = HEADS * DIM, KV_HEADS * DIM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(9, HIDDEN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(norm_weight=randn(HIDDEN - 1)), r"norm_weight must be of shape \[96\], got \[95\]"),
        (dict(q=int4(Q, 64, 32)), r"q_packed must be of shape \[any, 48\], got \[256, 32\]"),
        (dict(q=int4(Q + 1, HIDDEN, 32)), r"q_packed must be of a multiple of head_dim \(64\) rows, got 257 rows"),
        (dict(q=int4(3 * DIM, HIDDEN, 32)), r"q_packed must be of a multiple of n_kv_heads \(2\) heads, got 3 heads"),
        (dict(k=int4(Q, HIDDEN, 32)), r"k_packed must be of shape \[128, 48\], got \[256, 48\]"),
        (
            dict(v=int4(KV, HIDDEN, 32).to(torch.float16)),
            r"v_scales must be of the dtype of x .*, got float16",
        ),
        (dict(k_bias=None), "q_bias, k_bias and v_bias must be given together or not at all"),
        (dict(position=torch.tensor([3, 10], dtype=torch.int32)), r"position must be in \[0, 9\] .*, got 10 for"),
        (dict(eps=-1.0), r"eps must be in \[0, 1\), got -1"),
        (dict(out=randn(2, Q)), r"out must be of shape \[2, 4, 64\], got \[2, 256\]"),
        (dict(workspace=torch.zeros(64, dtype=torch.uint8)), "workspace must be of at least 4032 bytes, got 64 bytes"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"int4_qkv_gemv: {message}"):
        pk.ops.int4_qkv_gemv(**arguments([3, 9]) | changes)


@pytest.mark.parametrize("written", ["out", *CACHES])
@pytest.mark.parametrize("side", "qkv")
def test_what_is_written_overlaps_a_weight(written, side):
    given = arguments([3, 9])
    given["out"] = torch.zeros(2, HEADS, DIM)
    memory = torch.zeros(40_000)
    given[written] = memory[: given[written].numel()].view_as(given[written])
    scales = given[side].scales
    given[side] = dataclasses.replace(given[side], scales=memory[: scales.numel()].view_as(scales).copy_(scales))
    with pytest.raises(ValueError, match=f"{written} must be memory of its own, got .* overlaps {side}_scales"):
        pk.ops.int4_qkv_gemv(**given)
