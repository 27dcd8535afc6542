"""The checkpoint formats against tensors that their own libraries packed, round trips, and what they refuse."""

from pathlib import Path

import pytest
import torch
from inputs.covering import pairwise
from inputs.quantized import plain
from safetensors import safe_open
from torch import Tensor

import pykernels as pk
from pykernels import quant

RECORDED = Path(__file__).parent.parent / "inputs" / "data" / "quant"
GPTQ_CASES = [(version, case) for version in (1, 2) for case in ("symmetric", "asymmetric", "act_order", "row")]
COMPRESSED_CASES = ["symmetric", "asymmetric", "channel", "ragged_rows", "ragged_columns"]


def recorded(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """The layer's tensors and the weight they stand for."""
    with safe_open(RECORDED / f"{name}.safetensors", framework="pt") as file:
        assert file.metadata()["provenance"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - the file is not a mapping
    return tensors, tensors.pop("expected")


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].is_contiguous(), name


@pytest.mark.parametrize(("version", "case"), GPTQ_CASES)
def test_gptq_as_gptqmodel_writes_it(version, case):
    tensors, expected = recorded(f"gptq_v{version}_{case}")
    weight = quant.gptq.unpack(**tensors, version=version)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert_same(quant.gptq.pack(weight, version), tensors)
    assert (weight.zeros is None) == (case == "symmetric")
    assert (weight.g_idx is not None) == (case == "act_order")
    layout = pk.Int4Weight.from_gptq(**tensors, version=version)
    assert torch.equal(layout.dequantize(torch.float32), expected)
    assert_same(layout.to_gptq(version), tensors)


def test_gptq_v1_with_zero_points_of_zero():
    # Subtracting from the whole word borrows from the nibble above: the recorded v1 layers hold such zeros.
    tensors, _ = recorded("gptq_v1_asymmetric")
    weight = quant.gptq.unpack(**tensors, version=1)
    assert (weight.zeros == 0).any()


@pytest.mark.parametrize("case", ["group32", "group96"])
def test_awq_as_autoawq_writes_it(case):
    tensors, expected = recorded(f"awq_{case}")
    weight = quant.awq.unpack(**tensors)
    assert torch.equal(weight.dequantize(torch.float16), expected)
    assert_same(quant.awq.pack(weight), tensors)
    layout = pk.Int4Weight.from_awq(**tensors)
    assert torch.equal(layout.dequantize(torch.float16), expected)
    assert_same(layout.to_awq(), tensors)


@pytest.mark.parametrize("case", COMPRESSED_CASES)
def test_compressed_tensors_as_the_library_writes_it(case):
    tensors, expected = recorded(f"compressed_tensors_{case}")
    weight = quant.compressed_tensors.unpack(**tensors)
    assert torch.equal(weight.dequantize(torch.float32), expected)
    assert_same(quant.compressed_tensors.pack(weight), tensors)
    if weight.in_features % 32:
        with pytest.raises(ValueError, match="in_features must be a multiple of 32, got 92"):
            pk.Int4Weight.from_compressed_tensors(**tensors)
        return
    layout = pk.Int4Weight.from_compressed_tensors(**tensors)
    assert torch.equal(layout.dequantize(torch.float32), expected)
    assert_same(layout.to_compressed_tensors(), tensors)


def test_compressed_tensors_without_act_order_in_so_many_words():
    tensors, expected = recorded("compressed_tensors_asymmetric")
    g_idx = torch.full((expected.shape[1],), -1, dtype=torch.int32)
    weight = quant.compressed_tensors.unpack(**tensors, weight_g_idx=g_idx)
    assert weight.g_idx is None
    assert torch.equal(weight.dequantize(torch.float32), expected)


def test_nf4_as_bitsandbytes_writes_it():
    tensors, expected = recorded("nf4")
    weight = quant.Nf4Weight.quantize(tensors["weight"], block_size=64)
    assert torch.equal(weight.packed, tensors["packed"])
    assert torch.equal(weight.absmax, tensors["absmax"])
    torch.testing.assert_close(weight.dequantize(torch.float32), expected, rtol=2**-23, atol=0)
    assert weight.n_bytes == 24 * 128 // 2 + 4 * 48


@pytest.mark.parametrize("shape", [(3, 5), (7, 64), (1, 1)])
def test_nf4_with_a_short_last_block(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = quant.Nf4Weight.quantize(values, block_size=32)
    error = (weight.dequantize() - values).abs()
    widest = float((quant.nf4.LEVELS[1:] - quant.nf4.LEVELS[:-1]).max()) / 2
    assert (error <= widest * values.abs().max() + 1e-6).all()
    again = quant.Nf4Weight.quantize(weight.dequantize(torch.float32), block_size=32)
    assert torch.equal(again.packed, weight.packed)


@pairwise
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("rows", [8, 24, 64])
def test_round_trips(rows, group_size, zeros, act_order):
    weight = plain(rows, 256, group_size, zeros, act_order)
    layout = pk.Int4Weight.from_plain(weight)
    assert quant.equal(layout.plain(), weight)
    assert torch.equal(layout.dequantize(), weight.dequantize())
    for version in (1, 2):
        tensors = quant.gptq.pack(weight, version)
        assert quant.equal(quant.gptq.unpack(**tensors, version=version), weight)
    assert quant.equal(quant.compressed_tensors.unpack(**quant.compressed_tensors.pack(weight)), weight)
    if weight.g_idx is None:
        assert quant.equal(quant.awq.unpack(**quant.awq.pack(weight)), weight)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_last_group_that_is_short(zeros):
    weight = plain(16, 88, 32, zeros)
    tensors = quant.gptq.pack(weight, 2)
    with pytest.raises(ValueError, match="group_size must be given: 88 columns are not 3 equal groups"):
        quant.gptq.unpack(**tensors, version=2)
    assert quant.equal(quant.gptq.unpack(**tensors, version=2, group_size=32), weight)
    tensors = quant.compressed_tensors.pack(weight)
    assert quant.equal(quant.compressed_tensors.unpack(**tensors, group_size=32), weight)


def test_every_nibble_of_the_layout_by_hand():
    # Element e of a row's eighth block of eight is the nibble of its word that docs/int4.md draws.
    q = torch.zeros(1, 64, dtype=torch.uint8)
    for element, nibble in enumerate((0, 4, 1, 5, 2, 6, 3, 7)):
        q.zero_()
        q[0, 56 + element] = 9
        layout = pk.Int4Weight.from_plain(quant.QuantizedWeight(q, torch.ones(1, 2), None, 32))
        words = layout.packed.view(torch.int32)[0]
        assert int(words[7]) & 0xFFFFFFFF == 9 << 4 * nibble
        assert not words[:7].any()


def test_a_shift_and_a_mask_give_a_pair():
    weight = plain(8, 64, 32)
    words = pk.Int4Weight.from_plain(weight).packed.view(torch.int32).long()
    for i in range(4):
        pair = words >> 4 * i & 0x000F000F
        assert torch.equal(pair & 15, weight.q[:, 2 * i :: 8].long())
        assert torch.equal(pair >> 16, weight.q[:, 2 * i + 1 :: 8].long())


def test_act_order_sorts_columns_by_group():
    weight = plain(8, 128, 32, act_order=True)
    layout = pk.Int4Weight.from_plain(weight)
    assert torch.equal(weight.g_idx[layout.perm.long()], torch.arange(128, dtype=torch.int32) // 32)
    x = torch.randn(128, dtype=torch.float64)
    in_order = pk.Int4Weight(layout.packed, layout.scales, layout.zeros)
    torch.testing.assert_close(in_order.dequantize() @ x[layout.perm.long()], weight.dequantize() @ x)


def test_scales_of_another_type():
    weight = plain()
    layout = pk.Int4Weight.from_plain(weight, torch.bfloat16)
    assert layout.dtype == torch.bfloat16
    assert torch.equal(layout.scales, weight.scales.bfloat16())
    assert torch.equal(layout.to(torch.float32).scales, layout.scales.float())


@pairwise
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_to_nearest_errs_by_half_a_step(dtype, group_size, symmetric):
    values = (torch.randn(16, 384, generator=torch.Generator().manual_seed(1)) * 0.05).to(dtype)
    weight = quant.round_to_nearest(values, group_size, symmetric)
    assert weight.scales.dtype == dtype
    steps = weight.scales.double().repeat_interleave(weight.group_size, 1)
    # Half a step, and what rounding the scale moved the far end of the range by.
    slack = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.08}[dtype]
    assert ((weight.dequantize() - values.double()).abs() <= (0.5 + slack) * steps).all()
    assert (weight.zeros is None) == symmetric


@pytest.mark.parametrize("symmetric", [False, True])
def test_round_to_nearest_of_zeros_and_of_one_sign(symmetric):
    values = torch.zeros(2, 64)
    values[1] = torch.linspace(1, 3, 64)
    weight = quant.round_to_nearest(values, 32, symmetric)
    assert not weight.dequantize()[0].any()
    assert (weight.scales[0] == 0).all()
    if not symmetric:
        assert (weight.zeros[1] == 0).all()  # the range reaches down to 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weight=torch.ones(4)), r"weight must be of shape \[out_features, in_features\], got \[4\]"),
        (dict(group_size=48), r"group_size must divide in_features \(64\), got 48"),
        (dict(group_size=0), r"group_size must be -1 \(the whole row\) or at least 1, got 0"),
        (dict(dtype=torch.float64), "dtype must be float16, bfloat16 or float32, got float64"),
        (dict(weight=torch.full((2, 64), 1e6), dtype=torch.float16), "weight must be finite .* within float16"),
        (dict(weight=torch.full((2, 64), float("nan"))), "weight must be finite"),
    ],
)
def test_round_to_nearest_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        quant.round_to_nearest(**dict(weight=torch.ones(2, 64), group_size=32) | changes)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: quant.gptq.pack(plain(), 3), "version must be 1 or 2, got 3"),
        (lambda: quant.gptq.pack(plain(20), 2), "out_features must be a multiple of 8 for GPTQ, got 20"),
        (lambda: quant.gptq.pack(plain(8, 60, 60), 2), "in_features must be a multiple of 8 for GPTQ, got 60"),
        (lambda: quant.awq.pack(plain(20)), "out_features must be a multiple of 8 for AWQ, got 20"),
        (lambda: quant.awq.pack(plain(act_order=True)), "g_idx must be absent for AWQ"),
        (lambda: quant.awq.pack(plain(8, 88, 32)), r"group_size must divide in_features \(88\) for AWQ, got 32"),
        (lambda: pk.Int4Weight.from_plain(plain(8, 88, 88)), "in_features must be a multiple of 32, got 88"),
        (lambda: pk.Int4Weight.from_plain(plain(8, 192, 96)), "group_size must be 32, 64, .* got 96"),
        (lambda: pk.Int4Weight.from_plain(plain(8, 160, 64)), "group_size must be .* divide in_features, got 64"),
        (lambda: quant.QuantizedWeight(torch.zeros(2, 8), torch.ones(2, 1), None, 8), "q must be uint8, got float32"),
        (
            lambda: quant.QuantizedWeight(torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 2), None, 8),
            r"scales must be of shape \[2, 1\], got \[2, 2\]",
        ),
        (
            lambda: quant.QuantizedWeight(torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 1), None, 9),
            r"group_size must be in 1\.\.8 \(in_features\), got 9",
        ),
        (
            lambda: pk.Int4Weight(torch.zeros(2, 32, dtype=torch.uint8), torch.ones(2, 3)),
            r"scales must be of shape \[2, groups that divide 64\], got \[2, 3\]",
        ),
        (lambda: pk.Int4Weight(torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 1)), "multiple of 32, got 16"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_act_order_with_uneven_groups():
    weight = plain(8, 128, 32, act_order=True)
    weight.g_idx[:3] = 0
    weight.g_idx[3:6] = 1
    with pytest.raises(ValueError, match=r"g_idx must give every group 32 columns, got \d+ in group 0"):
        pk.Int4Weight.from_plain(weight)
    assert quant.equal(quant.gptq.unpack(**quant.gptq.pack(weight, 2), version=2), weight)


def test_no_groups_at_all():
    empty = {"qzeros": torch.zeros(0, 1, dtype=torch.int32), "scales": torch.zeros(0, 8, dtype=torch.float16)}
    with pytest.raises(ValueError, match="group_size must be given: 64 columns are not 0 equal groups"):
        quant.gptq.unpack(torch.zeros(8, 8, dtype=torch.int32), **empty, version=2)
    with pytest.raises(ValueError, match="scales must have a number of rows that divides 64"):
        quant.awq.unpack(torch.zeros(64, 1, dtype=torch.int32), **empty)


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales", "g_idx"])
def test_gptq_refuses_what_does_not_fit(name):
    tensors = quant.gptq.pack(plain(), 2)
    tensors[name] = tensors[name][:-1]
    with pytest.raises(ValueError, match=r"(qweight|qzeros|scales|g_idx) must be of shape|group_size must be given"):
        quant.gptq.unpack(**tensors, version=2, group_size=64)
