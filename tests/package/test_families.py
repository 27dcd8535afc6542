"""Every family on a small random checkpoint that transformers wrote: logits and 16 greedy tokens are transformers'."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import pykernels as pk

STEPS, MAX_LEN, BATCH = 16, 24, 2
SIZES = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=97, max_position_embeddings=64,
)  # fmt: skip
THETA = dict(rope_theta=1e4)
HEAD = dict(head_dim=24)  # not hidden / heads
GEMMA = SIZES | HEAD | dict(hidden_activation="gelu_pytorch_tanh")


def text(model_type: str, **changes: Any) -> Callable[[], PreTrainedModel]:
    """A decoder by itself."""
    sizes = GEMMA if model_type.startswith("gemma") else SIZES
    return lambda: AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **(sizes | changes)), attn_implementation="eager"
    )


def vision(model_type: str, text_config: dict, **changes: Any) -> Callable[[], PreTrainedModel]:
    """A vision-language model with as little vision as there can be."""

    def make() -> PreTrainedModel:
        config = AutoConfig.for_model(model_type, text_config=text_config, **changes)
        return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")

    return make


CLIP = dict(
    model_type="clip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    image_size=16, patch_size=8, projection_dim=16,
)  # fmt: skip
SIGLIP = CLIP | dict(model_type="siglip_vision_model")
QWEN_VISION = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=64)
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3])
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONG = dict(
    rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.6], long_factor=[2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
    original_max_position_embeddings=32, partial_rotary_factor=0.75,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A model of transformers, and what must be in the spec that is read of its config."""

    make: Callable[[], PreTrainedModel]
    features: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen2": Family(text("qwen2"), dict(qkv_bias=True)),
    "qwen3": Family(text("qwen3", **HEAD), dict(qk_norm="head", head_dim=24)),
    "qwen3, yarn": Family(text("qwen3", **HEAD, rope_parameters=YARN | THETA), dict(qk_norm="head")),
    "llama, linear": Family(text("llama", rope_parameters=dict(rope_type="linear", factor=2.0, **THETA))),
    "llama, dynamic": Family(text("llama", rope_parameters=dict(rope_type="dynamic", factor=2.0, **THETA))),
    "llama, tied": Family(text("llama", tie_word_embeddings=True), dict(tied_embeddings=True)),
    "mistral": Family(text("mistral", **HEAD, sliding_window=32), dict(window=32)),
    "ministral": Family(text("ministral", head_dim=16, sliding_window=32), dict(window=32)),
    "phi3": Family(text("phi3", pad_token_id=0)),
    "phi3, longrope": Family(
        text("phi3", pad_token_id=0, rope_parameters=LONG | THETA, original_max_position_embeddings=32),
        dict(rotary_dim=12),
    ),
    "gemma": Family(
        text("gemma", hidden_act="gelu_pytorch_tanh"), dict(norm_offset=1.0, gelu=True, embedding_scale=8.0)
    ),
    "gemma2": Family(
        text("gemma2", query_pre_attn_scalar=32, sliding_window=32, attn_logit_softcapping=2.0,
             final_logit_softcapping=1.5),
        dict(post_norms=True, attention_softcap=2.0, logit_softcap=1.5, attention_scale=32**-0.5, window=32),
    ),
    "gemma3_text": Family(
        text("gemma3_text", sliding_window=32, layer_types=["sliding_attention"] * 2 + ["full_attention"]),
        dict(qk_norm="head", post_norms=True, local_layers=(0, 1), local_rope_theta=1e4, rope_theta=1e6),
    ),
    "granite": Family(
        text("granite", embedding_multiplier=6.0, logits_scaling=4.0, residual_multiplier=0.3,
             attention_multiplier=0.1),
        dict(embedding_scale=6.0, logit_scale=0.25, residual_scale=0.3, attention_scale=0.1),
    ),
    "olmo2": Family(text("olmo2"), dict(qk_norm="all", pre_norms=False, post_norms=True)),
    "smollm3": Family(text("smollm3", pad_token_id=0, no_rope_layers=[1, 0, 1]), dict(nope_layers=(1,))),
    "qwen2_5_vl": Family(
        vision("qwen2_5_vl", SIZES | dict(rope_parameters=MROPE), vision_config=QWEN_VISION), dict(qkv_bias=True)
    ),
    "qwen3_vl": Family(
        vision(
            "qwen3_vl", SIZES | dict(head_dim=16, rope_parameters=MROPE | dict(mrope_interleaved=True)),
            vision_config=QWEN_VISION | dict(deepstack_visual_indexes=[0]),
        ),
        dict(qk_norm="head"),
    ),
    "paligemma": Family(
        vision("paligemma", GEMMA | dict(model_type="gemma"), vision_config=SIGLIP, projection_dim=64),
        dict(norm_offset=1.0, tied_embeddings=True),
    ),
    "llava": Family(vision("llava", SIZES | dict(model_type="llama"), vision_config=CLIP)),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The family, its random model, and the folder it was saved to, in several files."""
    torch.manual_seed(7)
    family = FAMILIES[request.param]
    model = family.make().eval()
    with torch.no_grad():  # transformers starts biases at zero and weights small: logits would hardly differ
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name and "gemma" not in request.param else 0.0
            deviation = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            if "embed_tokens" in name and model.config.tie_word_embeddings:
                deviation = 0.04  # a tied table of usual size gives the token that was put in
            parameter.normal_(mean, deviation)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder, max_shard_size="100KB")
    return family, model, folder


def greedy(model: PreTrainedModel, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By transformers' own forward and cache: tokens [batch, STEPS], and the logits [batch, STEPS, vocab]."""
    token, cache, tokens, logits = first[:, None], None, [], []
    with torch.inference_mode():
        for _ in range(STEPS):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            tokens.append(token)
            logits.append(out.logits[:, -1:])
    return torch.cat(tokens, dim=1), torch.cat(logits, dim=1)


def test_logits_and_tokens_equal_transformers(checkpoint: tuple[Family, PreTrainedModel, Path]):
    family, theirs, folder = checkpoint
    spec = pk.models.from_config(folder)
    assert {name: getattr(spec, name) for name in family.features} == family.features
    weights = pk.ModelWeights.from_folder(folder, spec, torch.float32)
    assert (weights.embedding is weights.lm_head) == spec.tied_embeddings
    model = pk.DecodeModel(spec, weights, MAX_LEN, BATCH, torch.float32)
    first = torch.tensor([3, 50])
    expected, expected_logits = greedy(theirs, first)
    assert len(expected.unique()) >= 3, "a sequence that repeats itself shows nothing"
    for fusion in ("none", "block"):
        for layer in model.layers:  # nothing may be read before it was written
            layer.k_cache.fill_(float("nan"))
            layer.v_cache.fill_(float("nan"))
        model.token.copy_(first)
        model.set_position(0)
        program = model.program(fusion)
        assert program.ops == [op for op, _ in model.labels(fusion)]
        for step in range(STEPS):
            model.poison()
            program.run()
            torch.testing.assert_close(model.logits, expected_logits[:, step], rtol=1e-3, atol=2e-4)
            assert torch.equal(model.token, expected[:, step]), (fusion, step)


def test_every_family_that_is_read_is_tested():
    from pykernels.config import _FAMILIES

    assert set(_FAMILIES) <= {name.split(",")[0] for name in FAMILIES}
    assert transformers.__version__
