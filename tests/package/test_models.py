"""Model specifications: the study's sizes, RoPE against transformers, config.json and its error messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import pykernels as pk
from pykernels import models

CONFIG_CLASSES = {"qwen2.5-7b": Qwen2Config, "mistral-7b-v0.3": MistralConfig, "llama-3.1-8b": LlamaConfig}
STUDY = list(CONFIG_CLASSES)
CLASS_OF = {"qwen2": Qwen2Config, "mistral": MistralConfig, "llama": LlamaConfig}

# The smallest config.json that is accepted; every error below is one change to it.
MINIMAL = dict(
    model_type="llama", hidden_size=256, intermediate_size=448, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, vocab_size=64, max_position_embeddings=512,
)  # fmt: skip
MISTRAL, QWEN2 = dict(model_type="mistral"), dict(model_type="qwen2")
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


def transformers_config(spec: models.ModelSpec, **changes) -> PreTrainedConfig:
    """The config that transformers would load for a built-in model."""
    rope = dict(rope_type="default", rope_theta=spec.rope_theta)
    if scaling := spec.rope_scaling:
        rope |= dict(
            rope_type="llama3", factor=scaling.factor, low_freq_factor=scaling.low_freq_factor,
            high_freq_factor=scaling.high_freq_factor,
            original_max_position_embeddings=scaling.original_max_position,
        )  # fmt: skip
    config_class = CONFIG_CLASSES[spec.name]
    window = {} if config_class is LlamaConfig else {"sliding_window": None}
    arguments = dict(
        hidden_size=spec.hidden, intermediate_size=spec.intermediate, num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads, num_key_value_heads=spec.n_kv_heads, vocab_size=spec.vocab,
        max_position_embeddings=spec.max_position, rms_norm_eps=spec.rms_eps, tie_word_embeddings=False,
        rope_parameters=rope, **window,
    )  # fmt: skip
    return config_class(**(arguments | changes))


def write_config(folder: Path, **changes) -> Path:
    """MINIMAL with changes (None leaves a field out) as a config.json."""
    fields = {name: value for name, value in (MINIMAL | changes).items() if value is not None}
    path = folder / "config.json"
    path.write_text(json.dumps(fields))
    return path


def complaint(path: Path) -> str:
    """The one line with which from_config refuses `path`; it names the file."""
    with pytest.raises(ValueError) as raised:
        models.from_config(path)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


@pytest.mark.parametrize(("name", "gigabytes"), list(zip(STUDY, (15.23, 14.50, 16.06), strict=True)))
def test_weight_totals_are_the_studys(name, gigabytes):
    assert round(models.get(name).weight_bytes() / 1e9, 2) == gigabytes


@pytest.mark.parametrize(("name", "per_token"), list(zip(STUDY, (57_344, 131_072, 131_072), strict=True)))
def test_kv_bytes_a_token_are_the_studys(name, per_token):
    spec = models.get(name)
    assert spec.kv_bytes(1) == per_token
    assert spec.kv_bytes(100, batch=3, dtype=torch.float32) == 600 * per_token
    assert spec.n_layers * spec.layer_kv_bytes(7) == 7 * per_token


def test_tying_the_embeddings_saves_one_table():
    spec = models.get("tiny")
    tied = replace(spec, tied_embeddings=True)
    assert spec.weight_bytes() - tied.weight_bytes() == 1024 * 512 * 2
    assert spec.weight_bytes(torch.float32) == 2 * spec.weight_bytes()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="^model must be one of qwen2.5-7b, .*, tiny, got 'gpt-2'$"):
        models.get("gpt-2")


@pytest.mark.parametrize("name", ["mistral-7b-v0.3", "llama-3.1-8b"])
def test_rope_equals_transformers(name):
    spec = models.get(name)
    table = models.cos_sin_table(spec, spec.max_position // 4)
    assert table.dtype == torch.float32 and table.shape == (spec.max_position // 4, spec.head_dim)
    rotary = LlamaRotaryEmbedding(transformers_config(spec))
    torch.testing.assert_close(models.rope_frequencies(spec), rotary.inv_freq.double(), rtol=1e-6, atol=0)
    for position in (0, 1, 2, 63, 1000, spec.max_position // 4 - 1):
        cosines, sines = rotary(torch.empty(1), torch.tensor([[position]]))
        expected = torch.cat((cosines[0, 0, : spec.head_dim // 2], sines[0, 0, : spec.head_dim // 2]))
        # transformers takes the angles in float32, whose error grows with them.
        torch.testing.assert_close(table[position], expected, rtol=0, atol=1e-6 + position * 2.0**-22)


def test_llama3_scaling_keeps_slows_and_blends():
    spec = models.get("llama-3.1-8b")
    ratio = models.rope_frequencies(spec) / models.rope_frequencies(replace(spec, rope_scaling=None))
    assert ratio[0] == 1.0 and ratio[-1] == 1 / 8
    assert ((ratio > 0.13) & (ratio < 0.99)).sum() >= 3


@pytest.mark.parametrize("name", STUDY)
def test_reads_what_transformers_writes(name, tmp_path):
    spec = models.get(name)
    transformers_config(spec).save_pretrained(tmp_path)
    expected = replace(spec, name=tmp_path.name)
    assert models.from_config(tmp_path) == expected
    assert models.from_config(str(tmp_path / "config.json")) == expected


@pytest.mark.parametrize("name", STUDY)
def test_reads_tied_embeddings(name, tmp_path):
    transformers_config(models.get(name), tie_word_embeddings=True).save_pretrained(tmp_path)
    assert models.from_config(tmp_path).tied_embeddings


def test_reads_a_head_dim_that_is_not_hidden_over_heads(tmp_path):
    transformers_config(models.get("llama-3.1-8b"), head_dim=64).save_pretrained(tmp_path)
    assert models.from_config(tmp_path).head_dim == 64


def test_a_missing_head_dim_is_hidden_over_heads(tmp_path):
    assert models.from_config(write_config(tmp_path)).head_dim == 32


@pytest.mark.parametrize(
    "rope",
    [
        pytest.param({"rope_theta": 5e5, "rope_scaling": LLAMA3}, id="transformers 4"),
        pytest.param({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, id="transformers 5"),
    ],
)
def test_rope_is_read_from_both_places(rope, tmp_path):
    spec = models.from_config(write_config(tmp_path, **rope))
    assert spec.rope_theta == 5e5
    assert spec.rope_scaling == models.Llama3RopeScaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    "window",
    [
        QWEN2 | dict(sliding_window=512),
        QWEN2 | dict(sliding_window=16, use_sliding_window=False),
        QWEN2 | dict(sliding_window=16),  # off where nothing switches it on
        QWEN2 | dict(sliding_window=16, use_sliding_window=True),  # from layer 28 on, of 2
        QWEN2 | dict(sliding_window=16, use_sliding_window=True, layer_types=["full_attention"] * 2),
        MISTRAL,  # 4096 slots, and 512 positions
        MISTRAL | dict(sliding_window=512),
        dict(sliding_window=16),  # llama has none whatever is there
    ],
    ids=str,
)
def test_a_window_that_hides_nothing_is_accepted(window, tmp_path):
    assert models.from_config(write_config(tmp_path, **window)).max_position == 512


def test_a_window_that_is_null(tmp_path):
    path = write_config(tmp_path, **MISTRAL, max_position_embeddings=8192)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    assert models.from_config(path).max_position == 8192


@pytest.mark.parametrize(
    "window",
    [
        MISTRAL | dict(sliding_window=16),
        QWEN2 | dict(sliding_window=16, use_sliding_window=True, max_window_layers=1),
        QWEN2 | dict(use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention"] * 2),
    ],
    ids=str,
)
def test_no_context_may_be_longer_than_a_window(window, tmp_path):
    spec = models.from_config(write_config(tmp_path, **window))
    assert (spec.window, spec.max_ctx, spec.max_position) == (16, 16, 512)
    words = (
        r"ctx must be in 1\.\.16 \(.*, whose sliding window is 16 slots: the attention here sees every slot\), got 17"
    )
    with pytest.raises(ValueError, match=words):
        pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 17)


@pytest.mark.parametrize("value", ["x", 7.5, True, [16]])
@pytest.mark.parametrize("model", [QWEN2, MISTRAL], ids=["without effect", "with effect"])
def test_a_window_that_is_no_number(value, model, tmp_path):
    with pytest.raises(ValueError, match=r"sliding_window must be a number of slots or null, got "):
        models.from_config(write_config(tmp_path, **model, sliding_window=value))


def test_the_window_of_a_config_without_one(tmp_path):
    assert models.from_config(write_config(tmp_path, **MISTRAL, max_position_embeddings=8192)).max_ctx == 4096


# As the model cards say.
PUBLISHED = {
    "qwen3-8b": 8.19, "qwen3-4b": 4.02, "qwen3-0.6b": 0.596, "llama-3.2-1b": 1.24, "llama-3.2-3b": 3.21,
    "openvla-7b": 6.74, "pi0-gemma-2b": 2.51, "smolvla": 0.362, "gemma-3-4b": 3.88, "phi-4-mini": 3.84,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert float(f"{models.get(name).weight_elements / 1e9:.3g}") == PUBLISHED[name]


def test_every_built_in_model_is_checked():
    assert {*PUBLISHED, *STUDY, "tiny"} == set(models.names())
    assert {name for group in models.GROUPS.values() for name in group} <= set(models.names())


@pytest.mark.parametrize("scaled", ["rope_scaling", "rope_parameters"])
def test_of_two_places_of_rope_the_one_that_transformers_takes(scaled, tmp_path):
    plain = {"rope_scaling": "rope_parameters", "rope_parameters": "rope_scaling"}[scaled]
    rope = {scaled: {**LLAMA3, "rope_theta": 5e5}, plain: {"rope_type": "default", "rope_theta": 5e5}}
    spec = models.from_config(write_config(tmp_path, **rope))
    rotary = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path))
    torch.testing.assert_close(models.rope_frequencies(spec), rotary.inv_freq.double(), rtol=1e-6, atol=0)
    assert (spec.rope_scaling is None) == (scaled == "rope_parameters")


@pytest.mark.parametrize("original", [dict(), dict(original_max_position_embeddings=128)])
def test_an_original_length_that_stands_outside_or_nowhere(original, tmp_path):
    rope = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    spec = models.from_config(write_config(tmp_path, rope_scaling=rope, **original))
    rotary = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(tmp_path))
    torch.testing.assert_close(models.rope_frequencies(spec), rotary.inv_freq.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("model_type", CLASS_OF)
def test_what_is_left_unsaid_is_what_transformers_takes(model_type, tmp_path):
    sizes = dict(num_attention_heads=32, max_position_embeddings=None, num_key_value_heads=None)
    path = write_config(tmp_path, model_type=model_type, **sizes)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    spec, theirs = models.from_config(path), CLASS_OF[model_type].from_pretrained(tmp_path)
    assert spec.n_kv_heads == theirs.num_key_value_heads and spec.max_position == theirs.max_position_embeddings
    assert spec.rms_eps == theirs.rms_norm_eps and spec.tied_embeddings == theirs.tie_word_embeddings
    assert spec.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_null_key_value_heads_are_as_many_as_query_heads(model_type, tmp_path):
    path = write_config(tmp_path, model_type=model_type)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": None}))
    assert (
        models.from_config(path).n_kv_heads == 8 == CLASS_OF[model_type].from_pretrained(tmp_path).num_key_value_heads
    )


@pytest.mark.parametrize("family", [QWEN2, MISTRAL])
def test_switches_of_biases_that_a_family_does_not_have(family, tmp_path):
    fields = family | dict(attention_bias=True, mlp_bias=True)
    spec = models.from_config(write_config(tmp_path, **fields))
    assert spec == models.from_config(write_config(tmp_path, **family))


def test_keys_that_change_nothing_and_unknown_ones_that_are_off(tmp_path):
    inert = dict(use_cache=True, torch_dtype="bfloat16", attention_dropout=0.1, pretraining_tp=2, eos_token_id=[1, 2])
    off = dict(use_qk_norm=False, pruned_heads={}, some_list=[], some_name="")
    assert models.from_config(write_config(tmp_path, **inert, **off)) == models.from_config(write_config(tmp_path))


@pytest.mark.parametrize("suffix", ["config.json", "elsewhere/config.json"])
def test_a_missing_file(suffix, tmp_path):
    assert "there is no such file" in complaint(tmp_path / suffix)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match=f"^config {tmp_path / 'config.json'}: there is no such file$"):
        models.from_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"hidden_size": 1,\n', "is not JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1, 2]", "must be a JSON object, got list"),
        (b"null", "must be a JSON object, got NoneType"),
        (b"[" * 100_000, "config"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "config"),
    ],
    ids=["empty", "broken", "not utf-8", "a list", "null", "nested too deep", "a number too long"],
)
def test_files_that_are_no_config(content, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert words in complaint(path)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (dict(model_type="gpt2"), "model_type", "one of qwen2, qwen3, mistral"),
        (dict(model_type=None), "model_type", "got None"),
        (dict(model_type=["llama"]), "model_type", "got ['llama']"),
        (dict(hidden_act="gelu"), "hidden_act", "'silu', got 'gelu'"),
        (dict(attention_bias=True), "attention_bias", "absent or false"),
        (dict(mlp_bias=True), "mlp_bias", "absent or false"),
        (dict(num_key_value_heads=3), "num_attention_heads", "a multiple of num_key_value_heads (3), got 8"),
        (dict(num_attention_heads=6), "hidden_size", "a multiple of num_attention_heads (6), got 256"),
        (dict(head_dim=12), "head_dim", "a multiple of 8 up to 256, got 12"),
        (dict(head_dim=264), "head_dim", "a multiple of 8 up to 256, got 264"),
        (MISTRAL | dict(sliding_window="16"), "sliding_window", "got '16'"),
        (dict(residual_multiplier=0.5), "residual_multiplier", "left out: it is not known"),
        (dict(pruned_heads={"0": [1]}), "pruned_heads", "left out: it is not known"),
        (dict(rope_scaling={**LLAMA3, "mrope_section": [1, 2]}), "rope_scaling.mrope_section", "left out"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor", "absent or 1, got 0.5"),
        (
            dict(rope_parameters={"rope_type": "default"}, rope_scaling={"rope_type": "ntk", "factor": 4.0}),
            "rope_scaling.rope_type", "one of default, linear, dynamic, llama3, yarn, longrope, got 'ntk'",
        ),
        (dict(tie_word_embeddings="false"), "tie_word_embeddings", "got 'false'"),
        (dict(rms_norm_eps=2), "rms_norm_eps", "below 1, got 2.0"),
        (dict(rms_norm_eps=0), "rms_norm_eps", "a positive number, got 0"),
        (dict(rms_norm_eps="1e-6"), "rms_norm_eps", "a positive number, got '1e-6'"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps", "a positive number, got nan"),
        (dict(rms_norm_eps=10**400), "rms_norm_eps", "a positive number, got 1000"),
        (dict(rope_theta=-1.0), "rope_theta", "a positive number, got -1.0"),
        (dict(rope_parameters=5), "rope_parameters", "an object, got 5"),
        (dict(rope_parameters={"rope_theta": True}), "rope_theta", "a positive number, got True"),
        (dict(rope_scaling={"rope_type": "yarn"}), "factor", "a positive number, got None"),
        (dict(rope_scaling={"type": "linear"}), "factor", "a positive number, got None"),
        (dict(rope_scaling={"rope_type": "dynamic"}), "factor", "a positive number, got None"),
        (dict(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta_fast": 32}), "beta_fast", "left out"),
        (dict(rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0]}), "long_factor",
         "a list of 16 numbers, one a rotated pair, got '1 of them'"),
        (dict(text_config=5), "text_config", "an object, got 5"),
        (dict(text_config=dict(MINIMAL, mlp_bias=True)), "text_config.mlp_bias", "absent or false"),
        (dict(model_type="qwen3_moe", num_experts=128), "num_experts", "a mixture of experts is not computed here"),
        (dict(num_local_experts=8), "num_local_experts", "a mixture of experts is not computed here, got 8"),
        (dict(model_type="deepseek_v3", kv_lora_rank=512), "kv_lora_rank", "latent attention is not computed here"),
        (dict(model_type="mamba2", state_size=128), "state_size", "a state-space model is not computed here"),
        (dict(model_type="phi", layer_norm_eps=1e-5), "layer_norm_eps", "LayerNorm is not computed here"),
        (dict(model_type="gemma2", hidden_activation="gelu"), "hidden_activation", "'gelu_pytorch_tanh', got 'gelu'"),
        (dict(model_type="smollm3", no_rope_layers=[1]), "no_rope_layers", "a list of 2 of 0 and 1, got [1]"),
        (dict(model_type="gemma3_text", layer_types=["full_attention"]), "layer_types", "a list of 2 names"),
        (dict(model_type="gemma3_text", use_bidirectional_attention=True), "bidirectional", "absent or false"),
        (dict(model_type="granite", attention_multiplier=0), "attention_multiplier", "a positive number, got 0"),
        (dict(model_type="phi3", partial_rotary_factor=1.5), "partial_rotary_factor", "got 1.5"),
        (dict(rope_scaling={"rope_type": "llama3"}), "factor", "a positive number, got None"),
        (dict(rope_scaling={**LLAMA3, "high_freq_factor": 1.0}), "high_freq_factor", "got 1.0"),
        (
            dict(rope_scaling={**LLAMA3, "original_max_position_embeddings": 0.5}),
            "original_max_position_embeddings", "got 0.5",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_fields_that_cannot_be(changes, field, words, tmp_path):
    message = complaint(write_config(tmp_path, **changes))
    assert field in message and words in message


@pytest.mark.parametrize("value", [None, 0, -8, 2.0, "8", True, [8]], ids=repr)
@pytest.mark.parametrize("field", [name for name in MINIMAL if name not in (
    "model_type", "max_position_embeddings", "num_key_value_heads")])  # fmt: skip
def test_sizes_are_positive_integers(field, value, tmp_path):
    message = complaint(write_config(tmp_path, **{field: value}))
    assert message.endswith(f"{field} must be a positive integer, got {value!r}")
