"""phi of a unified maximum (FlashDecoding++, Hong et al., 2023, section 3), from the scores of sample inputs.

The paper looks at how the scores of a model are distributed and picks one phi so that nearly all of score - phi lie
between two bounds a < b; what does not is computed again. Here the bounds are those within which a sum is safe
(csrc/unified_softmax.h), and they hold for a (sequence, head) as a whole, not for each of its scores: its largest score
must not overflow, and its sum must not be too small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pykernels.reference import UNIFIED_LIMITS

_SAMPLED = 1 << 20
"""Scores of one call that the quantiles are of, at most."""


@dataclass(frozen=True)
class ScoreRows:
    """What a phi must fit of some (sequence, head) pairs: float64 [rows] each, but `scores`, a sample of all scores."""

    largest: Tensor
    log_sum: Tensor  # ln of the sum of exp(score)
    keys: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Phi:
    """A calibrated phi, and what it was found from.

    low, high: the 0.005% and the 99.995% quantile of score - phi: 99.99% of the scores lie between, the paper's a and
    b. rows: (sequence, head) pairs. in_range: the share of them that stays in the safe range; the others fall back.
    """

    phi: float
    low: float
    high: float
    rows: int
    in_range: float


def score_rows(
    q: Tensor, k_cache: Tensor, kv_len: Tensor, scale: float | None = None, softcap: float = 0.0
) -> ScoreRows:
    """The scores of one call of :func:`pykernels.ops.gqa_decode`, in float32: shapes and meaning as there."""
    batch, n_heads, head_dim = q.shape
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    queries = q.float().view(batch, k_cache.shape[1], -1, head_dim)
    largest, log_sum, keys, sampled = [], [], [], []
    for b, length in enumerate(kv_len.tolist()):
        scores = queries[b] @ k_cache[b, :, :length].float().transpose(1, 2) * scale
        scores = (softcap * torch.tanh(scores / softcap) if softcap else scores).view(n_heads, length)
        largest.append(scores.amax(-1).double())
        log_sum.append(scores.logsumexp(-1).double())
        keys.append(torch.full_like(largest[-1], length))
        every = -(-scores.numel() * batch // _SAMPLED)
        sampled.append(scores.flatten()[::every])
    return ScoreRows(*map(torch.cat, (largest, log_sum, keys, sampled)))


def calibrate_phi(rows: Sequence[ScoreRows], dtype: torch.dtype) -> Phi:
    """The phi in the middle of the interval that keeps most rows in the safe range of the dtype; of several such
    intervals the widest.

    A row stays in range for phi from its largest score less the highest exponent up to ln(sum) less ln(least sum).
    Raises ValueError where there is no row, or where not one has finite scores.
    """
    largest, log_sum, keys, scores = (
        torch.cat([getattr(part, name) for part in rows]) if rows else torch.empty(0)
        for name in ("largest", "log_sum", "keys", "scores")
    )
    finite = largest.isfinite() & log_sum.isfinite()
    if not finite.any():
        raise ValueError(f"rows must hold finite scores of one (sequence, head) or more, got {len(largest)} rows")
    highest, lowest_mean = UNIFIED_LIMITS[dtype]
    begin = largest[finite] - highest * math.log(2)
    end = log_sum[finite] - (keys[finite] * lowest_mean).clamp_max(1.0).log()
    edges = torch.cat((begin, end)).sort().values
    middles = (edges[:-1] + edges[1:]) / 2
    held = torch.searchsorted(begin.sort().values, middles, right=True) - torch.searchsorted(end.sort().values, middles)
    widths = torch.where(held == held.max(), edges[1:] - edges[:-1], -1.0)
    # Neighbours that hold as many rows are one interval only where the rows are the same: the widest part will do.
    phi = float(middles[widths.argmax()])
    quantiles = torch.quantile(
        scores[scores.isfinite()].double()[:: -(-len(scores) // _SAMPLED)],
        torch.tensor([0.00005, 0.99995], dtype=torch.float64, device=scores.device),
    )
    low, high = (quantiles - phi).tolist()
    inside = (begin <= phi) & (phi <= end)
    return Phi(phi, low, high, len(largest), float(inside.sum()) / len(largest))
