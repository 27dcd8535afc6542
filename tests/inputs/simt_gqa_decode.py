"""gqa_decode on the SIMT executor."""

import torch

import pykernels as pk
from inputs.helpers import assert_close, randn
from inputs.simt import device


def inputs(lengths, max_len, heads, kv_heads, head_dim, dtype):
    """Slots past a sequence's length are NaN."""
    batch = len(lengths)
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, max_len, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    for b, length in enumerate(lengths):
        k[b, :, length:] = float("nan")
        v[b, :, length:] = float("nan")
    return q, k, v, torch.tensor(lengths, dtype=torch.int32)


def launch(dev, given, scale=None, softcap=0.0, softmax=0, phi=0.0, **launch_options):
    """Queue it on device tensors; returns out, which is written by synchronize(). softmax: 0 online, 1 unified."""
    q, k, v, kv_len = given
    out = dev.empty(*q.shape, dtype=q.dtype)
    fields = dict(
        q=q, k_cache=k, v_cache=v, kv_len=kv_len, out=out, batch=q.shape[0], n_heads=q.shape[1], n_kv_heads=k.shape[1],
        head_dim=q.shape[2], max_len=k.shape[2], scale=q.shape[2] ** -0.5 if scale is None else scale, dtype=q.dtype,
        softcap=softcap, softmax=softmax, phi=phi,
    )  # fmt: skip
    workspace = dev.gqa_decode_workspace(**fields)
    fields |= dict(workspace=workspace, workspace_bytes=workspace.numel())
    dev.launch("gqa_decode", **fields, **launch_options)
    return out, fields


def check(given, arch, seed=0, sm_count=4, scale=None, runs=2, shared_bytes=227 * 1024, softcap=0.0):
    """Right on the executor, again with the workspace that the first run left, and on the CPU."""
    dtype = given[0].dtype
    expected = pk.reference.gqa_decode(*given, scale, softcap)
    assert_close(pk.ops.gqa_decode(*given, scale, softcap=softcap), expected, dtype)
    with device(arch, seed, sm_count, shared_bytes) as dev:
        out, fields = launch(dev, [dev.to(tensor) for tensor in given], scale, softcap)
        for run in range(runs):
            if run > 0:
                out.fill_(float("nan"))
                dev.launch("gqa_decode", **fields)
            dev.synchronize()
            assert_close(out, expected, dtype)
            assert not fields["workspace"].any(), "a launch leaves the workspace zero"
        return out.clone()
