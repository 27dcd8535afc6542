"""Arguments of qkv_gemv."""

import torch

from inputs.helpers import randn

HIDDEN, HEADS, KV_HEADS, DIM, MAX_LEN = 72, 4, 2, 64, 10
EPS = 1e-5
BIASES = ("q_bias", "k_bias", "v_bias")
CACHES = ("k_cache", "v_cache")
# The norm's result is rounded, and so is what the rotation of a sum gives: two ops in a row.
DEPTH = 2


def arguments(
    positions: list[int],
    hidden: int = HIDDEN,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    dim: int = DIM,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
) -> dict:
    """By name: x [batch, hidden], weights and biases of q, k and v, caches [batch, kv_heads, MAX_LEN, dim] that hold
    numbers, and a sequence a position."""
    batch = len(positions)
    made = dict(
        x=randn(batch, hidden, dtype=dtype),
        norm_weight=randn(hidden, dtype=dtype, seed=1),
        eps=EPS,
    )
    rows = dict(q=heads * dim, k=kv_heads * dim, v=kv_heads * dim)
    for seed, (name, count) in enumerate(rows.items(), 2):
        made[f"{name}_weight"] = randn(count, hidden, dtype=dtype, seed=seed, scale=hidden**-0.5)
    for seed, (name, count) in enumerate(rows.items(), 5):
        made[f"{name}_bias"] = randn(count, dtype=dtype, seed=seed) if bias else None
    angles = torch.outer(torch.arange(MAX_LEN), 0.7 ** torch.arange(dim // 2))
    made["cos_sin"] = torch.cat((angles.cos(), angles.sin()), dim=1)
    made["position"] = torch.tensor(positions, dtype=torch.int32)
    for seed, name in enumerate(CACHES, 8):
        made[name] = randn(batch, kv_heads, MAX_LEN, dim, dtype=dtype, seed=seed)
    return made
