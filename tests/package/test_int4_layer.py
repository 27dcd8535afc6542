"""DecodeLayer with 4-bit projections against the reference on the dequantised weights."""

import dataclasses

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import check_every_way_to_drive

import pykernels as pk
from pykernels.layer import op_labels
from pykernels.weights import PROJECTIONS


def make_layer(dtype=torch.bfloat16, batch=1, group_size=128, symmetric=True, ctx=77) -> pk.DecodeLayer:
    spec = pk.models.get("tiny")
    weights = pk.LayerWeights.random(spec, dtype).quantize(group_size, symmetric)
    return pk.DecodeLayer(spec, weights, ctx, batch, dtype)


@pairwise
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", ["none", "block"])
def test_equals_the_reference_and_appends(fusion, dtype, batch, group_size, symmetric):
    layer = make_layer(dtype, batch, group_size, symmetric)
    layer.set_position(50)
    layer.k_cache[:, :, 51:] = float("nan")
    layer.v_cache[:, :, 51:] = float("nan")
    expected, k_row, v_row = pk.reference.layer(
        layer.spec, layer.weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position
    )
    before = layer.k_cache[:, :, :50].clone()
    layer.poison()
    layer.forward(fusion)
    for got, wanted in ((layer.out, expected), (layer.k_cache[:, :, 50], k_row), (layer.v_cache[:, :, 50], v_row)):
        comparison = pk.reference.compare(got, wanted, dtype, depth=2)
        assert comparison.ok, comparison.message
    assert torch.equal(layer.k_cache[:, :, :50], before), "a step wrote slots that are not its own"
    assert layer.k_cache[:, :, 51:].isnan().all(), "a step wrote past its slot"


@pytest.mark.parametrize("fusion", ["none", "block"])
def test_every_mode_gives_the_same_bits(fusion):
    tape = check_every_way_to_drive(make_layer(), fusion)
    # And so nothing is allocated.
    assert tape.calls == [f"pykernels::{op}" for op, _ in op_labels(fusion, int4=True)]


def test_the_same_layer_over_dense_weights():
    layer = make_layer()
    other = layer.with_weights(layer.weights.dequantize(layer.dtype))
    layer.x.normal_()
    for fusion in ("none", "block"):
        expected = layer.forward(fusion).double().clone()
        layer.poison()
        assert pk.reference.compare(other.forward(fusion), expected, layer.dtype, depth=4).ok
    assert other.x is layer.x and other.k_cache is layer.k_cache and layer.weights.is_int4
    with pytest.raises(ValueError, match="weights: "):
        layer.with_weights(pk.LayerWeights.random(dataclasses.replace(layer.spec, intermediate=256)))


def test_rows_of_several_weights_as_one():
    weights = [
        pk.Int4Weight.quantize(torch.randn(rows, 128), 64, symmetric) for rows, symmetric in ((32, True), (16, False))
    ]
    fused = pk.Int4Weight.concatenate(weights)
    assert torch.equal(fused.dequantize(), torch.cat([weight.dequantize() for weight in weights]))
    perm = dataclasses.replace(weights[0], perm=torch.randperm(128).int())
    other = pk.Int4Weight.quantize(torch.randn(16, 128), 32)
    for second, words in ((perm, "one act-order"), (other, r"one group_size to be concatenated, got \[32, 64\]")):
        with pytest.raises(ValueError, match=words):
            pk.Int4Weight.concatenate([weights[0], second])


def test_all_projections_or_none():
    weights = pk.LayerWeights.random(pk.models.get("tiny"))
    tensors = {name: getattr(weights.quantize(), name) for name in PROJECTIONS} | {"o_weight": weights.o_weight}
    others = {name: getattr(weights, name) for name in weights.shapes(pk.models.get("tiny")) if name not in PROJECTIONS}
    with pytest.raises(ValueError, match="projections must be all tensors or all Int4Weight, got Int4Weight for"):
        pk.LayerWeights(**tensors, **others)


def test_projections_of_one_input_share_an_equal_order():
    spec = pk.models.get("tiny")
    plain = pk.LayerWeights.random(spec).quantize()
    perms = {1: torch.randperm(spec.hidden).int(), 2: torch.randperm(spec.hidden).int()}
    orders = dict(q_weight=1, k_weight=1, v_weight=2, gate_weight=1, up_weight=1)
    made = {
        name: dataclasses.replace(getattr(plain, name), perm=perms[order].clone()) for name, order in orders.items()
    }
    weights = dataclasses.replace(plain, **made)
    assert weights.k_weight.perm is weights.q_weight.perm and weights.up_weight.perm is weights.gate_weight.perm
    assert weights.v_weight.perm is made["v_weight"].perm
    assert made["k_weight"].perm is not made["q_weight"].perm, "what was given is not changed"
    copy = weights.clone()
    assert copy.k_weight.perm is copy.q_weight.perm and copy.q_weight.perm is not weights.q_weight.perm


def test_clone_and_dequantize():
    weights = pk.LayerWeights.random(pk.models.get("tiny")).quantize()
    copy = weights.clone()
    assert copy.is_int4 and copy.o_weight.packed.data_ptr() != weights.o_weight.packed.data_ptr()
    dense = weights.dequantize(torch.float32)
    assert not dense.is_int4 and dense.dequantize() is dense
    assert torch.equal(dense.down_weight, weights.down_weight.dequantize(torch.float32))
    assert dense.input_norm is weights.input_norm
