"""Sizes that 32 bits do not hold, or that kernels could not multiply in them, are refused by name."""

import pytest
import torch

import pykernels as pk

MOST = 1 << 24
BF16 = torch.bfloat16


def untouched(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """Address space, of which no page is ever there."""
    return torch.empty(*shape, dtype=dtype)


@pytest.mark.parametrize("size", [MOST + 16, (1 << 31) + 16, (1 << 32) + 16])
def test_a_dimension_that_is_too_large_is_refused(size):
    x = untouched(1, size)
    refused = rf"must be of sizes up to {MOST}, got \[1, {size}\]"
    with pytest.raises(ValueError, match=f"argmax: logits {refused}"):
        pk.ops.argmax(x)
    with pytest.raises(ValueError, match=f"rmsnorm: x {refused}"):
        pk.ops.rmsnorm(x, untouched(size), 1e-6, out=untouched(1, size))
    with pytest.raises(ValueError, match=f"gemv: x {refused}"):
        pk.ops.gemv(x, untouched(1, size))
    with pytest.raises(ValueError, match=f"silu_mul: gate {refused}"):
        pk.ops.silu_mul(x, untouched(1, size), out=untouched(1, size))
    with pytest.raises(ValueError, match=f"swiglu_gemv: x {refused}"):
        pk.ops.swiglu_gemv(x, untouched(1, size), untouched(1, size), norm_weight=untouched(size))
    with pytest.raises(ValueError, match=rf"embedding: table must be of sizes up to {MOST}"):
        pk.ops.embedding(torch.zeros(1, dtype=torch.int64), untouched(size, 1))
    with pytest.raises(ValueError, match=rf"gemv: weight must be of sizes up to {MOST}, got \[{size}, 1\]"):
        pk.ops.gemv(untouched(1, 1), untouched(size, 1), out=untouched(1, size))


def test_a_cache_that_is_too_long_is_refused():
    cache = untouched(1, 1, MOST + 16, 8)
    with pytest.raises(ValueError, match=rf"gqa_decode: k_cache must be of sizes up to {MOST}"):
        pk.ops.gqa_decode(untouched(1, 1, 8), cache, cache, torch.ones(1, dtype=torch.int32))


@pytest.mark.parametrize("size", [MOST + 16, 1 << 29, (1 << 31) + 16])
def test_a_workspace_of_sizes_that_are_too_large_is_refused(size):
    with pytest.raises(ValueError, match=rf"swiglu_gemv_workspace: in_features must be in 1..{MOST}, got {size}"):
        pk.ops.swiglu_gemv_workspace(untouched(1, size), untouched(size))
    with pytest.raises(ValueError, match=rf"qkv_gemv_workspace: hidden must be in 1..{MOST}, got {size}"):
        pk.ops.qkv_gemv_workspace(untouched(1, size))


def test_the_largest_workspace_is_counted_in_64_bits():
    x = untouched(8, MOST, dtype=torch.float32)
    assert pk.ops.swiglu_gemv_workspace(x, untouched(MOST)).numel() == 8 * MOST * 4
    assert pk.ops.qkv_gemv_workspace(x).numel() == 8 * MOST * 4


@pytest.mark.parametrize("dim", range(4))
def test_a_workspace_without_a_size_is_refused(dim):
    q_shape, cache_shape = [1, 4, 64], [1, 2, 16, 64]
    cache_shape[dim] = 0
    if dim == 0:
        q_shape[0] = 0
    if dim == 3:
        q_shape[2] = 0
    name = ("batch", "n_kv_heads", "max_len", "head_dim")[dim]
    with pytest.raises(ValueError, match=f"pykernels::gqa_decode_workspace: {name} must be in 1..[0-9]+, got 0"):
        pk.ops.gqa_decode_workspace(untouched(*q_shape), untouched(*cache_shape))


@pytest.mark.parametrize("shape", [(0, 64), (1, 0), (9, 64)])
def test_other_workspaces_of_impossible_sizes_are_refused(shape):
    x = untouched(*shape)
    for make in (lambda: pk.ops.swiglu_gemv_workspace(x, untouched(64)), lambda: pk.ops.qkv_gemv_workspace(x)):
        with pytest.raises(ValueError, match=r"_workspace: \w+ must be in 1\.\.\d+, got [09]"):
            make()
