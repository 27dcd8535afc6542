"""A model's spec from its Hugging Face config.json.

What it says means what it means to transformers, defaults included: a family is a row of what it decides, and of what
config.json may leave unsaid. A key that is not known is refused, unless it is off: it might change what the model
computes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pykernels.checkpoint import read_config
from pykernels.files import user_path
from pykernels.rope import LinearRopeScaling, Llama3RopeScaling, LongRopeScaling, RopeScaling, YarnRopeScaling
from pykernels.spec import ModelSpec


@dataclass(frozen=True)
class _Family:
    """What a model type decides that config.json may leave unsaid, as transformers decides it.

    qkv_bias: whether q, k and v carry a bias; n_kv_heads: None for as many as query heads; max_position, eps, tied,
    head_dim (None: hidden / heads), theta: where config.json has none; biases: the switches of further biases that its
    layers have.
    """

    qkv_bias: bool = False
    n_kv_heads: int | None = None
    max_position: int = 32768
    biases: tuple[str, ...] = ()
    window: int | None = 0
    """Of its attention where `sliding_window` is not there at all; None: none then; 0: it never has one."""
    switched_window: bool = False
    """`use_sliding_window` switches the window on."""
    max_window_layers: int = 0
    """The window is of layers from `max_window_layers` on, this one where config.json has none; 0: of any."""
    eps: float = 1e-6
    tied: bool = False
    head_dim: int | None = None
    theta: float = 1e4
    qk_norm: str = ""
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    activation: str = "hidden_act"
    """The field of the activation."""
    gelu: bool = False
    """Its activation is gelu_tanh; else silu."""
    partial_rotary: bool = False
    """It may rotate a part of a head alone."""
    keys: frozenset[str] = frozenset()
    """Keys of config.json that it alone has."""


_QWEN = dict(n_kv_heads=32, window=4096, switched_window=True, max_window_layers=28)
_GEMMA = dict(norm_offset=1.0, gelu=True, tied=True, head_dim=256, biases=("attention_bias",))
_GEMMA_KEYS = frozenset(("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"))

_FAMILIES: dict[str, _Family] = {
    "qwen2": _Family(True, **_QWEN),  # type: ignore[arg-type]
    "qwen3": _Family(biases=("attention_bias",), head_dim=128, qk_norm="head", **_QWEN),  # type: ignore[arg-type]
    "mistral": _Family(n_kv_heads=8, max_position=131072, window=4096),
    "ministral": _Family(n_kv_heads=8, max_position=131072, window=4096),
    "llama": _Family(max_position=2048, biases=("attention_bias", "mlp_bias")),
    "phi3": _Family(max_position=4096, window=None, eps=1e-5, partial_rotary=True),
    "gemma": _Family(n_kv_heads=16, max_position=8192, keys=frozenset(("hidden_activation",)), **_GEMMA),  # type: ignore[arg-type]
    "gemma2": _Family(
        n_kv_heads=4, max_position=8192, window=4096, post_norms=True, activation="hidden_activation",
        keys=_GEMMA_KEYS, **_GEMMA,  # type: ignore[arg-type]
    ),
    "gemma3_text": _Family(
        n_kv_heads=4, max_position=131072, window=4096, post_norms=True, activation="hidden_activation", theta=1e6,
        qk_norm="head", **_GEMMA,  # type: ignore[arg-type]
        keys=_GEMMA_KEYS | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    ),
    "granite": _Family(
        max_position=2048, biases=("attention_bias", "mlp_bias"),
        keys=frozenset(("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")),
    ),
    "olmo2": _Family(
        max_position=2048, biases=("attention_bias",), eps=1e-5, qk_norm="all", pre_norms=False, post_norms=True
    ),
    "smollm3": _Family(
        n_kv_heads=4, biases=("attention_bias", "mlp_bias"), window=None, switched_window=True, tied=True, theta=2e6,
        keys=frozenset(("no_rope_layers", "no_rope_layer_interval")),
    ),
}  # fmt: skip

_TEXT_SIDES = {
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}  # fmt: skip
"""Model types whose text side is another family's, with RoPE in sections: on text all sections have one position."""

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
    "exponential_decay_length_penalty", "num_labels", "is_decoder", "tf_legacy_loss", "is_llama_config",
    "cache_implementation",
))  # fmt: skip
"""Keys that change nothing of what a decode step computes."""

_VISION_KEYS = frozenset((
    "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
    "vision_token_id", "num_image_tokens", "text_config", "use_bidirectional_attention",
))  # fmt: skip
"""Of the text side of a vision-language model, and of the whole where it is written flat: they change nothing of text.
Attention in both directions is of a prompt: a token that is decoded is the last one."""

_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
"""Every kind of RoPE with the keys that it reads, beside those that all have."""

_ROPE_COMMON = ("rope_theta", "rope_type", "type", "original_max_position_embeddings", "partial_rotary_factor",
                "max_position_embeddings")  # fmt: skip

_OTHER_KINDS = {
    "a mixture of experts": (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok",
    ),
    "multi-head latent attention": ("kv_lora_rank", "q_lora_rank"),
    "a state-space model": ("state_size", "mamba_d_state", "ssm_cfg", "mamba_n_heads", "conv_kernel"),
    "LayerNorm": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon"),
}  # fmt: skip
"""What is not computed here, and the fields that tell of it."""


class _Config:
    """A config.json whose complaints name the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path, self.fields, self.prefix = path, read_config(path), ""

    def fail(self, field: str, allowed: str, value: object) -> ValueError:
        return ValueError(f"config {self.path}: {self.prefix}{field} must be {allowed}, got {value!r}")

    def enter_text_side(self) -> None:
        """Go on with `text_config`, where there is one. What the whole says of tied tables is of it too."""
        outer = self.fields
        if "text_config" not in outer:
            return
        inner = outer["text_config"]
        if not isinstance(inner, dict):
            raise self.fail("text_config", "an object", inner)
        self.fields = dict(inner)
        for key in ("quantization_config", "compression_config", "_name_or_path"):
            if key in outer:
                self.fields.setdefault(key, outer[key])
        if outer.get("tie_word_embeddings") is True or (
            outer.get("tie_word_embeddings") is not None and inner.get("tie_word_embeddings") is None
        ):
            self.fields["tie_word_embeddings"] = outer["tie_word_embeddings"]
        self.prefix = "text_config."

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

    def numbers(self, source: dict[str, Any], field: str, count: int) -> tuple[float, ...]:
        """A list of `count` positive numbers."""
        values = source.get(field)
        if not isinstance(values, list) or len(values) != count:
            got = f"{len(values)} of them" if isinstance(values, list) else values
            raise self.fail(field, f"a list of {count} numbers, one a rotated pair", got)
        return tuple(self.number({field: value}, field) for value in values)

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.fields.get(field)
        if value not in (None, True, False):
            raise self.fail(field, "true or false", value)
        return default if value is None else bool(value)


def is_off(value: object) -> bool:
    """A key that nobody here knows is harmless where it is null, false or empty."""
    return value is None or value is False or value in ("", [], {})


@dataclass(frozen=True)
class _Rope:
    theta: float
    scaling: RopeScaling | None
    rotary_dim: int | None


def _rope_fields(config: _Config) -> tuple[str, dict[str, Any]]:
    """`rope_scaling` stands for `rope_parameters` where both are there, as in transformers."""
    for field in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.fields.get(field) or {}, dict):
            raise config.fail(field, "an object", config.fields[field])
    field = "rope_scaling" if config.fields.get("rope_scaling") else "rope_parameters"
    return field, config.fields.get(field) or {}


def _rope(
    config: _Config, field: str, rope: dict[str, Any], head_dim: int, max_position: int, theta: float, sections: bool
) -> _Rope:
    """What an object of RoPE's parameters, named `field`, says."""
    fields = config.fields
    kind = rope.get("rope_type", rope.get("type", "default"))
    if sections and kind == "mrope":
        kind = "default"
    if fields["model_type"] == "phi3" and kind in ("su", "yarn"):  # older names of longrope there
        kind = "longrope"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise config.fail(f"{field}.rope_type", f"absent or one of {', '.join(_ROPE_KEYS)}", kind)
    known = {*_ROPE_COMMON, *_ROPE_KEYS[kind], *(("mrope_section", "mrope_interleaved") if sections else ())}
    for key, value in rope.items():
        if key not in known and not is_off(value):
            raise config.fail(f"{field}.{key}", "left out: it is not known, and might change the angles", value)
    theta = config.number(rope if rope.get("rope_theta") is not None else fields, "rope_theta", theta)
    share = config.number(rope if rope.get("partial_rotary_factor") is not None else fields, "partial_rotary_factor", 1)
    rotated = int(head_dim * share)
    if share != 1 and not _FAMILIES[_TEXT_SIDES.get(fields["model_type"], fields["model_type"])].partial_rotary:
        raise config.fail("partial_rotary_factor", "absent or 1", share)
    if share > 1 or rotated % 2 or rotated < 2:
        raise config.fail("partial_rotary_factor", f"a share of head_dim ({head_dim}) that is an even number", share)
    scaling = None
    if kind == "dynamic":  # scaled only beyond max_position_embeddings, where no context goes here
        config.number(rope, "factor")
    elif kind != "default":
        scaling = _scaling(config, kind, rope, rotated, max_position)
    return _Rope(theta, scaling, None if rotated == head_dim else rotated)


def _scaling(config: _Config, kind: str, rope: dict[str, Any], rotated: int, max_position: int) -> RopeScaling:
    """Of any kind but `default` and `dynamic`."""
    if kind == "linear":
        return LinearRopeScaling(config.number(rope, "factor"))
    outside = config.fields.get("original_max_position_embeddings") is not None
    original = config.size("original_max_position_embeddings", max_position, config.fields if outside else rope)
    if kind == "llama3":
        low, high = config.number(rope, "low_freq_factor"), config.number(rope, "high_freq_factor")
        if high <= low:
            raise config.fail("high_freq_factor", f"above low_freq_factor ({low:g})", high)
        return Llama3RopeScaling(config.number(rope, "factor"), low, high, original)
    factor = config.number(rope, "factor", max_position / original if kind == "longrope" else None)
    if kind == "longrope":
        by_length = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
        short, long = (config.numbers(rope, f"{which}_factor", rotated // 2) for which in ("short", "long"))
        return LongRopeScaling(short, long, original, config.number(rope, "attention_factor", by_length))
    fast, slow = (config.number(rope, key, default) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    ours, all_dims = rope.get("mscale"), rope.get("mscale_all_dim")
    by_factor = magnitude(1.0)
    if ours and all_dims:
        by_factor = magnitude(config.number(rope, "mscale")) / magnitude(config.number(rope, "mscale_all_dim"))
    truncate = rope.get("truncate")
    if truncate not in (None, True, False):
        raise config.fail("truncate", "true or false", truncate)
    attention_factor = config.number(rope, "attention_factor", by_factor)
    return YarnRopeScaling(factor, fast, slow, original, attention_factor, truncate is not False)


def _window(config: _Config, family: _Family, n_layers: int) -> int | None:
    """How many slots some layer sees at most; None where all see all."""
    fields = config.fields
    window = fields.get("sliding_window")
    if not is_off(window) and type(window) is not int:  # also where it has no effect
        raise config.fail("sliding_window", "a number of slots or null", window)
    if family.window == 0:
        return None
    types = fields.get("layer_types")
    if isinstance(types, list) and "sliding_attention" not in types:
        return None
    if family.switched_window:
        if not config.flag("use_sliding_window"):
            return None
        first = family.max_window_layers
        if types is None and first and config.size("max_window_layers", first) >= n_layers:
            return None
    if fields.get("sliding_window", family.window) is None:
        return None
    return config.size("sliding_window", family.window)


def _local_layers(config: _Config, n_layers: int) -> tuple[int, ...]:
    """Of gemma3_text: the layers with a sliding window, which have a RoPE of their own."""
    types = config.fields.get("layer_types")
    if types is None:
        pattern = config.size("sliding_window_pattern", 6)
        return tuple(layer for layer in range(n_layers) if (layer + 1) % pattern)
    if not isinstance(types, list) or len(types) != n_layers:
        raise config.fail("layer_types", f"a list of {n_layers} names", types)
    return tuple(layer for layer, kind in enumerate(types) if kind == "sliding_attention")


def _nope_layers(config: _Config, n_layers: int) -> tuple[int, ...]:
    """Of smollm3: `no_rope_layers` has a 1 for each layer that is rotated."""
    rotated = config.fields.get("no_rope_layers")
    if rotated is None:
        interval = config.size("no_rope_layer_interval", 4)
        return tuple(layer for layer in range(n_layers) if (layer + 1) % interval == 0)
    if not isinstance(rotated, list) or len(rotated) != n_layers or any(value not in (0, 1) for value in rotated):
        raise config.fail("no_rope_layers", f"a list of {n_layers} of 0 and 1", rotated)
    return tuple(layer for layer, value in enumerate(rotated) if not value)


def _unknown_type(config: _Config, model_type: object) -> ValueError:
    """Names the field that tells what the model is, where one does."""
    for kind, keys in _OTHER_KINDS.items():
        for key in keys:
            if not is_off(config.fields.get(key)):
                return config.fail(key, f"left out: {kind} is not computed here", config.fields[key])
    return config.fail("model_type", "one of " + ", ".join([*_FAMILIES, *_TEXT_SIDES]), model_type)


def _activation(config: _Config, family: _Family) -> None:
    """Raises ValueError unless the activation is the family's."""
    allowed: tuple[str, ...] = ("gelu_pytorch_tanh",) if family.gelu else ("silu",)
    if config.fields["model_type"] == "gemma":
        allowed += ("gelu",)  # older checkpoints say so and mean the tanh form
    value = config.fields.get(family.activation)
    if value is not None and value not in allowed:
        raise config.fail(family.activation, repr(allowed[0]), value)


def _features(config: _Config, model_type: str, n_layers: int, hidden: int) -> dict[str, Any]:
    """The fields of a spec that are of a family's own keys."""
    fields = config.fields
    found: dict[str, Any] = {}
    if model_type.startswith("gemma"):
        found["embedding_scale"] = math.sqrt(hidden)
    if model_type in ("gemma2", "gemma3_text"):
        found["attention_scale"] = config.number(fields, "query_pre_attn_scalar", 256.0) ** -0.5
        for key, name, default in (
            ("attn_logit_softcapping", "attention_softcap", 50.0), ("final_logit_softcapping", "logit_softcap", 30.0)
        ):  # fmt: skip
            unsaid = default if model_type == "gemma2" and key not in fields else None
            if fields.get(key) is not None or unsaid:
                found[name] = config.number(fields, key, unsaid)
    if model_type == "granite":
        found["embedding_scale"] = config.number(fields, "embedding_multiplier", 1.0)
        found["attention_scale"] = config.number(fields, "attention_multiplier", 1.0)
        found["residual_scale"] = config.number(fields, "residual_multiplier", 1.0)
        found["logit_scale"] = 1.0 / config.number(fields, "logits_scaling", 1.0)
    if model_type == "smollm3":
        found["nope_layers"] = _nope_layers(config, n_layers)
    return found


def _ropes(
    config: _Config, family: _Family, model_type: str, head_dim: int, max_position: int, n_layers: int, sections: bool
) -> dict[str, Any]:
    """rope_theta, rope_scaling and rotary_dim; of gemma3_text those of its local layers too."""
    field, rope = _rope_fields(config)
    local: dict[str, Any] = {}
    if model_type == "gemma3_text":
        inner = {name: rope.get(name) or {} for name in ("full_attention", "sliding_attention")}
        for name, value in inner.items():
            if not isinstance(value, dict):
                raise config.fail(f"{field}.{name}", "an object", value)
        theta = config.number(config.fields, "rope_local_base_freq", 1e4)
        own = inner["sliding_attention"]
        own_field = f"{field}.sliding_attention"
        found = _rope(config, own_field, {"rope_theta": theta} | own, head_dim, max_position, theta, False)
        if found.scaling or found.rotary_dim:
            raise config.fail(own_field, "of rope_type default", own)
        local = dict(local_rope_theta=found.theta, local_layers=_local_layers(config, n_layers))
        if any(name in rope for name in inner):
            field, rope = f"{field}.full_attention", inner["full_attention"]
    found = _rope(config, field, rope, head_dim, max_position, family.theta, sections)
    return dict(rope_theta=found.theta, rope_scaling=found.scaling, rotary_dim=found.rotary_dim) | local


def from_config(path: str | Path) -> ModelSpec:
    """The spec of a Hugging Face config.json (its file, or the folder it lies in): of the families of docs/models.md,
    or of the text side of a vision-language model, in its `text_config`.

    RoPE's numbers are read from where transformers 4 puts them (`rope_theta`, `rope_scaling`) and where transformers 5
    does (`rope_parameters`).

    Raises ValueError, one line naming the file, the field, what is allowed and what it got.
    """
    path = user_path(path)
    if path.is_dir():
        path = path / "config.json"
    config = _Config(path)
    whole_type = config.fields.get("model_type")
    config.enter_text_side()
    fields = config.fields
    model_type: Any = fields.get("model_type")
    sections = isinstance(model_type, str) and model_type in _TEXT_SIDES
    model_type = _TEXT_SIDES[model_type] if sections else model_type
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise _unknown_type(config, model_type)
    family = _FAMILIES[model_type]
    _activation(config, family)
    for field in family.biases:
        if fields.get(field):
            raise config.fail(field, "absent or false (only q, k and v may carry a bias)", fields[field])
    if model_type == "gemma3_text" and fields.get("use_bidirectional_attention"):
        raise config.fail("use_bidirectional_attention", "absent or false", True)
    hidden, n_heads = config.size("hidden_size"), config.size("num_attention_heads")
    absent = family.n_kv_heads if "num_key_value_heads" not in fields else None
    n_kv_heads = config.size("num_key_value_heads", absent or n_heads)
    if n_heads % n_kv_heads:
        raise config.fail("num_attention_heads", f"a multiple of num_key_value_heads ({n_kv_heads})", n_heads)
    unsaid = family.head_dim if "head_dim" not in fields else None
    if unsaid is None and fields.get("head_dim") is None and hidden % n_heads:
        raise config.fail("hidden_size", f"a multiple of num_attention_heads ({n_heads})", hidden)
    head_dim = config.size("head_dim", unsaid or hidden // n_heads)
    if head_dim % 8 or head_dim > 256:
        raise config.fail("head_dim", "a multiple of 8 up to 256", head_dim)
    max_position = config.size("max_position_embeddings", family.max_position)
    n_layers = config.size("num_hidden_layers")
    window = _window(config, family, n_layers)
    eps = config.number(fields, "rms_norm_eps", family.eps)
    if eps >= 1:
        raise config.fail("rms_norm_eps", "below 1", eps)
    ropes = _ropes(config, family, model_type, head_dim, max_position, n_layers, sections)
    known = _READ | _INERT | family.keys | _VISION_KEYS | {family.activation}
    other = {key: kind for kind, keys in _OTHER_KINDS.items() for key in keys}
    for key, value in fields.items():
        if key not in known and not is_off(value):
            reason = f"{other[key]} is not computed here" if key in other else (
                "it is not known, and might change what the model computes"
            )  # fmt: skip
            raise config.fail(key, f"left out: {reason}", value)
    return ModelSpec(
        name=str(fields.get("_name_or_path") or path.resolve().parent.name or whole_type),
        hidden=hidden,
        intermediate=config.size("intermediate_size"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab=config.size("vocab_size"),
        rms_eps=eps,
        qkv_bias=family.qkv_bias,
        tied_embeddings=config.flag("tie_word_embeddings", family.tied),
        max_position=max_position,
        window=window if window is not None and window < max_position else None,
        qk_norm=family.qk_norm,
        norm_offset=family.norm_offset,
        gelu=family.gelu,
        pre_norms=family.pre_norms,
        post_norms=family.post_norms,
        **ropes,
        **_features(config, model_type, n_layers, hidden),
    )
