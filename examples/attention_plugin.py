"""A plug-in in Python: attention of one query a head, written out in torch.

python -m bench.layer --backend=sdpa,examples/attention_plugin.py:Attention --model=tiny
"""

import torch
from torch import Tensor

from bench.backends import AttentionPlugin


class Attention(AttentionPlugin):
    """Scores, softmax, weighted sum: two batched matrix products, the heads of a group side by side."""

    description = "attention written out in torch"

    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, out: Tensor) -> None:
        batch, n_heads, head_dim = q.shape
        n_kv_heads, max_len = k_cache.shape[1:3]
        grouped = q.view(batch, n_kv_heads, n_heads // n_kv_heads, head_dim)
        # Compared on the device, so that nobody waits for it. Slots that are not filled may hold anything, NaN too.
        empty = torch.arange(max_len, device=q.device) >= kv_len.view(-1, 1, 1, 1)
        scores = (grouped @ k_cache.transpose(-1, -2)).float() * head_dim**-0.5
        weights = scores.masked_fill(empty, float("-inf")).softmax(-1).to(q.dtype)
        out.copy_((weights @ v_cache.masked_fill(empty.transpose(-1, -2), 0)).view_as(out))
