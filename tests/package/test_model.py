"""DecodeModel against transformers (greedy tokens from an empty cache) and against the reference, in every mode."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import pykernels as pk
from pykernels.layer import OP_LABELS

SIZES = dict(
    hidden_size=128, intermediate_size=224, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, vocab_size=199, max_position_embeddings=256,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=1e6))
    ),
    "qwen2-tied": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, sliding_window=None, tie_word_embeddings=True, rope_parameters=dict(rope_theta=1e6))
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
}
STEPS, MAX_LEN, BATCH = 24, 40, 2
TINY = pk.models.get("tiny")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """A random model of transformers, and the folder it was saved to."""
    torch.manual_seed(7)
    model = FAMILIES[request.param]().eval()
    with torch.no_grad():  # transformers starts biases at zero and weights small: logits would hardly differ
        for name, parameter in model.named_parameters():
            parameter.normal_(
                1.0 if "norm" in name else 0.0, 0.5 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
            )
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def greedy(model, first: torch.Tensor, steps: int) -> torch.Tensor:
    """[batch, steps] tokens by transformers' own forward and cache."""
    token, cache, tokens = first[:, None], None, []
    with torch.inference_mode():
        for _ in range(steps):
            out = model(token, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            tokens.append(token)
    return torch.cat(tokens, dim=1)


def angles(model: pk.DecodeModel) -> list[torch.Tensor]:
    """Of every layer."""
    return [layer.cos_sin for layer in model.layers]


def our_tokens(model: pk.DecodeModel, first: torch.Tensor, step, steps: int) -> torch.Tensor:
    model.token.copy_(first)
    model.set_position(0)
    tokens = []
    for _ in range(steps):
        model.poison()
        step()
        tokens.append(model.token.clone())
    assert model.position.tolist() == [steps] * model.batch and model.kv_len.tolist() == [steps + 1] * model.batch
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("fusion", OP_LABELS)
def test_greedy_tokens_equal_transformers(checkpoint, fusion):
    theirs, folder = checkpoint
    spec = pk.models.from_config(folder)
    weights = pk.ModelWeights.from_folder(folder, spec, torch.float32)
    assert (weights.embedding is weights.lm_head) == spec.tied_embeddings
    model = pk.DecodeModel(spec, weights, MAX_LEN, BATCH, torch.float32)
    first = torch.tensor([3, 150])
    expected = greedy(theirs, first, STEPS)
    assert len(expected.unique()) >= 8, "a sequence that repeats itself shows nothing"
    tape = model.tape(fusion)
    for step in (lambda: model.forward(fusion), model.program(fusion).run, tape.run):
        for layer in model.layers:  # nothing may be read before it was written
            layer.k_cache.fill_(float("nan"))
            layer.v_cache.fill_(float("nan"))
        assert torch.equal(our_tokens(model, first, step, STEPS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fusion", OP_LABELS)
def test_a_step_on_a_full_cache_equals_the_reference(fusion, dtype):
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY, dtype), 50, BATCH, dtype)
    model.set_position(41)
    for layer in model.layers:
        layer.k_cache[:, :, 42:] = float("nan")
        layer.v_cache[:, :, 42:] = float("nan")
    caches = [(layer.k_cache, layer.v_cache) for layer in model.layers]
    logits, rows = pk.reference.step(TINY, model.weights, model.token, caches, angles(model), model.position)
    model.poison()
    model.program(fusion).run()
    comparisons = [pk.reference.compare(model.logits, logits, dtype, depth=4)]
    for layer, (k_row, v_row) in zip(model.layers, rows, strict=True):
        comparisons.append(pk.reference.compare(layer.k_cache[:, :, 41], k_row, dtype, depth=4))
        comparisons.append(pk.reference.compare(layer.v_cache[:, :, 41], v_row, dtype, depth=4))
    assert all(comparison.ok for comparison in comparisons), [c.message for c in comparisons if not c.ok]
    assert torch.equal(model.token, model.logits.argmax(-1))


@pytest.mark.parametrize(("fusion", "per_layer"), [("none", 14), ("block", 5)])
def test_launches_are_counted(fusion, per_layer):
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), 16)
    program, tape = model.program(fusion), model.tape(fusion)
    assert program.ops == [op for op, _ in model.labels(fusion)]
    assert len(program) == per_layer * TINY.n_layers + 4
    assert tape.calls == [f"pykernels::{op}" for op in program.ops], "a step allocates nothing"


def test_layers_of_4_bits_in_groups_of_their_own():
    weights = pk.ModelWeights.random(TINY)
    weights.layers = [layer.quantize(size) for layer, size in zip(weights.layers, (-1, 32, 128, 64), strict=True)]
    model = pk.DecodeModel(TINY, weights, 16)
    program = model.program("block")
    assert program.ops == [op for op, _ in model.labels("block")] and "int4_qkv_gemv" in program.ops
    assert model.tape("block").calls == [f"pykernels::{op}" for op in program.ops], "a step allocates nothing"
    model.set_position(9)
    caches = [(layer.k_cache, layer.v_cache) for layer in model.layers]
    expected, _ = pk.reference.step(TINY, weights, model.token, caches, angles(model), model.position)
    model.poison()
    program.run()
    comparison = pk.reference.compare(model.logits, expected, torch.bfloat16, depth=4)
    assert comparison.ok, comparison.message


def test_layers_share_scratch_and_nothing_else():
    model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), 16)
    first, second = model.layers[:2]
    assert second.x is first.out and second.position is first.position and second._h is first._h
    for name in ("out", "k_cache", "v_cache"):
        assert getattr(second, name).data_ptr() != getattr(first, name).data_ptr()
    assert not torch.equal(first.weights.q_weight, second.weights.q_weight)


def test_shared_weights_are_one_layer_s():
    weights = pk.ModelWeights.random(TINY, shared_layers=True)
    assert len(weights.layers) == TINY.n_layers and len({id(layer) for layer in weights.layers}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_len=0), r"max_len must be in 1\.\.32768 \(tiny\), got 0"),
        (dict(max_len=16, batch=9), r"batch must be in 1\.\.8, got 9"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        pk.DecodeModel(TINY, pk.ModelWeights.random(TINY), **arguments)


def test_weights_of_another_model():
    weights = pk.ModelWeights.random(TINY)
    weights.layers.pop()
    with pytest.raises(ValueError, match=r"weights must be of 4 layers \(tiny\), got 3"):
        pk.DecodeModel(TINY, weights, 16)


def test_caches_beyond_memory(monkeypatch):
    weights = pk.ModelWeights.random(TINY)
    monkeypatch.setattr("pykernels.model.available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"max_len must leave the caches within the memory available .* got 512"):
        pk.DecodeModel(TINY, weights, 512)


def test_a_folder_without_lm_head(tmp_path):
    config = dict(
        model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=1e4,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(32, 64, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="there is no tensor model.layers.0.input_layernorm.weight"):
        pk.ModelWeights.from_folder(tmp_path, pk.models.from_config(tmp_path))
