"""The workspaces of the ops that take one, for callers who allocate nothing later; names of ``pykernels.ops``."""

from typing import TypeAlias

import torch
from torch import Tensor

from pykernels import _runtime
from pykernels.quant import Int4Weight


def gqa_decode_workspace(q: Tensor, k_cache: Tensor) -> Tensor:
    """A workspace for :func:`gqa_decode` of these shapes and this number of threads: uint8 [bytes].

    On CUDA all of it is zero before the first call; every call leaves it zero.
    """
    size = _runtime.gqa_decode_workspace_bytes(*q.shape[:2], *k_cache.shape[1:2], q.shape[2], k_cache.shape[2],
                                               q.element_size(), q.is_cuda)  # fmt: skip
    return torch.zeros(max(size, 1), dtype=torch.uint8, device=q.device)


def swiglu_gemv_workspace(x: Tensor, norm_weight: Tensor | None) -> Tensor:
    """A workspace for :func:`swiglu_gemv` of these shapes: uint8 [bytes]. CUDA needs none: one byte."""
    size = 0 if x.is_cuda else _runtime.swiglu_gemv_workspace_bytes(*x.shape, norm_weight is not None, x.element_size())
    return torch.empty(max(size, 1), dtype=torch.uint8, device=x.device)


QkNormHeads: TypeAlias = tuple[int, int, int] | None
"""(n_heads, n_kv_heads, head_dim) of a QK norm, or None where there is none."""


def qkv_gemv_workspace(x: Tensor, qk_norm: QkNormHeads = None) -> Tensor:
    """A workspace for :func:`qkv_gemv` of these shapes: uint8 [bytes].

    CUDA needs none without a QK norm: one byte. With one it is zero before the first call; every call leaves its
    counters zero.
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
