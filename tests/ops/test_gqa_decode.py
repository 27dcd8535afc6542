"""gqa_decode against the reference, over lengths, groups and splits; its workspace; and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, assert_close, check_op, check_overlap_is_refused, isa, randn, threads

import pykernels as pk

HEADS, KV_HEADS, DIM, MAX_LEN = 4, 2, 64, 100
# Keys are taken in blocks of 64, and blocks in splits: next to every border.
BORDERS = [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000]


def arguments(
    lengths: list[int],
    max_len: int = MAX_LEN,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Slots past a sequence's length are NaN: whoever reads them is found out."""
    batch = len(lengths)
    k_cache = randn(batch, kv_heads, max_len, dim, dtype=dtype, seed=1)
    v_cache = randn(batch, kv_heads, max_len, dim, dtype=dtype, seed=2)
    for b, length in enumerate(lengths):
        k_cache[b, :, length:] = float("nan")
        v_cache[b, :, length:] = float("nan")
    q = randn(batch, heads, dim, dtype=dtype)
    return dict(q=q, k_cache=k_cache, v_cache=v_cache, kv_len=torch.tensor(lengths, dtype=torch.int32))


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.gqa_decode(**given, out=out), pk.reference.gqa_decode(**given), given["q"].dtype)


@pairwise
@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 112, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 7, 8, 12])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_group_and_head_dim(isa_name, dtype, group, dim):
    with isa(isa_name):
        check(arguments([70], 80, heads=group * 2, dim=dim, dtype=dtype))


@pairwise
@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_next_to_the_borders(dtype, count, length):
    with threads(count):
        check(arguments([length], 1000, dtype=dtype))


@pairwise
@pytest.mark.parametrize("lengths", [[1000, 1, 64], [1, 63, 65, 127, 129, 255, 257, 520]], ids=len)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_every_sequence_has_its_own_length(isa_name, dtype, count, lengths):
    with isa(isa_name), threads(count):
        check(arguments(lengths, 1000, dtype=dtype))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_splitting_changes_little(dtype, count):
    given = arguments([1000, 513, 3], 1000, heads=7, kv_heads=1, dtype=dtype)
    with threads(1):
        whole = pk.ops.gqa_decode(**given)
    with threads(count):
        assert_close(pk.ops.gqa_decode(**given), whole.double(), dtype)


@pytest.mark.parametrize("scale", [-0.1, 0.0, 0.07, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_of_ones_own(dtype, scale):
    check(arguments([MAX_LEN, 70], dtype=dtype) | dict(scale=scale))


@pairwise
@pytest.mark.parametrize("favourite", [None, 0, 63, 64, 299, 599])
@pytest.mark.parametrize("score", [-1e4, 1e4])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_scores_that_overflow_an_exponential(isa_name, dtype, count, score, favourite):
    """All scores are `score`, or those of all keys but one favourite are 1e4 less."""
    given = arguments([600], 600, dtype=dtype)
    given["q"] = torch.zeros_like(given["q"])
    given["q"][..., 0], given["q"][..., 1] = 64.0, 64.0
    given["k_cache"] = torch.zeros_like(given["k_cache"])
    given["k_cache"][..., 0] = 16.0 if score > 0 else -16.0
    if favourite is not None:
        given["k_cache"][..., 1] = -16.0
        given["k_cache"][:, :, favourite, 1] = 0.0
    given["scale"] = abs(score) / (64 * 16)
    with isa(isa_name), threads(count):
        check(given)
        if favourite is not None:
            out = pk.ops.gqa_decode(**given).unflatten(1, (KV_HEADS, -1))
            assert torch.equal(out, given["v_cache"][:, :, favourite].unsqueeze(2).expand_as(out))


@pytest.mark.parametrize("lengths", [[1000], [1, 64, 1000]], ids=len)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_workspace(count, lengths):
    given = arguments(lengths, 1000, dtype=torch.bfloat16)
    with threads(count):
        size = pk.ops.gqa_decode_workspace(given["q"], given["k_cache"]).numel()
        workspace = Guarded(size, dtype=torch.uint8)  # all 0xFF: NaN
        out = pk.ops.gqa_decode(**given, workspace=workspace.tensor)
        workspace.check()
        assert torch.equal(out, pk.ops.gqa_decode(**given))


def test_a_program_that_is_given_more_threads_later():
    given = arguments([1000], 1000)
    out = torch.full_like(given["q"], float("nan"))
    with threads(1):
        size = pk.ops.gqa_decode_workspace(given["q"], given["k_cache"]).numel()
        workspace = Guarded(size, dtype=torch.uint8)
        with pk.runtime.record() as program:
            pk.ops.gqa_decode(**given, out=out, workspace=workspace.tensor)
    with threads(5):
        program.run()
    workspace.check()
    assert_close(out, pk.reference.gqa_decode(**given), torch.float32)


@pytest.mark.parametrize("softcap", [0.5, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_a_soft_cap(isa_name, dtype, softcap):
    q, k, v = (
        randn(2, 4, 64, dtype=dtype),
        randn(2, 2, 90, 64, dtype=dtype, seed=1),
        randn(2, 2, 90, 64, dtype=dtype, seed=2),
    )
    kv_len = torch.tensor([90, 17], dtype=torch.int32)
    expected = pk.reference.gqa_decode(q, k, v, kv_len, 0.3, softcap)
    with isa(isa_name):
        out = pk.ops.gqa_decode(q, k, v, kv_len, 0.3, softcap=softcap)
    comparison = pk.reference.compare(out, expected, dtype)
    assert comparison.ok, comparison.message


@pytest.mark.parametrize("with_workspace", [False, True])
def test_opcheck(with_workspace):
    given = arguments([MAX_LEN, 70])
    workspace = pk.ops.gqa_decode_workspace(given["q"], given["k_cache"]).zero_() if with_workspace else None
    out = torch.zeros_like(given["q"])
    torch.library.opcheck(torch.ops.pykernels.gqa_decode.default, (*given.values(), 0.125, out, workspace))


@pytest.mark.parametrize("with_workspace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype, with_workspace):
    given = arguments([MAX_LEN, 70], dtype=dtype)
    workspace = pk.ops.gqa_decode_workspace(given["q"], given["k_cache"]) if with_workspace else None

    def function(q, k_cache, v_cache, kv_len):
        return pk.ops.gqa_decode(q * 2, k_cache, v_cache, kv_len + 0, workspace=workspace) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


def cache(*shape: int, dtype: torch.dtype = torch.float32) -> dict:
    return dict(k_cache=torch.zeros(shape, dtype=dtype), v_cache=torch.zeros(shape, dtype=dtype))


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(q=randn(2, HEADS * DIM)), r"q must be of shape \[any, any, any\], got \[2, 256\]"),
        (dict(q=torch.tensor(1.0)), r"q must be of shape .*, got \[\]"),
        (dict(q=randn(2, HEADS, 0)), r"q must be of shape .*, got \[2, 4, 0\]"),
        (dict(q=randn(9, HEADS, DIM)), "q must be of batch 1 to 8, got batch 9"),
        (dict(q=randn(2, DIM, HEADS).mT), "q must be contiguous"),
        (dict(q=randn(2, HEADS, DIM).double()), "q must be float32, bfloat16 or float16, got float64"),
        (dict(q=randn(2, 3, DIM)), r"q must be of a multiple of n_kv_heads \(2\) heads, got 3 heads"),
        (
            dict(q=randn(2, HEADS, 12)) | cache(2, KV_HEADS, MAX_LEN, 12),
            "q must be of a head_dim that is a multiple of 8 up to 256, got head_dim 12",
        ),
        (
            dict(q=randn(2, HEADS, 264)) | cache(2, KV_HEADS, MAX_LEN, 264),
            "q must be of a head_dim that is a multiple of 8 up to 256, got head_dim 264",
        ),
        (cache(1, KV_HEADS, MAX_LEN, DIM), r"k_cache must be of shape \[2, any, any, 64\], got \[1, 2, 100, 64\]"),
        (cache(2, KV_HEADS, MAX_LEN, 72), r"k_cache must be of shape \[2, any, any, 64\], got \[2, 2, 100, 72\]"),
        (
            cache(2, KV_HEADS, MAX_LEN, DIM, dtype=torch.float16),
            r"k_cache must be of the dtype of q \(float32\), got float16",
        ),
        (dict(k_cache=torch.zeros(2, MAX_LEN, KV_HEADS, DIM).transpose(1, 2)), "k_cache must be contiguous"),
        (dict(v_cache=torch.zeros(2, MAX_LEN, KV_HEADS, DIM).transpose(1, 2)), "v_cache must be contiguous"),
        (dict(v_cache=torch.zeros(2, KV_HEADS, 99, DIM)), r"v_cache must be of shape \[2, 2, 100, 64\]"),
        (dict(v_cache=torch.zeros(2, KV_HEADS, MAX_LEN, DIM).half()), r"v_cache must be of the dtype of q \(float32\)"),
        (dict(kv_len=int32(5)), r"kv_len must be of shape \[2\], got \[1\]"),
        (dict(kv_len=torch.tensor([5, 5])), "kv_len must be int32, got int64"),
        (dict(kv_len=int32(5, 0, 5, 0)[::2]), "kv_len must be contiguous"),
        (dict(kv_len=int32(5, 0)), r"kv_len must be in \[1, 100\] \(the slots of the cache\), got 0 for sequence 1"),
        (dict(kv_len=int32(-1, 5)), r"kv_len must be in \[1, 100\] .*, got -1 for sequence 0"),
        (dict(kv_len=int32(101, 5)), r"kv_len must be in \[1, 100\] .*, got 101 for sequence 0"),
        (dict(scale=float("inf")), r"scale must be in \(-1e38, 1e38\), got inf"),
        (dict(scale=1e300), "scale must be"),  # infinite in the float32 that the kernels take
        (dict(scale=float("nan")), r"scale must be in \(-1e38, 1e38\), got nan"),
        (dict(out=randn(2, HEADS * DIM)), r"out must be of shape \[2, 4, 64\], got \[2, 256\]"),
        (dict(out=randn(2, DIM, HEADS).mT), "out must be contiguous"),
        (dict(out=randn(2, HEADS, DIM).half()), r"out must be of the dtype of q \(float32\), got float16"),
        (dict(out=torch.empty(2, HEADS, DIM, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(workspace=torch.zeros(1 << 16)), "workspace must be uint8, got float32"),
        (dict(workspace=torch.zeros(2, 1 << 16).byte()), r"workspace must be of shape \[any\], got \[2, 65536\]"),
        (dict(workspace=torch.zeros(1 << 16).byte()[::2]), "workspace must be contiguous"),
        (dict(workspace=torch.zeros(1 << 16).byte()[1:]), "workspace must be 64-byte aligned"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"gqa_decode: {message}"):
        pk.ops.gqa_decode(**arguments([MAX_LEN, 70]) | changes)


def test_a_workspace_too_small():
    given = arguments([MAX_LEN, 70])
    size = pk.ops.gqa_decode_workspace(given["q"], given["k_cache"]).numel()
    message = f"gqa_decode: workspace must be of at least {size} bytes, got {size - 1} bytes"
    with pytest.raises(ValueError, match=message):
        pk.ops.gqa_decode(**given, workspace=torch.empty(size - 1, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache", "kv_len"])
def test_out_overlaps_an_input(name):
    check_overlap_is_refused("gqa_decode", arguments([MAX_LEN, 70]), name, 2, HEADS, DIM)


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_the_workspace_overlaps_an_input(name):
    given = arguments([MAX_LEN, 70])
    message = f"gqa_decode: workspace must be memory of its own, got memory that overlaps {name}"
    with pytest.raises(ValueError, match=message):
        pk.ops.gqa_decode(**given, workspace=given[name].view(torch.uint8).flatten())
