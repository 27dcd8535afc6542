"""The ops, one function each.

Shared by all of them:

* dtypes float32, bfloat16 and float16, one for all float tensors of a call; ``kv_len`` and ``position`` are
  int32, ``token`` int64, ``cos_sin`` float32; sums are taken in float32;
* arguments come in one order: x, the weights, what else is read, the biases; then, by name alone where an op has a
  norm in front, ``norm_weight`` and ``eps``; ``out`` and ``workspace`` last;
* tensors are contiguous and on one device; batch is 1 to 8 (:func:`add` takes any shape);
* ``out`` is written and returned; a new tensor where none is given. It may share no memory with an input;
* ``workspace`` is scratch memory (uint8, see the ``*_workspace`` functions); allocated where none is given;
* a bad argument raises ValueError with one line that names the op, the argument, what is allowed and what
  it got.

Inside ``pykernels.runtime.record()`` a call is checked and appended to the program, and computes nothing.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pykernels.quant import Int4Weight
from pykernels.ranges import ranged
from pykernels.workspaces import (  # noqa: F401
    gqa_decode_fallbacks,
    gqa_decode_workspace,
    int4_gemv_workspace,
    int4_qkv_gemv_workspace,
    int4_swiglu_gemv_workspace,
    is_unified,
    qkv_gemv_workspace,
    reset_gqa_decode_fallbacks,
    swiglu_gemv_workspace,
)

_ops = torch.ops.pykernels
_Function = TypeVar("_Function", bound=Callable)


def _op(function: _Function) -> _Function:
    """Decorates the function of the torch op of its name: gives the op its fake and the function its NVTX range."""
    name = function.__name__

    # Every op writes into arguments and returns nothing, so a fake has only to refuse what the dispatcher
    # sends here by mistake: a call that mixes meta tensors with real ones.
    def fake(*args: object) -> None:
        devices = {arg.device for arg in args if isinstance(arg, Tensor)}
        if len(devices) > 1:
            listed = ", ".join(sorted(str(device) for device in devices))
            raise ValueError(f"pykernels::{name}: all tensors must be on one device, got {listed}")

    torch.library.register_fake(f"pykernels::{name}", fake)
    return ranged(function, name)


def _size(tensor: Tensor, dim: int) -> int:
    """0 where there is no such dimension: `out` must be made before the op checks the rank of what it is made from."""
    return tensor.shape[dim] if tensor.dim() > dim else 0


def _tensors(op: str, name: str, weight: Int4Weight) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A 4-bit weight as the op's arguments. Raises ValueError, one line, where it is something else, as a dense one."""
    if not isinstance(weight, Int4Weight):
        raise ValueError(f"pykernels::{op}: {name} must be an Int4Weight, got {type(weight).__name__}")
    return weight.tensors()


_rmsnorm = _ops.rmsnorm.default


@_op
def rmsnorm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    norm_offset: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (weight + norm_offset) + residual`` over the last dimension (Zhang and Sennrich,
    2019).

    x, residual: [rows, hidden], of any number of rows; weight: [hidden]; eps in [0, 1). Returns [rows, hidden].
    """
    if out is None:
        out = torch.empty_like(x)
    _rmsnorm(x, weight, eps, out, residual, norm_offset)
    return out


_gemv = _ops.gemv.default


@_op
def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """``cap(scale * (x @ weight.T + bias)) + residual``; ``cap(y)`` is ``softcap * tanh(y / softcap)``, y where
    softcap is 0.

    x: [batch, in_features]; weight: [out_features, in_features]; bias: [out_features];
    residual: [batch, out_features]. Returns [batch, out_features].
    """
    if out is None:
        out = x.new_empty(_size(x, 0), _size(weight, 0))
    _gemv(x, weight, bias, residual, out, scale, softcap)
    return out


_rope_kv_append = _ops.rope_kv_append.default


@_op
def rope_kv_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    position: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate ``q`` and ``k`` by their position and append ``k`` and ``v`` to the caches (which it writes).

    RoPE (Su et al., 2021) in the rotate-half form of Llama checkpoints: dimension d is rotated with d + head_dim / 2.

    q: [batch, n_heads, head_dim]; k, v: [batch, n_kv_heads, head_dim];
    cos_sin: float32 [max_position, head_dim], cosines in the first half of a row, sines in the second
    (``pykernels.models.cos_sin_table``); position: int32 [batch];
    k_cache, v_cache: [batch, n_kv_heads, max_len, head_dim]. Returns the rotated q.
    """
    if out is None:
        out = torch.empty_like(q)
    _rope_kv_append(q, k, v, cos_sin, position, k_cache, v_cache, out)
    return out


_gqa_decode = _ops.gqa_decode.default


@_op
def gqa_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    scale: float | None = None,
    *,
    softcap: float = 0.0,
    softmax: str = "online",
    phi: float = 0.0,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """Attention of one query token a sequence over its first ``kv_len`` slots, heads in groups (GQA).

    ``softmax(scale * q @ K.T) @ V``; query head h reads KV head ``h // (n_heads // n_kv_heads)``. The KV axis
    is split over the threads and the partial results are combined by their log-sum-exp (Flash-Decoding, Dao et al.,
    2023).

    q: [batch, n_heads, head_dim]; k_cache, v_cache: [batch, n_kv_heads, max_len, head_dim];
    kv_len: int32 [batch], 1 to max_len; scale: 1 / sqrt(head_dim) where None; softcap: scores are
    softcap * tanh(score / softcap), 0: as they are. head_dim: a multiple of 8 up to 256.
    Returns [batch, n_heads, head_dim].

    softmax: "online" keeps the maximum so far and rescales. "unified" (FlashDecoding++, Hong et al., 2023, section 3)
    takes exp(score - phi) with the same phi everywhere, in [-1e6, 1e6], so that partial sums add as they are. The
    (sequence, head) pairs whose sum leaves the safe range (csrc/unified_softmax.h) are computed again online, with the
    same bits as "online", and counted in the workspace (:func:`gqa_decode_fallbacks`);
    :func:`pykernels.calibrate_phi` finds a phi. On CUDA head_dim is then 64 or 128, and there are more query heads than
    KV heads.
    """
    if out is None:
        out = torch.empty_like(q)
    if scale is None:
        scale = 1.0 / math.sqrt(_size(q, 2) or 1)
    _gqa_decode(q, k_cache, v_cache, kv_len, scale, out, workspace, softcap, is_unified(softmax), phi)
    return out


_silu_mul = _ops.silu_mul.default


@_op
def silu_mul(gate: Tensor, up: Tensor, *, gelu: bool = False, out: Tensor | None = None) -> Tensor:
    """``silu(gate) * up``; gate, up and the result: [batch, features].

    gelu: the tanh form of GELU (Hendrycks and Gimpel, 2016) instead of SiLU.
    """
    if out is None:
        out = torch.empty_like(gate)
    _silu_mul(gate, up, out, gelu)
    return out


_swiglu_gemv = _ops.swiglu_gemv.default


@_op
def swiglu_gemv(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    gelu: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """``silu(n @ gate_weight.T) * (n @ up_weight.T)`` (SwiGLU; GEGLU with `gelu`: Shazeer, 2020).

    ``n`` is ``rmsnorm(x, norm_weight, eps, norm_offset=norm_offset)``, or x where norm_weight is None.

    x: [batch, in_features]; norm_weight: [in_features]; gate_weight, up_weight: [out_features, in_features].
    Returns [batch, out_features].
    """
    if out is None:
        out = x.new_empty(_size(x, 0), _size(gate_weight, 0))
    _swiglu_gemv(x, gate_weight, up_weight, norm_weight, eps, out, workspace, norm_offset, gelu)
    return out


_qkv_gemv = _ops.qkv_gemv.default


@_op
def qkv_gemv(
    x: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    cos_sin: Tensor,
    position: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None,
    eps: float,
    norm_offset: float = 0.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """RMSNorm, the three projections, QK norm, RoPE and the KV append as one op.

    x: [batch, hidden]; norm_weight: [hidden], None: no norm; q_weight: [n_heads * head_dim, hidden];
    k_weight, v_weight: [n_kv_heads * head_dim, hidden]; the biases: [rows of their weight], all three or none;
    q_norm, k_norm: [head_dim], where every head is normalised by itself (QK norm: Henry et al., 2020), or
    [n_heads * head_dim] and [n_kv_heads * head_dim], where all heads of a sequence are together; with the same eps
    and norm_offset. cos_sin, position and the caches as in :func:`rope_kv_append`. Returns the rotated q,
    [batch, n_heads, head_dim].
    """
    if out is None:
        head_dim = _size(k_cache, 3)
        out = x.new_empty(_size(x, 0), _size(q_weight, 0) // (head_dim or 1), head_dim)
    _qkv_gemv(
        x, norm_weight, eps, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, cos_sin, position,
        k_cache, v_cache, out, workspace, q_norm, k_norm, norm_offset,
    )  # fmt: skip
    return out


_int4_gemv = _ops.int4_gemv.default


@_op
def int4_gemv(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """:func:`gemv` with a 4-bit weight, whose scales are of x's dtype.

    x: [batch, in_features], in_features a multiple of 32; bias: [out_features]; residual: [batch, out_features].
    Returns [batch, out_features].
    """
    four_bit = _tensors("int4_gemv", "weight", weight)
    if out is None:
        out = x.new_empty(_size(x, 0), _size(four_bit[0], 0))
    _int4_gemv(x, *four_bit, bias, residual, out, workspace, scale, softcap)
    return out


_int4_swiglu_gemv = _ops.int4_swiglu_gemv.default


@_op
def int4_swiglu_gemv(
    x: Tensor,
    gate: Int4Weight,
    up: Int4Weight,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    gelu: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """:func:`swiglu_gemv` with 4-bit weights.

    x: [batch, in_features], in_features a multiple of 32; norm_weight: [in_features]. Returns [batch, out_features].
    """
    four_bit = *_tensors("int4_swiglu_gemv", "gate", gate), *_tensors("int4_swiglu_gemv", "up", up)
    if out is None:
        out = x.new_empty(_size(x, 0), _size(gate.packed, 0))
    _int4_swiglu_gemv(x, *four_bit, norm_weight, eps, out, workspace, norm_offset, gelu)
    return out


_int4_qkv_gemv = _ops.int4_qkv_gemv.default


@_op
def int4_qkv_gemv(
    x: Tensor,
    q: Int4Weight,
    k: Int4Weight,
    v: Int4Weight,
    cos_sin: Tensor,
    position: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None,
    eps: float,
    norm_offset: float = 0.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """:func:`qkv_gemv` with 4-bit weights.

    x is laid out for the kernel once where the three weights share their ``perm`` (the same tensor, or none) and
    their number of groups, else once each. Returns the rotated q, [batch, n_heads, head_dim].
    """
    named = (("q", q), ("k", k), ("v", v))
    four_bit = [tensor for name, weight in named for tensor in _tensors("int4_qkv_gemv", name, weight)]
    if out is None:
        head_dim = _size(k_cache, 3)
        out = x.new_empty(_size(x, 0), _size(q.packed, 0) // (head_dim or 1), head_dim)
    _int4_qkv_gemv(
        x, norm_weight, eps, *four_bit, q_bias, k_bias, v_bias, cos_sin, position,
        k_cache, v_cache, out, workspace, q_norm, k_norm, norm_offset,
    )  # fmt: skip
    return out


_add = _ops.add.default


@_op
def add(a: Tensor, b: Tensor, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """``a + scale * b``; a, b and the result of one shape."""
    if out is None:
        out = torch.empty_like(a)
    _add(a, b, out, scale)
    return out


_embedding = _ops.embedding.default


@_op
def embedding(token: Tensor, table: Tensor, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Rows ``token`` of ``table``, times ``scale``.

    token: int64 [batch]; table: [vocab, hidden]. Returns [batch, hidden].
    """
    if out is None:
        out = table.new_empty(_size(token, 0), _size(table, 1))
    _embedding(token, table, out, scale)
    return out


_argmax = _ops.argmax.default


@_op
def argmax(
    logits: Tensor,
    position: Tensor | None = None,
    kv_len: Tensor | None = None,
    max_len: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """The greedy token of every sequence: the lowest index of its largest logit, the first NaN where there is one.

    With ``position`` and ``kv_len`` (int32 [batch], both written) the sequences step on: each grows by one until
    position is max_len - 1, the cache's last slot, where both stay. logits: [batch, vocab]. Returns int64 [batch].
    """
    if out is None:
        out = torch.empty(_size(logits, 0), dtype=torch.int64, device=logits.device)
    _argmax(logits, position, kv_len, max_len, out)
    return out


_null = _ops.null.default


@_op
def null(x: Tensor) -> None:
    """Do nothing: what is left is the cost of the call. ``x`` names the device."""
    _null(x)


_spin = _ops.spin.default


@_op
def spin(x: Tensor, duration_us: float) -> None:
    """Busy-wait ``duration_us`` microseconds (0 to 1e7): it proves the timer. ``x`` names the device."""
    _spin(x, duration_us)


_ceiling_read = _ops.ceiling_read.default


@_op
def ceiling_read(src: Tensor, sink: Tensor) -> None:
    """Read every byte of ``src`` once, as fast as it goes.

    src: uint8 [bytes], 64-byte aligned, a multiple of 64; sink: int64 [8], receives a checksum.
    """
    _ceiling_read(src, sink)


_ceiling_copy = _ops.ceiling_copy.default


@_op
def ceiling_copy(src: Tensor, out: Tensor) -> None:
    """Copy ``src`` to ``out`` (uint8 [bytes], aligned as in ceiling_read): moves ``2 * bytes`` bytes."""
    _ceiling_copy(src, out)
