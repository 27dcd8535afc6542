"""Bytes that must move, counted by hand for every op, and the times they take at a bandwidth.

A weight, a cache slot and an activation count once for each op that reads or writes them; activations between two
ops count at both. Workspaces, which stay in the cache, do not count. `b` is the batch, `e` the bytes an element.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from pykernels.layer import op_labels
from pykernels.models import ModelSpec
from pykernels.weights import PROJECTIONS


def rmsnorm(b: int, hidden: int, e: int, residual: bool = False) -> int:
    """x in, weight, out, and the optional residual; b rows."""
    return ((2 + residual) * b * hidden + hidden) * e


def gemv(b: int, n_in: int, n_out: int, e: int, bias: bool = False, residual: bool = False) -> int:
    """weight, x, out, and the optional vectors."""
    return (n_out * n_in + b * n_in + b * n_out + bias * n_out + residual * b * n_out) * e


def rope_kv_append(b: int, n_heads: int, n_kv_heads: int, head_dim: int, e: int) -> int:
    """q in and out; k and v in and into the cache; a float32 row of angles and an int32 position a sequence."""
    return b * ((2 * n_heads + 4 * n_kv_heads) * head_dim * e + 4 * head_dim + 4)


def gqa_decode(b: int, n_heads: int, n_kv_heads: int, head_dim: int, kv_len: int, e: int) -> int:
    """q, out, kv_len slots of K and of V, an int32 kv_len a sequence."""
    return b * ((2 * n_heads + 2 * n_kv_heads * kv_len) * head_dim * e + 4)


def silu_mul(b: int, features: int, e: int) -> int:
    """gate, up, out."""
    return 3 * b * features * e


def swiglu_gemv(b: int, n_in: int, n_out: int, e: int, norm: bool = True) -> int:
    """Both weights, the norm's weight, x, out."""
    return (2 * n_out * n_in + norm * n_in + b * n_in + b * n_out) * e


def qkv_gemv(b: int, hidden: int, n_heads: int, n_kv_heads: int, head_dim: int, e: int, bias: bool) -> int:
    """The norm's weight, three weights, their biases, x, q out, one slot of K and of V, angles and position."""
    rows = (n_heads + 2 * n_kv_heads) * head_dim
    return (hidden + rows * hidden + bias * rows + b * hidden + b * rows) * e + b * (4 * head_dim + 4)


def int4_weight(n_in: int, n_out: int, e: int, group_size: int = 128, zeros: bool = False, perm: bool = False) -> int:
    """Half a byte an element, a scale a group, a byte a group of zero points, four a column of act-order."""
    groups = n_in // group_size
    return n_out * (n_in // 2 + groups * (e + zeros)) + 4 * perm * n_in


def int4_gemv(b: int, n_in: int, n_out: int, e: int, bias: bool = False, residual: bool = False, **weight: Any) -> int:
    """The weight (keywords of :func:`int4_weight`), x, out, and the optional vectors."""
    vectors = (b * n_in + b * n_out + bias * n_out + residual * b * n_out) * e
    return int4_weight(n_in, n_out, e, **weight) + vectors


def int4_swiglu_gemv(b: int, n_in: int, n_out: int, e: int, norm: bool = True, **weight: Any) -> int:
    """Both weights, the norm's weight, x, out."""
    return 2 * int4_weight(n_in, n_out, e, **weight) + (norm * n_in + b * n_in + b * n_out) * e


def int4_qkv_gemv(
    b: int, hidden: int, n_heads: int, n_kv_heads: int, head_dim: int, e: int, bias: bool, **weight: Any
) -> int:
    """As :func:`qkv_gemv` with three 4-bit weights."""
    q_rows, kv_rows = n_heads * head_dim, n_kv_heads * head_dim
    weights = sum(int4_weight(hidden, rows, e, **weight) for rows in (q_rows, kv_rows, kv_rows))
    dense = (q_rows + 2 * kv_rows) * hidden * e
    return qkv_gemv(b, hidden, n_heads, n_kv_heads, head_dim, e, bias) - dense + weights


def add(count: int, e: int) -> int:
    """a, b, out."""
    return 3 * count * e


def embedding(b: int, hidden: int, e: int) -> int:
    """A row in and out and an int64 token a sequence: not the table."""
    return b * (2 * hidden * e + 8)


def argmax(b: int, vocab: int, e: int) -> int:
    """The logits, an int64 token, position and kv_len read and written."""
    return b * (vocab * e + 8 + 16)


Time = TypeVar("Time", float, np.ndarray)

GroupSize = int | Mapping[str, int]
"""Columns a scale; -1: the row. By the weight's name where projections differ."""


@dataclass(frozen=True)
class OpBytes:
    """One op of a layer: its name, what it does there, its shape in words, its bytes."""

    op: str
    label: str
    shape: str
    bytes: int


def layer_ops(
    spec: ModelSpec,
    fusion: str,
    batch: int,
    kv_len: int,
    dtype: torch.dtype,
    int4_group_size: GroupSize | None = None,
    int4_zeros: bool = False,
    int4_perm: bool = False,
) -> list[OpBytes]:
    """Every op of one layer at that fusion, in order; with 4-bit projections of that group size (by the weight's name
    where they differ), with zero points or act-order where told."""
    b, e = batch, dtype.itemsize
    hidden, intermediate = spec.hidden, spec.intermediate
    heads, kv_heads, dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
    q_rows, kv_rows = heads * dim, kv_heads * dim

    four_bit = int4_group_size is not None

    def weight(n_in: int, name: str) -> dict[str, Any]:
        size = int4_group_size[f"{name}_weight"] if isinstance(int4_group_size, Mapping) else int4_group_size
        return dict(group_size=n_in if size == -1 else size, zeros=int4_zeros, perm=int4_perm)

    def projection(name: str, n_in: int, n_out: int, **extra: bool) -> tuple[str, int]:
        int4 = four_bit and int4_gemv(b, n_in, n_out, e, **extra, **weight(n_in, name))
        return f"{b}x{n_in} -> {n_out}", int4 or gemv(b, n_in, n_out, e, **extra)

    def more(than: str, name: str, n_in: int, n_out: int) -> int:
        """Bytes that a weight has more than one of another's group size."""
        own, other = (int4_weight(n_in, n_out, e, **weight(n_in, one)) for one in (name, than))
        return own - other

    def int4_qkv() -> int:
        counted = int4_qkv_gemv(*qkv_sizes, **weight(hidden, "q"))
        return counted + more("q", "k", hidden, kv_rows) + more("q", "v", hidden, kv_rows)

    def int4_swiglu() -> int:
        counted = int4_swiglu_gemv(*swiglu_sizes, **weight(hidden, "gate"))
        return counted + more("gate", "up", hidden, intermediate)

    qkv_sizes = (b, hidden, heads, kv_heads, dim, e, spec.qkv_bias)
    swiglu_sizes = (b, hidden, intermediate, e)
    # What the fused ops read of norms: less without one before them, more with a QK norm.
    no_norm = 0 if spec.pre_norms else hidden * e
    qkv_norms = sum(spec.qk_norm_sizes) * e - no_norm

    def qk_norm(n_heads: int) -> tuple[str, int]:
        rows, width = (b, n_heads * dim) if spec.qk_norm == "all" else (b * n_heads, dim)
        return f"{rows}x{width}", rmsnorm(rows, width, e)

    attention = f"{heads}/{kv_heads}x{dim}, kv {kv_len}", gqa_decode(b, heads, kv_heads, dim, kv_len, e)
    norm = f"{b}x{hidden}", rmsnorm(b, hidden, e)
    residual = f"{b}x{hidden}", add(b * hidden, e)
    normed_residual = f"{b}x{hidden}", rmsnorm(b, hidden, e, residual=True)
    by_label: dict[str, tuple[str, int]] = {
        "input_norm": norm,
        "q": projection("q", hidden, q_rows, bias=spec.qkv_bias),
        "k": projection("k", hidden, kv_rows, bias=spec.qkv_bias),
        "v": projection("v", hidden, kv_rows, bias=spec.qkv_bias),
        "q_norm": qk_norm(heads),
        "k_norm": qk_norm(kv_heads),
        "rope": (f"{heads}/{kv_heads}x{dim}", rope_kv_append(b, heads, kv_heads, dim, e)),
        "attention": attention,
        "o": projection("o", q_rows, hidden),
        "attention_residual": residual,
        "post_norm": norm,
        "gate": projection("gate", hidden, intermediate),
        "up": projection("up", hidden, intermediate),
        "activation": (f"{b}x{intermediate}", silu_mul(b, intermediate, e)),
        "down": projection("down", intermediate, hidden),
        "mlp_residual": residual,
        "norm+qkv+rope": (
            f"{b}x{hidden} -> {q_rows}+2x{kv_rows}",
            qkv_norms + (int4_qkv() if four_bit else qkv_gemv(*qkv_sizes)),
        ),
        "o+residual": projection("o", q_rows, hidden, residual=True),
        "norm+gate+up": (
            f"{b}x{hidden} -> 2x{intermediate}",
            (int4_swiglu() if four_bit else swiglu_gemv(*swiglu_sizes)) - no_norm,
        ),
        "down+residual": projection("down", intermediate, hidden, residual=True),
        "attention_out_norm": norm,
        "mlp_out_norm": norm,
        "attention_out_norm+residual": normed_residual,
        "mlp_out_norm+residual": normed_residual,
    }
    return [OpBytes(op, label, *by_label[label]) for op, label in op_labels(fusion, four_bit, spec)]


def layer_group_size(group_size: GroupSize | None, layer: int) -> GroupSize | None:
    """Of one layer of a model, whose group sizes are those of all layers, or by `layer.weight` where layers differ."""
    if not isinstance(group_size, Mapping) or "q_weight" in group_size:
        return group_size
    prefix = f"{layer}."
    return {name.removeprefix(prefix): size for name, size in group_size.items() if name.startswith(prefix)}


def step_ops(
    spec: ModelSpec,
    fusion: str,
    batch: int,
    kv_len: int,
    dtype: torch.dtype,
    int4_group_size: GroupSize | None = None,
    int4_zeros: bool = False,
    int4_perm: bool = False,
) -> list[OpBytes]:
    """Every op of a whole step (`pykernels.DecodeModel.labels`) with its bytes, in order; of 4-bit layers as layer_ops
    and layer_group_size say. The tables are of `dtype`."""
    e, hidden, vocab = dtype.itemsize, spec.hidden, spec.vocab
    sizes = [layer_group_size(int4_group_size, index) for index in range(spec.n_layers)]
    layers = [op for size in sizes for op in layer_ops(spec, fusion, batch, kv_len, dtype, size, int4_zeros, int4_perm)]
    return [
        OpBytes("embedding", "embedding", f"{batch} of {vocab}x{hidden}", embedding(batch, hidden, e)),
        *layers,
        OpBytes("rmsnorm", "final_norm", f"{batch}x{hidden}", rmsnorm(batch, hidden, e)),
        OpBytes("gemv", "lm_head", f"{batch}x{hidden} -> {vocab}", gemv(batch, hidden, vocab, e)),
        OpBytes("argmax", "argmax", f"{batch}x{vocab}", argmax(batch, vocab, e)),
    ]


def microseconds(n_bytes: float, gbs: float) -> float:
    """The time of that many bytes at gbs * 10^9 bytes a second."""
    return n_bytes / (gbs * 1e3)


def gigabytes_per_second(n_bytes: float, time_us: Time) -> Time:
    """10^9 bytes a second."""
    return n_bytes / (time_us * 1e3)


def projection_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of the seven projections of a layer, by the weight's name."""
    of = {label: sizes(spec) for label, sizes in LINEAR_SHAPES.items()}
    shapes = [of["q"], of["kv"], of["kv"], of["o"], of["gate/up"], of["gate/up"], of["down"]]
    return dict(zip(PROJECTIONS, shapes, strict=True))


LINEAR_SHAPES: dict[str, Callable[[ModelSpec], tuple[int, int]]] = {
    "q": lambda s: (s.hidden, s.n_heads * s.head_dim),
    "kv": lambda s: (s.hidden, s.n_kv_heads * s.head_dim),
    "o": lambda s: (s.n_heads * s.head_dim, s.hidden),
    "gate/up": lambda s: (s.hidden, s.intermediate),
    "down": lambda s: (s.intermediate, s.hidden),
    "lm_head": lambda s: (s.hidden, s.vocab),
}
"""The linear shapes of a model as (in_features, out_features)."""
