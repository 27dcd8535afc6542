"""The reference: every op in plain torch, in float64. Slow, and meant to be read.

Arguments are those of `pykernels.ops` less `out` and `workspace`. Results are float64; nothing is written to,
except that :func:`rope_kv_append` and :func:`qkv_gemv` return the new cache rows instead of storing them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pykernels.models import ModelSpec
    from pykernels.quant import Int4Weight
    from pykernels.weights import LayerWeights, ModelWeights


def rmsnorm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, norm_offset: float = 0.0) -> Tensor:
    """[rows, hidden]"""
    x = x.double()
    out = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (weight.double() + norm_offset)
    return out if residual is None else out + residual.double()


def gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """[batch, out_features]"""
    out = x.double() @ weight.double().T
    if bias is not None:
        out = out + bias.double()
    out = out * scale
    if softcap:
        out = softcap * torch.tanh(out / softcap)
    if residual is not None:
        out = out + residual.double()
    return out


def rotate(x: Tensor, cos_sin: Tensor, position: Tensor) -> Tensor:
    """x: [batch, heads, head_dim], rotated by the row of `cos_sin` that `position` [batch] names."""
    half = x.shape[-1] // 2
    angles = cos_sin.double()[position.long()].unsqueeze(1)
    cosine, sine = angles[..., :half], angles[..., half:]
    low, high = x.double()[..., :half], x.double()[..., half:]
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)


def rope_kv_append(q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q rotated, and the rows that go into the caches: k rotated and v."""
    return rotate(q, cos_sin, position), rotate(k, cos_sin, position), v.double()


def gqa_scores(
    q: Tensor, k_cache: Tensor, kv_len: Tensor, scale: float | None = None, softcap: float = 0.0
) -> list[Tensor]:
    """Of every sequence, what softmax is taken of: [n_heads, kv_len]."""
    group = q.shape[1] // k_cache.shape[1]
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
    found = []
    for b, length in enumerate(kv_len.tolist()):
        keys = k_cache[b, :, :length].double().repeat_interleave(group, dim=0)
        scores = torch.einsum("hd,hld->hl", q[b].double(), keys) * scale
        found.append(softcap * torch.tanh(scores / softcap) if softcap else scores)
    return found


def gqa_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    kv_len: Tensor,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax: str = "online",
    phi: float = 0.0,
) -> Tensor:
    """[batch, n_heads, head_dim]"""
    group = q.shape[1] // k_cache.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for b, scores in enumerate(gqa_scores(q, k_cache, kv_len, scale, softcap)):
        values = v_cache[b, :, : scores.shape[1]].double().repeat_interleave(group, dim=0)
        weights = scores.softmax(-1)
        if softmax == "unified":
            exponentials = torch.exp(scores - phi)
            unified = exponentials / exponentials.sum(-1, keepdim=True)
            weights = torch.where(falls_back(scores, phi, q.dtype).unsqueeze(-1), weights, unified)
        out[b] = torch.einsum("hl,hld->hd", weights, values)
    return out


def falls_back(scores: Tensor, phi: float, dtype: torch.dtype) -> Tensor:
    """Whether the sum of exp(scores - phi) of a row leaves the range in which gqa_decode of softmax unified adds it:
    scores [rows, keys], the result bool [rows]. The limits are those of csrc/unified_softmax.h."""
    highest, lowest_mean = UNIFIED_LIMITS[dtype]
    exponents = (scores - phi) / math.log(2)
    least = min(1.0, scores.shape[-1] * lowest_mean)
    in_range = (exponents.amax(-1) <= highest) & (torch.exp2(exponents).sum(-1) >= least)
    return ~in_range


UNIFIED_LIMITS = {
    torch.float32: (60.0, 2.0**-100),
    torch.bfloat16: (60.0, 2.0**-100),
    torch.float16: (15.0, 2.0**-14),
}
"""Of a unified maximum in a dtype: the highest exponent of base 2, and the lowest mean of the exponentials, below which
their sum is too small unless it is 1."""


def silu_mul(gate: Tensor, up: Tensor, gelu: bool = False) -> Tensor:
    """[batch, features]"""
    gate = gate.double()
    if gelu:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return gate * (1 + torch.tanh(inner)) / 2 * up.double()
    return gate * torch.sigmoid(gate) * up.double()


def swiglu_gemv(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    gelu: bool = False,
) -> Tensor:
    """[batch, out_features]"""
    if norm_weight is not None:
        x = rmsnorm(x, norm_weight, eps, norm_offset=norm_offset)
    return silu_mul(gemv(x, gate_weight), gemv(x, up_weight), gelu)


def qk_norm(x: Tensor, weight: Tensor, eps: float, norm_offset: float = 0.0) -> Tensor:
    """x: [batch, heads, head_dim]; weight: [head_dim], each head by itself, or [heads * head_dim], all together."""
    if weight.shape[0] == x.shape[-1]:
        return rmsnorm(x, weight, eps, norm_offset=norm_offset)
    return rmsnorm(x.flatten(1), weight, eps, norm_offset=norm_offset).view_as(x)


def qkv_gemv(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    cos_sin: Tensor,
    position: Tensor,
    head_dim: int,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    norm_offset: float = 0.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q rotated, and the rows that go into the caches: [batch, heads, head_dim] each."""
    normed = x if norm_weight is None else rmsnorm(x, norm_weight, eps, norm_offset=norm_offset)
    q, k, v = (
        gemv(normed, weight, bias).unflatten(-1, (-1, head_dim))
        for weight, bias in ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    )
    if q_norm is not None and k_norm is not None:
        q, k = qk_norm(q, q_norm, eps, norm_offset), qk_norm(k, k_norm, eps, norm_offset)
    return rope_kv_append(q, k, v, cos_sin, position)


def int4_gemv(
    x: Tensor,
    weight: "Int4Weight",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """[batch, out_features], on the dequantised weight"""
    return gemv(x, weight.dequantize(), bias, residual, scale, softcap)


def int4_swiglu_gemv(
    x: Tensor,
    gate: "Int4Weight",
    up: "Int4Weight",
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    gelu: bool = False,
) -> Tensor:
    """[batch, out_features], on the dequantised weights"""
    return swiglu_gemv(x, gate.dequantize(), up.dequantize(), norm_weight, eps, norm_offset, gelu)


def int4_qkv_gemv(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    q: "Int4Weight",
    k: "Int4Weight",
    v: "Int4Weight",
    cos_sin: Tensor,
    position: Tensor,
    head_dim: int,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    norm_offset: float = 0.0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`qkv_gemv`, on the dequantised weights."""
    weights = (q.dequantize(), k.dequantize(), v.dequantize())
    return qkv_gemv(
        x, norm_weight, eps, *weights, cos_sin, position, head_dim, q_bias, k_bias, v_bias, norm_offset, q_norm, k_norm
    )


def add(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Of the shape of a and b."""
    return a.double() + scale * b.double()


def embedding(token: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
    """[batch, hidden]"""
    return table[token].double() * scale


def argmax(logits: Tensor) -> Tensor:
    """int64 [batch]"""
    return torch.stack([(row.isnan() if row.isnan().any() else row == row.max()).nonzero()[0, 0] for row in logits])


def layer(
    spec: "ModelSpec",
    weights: "LayerWeights",
    x: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cos_sin: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One decoder layer for the token at `position` [batch], which attends to the slots before it and itself.

    x: [batch, hidden]; caches: [batch, n_kv_heads, max_len, head_dim], read up to `position`.
    Returns the layer's output [batch, hidden] and the rows of K and V it appends
    [batch, n_kv_heads, head_dim]. 4-bit projections are dequantised first.
    """
    w = weights.dequantize()
    q, k_row, v_row = layer_qkv(spec, w, x, cos_sin, position)
    attended = layer_attention(q, k_row, v_row, k_cache, v_cache, position, spec)
    return layer_rest(spec, w, x, attended)["out"], k_row, v_row


def layer_qkv(
    spec: "ModelSpec", weights: "LayerWeights", x: Tensor, cos_sin: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of dense weights: q rotated [batch, n_heads, head_dim], and the rows that a layer appends."""
    w = weights
    return qkv_gemv(
        x, w.input_norm, spec.rms_eps, w.q_weight, w.k_weight, w.v_weight, cos_sin, position, spec.head_dim,
        w.q_bias, w.k_bias, w.v_bias, spec.norm_offset, w.q_norm, w.k_norm,
    )  # fmt: skip


def layer_attention(
    q: Tensor, k_row: Tensor, v_row: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, spec: "ModelSpec"
) -> Tensor:
    """[batch, n_heads, head_dim] of a layer: over the slots before `position` [batch] and the rows that it appends."""
    k_cache, v_cache = k_cache.to(torch.float64, copy=True), v_cache.to(torch.float64, copy=True)
    for b, slot in enumerate(position.tolist()):
        k_cache[b, :, slot], v_cache[b, :, slot] = k_row[b], v_row[b]
    return gqa_decode(q, k_cache, v_cache, position + 1, spec.score_scale, spec.attention_softcap)


def layer_rest(spec: "ModelSpec", weights: "LayerWeights", x: Tensor, attended: Tensor) -> dict[str, Tensor]:
    """Of dense weights, what follows on the attention: `h`, the residual stream before the MLP, `activated`
    [batch, intermediate], the input of the down projection, and `out` [batch, hidden]."""
    w = weights
    h = _added(spec, attended.flatten(1), w.o_weight, w.attention_out_norm, x)
    activated = swiglu_gemv(h, w.gate_weight, w.up_weight, w.post_norm, spec.rms_eps, spec.norm_offset, spec.gelu)
    return {"h": h, "activated": activated, "out": _added(spec, activated, w.down_weight, w.mlp_out_norm, h)}


def _added(spec: "ModelSpec", x: Tensor, weight: Tensor, norm: Tensor | None, residual: Tensor) -> Tensor:
    """The residual stream after a projection of x was added to it, by way of its norm where the model has one."""
    if norm is None:
        return gemv(x, weight, residual=residual, scale=spec.residual_scale)
    return rmsnorm(gemv(x, weight), norm, spec.rms_eps, residual, spec.norm_offset)


def step(
    spec: "ModelSpec",
    weights: "ModelWeights",
    token: Tensor,
    caches: Sequence[tuple[Tensor, Tensor]],
    cos_sin: Sequence[Tensor],
    position: Tensor,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """One whole decode step for `token` [batch] at `position` [batch].

    caches: K and V of every layer, [batch, n_kv_heads, max_len, head_dim] each, read up to `position`; cos_sin: the
    angles of every layer. Returns the logits [batch, vocab] and the rows of K and V that each layer appends.
    """
    x, rows = embedding(token, weights.embedding, spec.embedding_scale_in(weights.embedding.dtype)), []
    for layer_weights, (k_cache, v_cache), angles in zip(weights.layers, caches, cos_sin, strict=True):
        x, k_row, v_row = layer(spec, layer_weights, x, k_cache, v_cache, angles, position)
        rows.append((k_row, v_row))
    normed = rmsnorm(x, weights.final_norm, spec.rms_eps, norm_offset=spec.norm_offset)
    # In parts: in float64 the whole table would be four times the bytes of the model's largest tensor.
    parts = weights.lm_head.split(16384)
    return torch.cat([logits(spec, normed, part) for part in parts], dim=-1), rows


def logits(spec: "ModelSpec", normed: Tensor, lm_head: Tensor) -> Tensor:
    """[batch, rows of lm_head]"""
    return gemv(normed, lm_head, scale=spec.logit_scale, softcap=spec.logit_softcap)


# The largest relative error of one rounding to the type: half its spacing.
_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found. `message` is one line, fit for a report."""

    ok: bool
    max_rel_error: float
    tolerance: float
    worst_index: tuple[int, ...]
    got: float
    expected: float
    message: str


def compare(
    out: Tensor, expected: Tensor, dtype: torch.dtype, depth: int = 1, rms_depth: int | None = None
) -> Comparison:
    """Is `out`, computed in `dtype`, the float64 `expected`?

    The error of an element is taken relative to the largest magnitude in its last-dimension row: sums of many
    terms are as wrong as their terms are large, not as their result is. The tolerance is 2 roundings to
    `dtype` (one of the result, one of what went in) for every op in a row, `depth` of them; float32 gets 128
    an op, since its sums of thousands of terms err by more than their last rounding.

    Below the smallest normal number of `dtype` numbers are as far apart as above it: a row of smaller ones is taken
    relative to that.

    rms_depth: where given, the root mean square of a row's errors is held to half as much an op, for so many ops.
    Roundings are independent of one another, and a term that is missing is not: it is wrong in the whole row.

    NaN and infinity never pass: neither where something else was expected nor where expected is not finite.
    """
    if out.shape != expected.shape:
        raise ValueError(f"out must be of shape {list(expected.shape)}, got {list(out.shape)}")
    got, expected = out.detach().double().cpu(), expected.detach().double().cpu()
    an_op = _ROUNDING[dtype] * (128 if dtype == torch.float32 else 2)
    tolerance = depth * an_op
    scale = expected.abs().amax(-1, keepdim=True).clamp_min(max(torch.finfo(dtype).smallest_normal, 1e-30))
    error = (got - expected).abs() / scale
    error = torch.where(error.isfinite(), error, torch.full_like(error, math.inf))
    worst = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    largest = float(error.reshape(-1)[worst])
    values = float(got.reshape(-1)[worst]), float(expected.reshape(-1)[worst])
    ok = largest <= tolerance
    verdict = "within" if ok else "beyond"
    message = (
        f"relative error {largest:.3g}, {verdict} the tolerance {tolerance:.3g}; "
        f"worst at {list(index)}: got {values[0]:.6g}, expected {values[1]:.6g}"
    )
    if ok and rms_depth is not None and error.numel():
        of_rows = error.pow(2).mean(-1).sqrt().reshape(-1)
        row_rms, allowed = float(of_rows.max()), rms_depth * an_op / 2
        if row_rms > allowed:
            ok = False
            row = [int(i) for i in torch.unravel_index(of_rows.argmax(), error.shape[:-1])]
            message = (
                f"root mean square of row {row}'s relative errors {row_rms:.3g}, beyond {allowed:.3g}; "
                f"of one element at most {largest:.3g}, within the tolerance {tolerance:.3g}"
            )
    return Comparison(ok, largest, tolerance, index, *values, message)
