"""The workspaces of the ops that take one, for callers who allocate nothing later; names of ``pykernels.ops``."""

from typing import TypeAlias

import torch
from torch import Tensor

from pykernels import _runtime
from pykernels.quant import Int4Weight

SOFTMAX = ("online", "unified")
"""What `softmax` of :func:`pykernels.ops.gqa_decode` may be."""


def is_unified(softmax: str, op: str = "gqa_decode") -> bool:
    """Whether the maximum is unified. ValueError where softmax is none of SOFTMAX."""
    if softmax not in SOFTMAX:
        raise ValueError(f"pykernels::{op}: softmax must be {' or '.join(SOFTMAX)}, got {softmax}")
    return softmax == "unified"


def gqa_decode_workspace(q: Tensor, k_cache: Tensor, softmax: str = "online") -> Tensor:
    """A workspace for :func:`gqa_decode` of these shapes and this number of threads: uint8 [bytes].

    On CUDA all of it is zero before the first call; every call leaves it zero, but for the count of fall-backs that
    one for softmax unified begins with (:func:`gqa_decode_fallbacks`). It serves online as well.
    """
    unified = is_unified(softmax, "gqa_decode_workspace")
    size = _runtime.gqa_decode_workspace_bytes(*q.shape[:2], *k_cache.shape[1:2], q.shape[2], k_cache.shape[2],
                                               q.element_size(), q.is_cuda, unified)  # fmt: skip
    return torch.zeros(max(size, 1), dtype=torch.uint8, device=q.device)


def gqa_decode_fallbacks(workspace: Tensor) -> int:
    """How often a (sequence, head) was computed again online by the calls of :func:`gqa_decode` that were given this
    workspace and softmax unified, since it was made or :func:`reset_gqa_decode_fallbacks`. Waits for the device."""
    return int(workspace[:4].view(torch.int32))


def reset_gqa_decode_fallbacks(workspace: Tensor) -> None:
    """Count from 0 again. On CUDA in the order of the current stream."""
    workspace[:4].zero_()


def swiglu_gemv_workspace(x: Tensor, norm_weight: Tensor | None) -> Tensor:
    """A workspace for :func:`swiglu_gemv` of these shapes: uint8 [bytes]. CUDA needs none: one byte."""
    size = 0 if x.is_cuda else _runtime.swiglu_gemv_workspace_bytes(*x.shape, norm_weight is not None, x.element_size())
    return torch.empty(max(size, 1), dtype=torch.uint8, device=x.device)


QkNormHeads: TypeAlias = tuple[int, int, int] | None
"""(n_heads, n_kv_heads, head_dim) of a QK norm, or None where there is none."""


def qkv_gemv_workspace(x: Tensor, qk_norm: QkNormHeads = None) -> Tensor:
    """A workspace for :func:`qkv_gemv` of these shapes: uint8 [bytes].

    CUDA needs none without a QK norm: one byte. With one it is zero before the first call; every call leaves it zero.
    """
    heads = qk_norm is not None, *(qk_norm or (0, 0, 0))
    size = _runtime.qkv_gemv_workspace_bytes(*x.shape, x.element_size(), x.is_cuda, *heads)
    return torch.zeros(max(size, 1), dtype=torch.uint8, device=x.device)


def int4_gemv_workspace(x: Tensor, weight: Int4Weight) -> Tensor:
    """A workspace for :func:`int4_gemv` of these shapes: uint8 [bytes]. CUDA needs none: one byte."""
    size = 1 if x.is_cuda else _runtime.int4_gemv_workspace_bytes(*x.shape, weight.n_groups)
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def int4_swiglu_gemv_workspace(x: Tensor, gate: Int4Weight, up: Int4Weight) -> Tensor:
    """A workspace for :func:`int4_swiglu_gemv` of these shapes: uint8 [bytes]. CUDA needs none: one byte."""
    size = 1
    if not x.is_cuda:
        size = _runtime.int4_swiglu_gemv_workspace_bytes(*x.shape, gate.n_groups, up.n_groups, x.element_size())
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def int4_qkv_gemv_workspace(
    x: Tensor, q: Int4Weight, k: Int4Weight, v: Int4Weight, qk_norm: QkNormHeads = None
) -> Tensor:
    """A workspace for :func:`int4_qkv_gemv` of these shapes, as :func:`qkv_gemv_workspace`."""
    groups, heads = (q.n_groups, k.n_groups, v.n_groups), (qk_norm is not None, *(qk_norm or (0, 0, 0)))
    size = _runtime.int4_qkv_gemv_workspace_bytes(*x.shape, *groups, x.element_size(), x.is_cuda, *heads)
    return torch.zeros(max(size, 1), dtype=torch.uint8, device=x.device)
