"""DecodeLayer against the reference and against the decoder layers of transformers."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import check_every_way_to_drive
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

import pykernels as pk
from pykernels.layer import OP_LABELS

SIZES = dict(
    hidden_size=256, intermediate_size=448, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
    head_dim=64, vocab_size=64, max_position_embeddings=512, attn_implementation="eager",
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2DecoderLayer, Qwen2RotaryEmbedding, dict(rope_type="default", rope_theta=1e6)),
    "mistral": (MistralConfig, MistralDecoderLayer, MistralRotaryEmbedding, dict(rope_type="default", rope_theta=1e6)),
    "llama": (LlamaConfig, LlamaDecoderLayer, LlamaRotaryEmbedding, LLAMA3),
}
CTX = 200
HF_NAMES = {
    "input_norm": "input_layernorm.weight",
    "q_weight": "self_attn.q_proj.weight",
    "k_weight": "self_attn.k_proj.weight",
    "v_weight": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_weight": "self_attn.o_proj.weight",
    "post_norm": "post_attention_layernorm.weight",
    "gate_weight": "mlp.gate_proj.weight",
    "up_weight": "mlp.up_proj.weight",
    "down_weight": "mlp.down_proj.weight",
}


def make_config(family: str):
    config_class, _, _, rope = FAMILIES[family]
    extra = {} if family == "llama" else {"sliding_window": None}
    return config_class(**SIZES, rope_parameters=rope, **extra)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """The family's name, its transformers config, and our spec as read from that config's own JSON."""
    config = make_config(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    config.save_pretrained(folder)
    return request.param, config, pk.models.from_config(folder)


def transformers_layer(family: str, config, layer: pk.DecodeLayer, position: int) -> torch.Tensor:
    """The library's own decoder layer on the same weights, input and the same cache before `position`."""
    _, layer_class, rotary_class, _ = FAMILIES[family]
    module = layer_class(config, 0).to(layer.dtype).eval()
    module.load_state_dict({HF_NAMES[name]: tensor for name, tensor in layer.weights.named().items()})
    cache = DynamicCache(config=config)
    if position:
        cache.update(layer.k_cache[:, :, :position].clone(), layer.v_cache[:, :, :position].clone(), 0)
    hidden = layer.x.unsqueeze(1)
    positions = torch.full((layer.batch, 1), position)
    with torch.inference_mode():
        angles = rotary_class(config)(hidden, positions)
        out = module(hidden, position_ids=positions, past_key_values=cache, position_embeddings=angles, use_cache=True)
    return (out[0] if isinstance(out, tuple) else out).reshape(layer.batch, -1)


@pytest.mark.parametrize("position", [0, CTX // 2, CTX - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(family, dtype, position):
    name, config, spec = family
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, dtype, seed=3), CTX, batch=2, dtype=dtype)
    layer.set_position(position)
    expected = transformers_layer(name, config, layer, position)
    for fusion in OP_LABELS:
        program, tape = layer.program(fusion), layer.tape(fusion)
        for step in (lambda f=fusion: layer.forward(f), program.run, tape.run):
            layer.poison()
            step()
            # Both sides round in their own places, so the tolerance is twice a layer's.
            comparison = pk.reference.compare(layer.out, expected.double(), dtype, depth=4)
            assert comparison.ok, f"{fusion}: {comparison.message}"


@pairwise
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", OP_LABELS)
def test_equals_the_reference_and_appends(fusion, dtype, batch):
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, dtype), 77, batch, dtype)
    layer.set_position(50)
    layer.k_cache[:, :, 51:] = float("nan")
    layer.v_cache[:, :, 51:] = float("nan")
    expected, k_row, v_row = pk.reference.layer(
        spec, layer.weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position
    )
    before = layer.k_cache[:, :, :50].clone()
    layer.poison()
    layer.forward(fusion)
    for got, wanted in ((layer.out, expected), (layer.k_cache[:, :, 50], k_row), (layer.v_cache[:, :, 50], v_row)):
        comparison = pk.reference.compare(got, wanted, dtype, depth=2)
        assert comparison.ok, comparison.message
    assert torch.equal(layer.k_cache[:, :, :50], before), "a step wrote slots that are not its own"
    assert layer.k_cache[:, :, 51:].isnan().all(), "a step wrote past its slot"


@pytest.mark.parametrize("fusion", OP_LABELS)
def test_every_mode_gives_the_same_bits(fusion):
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 130)
    check_every_way_to_drive(layer, fusion)


def test_positions_advance_under_one_program():
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 64)
    program = layer.program("block")
    for position in (0, 1, 40, 63):
        layer.set_position(position)
        expected, _, _ = pk.reference.layer(
            spec, layer.weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position
        )
        layer.poison()
        program.run()
        assert pk.reference.compare(layer.out, expected, torch.bfloat16, depth=2).ok


@pytest.mark.parametrize("fusion", OP_LABELS)
def test_a_step_allocates_nothing(fusion):
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 64)
    calls = layer.tape(fusion).calls
    assert calls == [f"pykernels::{op}" for op, _ in OP_LABELS[fusion]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ctx=0), r"ctx must be in 1\.\.32768 \(tiny\), got 0"),
        (dict(ctx=40000), r"ctx must be in 1\.\.32768"),
        (dict(ctx=16, batch=9), r"batch must be in 1\.\.8, got 9"),
    ],
)
def test_bad_sizes(arguments, message):
    spec = pk.models.get("tiny")
    with pytest.raises(ValueError, match=message):
        pk.DecodeLayer(spec, pk.LayerWeights.random(spec), **arguments)


def test_a_cache_beyond_memory(monkeypatch):
    monkeypatch.setattr("pykernels.layer.available_bytes", lambda device: 1000)
    spec = pk.models.get("tiny")
    with pytest.raises(ValueError, match=r"ctx must leave the cache within the memory available .* got 512"):
        pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 512)


def test_a_position_outside_the_cache():
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 16)
    with pytest.raises(ValueError, match=r"position must be in 0\.\.15, got 16"):
        layer.set_position(16)
