"""The reference against torch's own functions in float64, and the comparison that gates every result."""

import math

import pytest
import torch
import torch.nn.functional as F
from inputs.covering import pairwise
from inputs.helpers import DTYPES, randn

import pykernels as pk
from pykernels import reference

# Two roundings to bfloat16 or float16; 128 of float32.
TOLERANCES = {torch.float32: 64 * 2.0**-23, torch.bfloat16: 2 * 2.0**-8, torch.float16: 2 * 2.0**-11}
NAN, INF = math.nan, math.inf


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded float64 numbers."""
    return randn(*shape, dtype=torch.float64, seed=seed)


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Two float64 results, equal up to the order of their sums."""
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_tolerance_is_held_on_both_sides(dtype, depth):
    expected = torch.tensor([[1.0, -8.0, 0.0]], dtype=torch.float64)
    for factor, ok in ((0.0, True), (0.99, True), (1.01, False)):
        # Errors count relative to the row's largest magnitude, 8, wherever they lie.
        out = expected + torch.tensor([[0.0, 0.0, 8 * factor * depth * TOLERANCES[dtype]]], dtype=torch.float64)
        comparison = reference.compare(out, expected, dtype, depth)
        assert comparison.ok is ok
        assert comparison.tolerance == depth * TOLERANCES[dtype]
        assert comparison.max_rel_error == pytest.approx(factor * depth * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_passes(dtype):
    expected = double(4, 1000)
    assert reference.compare(expected.to(dtype), expected, dtype).ok


def test_rows_have_scales_of_their_own():
    expected = torch.tensor([[1000.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for row, ok in ((0, True), (1, False)):
        out = expected.clone()
        out[row, 1] = 1.0
        comparison = reference.compare(out, expected, torch.bfloat16)
        assert comparison.ok is ok
        assert comparison.max_rel_error == pytest.approx(1 / expected[row, 0].item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_whole_row_is_wrong_by_is_held_to_less(dtype):
    """Errors of 0.7 tolerances: in a few elements they pass for roundings, in all of a row they are a missing term."""
    expected, by = torch.ones(3, 128, dtype=torch.float64), 0.7 * 2 * TOLERANCES[dtype]
    few, all_of_one = expected.clone(), expected.clone()
    few[:, ::8] += by
    all_of_one[1] += by
    assert reference.compare(few, expected, dtype, 2, rms_depth=2).ok
    assert reference.compare(all_of_one, expected, dtype, 2).ok
    found = reference.compare(all_of_one, expected, dtype, 2, rms_depth=2)
    assert not found.ok and found.message.startswith("root mean square of row [1]'s relative errors")


def test_reports_the_worst_element():
    expected = torch.ones(2, 3, 4, dtype=torch.float64)
    out = expected.clone()
    out[0, 1, 1], out[1, 2, 3] = 1.25, 0.5
    comparison = reference.compare(out, expected, torch.bfloat16)
    assert not comparison.ok
    assert comparison.worst_index == (1, 2, 3)
    assert (comparison.got, comparison.expected, comparison.max_rel_error) == (0.5, 1.0, 0.5)
    assert comparison.message == (
        "relative error 0.5, beyond the tolerance 0.00781; worst at [1, 2, 3]: got 0.5, expected 1"
    )


@pairwise
@pytest.mark.parametrize("expected", [0.5, NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("got", [0.5, NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_never_passes(got, expected, dtype):
    wanted = torch.ones(2, 3, dtype=torch.float64)
    out = wanted.clone()
    out[1, 2], wanted[1, 2] = got, expected
    comparison = reference.compare(out, wanted, dtype, depth=1000)
    both_finite = math.isfinite(got) and math.isfinite(expected)
    assert comparison.ok is both_finite
    if not both_finite:
        assert comparison.max_rel_error == INF
        assert comparison.worst_index[0] == 1
        assert "beyond" in comparison.message


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_finds_the_one_element_that_is_not_finite(value):
    expected = double(3, 50)
    out = expected.clone()
    out[2, 17] = value
    out[0, 0] += 1000.0
    comparison = reference.compare(out, expected, torch.float32)
    assert comparison.worst_index == (2, 17)
    assert comparison.expected == expected[2, 17].item()
    assert not comparison.ok and str(value) in comparison.message


def test_a_zero_row_demands_zeros():
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    assert reference.compare(zeros, zeros, torch.bfloat16).ok
    assert not reference.compare(zeros + 1e-6, zeros, torch.bfloat16).ok


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (6,), (1, 2, 3), (1, 3)], ids=str)
def test_another_shape_raises(shape):
    with pytest.raises(ValueError, match=r"^out must be of shape \[2, 3\], got \["):
        reference.compare(torch.zeros(shape), torch.zeros(2, 3), torch.float32)


def test_rmsnorm():
    x, weight = double(3, 40), double(40, seed=1)
    assert_equal(reference.rmsnorm(x, weight, 1e-3), F.rms_norm(x, (40,), weight, 1e-3))
    assert_equal(reference.rmsnorm(torch.zeros(1, 4), torch.ones(4), 1e-6), torch.zeros(1, 4).double())


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_gemv(with_bias, with_residual):
    x, weight = double(3, 40), double(24, 40, seed=1)
    bias = double(24, seed=2) if with_bias else None
    residual = double(3, 24, seed=3) if with_residual else None
    expected = F.linear(x, weight, bias) + (residual if with_residual else 0.0)
    assert_equal(reference.gemv(x, weight, bias, residual), expected)


def test_silu_mul_and_add():
    gate, up = double(3, 40) * 4, double(3, 40, seed=1)
    assert_equal(reference.silu_mul(gate, up), F.silu(gate) * up)
    assert_equal(reference.add(gate, up), gate + up)


def test_embedding():
    token, table = torch.tensor([3, 0, 3]), double(5, 8)
    assert_equal(reference.embedding(token, table), F.embedding(token, table))


@pytest.mark.parametrize("with_norm", [False, True])
def test_swiglu_gemv(with_norm):
    x, gate_weight, up_weight = double(2, 40), double(24, 40, seed=1), double(24, 40, seed=2)
    norm_weight = double(40, seed=3) if with_norm else None
    normed = F.rms_norm(x, (40,), norm_weight, 1e-3) if with_norm else x
    expected = F.silu(F.linear(normed, gate_weight)) * F.linear(normed, up_weight)
    assert_equal(reference.swiglu_gemv(x, gate_weight, up_weight, norm_weight, 1e-3), expected)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 8])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_gqa_decode(n_kv_heads, scale):
    q = double(3, 8, 16)
    k_cache, v_cache = double(3, n_kv_heads, 20, 16, seed=1), double(3, n_kv_heads, 20, 16, seed=2)
    kv_len = torch.tensor([1, 13, 20], dtype=torch.int32)
    got = reference.gqa_decode(q, k_cache, v_cache, kv_len, scale)
    for b, length in enumerate(kv_len.tolist()):
        keys, values = k_cache[b, :, :length], v_cache[b, :, :length]
        expected = F.scaled_dot_product_attention(q[b].unsqueeze(1), keys, values, scale=scale, enable_gqa=True)
        assert_equal(got[b], expected.squeeze(1))


def test_rotation_is_a_complex_product():
    # Dimension d and d + half are the real and the imaginary part of a number that turns by its angle.
    angles = double(6, 4)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    x, position = double(2, 3, 8), torch.tensor([5, 2], dtype=torch.int32)
    turn = torch.polar(torch.ones(2, 1, 4, dtype=torch.float64), angles[position.long()].unsqueeze(1))
    turned = torch.complex(x[..., :4], x[..., 4:]) * turn
    assert_equal(reference.rotate(x, cos_sin, position), torch.cat((turned.real, turned.imag), dim=-1))


@pytest.mark.parametrize("with_bias", [False, True])
def test_qkv_gemv(with_bias):
    head_dim, cos_sin, position = 16, double(9, 16, seed=4), torch.tensor([7, 0])
    x, norm_weight = double(2, 40), double(40, seed=1)
    weights = [double(rows, 40, seed=rows) for rows in (64, 32, 32)]
    biases = [double(rows, seed=rows + 1) if with_bias else None for rows in (64, 32, 32)]
    got = reference.qkv_gemv(x, norm_weight, 1e-3, *weights, cos_sin, position, head_dim, *biases)
    normed = F.rms_norm(x, (40,), norm_weight, 1e-3)
    q, k, v = (F.linear(normed, w, b).view(2, -1, head_dim) for w, b in zip(weights, biases, strict=True))
    for found, expected in zip(got, (*(reference.rotate(t, cos_sin, position) for t in (q, k)), v), strict=True):
        assert_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_takes_every_dtype_and_writes_nothing(dtype):
    spec = pk.models.get("tiny")
    layer = pk.DecodeLayer(spec, pk.LayerWeights.random(spec, dtype), 8, dtype=dtype)
    tensors = [layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position, *layer.weights.named().values()]
    before = [tensor.clone() for tensor in tensors]
    results = reference.layer(spec, layer.weights, layer.x, layer.k_cache, layer.v_cache, layer.cos_sin, layer.position)
    assert all(result.dtype == torch.float64 for result in results)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
