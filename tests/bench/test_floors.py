"""Bytes of every op and of whole layers, counted by hand here, and the times they take at a bandwidth."""

import pytest
import torch

import pykernels as pk
from bench.core import floors
from pykernels.layer import OP_LABELS, op_labels

STUDY = ["qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-8b"]


@pytest.mark.parametrize(
    ("got", "elements", "element_bytes", "other_bytes"),
    [
        # x 2x3, weight 3, out 2x3
        (floors.rmsnorm(2, 3, e=2), 6 + 3 + 6, 2, 0),
        # weight 5x3, x 2x3, out 2x5; then a bias of 5 and a residual of 2x5
        (floors.gemv(2, 3, 5, e=4), 15 + 6 + 10, 4, 0),
        (floors.gemv(2, 3, 5, e=4, bias=True), 15 + 6 + 10 + 5, 4, 0),
        (floors.gemv(2, 3, 5, e=4, residual=True), 15 + 6 + 10 + 10, 4, 0),
        (floors.gemv(2, 3, 5, e=4, bias=True, residual=True), 15 + 6 + 10 + 5 + 10, 4, 0),
        # 2 sequences of 4 query and 2 KV heads of 8: q in and out, k and v in and out, 8 float32, an int32
        (floors.rope_kv_append(2, 4, 2, 8, e=2), 64 + 64 + 32 + 32 + 32 + 32, 2, 64 + 8),
        # q, out, ten slots of K and of V, an int32 a sequence
        (floors.gqa_decode(2, 4, 2, 8, kv_len=10, e=2), 64 + 64 + 320 + 320, 2, 8),
        # gate, up, out: 2x5 each
        (floors.silu_mul(2, 5, e=2), 10 + 10 + 10, 2, 0),
        # two weights of 5x3, the norm's 3, x 2x3, out 2x5
        (floors.swiglu_gemv(2, 3, 5, e=2), 15 + 15 + 3 + 6 + 10, 2, 0),
        (floors.swiglu_gemv(2, 3, 5, e=2, norm=False), 15 + 15 + 6 + 10, 2, 0),
        # the norm's 16, weights of 32x16 and twice 16x16, x 2x16, q 2x32, a slot of K and V 2x16, angles, position
        (floors.qkv_gemv(2, 16, 4, 2, 8, e=2, bias=False), 16 + 512 + 256 + 256 + 32 + 64 + 32 + 32, 2, 64 + 8),
        (floors.qkv_gemv(2, 16, 4, 2, 8, e=2, bias=True), 16 + 512 + 256 + 256 + 64 + 32 + 64 + 32 + 32, 2, 64 + 8),
        # nibbles of 5 rows of 64, two scales a row; x 2x64, out 2x5; then a bias, a residual, zero points and a perm
        (floors.int4_gemv(2, 64, 5, e=2, group_size=32), 10 + 128 + 10, 2, 160),
        (
            floors.int4_gemv(2, 64, 5, e=2, bias=True, residual=True, group_size=32, zeros=True, perm=True),
            10 + 128 + 10 + 5 + 10,
            2,
            160 + 10 + 256,
        ),
        # two weights of 5 rows of 64 with one scale a row, the norm's 64, x 2x64, out 2x5
        (floors.int4_swiglu_gemv(2, 64, 5, e=4, group_size=64), 10 + 64 + 128 + 10, 4, 320),
        # 64 rows of 32 with a scale each; the norm's 32, x 2x32, q 2x32, a slot of K and V 2x16, angles, position
        (floors.int4_qkv_gemv(2, 32, 4, 2, 8, e=2, bias=False, group_size=32), 64 + 32 + 64 + 64 + 64, 2, 1024 + 72),
        (floors.add(5, e=4), 5 + 5 + 5, 4, 0),
        # two rows of 3 in and out, two int64
        (floors.embedding(2, 3, e=2), 6 + 6, 2, 16),
    ],
)
def test_bytes_of_an_op(got, elements, element_bytes, other_bytes):
    assert type(got) is int
    assert got == elements * element_bytes + other_bytes


@pytest.mark.parametrize("fusion", OP_LABELS)
@pytest.mark.parametrize("name", pk.models.names())
def test_labels_are_those_of_the_layer(name, fusion):
    spec = pk.models.get(name)
    ops = floors.layer_ops(spec, fusion, 1, 10, torch.bfloat16)
    assert [(op.op, op.label) for op in ops] == op_labels(fusion, spec=spec)
    if name in (*STUDY, "tiny"):
        assert op_labels(fusion, spec=spec) == OP_LABELS[fusion]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_a_layer_of_4_bit_weights(group_size, zeros):
    spec = pk.models.get("tiny")
    ops = floors.layer_ops(spec, "block", 1, 10, torch.bfloat16, group_size, zeros)
    assert [(op.op, op.label) for op in ops] == op_labels("block", int4=True)
    dense = floors.layer_ops(spec, "block", 1, 10, torch.bfloat16)
    quantised = pk.LayerWeights.random(spec).quantize(group_size)
    projections = [weight for weight in quantised.named().values() if isinstance(weight, pk.Int4Weight)]
    saved = sum(2 * w.out_features * w.in_features - w.n_bytes - zeros * w.scales.numel() for w in projections)
    assert sum(op.bytes for op in dense) - sum(op.bytes for op in ops) == saved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("fusion", OP_LABELS)
@pytest.mark.parametrize("name", [*STUDY, "qwen3-8b", "gemma-3-4b"])
def test_a_layer_is_its_weights_its_cache_and_its_activations(name, fusion, batch, dtype):
    spec = pk.models.get(name)
    hidden, intermediate = spec.hidden, spec.intermediate
    q, kv = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    # How often each vector passes between memory and an op, the appended slots of K and V included.
    vectors = {
        "none": 17 * hidden + 6 * q + 6 * kv + 6 * intermediate,
        "block": 6 * hidden + 4 * q + 2 * kv + 2 * intermediate,
    }[fusion]
    vectors += 4 * hidden * spec.post_norms  # at fusion block the norm adds the residual, not the projection
    vectors += 2 * (q + kv) * (spec.qk_norm == "head" and fusion == "none")
    expected = (
        spec.layer_weight_elements * dtype.itemsize
        + spec.layer_kv_bytes(1000, batch, dtype)
        + batch * vectors * dtype.itemsize
        + batch * (spec.head_dim * 4 + 4 + 4)  # float32 angles, int32 position and kv_len
    )
    assert sum(op.bytes for op in floors.layer_ops(spec, fusion, batch, 1000, dtype)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2.5-7b", 466_115_584 + 4_194_304 + 149_504 + 520),
        ("mistral-7b-v0.3", 436_224_000 + 8_388_608 + 143_360 + 520),
        ("llama-3.1-8b", 436_224_000 + 8_388_608 + 143_360 + 520),
    ],
)
def test_the_fused_layers_of_the_study(name, expected):
    ops = floors.layer_ops(pk.models.get(name), "block", 1, 2048, torch.bfloat16)
    assert sum(op.bytes for op in ops) == expected


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_reads_the_tensors_of_the_layer(batch):
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 40, batch)
    attention = next(op for op in floors.layer_ops(spec, "block", batch, 40, torch.bfloat16) if op.op == "gqa_decode")
    q_and_out = 2 * batch * 8 * 64 * 2
    assert attention.bytes == layer.k_cache.nbytes + layer.v_cache.nbytes + layer.kv_len.nbytes + q_and_out


def test_shapes_in_words():
    spec = pk.models.get("qwen2.5-7b")
    unfused = {op.label: op.shape for op in floors.layer_ops(spec, "none", 2, 64, torch.bfloat16)}
    fused = {op.label: op.shape for op in floors.layer_ops(spec, "block", 2, 64, torch.bfloat16)}
    assert unfused["k"] == "2x3584 -> 512"
    assert unfused["rope"] == "28/4x128"
    assert unfused["attention"] == fused["attention"] == "28/4x128, kv 64"
    assert unfused["down"] == fused["down+residual"] == "2x18944 -> 3584"
    assert fused["norm+qkv+rope"] == "2x3584 -> 3584+2x512"
    assert fused["norm+gate+up"] == "2x3584 -> 2x18944"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("qwen2.5-7b", [(3584, 3584), (3584, 512), (3584, 3584), (3584, 18944), (18944, 3584), (3584, 152064)]),
        ("mistral-7b-v0.3", [(4096, 4096), (4096, 1024), (4096, 4096), (4096, 14336), (14336, 4096), (4096, 32768)]),
        ("llama-3.1-8b", [(4096, 4096), (4096, 1024), (4096, 4096), (4096, 14336), (14336, 4096), (4096, 128256)]),
    ],
)
def test_linear_shapes(name, shapes):
    assert list(floors.LINEAR_SHAPES) == ["q", "kv", "o", "gate/up", "down", "lm_head"]
    assert [shape(pk.models.get(name)) for shape in floors.LINEAR_SHAPES.values()] == shapes


def test_times_and_bandwidths():
    # 1 GB/s is 1000 bytes a microsecond.
    assert floors.microseconds(3000, 1.5) == 2.0
    assert floors.gigabytes_per_second(3000, 2.0) == 1.5
    assert floors.microseconds(3_350_000_000, 3350) == pytest.approx(1000.0)
