"""A decode layer of every feature that families have, against the reference: dense and with 4-bit projections."""

from dataclasses import replace

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import assert_close

import pykernels as pk

TINY = replace(pk.models.get("tiny"), qkv_bias=False)
SPECS = {
    "qk norm": replace(TINY, qk_norm="head"),
    "qk norm and biases": replace(TINY, qk_norm="head", qkv_bias=True),
    "qk norm of all heads, norms behind": replace(TINY, qk_norm="all", pre_norms=False, post_norms=True),
    "offset, gelu": replace(TINY, norm_offset=1.0, gelu=True),
    "offset, gelu, qk norm, norms behind": replace(TINY, norm_offset=1.0, gelu=True, qk_norm="head", post_norms=True),
    "multipliers": replace(TINY, attention_scale=0.05, residual_scale=0.3),
    "soft cap": replace(TINY, attention_softcap=1.5),
    "partial rotary": replace(TINY, rotary_dim=48),
}
CTX, POSITION = 40, 33


@pairwise
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "block", "int4"])
@pytest.mark.parametrize("features", SPECS)
def test_layer(features, kind, dtype, batch):
    spec = SPECS[features]
    weights = pk.LayerWeights.random(spec, dtype)
    assert sum(tensor.numel() for tensor in weights.named().values()) == spec.layer_weight_elements
    weights = weights.quantize(64) if kind == "int4" else weights
    layer = pk.DecodeLayer(spec, weights, CTX, batch, dtype)
    layer.set_position(POSITION)
    layer.k_cache[:, :, POSITION:] = layer.v_cache[:, :, POSITION:] = float("nan")
    expected, k_row, v_row = pk.reference.layer(
        spec, weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position
    )
    layer.poison()
    fusion = "block" if kind == "int4" else kind
    program = layer.program(fusion)
    program.run()
    assert_close(layer.out, expected, dtype, depth=4)
    assert_close(layer.k_cache[:, :, POSITION], k_row, dtype, depth=3)
    assert_close(layer.v_cache[:, :, POSITION], v_row, dtype, depth=2)
    assert layer.tape(fusion).calls == [f"pykernels::{op}" for op in program.ops], "a step allocates nothing"


def test_features_that_exclude_each_other():
    with pytest.raises(ValueError, match=r"residual_scale must be 1 where there are post_norms, got 0\.5"):
        replace(TINY, post_norms=True, residual_scale=0.5)
    with pytest.raises(ValueError, match="qk_norm must be '', 'head' or 'all', got 'both'"):
        replace(TINY, qk_norm="both")
