"""Every CUDA kernel as a case for the SIMT executor: an op's arguments, and which of them an earlier launch may write.

A case is small and takes one path of its op's launcher. Weights, norm weights, biases, tables and kv_len are constants
of a step: kernels may read them before `griddepcontrol.wait`, so no case names them as operands.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import pykernels as pk
from inputs.helpers import randn
from inputs.int4_weights import int4
from inputs.simt import Device
from inputs.simt_gqa_decode import inputs as gqa_inputs
from inputs.simt_int4 import on_device

EPS = 1e-6
MAX_LEN, MAX_POSITION = 12, 16
POSITIONS = [11, 0, 5, 3, 3, 10, 1, 7]


@dataclass(frozen=True)
class Case:
    """One launch. `outputs` are what the buffers that it writes hold before it; `operands` are the arguments, inputs or
    outputs, that a launch right before it may write."""

    op: str
    inputs: dict[str, Tensor | pk.Int4Weight | None]
    outputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    sizes: dict
    operands: tuple[str, ...]
    depth: int = 1
    shared_bytes: int = 227 * 1024
    workspace_bytes: int = 0
    """Zeroed, of ops other than gqa_decode; all of it must be zero again after the launch."""

    @property
    def dtype(self) -> torch.dtype:
        return self.sizes["dtype"]

    def fields(self, dev: Device) -> dict:
        """The launch's fields, every tensor on the device."""
        perms: dict = {}
        fields = dict(self.sizes)
        for name, value in (self.inputs | self.outputs).items():
            fields[name] = (
                on_device(dev, value, shared=perms) if isinstance(value, pk.Int4Weight) else padded(dev, value)
            )
        if self.op == "gqa_decode":
            workspace = dev.gqa_decode_workspace(**fields)
            fields |= dict(workspace=workspace, workspace_bytes=workspace.numel())
        if self.workspace_bytes:
            fields["workspace"] = dev.empty(self.workspace_bytes, dtype=torch.uint8).zero_()
        return fields


def padded(dev: Device, tensor: Tensor | None) -> Tensor | None:
    """A copy on the device in whole 64 bytes, as ceiling_copy takes them."""
    if tensor is None:
        return None
    count = -(-tensor.nbytes // 64) * 64 // tensor.dtype.itemsize
    return dev.empty(count, dtype=tensor.dtype)[: tensor.numel()].view(tensor.shape).copy_(tensor)


def nan(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output before it is written."""
    return torch.full(shape, float("nan"), dtype=dtype)


def rmsnorm(rows: int, hidden: int, dtype: torch.dtype, residual: bool = False, norm_offset: float = 0.0) -> Case:
    """x [rows, hidden]."""
    x, weight = randn(rows, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    added = randn(rows, hidden, dtype=dtype, seed=2) if residual else None
    return Case(
        "rmsnorm", dict(x=x, weight=weight, residual=added), dict(out=nan(rows, hidden, dtype=dtype)),
        dict(out=pk.reference.rmsnorm(x, weight, EPS, added, norm_offset)),
        dict(batch=rows, hidden=hidden, eps=EPS, norm_offset=norm_offset, dtype=dtype),
        ("x", "residual") if residual else ("x",),
    )  # fmt: skip


def add(count: int, dtype: torch.dtype, scale: float = 1.0) -> Case:
    """Two vectors of `count`."""
    a, b = randn(count, dtype=dtype), randn(count, dtype=dtype, seed=1)
    return Case(
        "add", dict(a=a, b=b), dict(out=nan(count, dtype=dtype)), dict(out=pk.reference.add(a, b, scale)),
        dict(count=count, scale=scale, dtype=dtype), ("a", "b"),
    )  # fmt: skip


def silu_mul(batch: int, features: int, dtype: torch.dtype, gelu: bool = False) -> Case:
    """gate and up [batch, features]."""
    gate, up = randn(batch, features, dtype=dtype), randn(batch, features, dtype=dtype, seed=1)
    return Case(
        "silu_mul", dict(gate=gate, up=up), dict(out=nan(batch, features, dtype=dtype)),
        dict(out=pk.reference.silu_mul(gate, up, gelu)),
        dict(batch=batch, features=features, activation=int(gelu), dtype=dtype), ("gate", "up"),
    )  # fmt: skip


def embedding(batch: int, hidden: int, dtype: torch.dtype, scale: float = 1.0) -> Case:
    """A table of 11 rows."""
    table, token = randn(11, hidden, dtype=dtype), torch.tensor([10, 0, 3, 3, 7, 1, 9, 5][:batch])
    return Case(
        "embedding", dict(token=token, table=table), dict(out=nan(batch, hidden, dtype=dtype)),
        dict(out=pk.reference.embedding(token, table, scale)),
        dict(batch=batch, hidden=hidden, vocab=11, scale=scale, dtype=dtype), ("token",),
    )  # fmt: skip


def argmax(batch: int, vocab: int, dtype: torch.dtype) -> Case:
    """logits [batch, vocab], and the step onward."""
    logits = randn(batch, vocab, dtype=dtype)
    position = torch.tensor(POSITIONS[:batch], dtype=torch.int32)
    after = torch.clamp(position + 1, max=MAX_LEN - 1)
    return Case(
        "argmax", dict(logits=logits),
        dict(token=torch.full((batch,), -1), position=position, kv_len=position + 1),
        dict(token=pk.reference.argmax(logits), position=after, kv_len=after + 1),
        dict(batch=batch, vocab=vocab, max_len=MAX_LEN, dtype=dtype), ("logits", "position", "kv_len"),
    )  # fmt: skip


def appended(cache_rows: tuple[Tensor, ...], position: Tensor) -> dict[str, Tensor]:
    """Caches of zeros after their rows were appended."""
    caches = {}
    for name, rows in zip(("k_cache", "v_cache"), cache_rows, strict=True):
        batch, heads, dim = rows.shape
        caches[name] = torch.zeros(batch, heads, MAX_LEN, dim, dtype=rows.dtype)
        caches[name][torch.arange(batch), :, position.long()] = rows
    return caches


def empty(caches: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """They before it."""
    return {name: torch.zeros_like(cache, dtype=dtype) for name, cache in caches.items()}


def rope_kv_append(batch: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> Case:
    """One token a sequence, appended at POSITIONS."""
    q = randn(batch, heads, head_dim, dtype=dtype)
    k, v = (randn(batch, kv_heads, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    cos_sin = randn(MAX_POSITION, head_dim, seed=9)
    position = torch.tensor(POSITIONS[:batch], dtype=torch.int32)
    rotated, *rows = pk.reference.rope_kv_append(q, k, v, cos_sin, position)
    caches = appended(tuple(rows), position)
    return Case(
        "rope_kv_append", dict(q=q, k=k, v=v, cos_sin=cos_sin, position=position),
        dict(q_out=nan(*q.shape, dtype=dtype)) | empty(caches, dtype),
        dict(q_out=rotated) | caches,
        dict(batch=batch, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, max_len=MAX_LEN,
             max_position=MAX_POSITION, dtype=dtype),
        ("q", "k", "v", "position"),
    )  # fmt: skip


def gqa_decode(lengths: list[int], max_len: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> Case:
    """A sequence a length, in a cache of max_len slots."""
    q, k, v, kv_len = gqa_inputs(lengths, max_len, heads, kv_heads, head_dim, dtype)
    return Case(
        "gqa_decode", dict(q=q, k_cache=k, v_cache=v, kv_len=kv_len), dict(out=nan(*q.shape, dtype=dtype)),
        dict(out=pk.reference.gqa_decode(q, k, v, kv_len)),
        dict(batch=len(lengths), n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, max_len=max_len,
             scale=head_dim**-0.5, dtype=dtype),
        ("q",),
    )  # fmt: skip


def gemv(
    batch: int,
    n_in: int,
    n_out: int,
    dtype: torch.dtype,
    group_size: int = 0,
    scale: float = 1.0,
    softcap: float = 0.0,
    **kind,
) -> Case:
    """gemv, or int4_gemv where a group size is given."""
    x, bias = randn(batch, n_in, dtype=dtype), randn(n_out, dtype=dtype, seed=2)
    residual = randn(batch, n_out, dtype=dtype, seed=3)
    op = "int4_gemv" if group_size else "gemv"
    weight = (
        int4(n_out, n_in, group_size, dtype=dtype, **kind)
        if group_size
        else randn(n_out, n_in, dtype=dtype, seed=1, scale=n_in**-0.5)
    )
    return Case(
        op, dict(x=x, weight=weight, bias=bias, residual=residual), dict(out=nan(batch, n_out, dtype=dtype)),
        dict(out=getattr(pk.reference, op)(x, weight, bias, residual, scale, softcap)),
        dict(batch=batch, in_features=n_in, out_features=n_out, scale=scale, softcap=softcap, dtype=dtype),
        ("x", "residual"),
    )  # fmt: skip


def swiglu(
    batch: int,
    n_in: int,
    n_out: int,
    dtype: torch.dtype,
    group_size: int = 0,
    norm: bool = True,
    norm_offset: float = 0.0,
    gelu: bool = False,
    **kind,
) -> Case:
    """swiglu_gemv, or int4_swiglu_gemv where a group size is given."""
    x, norm_weight = randn(batch, n_in, dtype=dtype), randn(n_in, dtype=dtype, seed=1) if norm else None
    sizes = dict(
        batch=batch, in_features=n_in, out_features=n_out, eps=EPS, norm_offset=norm_offset, activation=int(gelu),
        dtype=dtype,
    )  # fmt: skip
    if group_size:
        op, names = "int4_swiglu_gemv", ("gate", "up")
        gate, up = (int4(n_out, n_in, group_size, dtype=dtype, seed=seed, **kind) for seed in (1, 2))
        up.perm = gate.perm
    else:
        op, names = "swiglu_gemv", ("gate_weight", "up_weight")
        gate, up = (randn(n_out, n_in, dtype=dtype, seed=seed, scale=n_in**-0.5) for seed in (2, 3))
    expected = getattr(pk.reference, op)(x, gate, up, norm_weight, EPS, norm_offset, gelu)
    return Case(
        op, dict(x=x, norm_weight=norm_weight) | dict(zip(names, (gate, up), strict=True)),
        dict(out=nan(batch, n_out, dtype=dtype)), dict(out=expected), sizes, ("x",), depth=2,
    )  # fmt: skip


def qkv(
    batch: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    group_size: int = 0,
    qk_norm: str = "",
    norm_offset: float = 0.0,
    **kind,
) -> Case:
    """qkv_gemv, or int4_qkv_gemv where a group size is given. qk_norm: of each "head", or of "all" of them."""
    x, norm_weight = randn(batch, hidden, dtype=dtype), randn(hidden, dtype=dtype, seed=1)
    rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    biases = [randn(n, dtype=dtype, seed=5 + i) for i, n in enumerate(rows)]
    if group_size:
        op, names = "int4_qkv_gemv", "qkv"
        weights = [int4(n, hidden, group_size, dtype=dtype, seed=2 + i, **kind) for i, n in enumerate(rows)]
        weights[1].perm = weights[2].perm = weights[0].perm
    else:
        op, names = "qkv_gemv", ("q_weight", "k_weight", "v_weight")
        weights = [randn(n, hidden, dtype=dtype, seed=2 + i, scale=hidden**-0.5) for i, n in enumerate(rows)]
    cos_sin, position = randn(MAX_POSITION, head_dim, seed=9), torch.tensor(POSITIONS[:batch], dtype=torch.int32)
    norms = {}
    if qk_norm:
        sizes = rows[:2] if qk_norm == "all" else [head_dim] * 2
        norms = {
            f"{part}_norm": randn(size, dtype=dtype, seed=20 + size) for part, size in zip("qk", sizes, strict=True)
        }
    q, *new_rows = getattr(pk.reference, op)(
        x, norm_weight, EPS, *weights, cos_sin, position, head_dim, *biases, norm_offset, **norms
    )
    workspace = pk.ops.qkv_gemv_workspace(x, (heads, kv_heads, head_dim)).numel() if qk_norm else 0
    caches = appended(tuple(new_rows), position)
    return Case(
        op,
        dict(x=x, norm_weight=norm_weight, cos_sin=cos_sin, position=position)
        | norms
        | dict(zip(names, weights, strict=True))
        | dict(zip(("q_bias", "k_bias", "v_bias"), biases, strict=True)),
        dict(q_out=nan(batch, heads, head_dim, dtype=dtype)) | empty(caches, dtype),
        dict(q_out=q) | caches,
        dict(batch=batch, hidden=hidden, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, max_len=MAX_LEN,
             max_position=MAX_POSITION, eps=EPS, norm_offset=norm_offset, norms_all_heads=int(qk_norm == "all"),
             dtype=dtype),
        ("x", "position"), depth=2, workspace_bytes=workspace,
    )  # fmt: skip


BF16, FP16 = torch.bfloat16, torch.float16
# A line for each kernel that a launcher can choose, and for each plan that reads its operands elsewhere.
CASES = {
    "rmsnorm": lambda: rmsnorm(3, 520, BF16),
    "rmsnorm of a row longer than registers hold": lambda: rmsnorm(2, 8208, FP16),
    "rmsnorm of any width": lambda: rmsnorm(3, 33, FP16),
    "rmsnorm of heads, with an offset": lambda: rmsnorm(12, 64, BF16, norm_offset=1.0),
    "rmsnorm onto a residual": lambda: rmsnorm(2, 520, BF16, residual=True),
    "rmsnorm of any width onto a residual": lambda: rmsnorm(2, 33, BF16, residual=True, norm_offset=1.0),
    "add": lambda: add(2056, BF16),
    "add, scaled": lambda: add(2056, FP16, scale=0.3),
    "add of any count": lambda: add(259, FP16),
    "silu_mul": lambda: silu_mul(3, 264, FP16),
    "silu_mul of GELU": lambda: silu_mul(2, 264, BF16, gelu=True),
    "silu_mul of any width": lambda: silu_mul(3, 33, BF16),
    "embedding": lambda: embedding(3, 520, BF16),
    "embedding, scaled": lambda: embedding(3, 72, BF16, scale=6.5),
    "embedding of any width": lambda: embedding(3, 33, FP16),
    "argmax in a cluster": lambda: argmax(2, 9000, BF16),
    "argmax of any vocabulary": lambda: argmax(3, 1001, FP16),
    "rope_kv_append": lambda: rope_kv_append(3, 7, 1, 64, BF16),
    "gqa_decode in a cluster": lambda: gqa_decode([150], 300, 7, 1, 64, BF16),
    "gqa_decode in a cluster, bulk copies": lambda: gqa_decode([150], 304, 7, 1, 128, FP16),
    "gqa_decode of a short cache": lambda: gqa_decode([33, 64], 64, 8, 2, 64, BF16),
    "gqa_decode, splits without a cluster": lambda: gqa_decode([700], 4100, 8, 2, 64, FP16),
    "gqa_decode of head_dim 96": lambda: gqa_decode([150], 300, 7, 1, 96, BF16),
    "gqa_decode of head_dim 256": lambda: gqa_decode([150], 300, 4, 1, 256, FP16),
    "gqa_decode on CUDA cores": lambda: gqa_decode([290], 300, 1, 1, 128, BF16),
    "gqa_decode of a long cache": lambda: gqa_decode([333], 16400, 8, 2, 64, BF16),
    "gqa_decode of a long cache in a cluster": lambda: gqa_decode([333], 2064, 4, 1, 128, BF16),
    "gemv of one": lambda: gemv(1, 1032, 37, BF16),
    "gemv, scaled and capped": lambda: gemv(1, 520, 37, BF16, scale=0.4, softcap=1.5),
    "gemv of three": lambda: gemv(3, 520, 37, FP16),
    "gemv of eight and long rows": lambda: gemv(8, 4104, 9, FP16),
    "gemv, x not in shared memory": lambda: gemv(1, 33000, 9, FP16),
    "gemv of any width": lambda: gemv(2, 50, 9, BF16),
    "swiglu_gemv of one": lambda: swiglu(1, 1032, 18, BF16),
    "swiglu_gemv without a norm": lambda: swiglu(2, 520, 18, FP16, norm=False),
    "swiglu_gemv of two and long rows": lambda: swiglu(2, 4104, 9, BF16),
    "swiglu_gemv of any width": lambda: swiglu(2, 50, 9, BF16),
    "swiglu_gemv of one, GEGLU": lambda: swiglu(1, 520, 18, BF16, norm_offset=1.0, gelu=True),
    "swiglu_gemv of two, GEGLU": lambda: swiglu(2, 520, 18, FP16, norm_offset=1.0, gelu=True),
    "swiglu_gemv of any width, GEGLU": lambda: swiglu(1, 50, 9, BF16, norm_offset=1.0, gelu=True),
    "qkv_gemv of one": lambda: qkv(1, 1032, 4, 2, 64, BF16),
    "qkv_gemv of three": lambda: qkv(3, 520, 2, 1, 64, FP16),
    "qkv_gemv of any width": lambda: qkv(2, 50, 2, 1, 64, BF16),
    "qkv_gemv of one, QK norm": lambda: qkv(1, 520, 4, 2, 64, BF16, qk_norm="head"),
    "qkv_gemv of three, QK norm with an offset": lambda: qkv(3, 520, 2, 1, 64, FP16, qk_norm="head", norm_offset=1.0),
    "qkv_gemv of any width, QK norm": lambda: qkv(2, 50, 2, 1, 64, BF16, qk_norm="head"),
    "qkv_gemv of one, QK norm of all heads": lambda: qkv(1, 520, 6, 2, 64, BF16, qk_norm="all", norm_offset=1.0),
    "qkv_gemv of eight, QK norm of more heads than warps": lambda: qkv(8, 136, 8, 1, 64, BF16, qk_norm="head"),
    "qkv_gemv of any width, QK norm of all of many heads": lambda: qkv(2, 10, 9, 1, 256, FP16, qk_norm="all"),
    "qkv_gemv of two, QK norm of long heads": lambda: qkv(2, 136, 2, 1, 256, BF16, qk_norm="head"),
    "int4_gemv, fast path of one": lambda: gemv(1, 1280, 37, BF16, 128),
    "int4_gemv, fast path of four": lambda: gemv(4, 512, 37, FP16, 256, symmetric=False),
    "int4_gemv, fast path of long rows": lambda: gemv(1, 12288, 9, BF16, 128),
    "int4_gemv, general path": lambda: gemv(2, 544, 37, BF16, 32, symmetric=False),
    "int4_gemv, general path of eight": lambda: gemv(8, 512, 37, FP16, 128),
    "int4_gemv, act-order": lambda: gemv(2, 256, 37, BF16, 64, act_order=True),
    "int4_swiglu_gemv, fast path": lambda: swiglu(1, 512, 37, BF16, 128),
    "int4_swiglu_gemv, GEGLU": lambda: swiglu(1, 512, 37, BF16, 128, norm_offset=1.0, gelu=True),
    "int4_swiglu_gemv, general path": lambda: swiglu(3, 544, 33, FP16, 32),
    "int4_swiglu_gemv, act-order": lambda: swiglu(2, 256, 18, BF16, 64, norm=False, act_order=True),
    "int4_qkv_gemv, fast path": lambda: qkv(1, 512, 4, 2, 64, BF16, 128),
    "int4_qkv_gemv, general path": lambda: qkv(3, 544, 2, 1, 64, FP16, 32),
    "int4_qkv_gemv, fast path, QK norm": lambda: qkv(1, 512, 4, 2, 64, BF16, 128, qk_norm="head", norm_offset=1.0),
    "int4_qkv_gemv, general path, QK norm": lambda: qkv(3, 544, 2, 1, 64, FP16, 32, qk_norm="head", norm_offset=1.0),
    "int4_qkv_gemv, act-order": lambda: qkv(2, 256, 2, 1, 64, BF16, 64, act_order=True),
}  # fmt: skip
