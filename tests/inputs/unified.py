"""gqa_decode with a unified maximum: inputs whose scores a phi of 0 fits for some heads and not for others, and the
check of what came of them."""

import torch
from torch import Tensor

import pykernels as pk
from inputs.helpers import assert_close, randn

PLANTS = ("overflows", "one_huge", "underflows", "all_equal", "one_minus_infinity", "all_minus_infinity", "one_nan")
"""What the scores of every other query head of a KV head are made to do; of the last three, of all its heads."""

_SHIFTS = {"overflows": 60.0, "underflows": -100.0, "one_huge": 60.0, "all_minus_infinity": float("-inf")}
_OF_ONE_KEY = {"one_huge": 60.0, "one_minus_infinity": float("-inf"), "one_nan": float("nan")}


def planted(lengths, max_len, heads, kv_heads, head_dim, dtype, plants=None):
    """q, K, V, kv_len with scores of unit scale, but where `plants` names one of PLANTS by (sequence, KV head). Slots
    past a sequence's length are NaN."""
    batch, group = len(lengths), heads // kv_heads
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, max_len, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    # Dimension 0 shifts scores: they are times head_dim ** -0.5.
    q[..., 0], k[..., 0] = 0.0, 0.0
    for (b, kv_head), plant in (plants or {}).items():
        of_group = slice(kv_head * group, (kv_head + 1) * group, 1 if plant.endswith(("infinity", "nan")) else 2)
        q[b, of_group, 0] = head_dim**0.5
        if plant == "all_equal":
            q[b, of_group] = 0.0
        elif plant in _OF_ONE_KEY:
            k[b, kv_head, lengths[b] // 2, 0] = _OF_ONE_KEY[plant]
        else:
            k[b, kv_head, :, 0] = _SHIFTS[plant]
    for b, length in enumerate(lengths):
        k[b, :, length:] = float("nan")
        v[b, :, length:] = float("nan")
    return q, k, v, torch.tensor(lengths, dtype=torch.int32)


def expected_fallbacks(given, phi: float = 0.0) -> Tensor:
    """By (sequence, head): bool [batch, n_heads]."""
    q, k, _, kv_len = given
    return torch.stack([pk.reference.falls_back(of, phi, q.dtype) for of in pk.reference.gqa_scores(q, k, kv_len)])


def check_unified(out: Tensor, online: Tensor, fallbacks: int, given, phi: float = 0.0) -> None:
    """What softmax unified must give: in the safe range what the reference says, elsewhere the bits of `online`, and
    as many fall-backs."""
    fell_back = expected_fallbacks(given, phi)
    bits = torch.int32 if out.dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(bits)[fell_back], online.view(bits)[fell_back]), "a fall-back has online's bits"
    expected = pk.reference.gqa_decode(*given, softmax="unified", phi=phi)
    if not fell_back.all():
        assert_close(out[~fell_back], expected[~fell_back], out.dtype)
    assert fallbacks == int(fell_back.sum()), "fall-backs are counted"
