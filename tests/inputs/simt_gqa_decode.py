"""gqa_decode on the SIMT executor."""

import torch

from inputs.helpers import randn


def inputs(lengths, max_len, heads, kv_heads, head_dim, dtype):
    """Slots past a sequence's length are NaN."""
    batch = len(lengths)
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, max_len, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    for b, length in enumerate(lengths):
        k[b, :, length:] = float("nan")
        v[b, :, length:] = float("nan")
    return q, k, v, torch.tensor(lengths, dtype=torch.int32)


def launch(dev, given, scale=None, **launch_options):
    """Queue it on device tensors; returns out, which is written by synchronize()."""
    q, k, v, kv_len = given
    out = dev.empty(*q.shape, dtype=q.dtype)
    fields = dict(
        q=q, k_cache=k, v_cache=v, kv_len=kv_len, out=out, batch=q.shape[0], n_heads=q.shape[1], n_kv_heads=k.shape[1],
        head_dim=q.shape[2], max_len=k.shape[2], scale=q.shape[2] ** -0.5 if scale is None else scale, dtype=q.dtype,
    )  # fmt: skip
    workspace = dev.gqa_decode_workspace(**fields)
    fields |= dict(workspace=workspace, workspace_bytes=workspace.numel())
    dev.launch("gqa_decode", **fields, **launch_options)
    return out, fields
