"""rope_kv_append against the reference, the slots it must leave alone, and what it refuses."""

import functools
from dataclasses import replace

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, assert_close, check_op, isa, randn, threads
from torch import Tensor

import pykernels as pk

HEADS, KV_HEADS, DIM, MAX_LEN = 4, 2, 64, 10


@functools.cache
def angles(model: str, rows: int, dim: int) -> Tensor:
    return pk.models.cos_sin_table(replace(pk.models.get(model), head_dim=dim), rows)


def arguments(
    positions: list[int],
    max_len: int = MAX_LEN,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
    model: str = "tiny",
) -> dict:
    batch = len(positions)
    return dict(
        q=randn(batch, heads, dim, dtype=dtype),
        k=randn(batch, kv_heads, dim, dtype=dtype, seed=1),
        v=randn(batch, kv_heads, dim, dtype=dtype, seed=2),
        cos_sin=angles(model, max_len, dim),
        position=torch.tensor(positions, dtype=torch.int32),
        k_cache=randn(batch, kv_heads, max_len, dim, dtype=dtype, seed=3),
        v_cache=randn(batch, kv_heads, max_len, dim, dtype=dtype, seed=4),
    )


def check(given: dict) -> None:
    """The rotated q, the two appended rows, and every other slot as it was."""
    dtype, slots = given["q"].dtype, given["position"].tolist()
    before = {name: given[name] for name in ("k_cache", "v_cache")}
    guards = {name: Guarded(*cache.shape, dtype=dtype) for name, cache in before.items()}
    given = given | {name: guards[name].tensor.copy_(cache) for name, cache in before.items()}
    q, k_row, v_row = pk.reference.rope_kv_append(*(given[name] for name in ("q", "k", "v", "cos_sin", "position")))
    check_op(lambda out: pk.ops.rope_kv_append(**given, out=out), q, dtype)
    for name, row in (("k_cache", k_row), ("v_cache", v_row)):
        guards[name].check()
        expected = before[name].clone()
        for b, slot in enumerate(slots):
            assert_close(given[name][b, :, slot], row[b], dtype)
            expected[b, :, slot] = given[name][b, :, slot]
        assert torch.equal(given[name], expected)
    appended = given["v_cache"][range(len(slots)), :, slots]
    assert torch.equal(appended, given["v"])


@pairwise
@pytest.mark.parametrize("dim", [8, 24, 64, 72, 96, 128, 256])
@pytest.mark.parametrize("positions", [[3], [0, 9, 5], [7, 6, 5, 4, 3, 9, 1, 0]], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, positions, dim):
    with isa(isa_name):
        check(arguments(positions, dim=dim, dtype=dtype))


@pairwise
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (7, 1), (28, 4)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_heads_and_threads(dtype, count, heads):
    with threads(count):
        check(arguments([9, 2, 0], heads=heads[0], kv_heads=heads[1], dtype=dtype))


@pairwise
@pytest.mark.parametrize("position", [0, 1, 2500, 8191])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tables_of_the_models(dtype, model, position):
    check(arguments([position], 8192, 2, 1, 128, dtype, model))


@pytest.mark.parametrize(("rows", "slots"), [(6, 10), (10, 6)])
def test_the_last_position_of_table_and_cache(rows, slots):
    given = arguments([5, 5], slots) | dict(cos_sin=angles("tiny", rows, DIM))
    check(given)
    message = r"rope_kv_append: position must be in \[0, 5\] .*, got 6 for sequence 0"
    with pytest.raises(ValueError, match=message):
        pk.ops.rope_kv_append(**given | dict(position=int32(6, 5)))


def test_opcheck():
    given = arguments([3, 9])
    torch.library.opcheck(torch.ops.pykernels.rope_kv_append.default, (*given.values(), torch.zeros_like(given["q"])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype):
    def function(q, k, v, cos_sin, position, k_cache, v_cache):
        return pk.ops.rope_kv_append(q * 2, k + 1, v, cos_sin, position + 1, k_cache, v_cache) + 1

    eager, compiled = arguments([3, 8], dtype=dtype), arguments([3, 8], dtype=dtype)
    expected = function(**eager)
    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(**compiled), expected)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(compiled[name], eager[name])


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def heads_of(dim: int) -> dict:
    """Arguments of another head_dim."""
    return arguments([3, 9], dim=dim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(q=randn(2, HEADS * DIM)), r"q must be of shape \[any, any, any\], got \[2, 256\]"),
        (dict(q=randn(9, HEADS, DIM)), "q must be of batch 1 to 8, got batch 9"),
        (dict(q=randn(2, DIM, HEADS).mT), "q must be contiguous"),
        (dict(q=randn(2, HEADS, DIM).double()), "q must be float32, bfloat16 or float16, got float64"),
        (dict(q=randn(2, 3, DIM)), r"q must be of a multiple of n_kv_heads \(2\) heads, got 3 heads"),
        (heads_of(12), "q must be of a head_dim that is a multiple of 8 up to 256, got head_dim 12"),
        (heads_of(264), "q must be of a head_dim that is a multiple of 8 up to 256, got head_dim 264"),
        (dict(k=randn(2, KV_HEADS, 72)), r"k must be of shape \[2, any, 64\], got \[2, 2, 72\]"),
        (dict(k=randn(2, DIM, KV_HEADS).mT), "k must be contiguous"),
        (dict(k=randn(2, KV_HEADS, DIM).half()), r"k must be of the dtype of q \(float32\), got float16"),
        (dict(v=randn(2, 1, DIM)), r"v must be of shape \[2, 2, 64\], got \[2, 1, 64\]"),
        (dict(v=randn(2, DIM, KV_HEADS).mT), "v must be contiguous"),
        (dict(v=randn(2, KV_HEADS, DIM).bfloat16()), r"v must be of the dtype of q \(float32\), got bfloat16"),
        (dict(cos_sin=randn(MAX_LEN, 32)), r"cos_sin must be of shape \[any, 64\], got \[10, 32\]"),
        (dict(cos_sin=randn(DIM, MAX_LEN).T), "cos_sin must be contiguous"),
        (dict(cos_sin=randn(MAX_LEN, DIM).bfloat16()), "cos_sin must be float32, got bfloat16"),
        (dict(position=int32(3)), r"position must be of shape \[2\], got \[1\]"),
        (dict(position=torch.tensor([3, 9])), "position must be int32, got int64"),
        (dict(position=int32(3, 0, 9, 0)[::2]), "position must be contiguous"),
        (
            dict(position=int32(3, MAX_LEN)),
            r"position must be in \[0, 9\] \(the slots of the cache and the rows of cos_sin\), got 10 for sequence 1",
        ),
        (dict(position=int32(-1, 9)), r"position must be in \[0, 9\] .*, got -1 for sequence 0"),
        (dict(k_cache=randn(2, 1, MAX_LEN, DIM)), r"k_cache must be of shape \[2, 2, any, 64\], got \[2, 1, 10, 64\]"),
        (dict(k_cache=randn(2, MAX_LEN, KV_HEADS, DIM).transpose(1, 2)), "k_cache must be contiguous"),
        (dict(k_cache=randn(2, KV_HEADS, MAX_LEN, DIM).half()), r"k_cache must be of the dtype of q \(float32\)"),
        (dict(v_cache=randn(2, KV_HEADS, 11, DIM)), r"v_cache must be of shape \[2, 2, 10, 64\], got \[2, 2, 11, 64\]"),
        (dict(v_cache=randn(2, MAX_LEN, KV_HEADS, DIM).transpose(1, 2)), "v_cache must be contiguous"),
        (dict(v_cache=randn(2, KV_HEADS, MAX_LEN, DIM).half()), r"v_cache must be of the dtype of q \(float32\)"),
        (dict(out=randn(2, KV_HEADS, DIM)), r"out must be of shape \[2, 4, 64\], got \[2, 2, 64\]"),
        (dict(out=randn(2, DIM, HEADS).mT), "out must be contiguous"),
        (dict(out=randn(2, HEADS, DIM).half()), r"out must be of the dtype of q \(float32\), got float16"),
        (dict(out=torch.empty(2, HEADS, DIM, device="meta")), "all tensors must be on one device, got cpu, meta"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"rope_kv_append: {message}"):
        pk.ops.rope_kv_append(**arguments([3, 9]) | changes)


INPUTS = ["q", "k", "v", "cos_sin", "position"]


@pytest.mark.parametrize(
    ("written", "name"),
    [("out", name) for name in (*INPUTS, "k_cache", "v_cache")]
    + [(cache, name) for cache in ("k_cache", "v_cache") for name in INPUTS]
    + [("k_cache", "v_cache")],
)
def test_what_is_written_overlaps_something(written, name):
    given = arguments([3, 9])
    given["out"] = torch.zeros_like(given["q"])
    count, written_count = given[name].numel(), given[written].numel()
    memory = torch.zeros(10_000)
    given[written] = memory[count - 1 :][:written_count].view_as(given[written])
    given[name] = memory[:count].view(given[name].dtype).view_as(given[name]).copy_(given[name])
    message = f"rope_kv_append: {written} must be memory of its own, got memory that overlaps {name}"
    with pytest.raises(ValueError, match=message):
        pk.ops.rope_kv_append(**given)
