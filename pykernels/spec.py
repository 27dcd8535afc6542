"""What a decoder is: its sizes, and the features in which families differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pykernels import rope
from pykernels.rope import RopeScaling


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and features of a decoder of RMSNorm, GQA with RoPE, and a gated MLP. The defaults are Llama's.

    Each feature has one home in the reference, the ops and the floors; a family is a choice of them
    (:mod:`pykernels.config`).
    """

    name: str
    hidden: int
    intermediate: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    rms_eps: float
    qkv_bias: bool
    """A bias on the three input projections of attention, on no other."""
    tied_embeddings: bool
    max_position: int
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    """RoPE rotates that many dimensions of a head, the first ones; None: all. Loading moves the rows of q and k, so
    that in memory dimension d pairs with d + head_dim / 2 whatever is rotated."""
    local_rope_theta: float | None = None
    """theta of `local_layers`, whose RoPE is not scaled (Gemma 3)."""
    local_layers: tuple[int, ...] = ()
    nope_layers: tuple[int, ...] = ()
    """Layers whose q and k are not rotated (SmolLM3)."""
    window: int | None = None
    """Some layer attends to that many slots at most, fewer than max_position. The attention here sees every slot: no
    context may be longer."""
    qk_norm: str = ""
    """RMSNorm of q and k before RoPE: "head", each head by itself (Qwen3, Gemma 3); "all", over all heads of a sequence
    (OLMo 2); "": none."""
    norm_offset: float = 0.0
    """Added to the weight of every norm (Gemma: 1)."""
    gelu: bool = False
    """The MLP's activation is the tanh form of GELU, not SiLU."""
    pre_norms: bool = True
    """A norm before attention and before the MLP."""
    post_norms: bool = False
    """A norm of what attention and the MLP give, before it is added to the residual stream (OLMo 2, Gemma 2 and 3)."""
    embedding_scale: float = 1.0
    """Of the embeddings (Gemma: sqrt(hidden); Granite)."""
    attention_scale: float | None = None
    """Of the scores; None: 1 / sqrt(head_dim)."""
    residual_scale: float = 1.0
    """Of what attention and the MLP add to the residual stream (Granite)."""
    logit_scale: float = 1.0
    attention_softcap: float = 0.0
    """Scores are softcap * tanh(score / softcap) (Gemma 2); 0: as they are."""
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        if self.qk_norm not in ("", "head", "all"):
            raise ValueError(f"qk_norm must be '', 'head' or 'all', got {self.qk_norm!r}")
        if self.post_norms and self.residual_scale != 1.0:
            raise ValueError(f"residual_scale must be 1 where there are post_norms, got {self.residual_scale}")

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def max_ctx(self) -> int:
        """The longest context that is computed as the model does: max_position, or the narrowest sliding window."""
        return self.max_position if self.window is None else min(self.window, self.max_position)

    def ctx_words(self) -> str:
        """The model, and its window where that is what limits the context, for a message."""
        if self.max_ctx == self.max_position:
            return self.name
        return f"{self.name}, whose sliding window is {self.window} slots: the attention here sees every slot"

    @property
    def score_scale(self) -> float:
        """What the scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def embedding_scale_in(self, dtype: torch.dtype) -> float:
        """`embedding_scale` rounded to the dtype, as Gemma's code does; Granite's are integers, which stay."""
        return float(torch.tensor(self.embedding_scale, dtype=dtype))

    @property
    def qk_norm_sizes(self) -> tuple[int, int]:
        """Elements of the weights of a QK norm of q and of k; 0 where there is none."""
        if self.qk_norm == "all":
            return self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return (self.head_dim, self.head_dim) if self.qk_norm else (0, 0)

    @property
    def layer_weight_elements(self) -> int:
        """Elements of one decoder layer: projections, their biases, norms."""
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = self.hidden * (q_rows + 2 * kv_rows) + q_rows * self.hidden
        bias = q_rows + 2 * kv_rows if self.qkv_bias else 0
        norms = 2 * (self.pre_norms + self.post_norms) * self.hidden + sum(self.qk_norm_sizes)
        return attention + bias + 3 * self.hidden * self.intermediate + norms

    @property
    def weight_elements(self) -> int:
        """Elements of the whole model: layers, embedding table, final norm, and lm_head where it is not tied."""
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return self.n_layers * self.layer_weight_elements + tables + self.hidden

    def weight_bytes(self, dtype: torch.dtype = torch.bfloat16) -> int:
        """The study's W: bytes of all weights, the embedding table included."""
        return self.weight_elements * dtype.itemsize

    def layer_kv_bytes(self, ctx: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of K and V of one layer over `ctx` slots."""
        return 2 * self.n_kv_heads * self.head_dim * ctx * batch * dtype.itemsize

    def kv_bytes(self, ctx: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
        """The study's K: 2 * layers * KV heads * head_dim * ctx * bytes an element (its section 3.4)."""
        return self.n_layers * self.layer_kv_bytes(ctx, batch, dtype)

    def rope_of(self, layer: int) -> str:
        """Which RoPE the layer has: "global", "local" (of local_rope_theta) or "none". Layers of one kind share a
        table of angles."""
        if layer in self.nope_layers:
            return "none"
        return "local" if layer in self.local_layers else "global"

    @property
    def rotary_order(self) -> list[int] | None:
        """The dimensions of a head of the checkpoint in the order of memory; None where that is the same.

        The first half of what is rotated comes first in the first half of the head, its partners first in the second
        half; what is not rotated fills both up.
        """
        rotated = self.rotary_dim
        if rotated is None or rotated == self.head_dim:
            return None
        half, middle = rotated // 2, (rotated + self.head_dim) // 2
        low, high = [*range(half), *range(rotated, middle)], [*range(half, rotated), *range(middle, self.head_dim)]
        return low + high


def rope_frequencies(spec: ModelSpec, length: int = 1, layer: int = 0) -> Tensor:
    """Angle per position of each pair of dimensions of a layer, for a table of `length` positions: float64
    [head_dim / 2]. Pairs that are not rotated have 0."""
    kind, rotated = spec.rope_of(layer), spec.rotary_dim or spec.head_dim
    found = torch.zeros(spec.head_dim // 2, dtype=torch.float64)
    if kind == "local" and spec.local_rope_theta is not None:
        found[: rotated // 2] = rope.frequencies(spec.local_rope_theta, rotated)
    elif kind != "none":
        found[: rotated // 2] = rope.frequencies(spec.rope_theta, rotated, spec.rope_scaling, length)
    return found


def cos_sin_table(spec: ModelSpec, max_position: int, device: torch.device | str = "cpu", layer: int = 0) -> Tensor:
    """Cosines, then sines, of every position's angles in a layer: float32 [max_position, head_dim], computed in
    float64. Where the scaling says so (YaRN, LongRoPE) those of rotated pairs are times its attention factor."""
    cosines_sines = rope.table(rope_frequencies(spec, max_position, layer), max_position)
    if spec.rope_of(layer) == "global":
        rotated, half = (spec.rotary_dim or spec.head_dim) // 2, spec.head_dim // 2
        factor = getattr(spec.rope_scaling, "attention_factor", 1.0)
        cosines_sines[:, :rotated] *= factor
        cosines_sines[:, half : half + rotated] *= factor
    return cosines_sines.to(device=device, dtype=torch.float32)
