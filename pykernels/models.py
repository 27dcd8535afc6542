"""Model specifications: the three of the study, `tiny`, and any GQA decoder's config.json."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pykernels.checkpoint import read_config


@dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's frequency scaling: long wavelengths are slowed by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a Llama-like decoder: RMSNorm, GQA with RoPE, SwiGLU.

    `qkv_bias` is a bias on the three input projections of attention, on no other.
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
    tied_embeddings: bool
    max_position: int
    rope_scaling: Llama3RopeScaling | None = None

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def layer_weight_elements(self) -> int:
        """Elements of one decoder layer: projections, their biases, two norms."""
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = self.hidden * (q_rows + 2 * kv_rows) + q_rows * self.hidden
        bias = q_rows + 2 * kv_rows if self.qkv_bias else 0
        return attention + bias + 3 * self.hidden * self.intermediate + 2 * self.hidden

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


_MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec("qwen2.5-7b", 3584, 18944, 28, 28, 4, 128, 152064, 1e6, 1e-6, True, False, 32768),
        ModelSpec("mistral-7b-v0.3", 4096, 14336, 32, 32, 8, 128, 32768, 1e6, 1e-5, False, False, 32768),
        ModelSpec(
            "llama-3.1-8b", 4096, 14336, 32, 32, 8, 128, 128256, 5e5, 1e-5, False, False, 131072,
            Llama3RopeScaling(8.0, 1.0, 4.0, 8192),
        ),
        # Small enough for a test, with what the others have: a group of 4, biases, untied tables.
        ModelSpec("tiny", 512, 1408, 4, 8, 2, 64, 1024, 1e6, 1e-6, True, False, 32768),
    )
}  # fmt: skip


def names() -> list[str]:
    """The built-in models."""
    return list(_MODELS)


def get(name: str) -> ModelSpec:
    """A built-in model. Raises ValueError, naming what there is, for another name."""
    if name not in _MODELS:
        raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {name!r}")
    return _MODELS[name]


class _Config:
    """A config.json whose complaints name the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path, self.fields = path, read_config(path)

    def fail(self, field: str, allowed: str, value: object) -> ValueError:
        return ValueError(f"config {self.path}: {field} must be {allowed}, got {value!r}")

    def size(self, field: str, default: int | None = None, source: dict[str, Any] | None = None) -> int:
        value = (self.fields if source is None else source).get(field)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise self.fail(field, "a positive integer", value)
        return value

    def number(self, source: dict[str, Any], field: str, default: float | None = None) -> float:
        value = source.get(field)
        value = default if value is None else value
        # Above float32's largest number an integer may be too large for a float at all.
        if value is None or type(value) not in (int, float) or not 0 < value < 3e38:
            raise self.fail(field, "a positive number", value)
        return float(value)

    def flag(self, field: str) -> bool:
        value = self.fields.get(field)
        if value not in (None, True, False):
            raise self.fail(field, "true or false", value)
        return bool(value)


@dataclass(frozen=True)
class _Family:
    """What a model type decides that config.json may leave unsaid, as transformers decides it.

    qkv_bias: whether q, k and v carry a bias; n_kv_heads: None for as many as query heads; biases: the switches of
    further biases that its layers have; window: of its attention where `sliding_window` is not there at all, 0 where it
    has none whatever is there.
    """

    qkv_bias: bool
    n_kv_heads: int | None
    max_position: int
    biases: tuple[str, ...]
    window: int
    switched_window: bool = False
    """`use_sliding_window` switches the window on, from layer `max_window_layers` on."""


_FAMILIES = {
    "qwen2": _Family(True, 32, 32768, (), 4096, switched_window=True),
    "mistral": _Family(False, 8, 131072, (), 4096),
    "llama": _Family(False, None, 2048, ("attention_bias", "mlp_bias"), 0),
}

_READ = frozenset((
    "model_type", "hidden_act", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings",
    "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "quantization_config", "compression_config",
))  # fmt: skip
"""The keys of config.json that are read, here or by pykernels.quant."""

_INERT = frozenset((
    # Where it comes from and who loads it.
    "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "tokenizer_class",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "unsloth_version", "unsloth_fixed", "finetuning_task", "task_specific_params", "problem_type", "id2label",
    "label2id", "prefix", "ignore_keys_at_rope_validation", "_commit_hash", "name_or_path", "model_name",
    # Of training, or the same arithmetic in another order.
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "pretraining_tp",
    "chunk_size_feed_forward", "gradient_checkpointing", "use_flash_attention_2", "_flash_attn_2_enabled",
    # Of what a forward returns, and of generation.
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "num_return_sequences", "max_new_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "remove_invalid_values",
    "exponential_decay_length_penalty", "num_labels", "is_decoder", "tf_legacy_loss",
))  # fmt: skip
"""Keys that change nothing of what a decode step computes."""

_ROPE_KEYS = frozenset((
    "rope_theta", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "partial_rotary_factor",
))  # fmt: skip


def is_off(value: object) -> bool:
    """A key that nobody here knows is harmless where it is null, false or empty."""
    return value is None or value is False or value in ("", [], {})


def _rope(config: _Config, max_position: int) -> tuple[float, Llama3RopeScaling | None]:
    """theta and scaling. `rope_scaling` stands for `rope_parameters` where both are there, as in transformers."""
    fields = config.fields
    for field in ("rope_scaling", "rope_parameters"):
        if not isinstance(fields.get(field) or {}, dict):
            raise config.fail(field, "an object", fields[field])
    field = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = fields.get(field) or {}
    for key, value in rope.items():
        if key not in _ROPE_KEYS and not is_off(value):
            raise config.fail(f"{field}.{key}", "left out: it is not known, and might change the angles", value)
    for source in (rope, fields):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise config.fail("partial_rotary_factor", "absent or 1", source["partial_rotary_factor"])
    theta = config.number(rope if rope.get("rope_theta") is not None else fields, "rope_theta", 10000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise config.fail(f"{field}.rope_type", "absent, 'default' or 'llama3'", kind)
    low, high = config.number(rope, "low_freq_factor"), config.number(rope, "high_freq_factor")
    if high <= low:
        raise config.fail("high_freq_factor", f"above low_freq_factor ({low:g})", high)
    outside = fields.get("original_max_position_embeddings") is not None
    original = config.size("original_max_position_embeddings", max_position, fields if outside else rope)
    return theta, Llama3RopeScaling(config.number(rope, "factor"), low, high, original)


def _window(config: _Config, family: _Family, n_layers: int) -> int | None:
    """How many slots some layer sees at most; None where all see all."""
    fields = config.fields
    if not family.window:
        return None
    if family.switched_window:
        types = fields.get("layer_types")
        if not config.flag("use_sliding_window"):
            return None
        if types is None and config.size("max_window_layers", 28) >= n_layers:
            return None
        if isinstance(types, list) and "sliding_attention" not in types:
            return None
    if "sliding_window" in fields and fields["sliding_window"] is None:
        return None
    return config.size("sliding_window", family.window)


def from_config(path: str | Path) -> ModelSpec:
    """The spec of a Hugging Face config.json of type qwen2, mistral or llama (its file, or the folder it lies in).

    What it says means what it means to transformers, defaults included. RoPE's numbers are read from where
    transformers 4 puts them (`rope_theta`, `rope_scaling`) and where transformers 5 does (`rope_parameters`). A sliding
    window narrower than the model's context is refused: the attention here sees every slot. So is every key that is not
    known, unless it is off: it might change what the model computes.

    Raises ValueError, one line naming the file, the field, what is allowed and what it got.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "config.json"
    config = _Config(path)
    fields = config.fields
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise config.fail("model_type", "one of " + ", ".join(_FAMILIES), model_type)
    family = _FAMILIES[model_type]
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise config.fail("hidden_act", "'silu'", activation)
    for field in family.biases:
        if fields.get(field):
            raise config.fail(field, "absent or false (only q, k and v may carry a bias)", fields[field])
    hidden, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
    absent = family.n_kv_heads if "num_key_value_heads" not in fields else None
    n_kv_heads = config.size("num_key_value_heads", absent or n_heads)
    if n_heads % n_kv_heads:
        raise config.fail("num_attention_heads", f"a multiple of num_key_value_heads ({n_kv_heads})", n_heads)
    if fields.get("head_dim") is None and hidden % n_heads:
        raise config.fail("hidden_size", f"a multiple of num_attention_heads ({n_heads})", hidden)
    head_dim = config.size("head_dim", hidden // n_heads)
    if head_dim % 8 or head_dim > 256:
        raise config.fail("head_dim", "a multiple of 8 up to 256", head_dim)
    max_position = config.size("max_position_embeddings", family.max_position)
    n_layers = config.size("num_hidden_layers")
    window = _window(config, family, n_layers)
    if window is not None and window < max_position:
        value = fields.get("sliding_window", f"nothing, which is {family.window} to {model_type}")
        raise config.fail("sliding_window", f"null or at least max_position_embeddings ({max_position})", value)
    eps = config.number(fields, "rms_norm_eps", 1e-6)
    if eps >= 1:
        raise config.fail("rms_norm_eps", "below 1", eps)
    theta, scaling = _rope(config, max_position)
    for key, value in fields.items():
        if key not in _READ and key not in _INERT and not is_off(value):
            raise config.fail(key, "left out: it is not known, and might change what the model computes", value)
    return ModelSpec(
        name=str(fields.get("_name_or_path") or path.resolve().parent.name or model_type),
        hidden=hidden,
        intermediate=config.size("intermediate_size"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab=config.size("vocab_size"),
        rope_theta=theta,
        rms_eps=eps,
        qkv_bias=family.qkv_bias,
        tied_embeddings=config.flag("tie_word_embeddings"),
        max_position=max_position,
        rope_scaling=scaling,
    )


def rope_frequencies(spec: ModelSpec) -> Tensor:
    """Angle per position of each pair of dimensions: float64 [head_dim / 2].

    theta^(-2i / head_dim) (Su et al., 2021); with Llama 3.1's scaling a frequency of wavelength above
    original / low is divided by the factor, one below original / high is kept, and between them the two are
    blended in proportion to original / wavelength.
    """
    pairs = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    frequencies = spec.rope_theta**-pairs
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    rotations = scaling.original_max_position * frequencies / (2 * math.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)


def cos_sin_table(spec: ModelSpec, max_position: int, device: torch.device | str = "cpu") -> Tensor:
    """Cosines, then sines, of every position's angles: float32 [max_position, head_dim], computed in float64."""
    angles = torch.outer(torch.arange(max_position, dtype=torch.float64), rope_frequencies(spec))
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(device=device, dtype=torch.float32)
