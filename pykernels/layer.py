"""One decoder layer on the native kernels: its weights, cache and buffers, and the sequence of its ops."""

import copy
import os
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from pykernels import dispatch, ops, runtime
from pykernels.calibrate import ScoreRows, score_rows
from pykernels.spec import ModelSpec, cos_sin_table
from pykernels.weights import LayerWeights, Projection

OP_LABELS = {
    # The sequence of the study's Appendix D, one kernel an op.
    "none": [
        ("rmsnorm", "input_norm"),
        ("gemv", "q"),
        ("gemv", "k"),
        ("gemv", "v"),
        ("rope_kv_append", "rope"),
        ("gqa_decode", "attention"),
        ("gemv", "o"),
        ("add", "attention_residual"),
        ("rmsnorm", "post_norm"),
        ("gemv", "gate"),
        ("gemv", "up"),
        ("silu_mul", "activation"),
        ("gemv", "down"),
        ("add", "mlp_residual"),
    ],
    "block": [
        ("qkv_gemv", "norm+qkv+rope"),
        ("gqa_decode", "attention"),
        ("gemv", "o+residual"),
        ("swiglu_gemv", "norm+gate+up"),
        ("gemv", "down+residual"),
    ],
}
"""For each fusion, the ops in order, as (op, what it does in the layer)."""


def op_labels(fusion: str, int4: bool = False, spec: ModelSpec | None = None) -> list[tuple[str, str]]:
    """The ops of a fusion, for a layer whose projections are of 4 bits where `int4` says so.

    None of the features of `spec` (None: Llama's) changes OP_LABELS but these: a QK norm is two ops at fusion "none";
    without norms before attention and the MLP they are missing; a norm behind them is an op, which adds the residual
    at fusion "block".
    """
    labels = []
    for op, label in OP_LABELS[fusion]:
        if spec is not None and label in ("input_norm", "post_norm") and not spec.pre_norms:
            continue
        behind = {"o": "attention_out_norm", "down": "mlp_out_norm"}.get(label.split("+")[0])
        if spec is not None and behind and spec.post_norms:
            fused = label.endswith("+residual")
            labels += [(op, label.removesuffix("+residual")), ("rmsnorm", f"{behind}+residual" if fused else behind)]
            continue
        labels.append((op, label))
        if spec is not None and label == "v" and spec.qk_norm:
            labels += [("rmsnorm", "q_norm"), ("rmsnorm", "k_norm")]
    return [(f"int4_{op}" if int4 and op.endswith("gemv") else op, label) for op, label in labels]


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken: free on a GPU, available (free or reclaimable) on the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Steps(ABC):
    """What takes a step by its `forward`, and so can have it recorded."""

    @abstractmethod
    def forward(self, fusion: str) -> Tensor:
        """One step through the public ops (mode `eager`)."""

    def program(self, fusion: str) -> runtime.Program:
        """The same step as a native program (modes `native` and `pybind`)."""
        with runtime.record() as program:
            self.forward(fusion)
        return program

    def tape(self, fusion: str) -> dispatch.Tape:
        """The same step as dispatcher calls (mode `dispatch`). Recording it runs a step."""
        return dispatch.Tape.record(lambda: self.forward(fusion))


class _QkNormBuffers:
    """Of a QK norm at fusion none: q and k as the rows that are normalised, [rows, elements] each, where that goes, and
    that as [batch, heads, head_dim]."""

    def __init__(self, spec: ModelSpec, q: Tensor, k: Tensor) -> None:
        normed = torch.empty_like(q), torch.empty_like(k)

        def rows(tensor: Tensor) -> Tensor:
            return tensor if spec.qk_norm == "all" else tensor.view(-1, spec.head_dim)

        self.rows, self.out = (rows(q), rows(k)), (rows(normed[0]), rows(normed[1]))
        self.heads = tuple(tensor.view(q.shape[0], -1, spec.head_dim) for tensor in normed)


class DecodeLayer(Steps):
    """One decoder layer that decodes one token a sequence.

    A step reads `x`, attends to the first `kv_len` slots of the cache (the last of them its own, which it
    writes), and leaves the layer's output in `out`. The position does not advance by itself: every step of a
    measurement does the same work. Nothing is allocated in a step.

    Attributes: `x`, `out` [batch, hidden]; `position`, `kv_len` int32 [batch]; `k_cache`, `v_cache`
    [batch, n_kv_heads, ctx, head_dim]; `cos_sin` float32 [ctx, head_dim]; `weights`, `spec`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: LayerWeights,
        ctx: int,
        batch: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        layer: int = 0,
        softmax: str = "online",
        phi: float = 0.0,
    ) -> None:
        """A layer whose cache has `ctx` slots, filled with random K and V of unit scale, as is `x`.

        It stands at position ctx - 1. `layer` is which of the model's it is: some have a RoPE of their own. `softmax`
        and `phi` are those of :func:`pykernels.ops.gqa_decode`.

        Raises ValueError where ctx is not in 1..max_ctx of the model, where the batch is not in 1..8, where the
        weights are another model's, and where the cache does not fit the memory that is there.
        """
        weights.check(spec)
        if not 1 <= ctx <= spec.max_ctx:
            raise ValueError(f"ctx must be in 1..{spec.max_ctx} ({spec.ctx_words()}), got {ctx}")
        if not 1 <= batch <= 8:
            raise ValueError(f"batch must be in 1..8, got {batch}")
        self.spec, self.weights, self.ctx, self.batch, self.dtype = spec, weights, ctx, batch, dtype
        self.device = torch.device(device)
        needed = spec.layer_kv_bytes(ctx, batch, dtype) + 4 * ctx * spec.head_dim
        available = available_bytes(self.device)
        if needed > available:
            raise ValueError(
                f"ctx must leave the cache within the memory available ({available / 2**30:.1f} GiB), "
                f"got {ctx}, which needs {needed / 2**30:.1f} GiB at batch {batch}"
            )
        generator = torch.Generator(device=self.device).manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device).normal_(generator=generator)

        def buffer(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        heads, kv_heads, dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        self.x, self.out = random(batch, spec.hidden), buffer(batch, spec.hidden)
        self.k_cache, self.v_cache = random(batch, kv_heads, ctx, dim), random(batch, kv_heads, ctx, dim)
        self.rope, self.cos_sin = spec.rope_of(layer), cos_sin_table(spec, ctx, self.device, layer)
        self.position = torch.empty(batch, dtype=torch.int32, device=self.device)
        self.kv_len = torch.empty(batch, dtype=torch.int32, device=self.device)
        self.set_position(ctx - 1)

        self._normed = buffer(batch, spec.hidden)
        self._q, self._k, self._v = (
            buffer(batch, heads * dim),
            buffer(batch, kv_heads * dim),
            buffer(batch, kv_heads * dim),
        )
        self._q_heads, self._k_heads, self._v_heads = (t.view(batch, -1, dim) for t in (self._q, self._k, self._v))
        self._q_rotated, self._attended = buffer(batch, heads, dim), buffer(batch, heads, dim)
        self._attended_flat = self._attended.view(batch, -1)
        self._qk_norm = _QkNormBuffers(spec, self._q, self._k) if spec.qk_norm else None
        self._projected, self._h = buffer(batch, spec.hidden), buffer(batch, spec.hidden)
        self._gate, self._up, self._activated = (buffer(batch, spec.intermediate) for _ in range(3))
        self.softmax, self.phi = softmax, phi
        self._attention_workspace = ops.gqa_decode_workspace(self._q_rotated, self.k_cache, softmax)
        self._bind()

    def _bind(self) -> None:
        """Choose the ops and the workspace that the weights ask for."""
        w, spec = self.weights, self.spec
        qk_norm = (spec.n_heads, spec.n_kv_heads, spec.head_dim) if spec.qk_norm else None
        if w.is_int4:
            # One for all GEMVs: they run one after another. Those of fusion none ask for no more than these.
            self._norm_workspace = max(
                ops.int4_qkv_gemv_workspace(self.x, w.q_weight, w.k_weight, w.v_weight, qk_norm),
                ops.int4_gemv_workspace(self._attended_flat, w.o_weight),
                ops.int4_swiglu_gemv_workspace(self._h, w.gate_weight, w.up_weight),
                ops.int4_gemv_workspace(self._activated, w.down_weight),
                key=len,
            )
            self._forward = {"none": self._forward_none, "block": self._forward_block_int4}
        else:
            self._norm_workspace = ops.qkv_gemv_workspace(self.x, qk_norm)
            self._forward = {"none": self._forward_none, "block": self._forward_block}

    def with_weights(self, weights: LayerWeights) -> "DecodeLayer":
        """The same layer over other weights of its model, dense ones for 4-bit ones say: cache, input and buffers are
        shared. Raises ValueError where the weights are another model's."""
        weights.check(self.spec)
        other = copy.copy(self)
        other.weights = weights
        other._bind()
        return other

    def with_softmax(self, softmax: str, phi: float = 0.0) -> "DecodeLayer":
        """The same layer with another softmax in its attention: all but the attention's workspace is shared."""
        other = copy.copy(self)
        other.softmax, other.phi = softmax, phi
        other._attention_workspace = ops.gqa_decode_workspace(other._q_rotated, other.k_cache, softmax)
        other._bind()
        return other

    def share_attention_workspace(self, before: "DecodeLayer") -> None:
        """Use the attention's workspace of a layer of the same softmax that runs before this one."""
        self._attention_workspace = before._attention_workspace

    def score_rows(self) -> ScoreRows:
        """What a phi must fit, of the attention that the last step made: :func:`pykernels.calibrate_phi` takes it."""
        spec = self.spec
        return score_rows(self._q_rotated, self.k_cache, self.kv_len, spec.score_scale, spec.attention_softcap)

    @property
    def attention_workspace(self) -> Tensor:
        """That of the attention; with softmax unified it begins with the count of fall-backs."""
        return self._attention_workspace

    @property
    def fallbacks(self) -> int:
        """How many (sequence, head) pairs softmax unified computed again online, over all steps since the last
        `reset_fallbacks()`, of all layers that share the workspace; 0 of online."""
        return ops.gqa_decode_fallbacks(self._attention_workspace) if self.softmax == "unified" else 0

    def reset_fallbacks(self) -> None:
        """Count fall-backs from 0 again."""
        if self.softmax == "unified":
            ops.reset_gqa_decode_fallbacks(self._attention_workspace)

    def set_position(self, position: int) -> None:
        """Stand at `position` (0 to ctx - 1): the next step writes that slot and attends up to it."""
        if not 0 <= position < self.ctx:
            raise ValueError(f"position must be in 0..{self.ctx - 1}, got {position}")
        self.position.fill_(position)
        self.kv_len.fill_(position + 1)

    def follow(self, before: "DecodeLayer") -> None:
        """Become the next layer of the same step: read what `before` writes, stand where it stands, and share its
        scratch buffers, and its angles where the RoPE is the same. Weights, cache and `out` stay its own, and the
        GEMVs' workspace where theirs is too small: 4-bit weights of other groups ask for another."""
        self.x = before.out
        for name in (
            "position", "kv_len", "_normed", "_q", "_k", "_v", "_q_heads", "_k_heads", "_v_heads", "_qk_norm",
            "_q_rotated", "_attended", "_attended_flat", "_projected", "_h", "_gate", "_up", "_activated",
            "_attention_workspace",
        ):  # fmt: skip
            setattr(self, name, getattr(before, name))
        if self.rope == before.rope:
            self.cos_sin = before.cos_sin
        self._norm_workspace = max(before._norm_workspace, self._norm_workspace, key=len)

    def forward(self, fusion: str) -> Tensor:
        """One step through the public ops (mode `eager`). Returns `out`."""
        if fusion not in self._forward:
            raise ValueError(f"fusion must be {' or '.join(self._forward)}, got {fusion}")
        return self._forward[fusion]()

    def _forward_none(self) -> Tensor:
        w, spec = self.weights, self.spec
        gemv = partial(ops.int4_gemv, workspace=self._norm_workspace) if w.is_int4 else ops.gemv
        normed = self._norm(self.x, w.input_norm)
        gemv(normed, w.q_weight, w.q_bias, out=self._q)
        gemv(normed, w.k_weight, w.k_bias, out=self._k)
        gemv(normed, w.v_weight, w.v_bias, out=self._v)
        q, k = self._q_heads, self._k_heads
        if self._qk_norm is not None and w.q_norm is not None and w.k_norm is not None:
            q, k = self._qk_norm.heads
            for rows, weight, out in zip(self._qk_norm.rows, (w.q_norm, w.k_norm), self._qk_norm.out, strict=True):
                ops.rmsnorm(rows, weight, spec.rms_eps, norm_offset=spec.norm_offset, out=out)
        ops.rope_kv_append(
            q, k, self._v_heads, self.cos_sin, self.position, self.k_cache, self.v_cache,
            out=self._q_rotated,
        )  # fmt: skip
        self._attend()
        gemv(self._attended_flat, w.o_weight, out=self._projected)
        ops.add(self.x, self._norm(self._projected, w.attention_out_norm), scale=spec.residual_scale, out=self._h)
        normed = self._norm(self._h, w.post_norm)
        gemv(normed, w.gate_weight, out=self._gate)
        gemv(normed, w.up_weight, out=self._up)
        ops.silu_mul(self._gate, self._up, gelu=spec.gelu, out=self._activated)
        gemv(self._activated, w.down_weight, out=self._projected)
        added = self._norm(self._projected, w.mlp_out_norm)
        return ops.add(self._h, added, scale=spec.residual_scale, out=self.out)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """x normalised; itself where the model has no norm there."""
        if weight is None:
            return x
        return ops.rmsnorm(x, weight, self.spec.rms_eps, norm_offset=self.spec.norm_offset, out=self._normed)

    def _attend(self) -> None:
        ops.gqa_decode(
            self._q_rotated, self.k_cache, self.v_cache, self.kv_len, self.spec.score_scale,
            softcap=self.spec.attention_softcap, softmax=self.softmax, phi=self.phi, out=self._attended,
            workspace=self._attention_workspace,
        )  # fmt: skip

    def _forward_block(self) -> Tensor:
        w, spec, workspace = self.weights, self.spec, self._norm_workspace
        ops.qkv_gemv(
            self.x, w.q_weight, w.k_weight, w.v_weight, self.cos_sin, self.position, self.k_cache, self.v_cache,
            w.q_bias, w.k_bias, w.v_bias, norm_weight=w.input_norm, eps=spec.rms_eps, norm_offset=spec.norm_offset,
            q_norm=w.q_norm, k_norm=w.k_norm, out=self._q_rotated, workspace=workspace,
        )  # fmt: skip
        self._attend()
        self._project(self._attended_flat, w.o_weight, w.attention_out_norm, self.x, self._h)
        ops.swiglu_gemv(
            self._h, w.gate_weight, w.up_weight, norm_weight=w.post_norm, eps=spec.rms_eps,
            norm_offset=spec.norm_offset, gelu=spec.gelu, out=self._activated, workspace=workspace,
        )  # fmt: skip
        return self._project(self._activated, w.down_weight, w.mlp_out_norm, self._h, self.out)

    def _forward_block_int4(self) -> Tensor:
        w, spec, workspace = self.weights, self.spec, self._norm_workspace
        ops.int4_qkv_gemv(
            self.x, w.q_weight, w.k_weight, w.v_weight, self.cos_sin, self.position, self.k_cache, self.v_cache,
            w.q_bias, w.k_bias, w.v_bias, norm_weight=w.input_norm, eps=spec.rms_eps, norm_offset=spec.norm_offset,
            q_norm=w.q_norm, k_norm=w.k_norm, out=self._q_rotated, workspace=workspace,
        )  # fmt: skip
        self._attend()
        self._project(self._attended_flat, w.o_weight, w.attention_out_norm, self.x, self._h)
        ops.int4_swiglu_gemv(
            self._h, w.gate_weight, w.up_weight, norm_weight=w.post_norm, eps=spec.rms_eps,
            norm_offset=spec.norm_offset, gelu=spec.gelu, out=self._activated, workspace=workspace,
        )  # fmt: skip
        return self._project(self._activated, w.down_weight, w.mlp_out_norm, self._h, self.out)

    def _project(self, x: Tensor, weight: Projection, norm: Tensor | None, residual: Tensor, out: Tensor) -> Tensor:
        """The residual stream with a projection of x added, which has a norm of its own in some models."""
        spec, into = self.spec, out if norm is None else self._projected
        added = residual if norm is None else None
        if self.weights.is_int4:
            workspace = self._norm_workspace
            ops.int4_gemv(x, weight, residual=added, scale=spec.residual_scale, out=into, workspace=workspace)
        else:
            ops.gemv(x, weight, residual=added, scale=spec.residual_scale, out=into)
        if norm is not None:
            ops.rmsnorm(into, norm, spec.rms_eps, residual, norm_offset=spec.norm_offset, out=out)
        return out

    def parts(self) -> dict[str, Tensor]:
        """What a step leaves behind beside `out`, by its name in :mod:`pykernels.reference`: `q` rotated, `attended`
        [batch, n_heads, head_dim], `h` [batch, hidden], `activated` [batch, intermediate]."""
        return {"q": self._q_rotated, "attended": self._attended, "h": self._h, "activated": self._activated}

    def poison(self) -> None:
        """Fill every buffer that a step writes with NaN: what is not written shows."""
        for tensor in (
            self.out, self._normed, self._q, self._k, self._v, self._q_rotated, self._attended, self._projected,
            self._h, self._gate, self._up, self._activated, *(self._qk_norm.out if self._qk_norm else ()),
        ):  # fmt: skip
            tensor.fill_(float("nan"))
        if self.device.type == "cpu":  # on CUDA the attention's workspace holds counters
            counter = 64 if self.softmax == "unified" else 0  # the count of fall-backs stays
            for workspace in (self._attention_workspace[counter:], self._norm_workspace):
                workspace.fill_(0xFF)  # all ones is a NaN in every float type
