"""qkv_gemv against the reference and its parts, the slots it must leave alone, its workspace, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, assert_close, check_appended, isa, randn, threads
from inputs.qkv_arguments import BIASES, CACHES, DEPTH, DIM, EPS, HEADS, HIDDEN, KV_HEADS, MAX_LEN, arguments
from torch import Tensor

import pykernels as pk


def without_caches(given: dict) -> dict:
    """What the reference takes."""
    return {name: value for name, value in given.items() if name not in CACHES} | dict(
        head_dim=given["k_cache"].shape[-1]
    )


def check(given: dict) -> None:
    """The rotated q, the two appended rows, and every other slot as it was."""
    check_appended(pk.ops.qkv_gemv, pk.reference.qkv_gemv, given, DEPTH)


@pairwise
@pytest.mark.parametrize("hidden", [1, 7, 8, 64, 136, 1000])
@pytest.mark.parametrize("positions", [[3], [0, 9, 5], [7, 6, 5, 4, 3, 9, 1, 0]], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_length_of_a_row(isa_name, dtype, positions, hidden):
    with isa(isa_name):
        check(arguments(positions, hidden, dtype=dtype))


@pairwise
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dim", [8, 24, 64, 96, 128, 256])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (7, 1), (8, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_heads_and_head_dim(dtype, heads, dim, bias):
    check(arguments([9, 0], 24, *heads, dim, dtype, bias))


@pairwise
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_number_of_threads(isa_name, dtype, count, bias):
    given = arguments([3, 9], 4096, heads=2, kv_heads=1, dtype=dtype, bias=bias)  # a chunk is less than a head
    with isa(isa_name):
        with threads(count):
            check(given)
            out = pk.ops.qkv_gemv(**given)
        with threads(1):  # rows are independent, so who sums them changes nothing
            assert torch.equal(out, pk.ops.qkv_gemv(**given))


def normed(given: dict, kind: str) -> dict:
    """With a QK norm: of each "head", or of "all" of them."""
    dim, heads, kv_heads = given["k_cache"].shape[-1], given["q_weight"].shape[0], given["k_weight"].shape[0]
    sizes = (heads, kv_heads) if kind == "all" else (dim, dim)
    norms = [randn(size, dtype=given["x"].dtype, seed=30 + seed) for seed, size in enumerate(sizes)]
    return given | dict(zip(("q_norm", "k_norm"), norms, strict=True))


@pairwise
@pytest.mark.parametrize("kind", ["head", "all"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dim", [8, 64, 96, 256])
@pytest.mark.parametrize("positions", [[3], [0, 9, 5]], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_qk_norm(isa_name, dtype, positions, dim, bias, kind):
    given = normed(arguments(positions, 136, 4, 2, dim, dtype, bias), kind) | dict(norm_offset=1.0)
    with isa(isa_name):
        check(given)
        check(given | dict(norm_weight=None))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_qk_norm_by_any_number_of_threads(count):
    given = normed(arguments([3, 9], 4096, heads=2, kv_heads=1), "head")  # a chunk is less than a head
    with threads(count):
        check(given)


def test_the_workspace_of_a_qk_norm():
    given = normed(arguments([4] * 3, 1000), "head")
    size = pk.ops.qkv_gemv_workspace(given["x"], (HEADS, KV_HEADS, DIM)).numel()
    workspace = Guarded(size, dtype=torch.uint8)  # all 0xFF: NaN
    out = pk.ops.qkv_gemv(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.qkv_gemv(**given))
    with pytest.raises(ValueError, match=f"workspace must be of at least {size} bytes, got {size - 64} bytes"):
        pk.ops.qkv_gemv(**given, workspace=torch.zeros(size, dtype=torch.uint8)[:-64])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(k_norm=None), "q_norm and k_norm must be given together or not at all"),
        (dict(q_norm=randn(32)), r"q_norm must be of 64 elements \(a head's\) or 256 \(all heads'\), got 32"),
        (dict(k_norm=randn(128)), r"k_norm must be of shape \[64\], got \[128\]"),
        (dict(q_norm=randn(DIM).half()), r"q_norm must be of the dtype of x \(float32\), got float16"),
        (dict(norm_offset=float("nan")), r"norm_offset must be in \(-1e38, 1e38\), got nan"),
    ],
)
def test_bad_qk_norms(changes, message):
    with pytest.raises(ValueError, match=f"qkv_gemv: {message}"):
        pk.ops.qkv_gemv(**normed(arguments([3, 9]), "head") | changes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_its_parts(dtype, bias):
    given = arguments([3, 9], dtype=dtype, bias=bias)
    caches = {name: given[name].clone() for name in CACHES}
    x = pk.ops.rmsnorm(given["x"], given["norm_weight"], EPS)
    q, k, v = (pk.ops.gemv(x, given[f"{name}_weight"], given[f"{name}_bias"]).unflatten(1, (-1, DIM)) for name in "qkv")
    expected = pk.ops.rope_kv_append(q, k, v, given["cos_sin"], given["position"], **caches)
    assert_close(pk.ops.qkv_gemv(**given), expected.double(), dtype, DEPTH)
    for name in CACHES:
        assert_close(given[name], caches[name].double(), dtype, DEPTH)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_workspace(dtype, batch):
    given = arguments([4] * batch, 1000, dtype=dtype)
    workspace = Guarded(pk.ops.qkv_gemv_workspace(given["x"]).numel(), dtype=torch.uint8)  # all 0xFF: NaN
    out = pk.ops.qkv_gemv(**given, workspace=workspace.tensor)
    workspace.check()
    assert torch.equal(out, pk.ops.qkv_gemv(**given))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps(dtype, eps):
    given = arguments([3, 9], dtype=dtype, bias=False)
    check(given | dict(x=given["x"] * 0.01, eps=eps))


@pytest.mark.parametrize("full", [False, True], ids=["plain", "bias and workspace"])
def test_opcheck(full):
    given = arguments([3, 9], bias=full)
    last = [torch.zeros(2, HEADS, DIM), pk.ops.qkv_gemv_workspace(given["x"]).zero_() if full else None]
    torch.library.opcheck(torch.ops.pykernels.qkv_gemv.default, (*given.values(), *last))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype, bias):
    def function(x, position, **others):
        return pk.ops.qkv_gemv(x * 2, position=position + 1, **others) + 1

    eager, compiled = (arguments([3, 8], dtype=dtype, bias=bias) for _ in range(2))
    expected = function(**eager)
    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(**compiled), expected)
    for name in CACHES:
        assert torch.equal(compiled[name], eager[name])


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def uint8(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


Q, KV = HEADS * DIM, KV_HEADS * DIM
TOGETHER = "q_bias, k_bias and v_bias must be given together or not at all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(HIDDEN)), r"x must be of shape \[any, any\], got \[72\]"),
        (dict(x=randn(9, HIDDEN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(HIDDEN, 2).T), "x must be contiguous"),
        (dict(x=randn(2, HIDDEN).double()), "x must be float32, bfloat16 or float16, got float64"),
        (dict(norm_weight=randn(71)), r"norm_weight must be of shape \[72\], got \[71\]"),
        (dict(norm_weight=randn(144)[::2]), "norm_weight must be contiguous"),
        (dict(norm_weight=randn(HIDDEN).half()), r"norm_weight must be of the dtype of x \(float32\), got float16"),
        (dict(eps=-1e-6), r"eps must be in \[0, 1\), got -0.000001"),
        (dict(eps=1.0), r"eps must be in \[0, 1\), got 1"),
        (dict(q_weight=randn(Q, 64)), r"q_weight must be of shape \[any, 72\], got \[256, 64\]"),
        (dict(q_weight=randn(Q + 1, HIDDEN)), r"q_weight must be of a multiple of head_dim \(64\) rows, got 257 rows"),
        (dict(q_weight=torch.tensor(1.0)), r"q_weight must be of shape .*, got \[\]"),
        (dict(q_weight=randn(HIDDEN, Q).T), "q_weight must be contiguous"),
        (dict(q_weight=randn(Q, HIDDEN).half()), r"q_weight must be of the dtype of x \(float32\), got float16"),
        (
            dict(q_weight=randn(3 * DIM, HIDDEN)),
            r"q_weight must be of a multiple of n_kv_heads \(2\) heads, got 3 heads",
        ),
        (dict(k_weight=randn(Q, HIDDEN)), r"k_weight must be of shape \[128, 72\], got \[256, 72\]"),
        (dict(k_weight=randn(HIDDEN, KV).T), "k_weight must be contiguous"),
        (dict(k_weight=randn(KV, HIDDEN).half()), r"k_weight must be of the dtype of x \(float32\), got float16"),
        (dict(v_weight=randn(DIM, HIDDEN)), r"v_weight must be of shape \[128, 72\], got \[64, 72\]"),
        (dict(v_weight=randn(HIDDEN, KV).T), "v_weight must be contiguous"),
        (dict(v_weight=randn(KV, HIDDEN).half()), r"v_weight must be of the dtype of x \(float32\), got float16"),
        (dict(q_bias=None), TOGETHER),
        (dict(k_bias=None), TOGETHER),
        (dict(v_bias=None), TOGETHER),
        (dict(q_bias=None, k_bias=None), TOGETHER),
        (dict(q_bias=randn(KV)), r"q_bias must be of shape \[256\], got \[128\]"),
        (dict(k_bias=randn(KV).half()), r"k_bias must be of the dtype of x \(float32\), got float16"),
        (dict(v_bias=randn(2 * KV)[::2]), "v_bias must be contiguous"),
        (arguments([3, 9], dim=12), r"\w+ must be of a head_dim that is a multiple of 8 up to 256, got head_dim 12"),
        (arguments([3, 9], dim=264), r"\w+ must be of a head_dim that is a multiple of 8 up to 256, got head_dim 264"),
        (dict(cos_sin=randn(MAX_LEN, 32)), r"cos_sin must be of shape \[any, 64\], got \[10, 32\]"),
        (dict(cos_sin=randn(MAX_LEN, DIM).half()), "cos_sin must be float32, got float16"),
        (dict(position=int32(3)), r"position must be of shape \[2\], got \[1\]"),
        (dict(position=torch.tensor([3, 9])), "position must be int32, got int64"),
        (dict(position=int32(3, MAX_LEN)), r"position must be in \[0, 9\] .*, got 10 for sequence 1"),
        (dict(position=int32(-1, 9)), r"position must be in \[0, 9\] .*, got -1 for sequence 0"),
        (
            dict(k_cache=randn(1, 2, MAX_LEN, DIM)),
            r"k_cache must be of shape \[2, any, any, any\], got \[1, ",
        ),
        (dict(k_cache=torch.tensor(1.0)), r"k_cache must be of shape .*, got \[\]"),
        (dict(k_cache=randn(2, 2, MAX_LEN, 0)), r"k_cache must be of shape .*, got \[2, 2, 10, 0\]"),
        (dict(k_cache=randn(2, MAX_LEN, 2, DIM).transpose(1, 2)), "k_cache must be contiguous"),
        (dict(k_cache=randn(2, 2, MAX_LEN, DIM).half()), r"k_cache must be of the dtype of x \(float32\), got float16"),
        (dict(v_cache=randn(2, 2, 11, DIM)), r"v_cache must be of shape \[2, 2, 10, 64\], got \[2, 2, 11, 64\]"),
        (dict(v_cache=randn(2, 2, MAX_LEN, DIM).half()), r"v_cache must be of the dtype of x \(float32\), got float16"),
        (dict(out=randn(2, Q)), r"out must be of shape \[2, 4, 64\], got \[2, 256\]"),
        (dict(out=randn(1, HEADS, DIM)), r"out must be of shape \[2, 4, 64\], got \[1, 4, 64\]"),
        (dict(out=randn(2, DIM, HEADS).mT), "out must be contiguous"),
        (dict(out=randn(2, HEADS, DIM).half()), r"out must be of the dtype of x \(float32\), got float16"),
        (dict(out=torch.empty(2, HEADS, DIM, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(workspace=uint8(575)), "workspace must be of at least 576 bytes, got 575 bytes"),
        (dict(workspace=uint8(1024)[1:]), "workspace must be 64-byte aligned"),
        (dict(workspace=uint8(1, 1024)), r"workspace must be of shape \[any\], got \[1, 1024\]"),
        (dict(workspace=torch.zeros(1024)), "workspace must be uint8, got float32"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"qkv_gemv: {message}"):
        pk.ops.qkv_gemv(**arguments([3, 9]) | changes)


WEIGHTS = ["norm_weight", "q_weight", "k_weight", "v_weight", *BIASES]
INPUTS = ["x", *WEIGHTS, "cos_sin", "position"]


@pytest.mark.parametrize(
    ("written", "name"),
    [("out", name) for name in (*INPUTS, *CACHES)]
    + [(cache, name) for cache in CACHES for name in INPUTS]
    + [("k_cache", "v_cache")],
)
def test_what_is_written_overlaps_something(written, name):
    given = arguments([3, 9])
    given["out"] = torch.zeros(2, HEADS, DIM)
    count, written_count = given[name].numel(), given[written].numel()
    memory = torch.zeros(40_000)
    given[written] = memory[count - 1 :][:written_count].view_as(given[written])
    given[name] = memory[:count].view(given[name].dtype).view_as(given[name]).copy_(given[name])
    message = f"qkv_gemv: {written} must be memory of its own, got memory that overlaps {name}"
    with pytest.raises(ValueError, match=message):
        pk.ops.qkv_gemv(**given)


def test_the_workspace_overlaps_a_weight():
    given = arguments([3, 9])
    message = "qkv_gemv: workspace must be memory of its own, got memory that overlaps q_weight"
    with pytest.raises(ValueError, match=message):
        pk.ops.qkv_gemv(**given, workspace=given["q_weight"].view(torch.uint8).flatten())
