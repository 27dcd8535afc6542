"""Model specifications: the study's sizes, RoPE against transformers, config.json and its error messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pykernels import models

CONFIG_CLASSES = {"qwen2.5-7b": Qwen2Config, "mistral-7b-v0.3": MistralConfig, "llama-3.1-8b": LlamaConfig}
STUDY = list(CONFIG_CLASSES)

# The smallest config.json that is accepted; every error below is one change to it.
MINIMAL = dict(
    model_type="llama", hidden_size=256, intermediate_size=448, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, vocab_size=64, max_position_embeddings=512,
)  # fmt: skip
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
    "window", [dict(sliding_window=512), dict(sliding_window=16, use_sliding_window=False), dict(sliding_window=None)]
)
def test_a_window_that_hides_nothing_is_accepted(window, tmp_path):
    assert models.from_config(write_config(tmp_path, model_type="qwen2", **window)).max_position == 512


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
        (dict(model_type="gpt2"), "model_type", "one of qwen2, mistral, llama, got 'gpt2'"),
        (dict(model_type=None), "model_type", "got None"),
        (dict(model_type=["llama"]), "model_type", "got ['llama']"),
        (dict(hidden_act="gelu"), "hidden_act", "'silu', got 'gelu'"),
        (dict(attention_bias=True), "attention_bias", "absent or false"),
        (dict(mlp_bias=True), "mlp_bias", "absent or false"),
        (dict(num_key_value_heads=3), "num_attention_heads", "a multiple of num_key_value_heads (3), got 8"),
        (dict(num_attention_heads=6), "hidden_size", "a multiple of num_attention_heads (6), got 256"),
        (dict(head_dim=12), "head_dim", "a multiple of 8 up to 256, got 12"),
        (dict(head_dim=264), "head_dim", "a multiple of 8 up to 256, got 264"),
        (dict(sliding_window=16), "sliding_window", "at least max_position_embeddings (512), got 16"),
        (dict(sliding_window="16"), "sliding_window", "got '16'"),
        (dict(tie_word_embeddings="false"), "tie_word_embeddings", "got 'false'"),
        (dict(rms_norm_eps=0), "rms_norm_eps", "a positive number, got 0"),
        (dict(rms_norm_eps="1e-6"), "rms_norm_eps", "a positive number, got '1e-6'"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps", "a positive number, got nan"),
        (dict(rms_norm_eps=10**400), "rms_norm_eps", "a positive number, got 1000"),
        (dict(rope_theta=-1.0), "rope_theta", "a positive number, got -1.0"),
        (dict(rope_parameters=5), "rope_parameters", "an object, got 5"),
        (dict(rope_parameters={"rope_theta": True}), "rope_theta", "a positive number, got True"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_type", "'default' or 'llama3', got 'yarn'"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type", "'default' or 'llama3', got 'linear'"),
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
@pytest.mark.parametrize("field", [name for name in MINIMAL if name not in ("model_type", "max_position_embeddings")])
def test_sizes_are_positive_integers(field, value, tmp_path):
    message = complaint(write_config(tmp_path, **{field: value}))
    assert message.endswith(f"{field} must be a positive integer, got {value!r}")
