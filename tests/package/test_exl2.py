"""EXL2: what its tensors say, bit by bit, which mixes it takes, and what it refuses."""

from dataclasses import replace

import pytest
import torch

import pykernels as pk
from pykernels.quant import Exl2Weight, exl2

WEIGHT = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("bits", exl2.BITS)
def test_values_lie_one_after_another_from_the_lowest_bit_on(bits):
    q = torch.randint(0, 1 << bits, (64, 3), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    words = exl2.pack_rows(q, bits)
    assert words.dtype == torch.int32 and words.shape == (2 * bits, 3)
    for column in range(3):
        stream = sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words[:, column]))
        assert stream == sum(int(value) << bits * i for i, value in enumerate(q[:, column]))
    assert torch.equal(exl2.unpack_rows(words, bits), q)


@pytest.mark.parametrize(
    "mix", [[(4, 256)], [(5, 64), (4, 192)], [(8, 32), (6, 32), (5, 64), (4, 64), (3, 32), (2, 32)]]
)
@pytest.mark.parametrize("group_size", [32, 96, 128])
def test_what_a_weight_says(mix, group_size):
    """Element by element, as the format's description reads, and within half a step of what was rounded."""
    weight = Exl2Weight.quantize(WEIGHT, mix, group_size)
    dense = weight.dequantize()
    assert dense.shape == WEIGHT.shape and dense.dtype == torch.float64
    perm = torch.argsort(weight.q_invperm)
    magnitudes = WEIGHT.abs().amax(0)[perm]
    assert bool((magnitudes.diff() <= 0).all())
    row = 0
    for group, (bits, begin, end) in enumerate(weight.groups()):
        rows = (end - begin) * 32 // bits
        assert rows <= group_size
        q = exl2.unpack_rows(weight.q_weight[begin:end], bits)
        for column in (0, 7, 8, 15):
            root = (int(weight.q_scale[group, column // 8]) >> 4 * (column % 8) & 15) + 1
            scale = (torch.tensor(float(root**2)).half() * (weight.q_scale_max[group] / 256)).double()
            expected = (q[:, column].double() - 2 ** (bits - 1)) * scale
            got, was = (of[column, perm[row : row + rows]] for of in (dense, WEIGHT.double()))
            assert torch.equal(got, expected)
            assert bool(((got - was).abs() <= scale * 0.51).all())
        row += rows
    assert row == 256


@pytest.mark.parametrize(
    ("bits_a_weight", "in_features", "out_features"), [(4.25, 3584, 18944), (4.25, 18944, 3584), (3.0, 4096, 4096)]
)
def test_a_mix_of_so_many_bits(bits_a_weight, in_features, out_features):
    mix = exl2.mix_of(bits_a_weight, in_features, out_features)
    exl2.check_mix(mix, in_features)
    groups = in_features // 128
    bits = sum(width * rows for width, rows in mix) * out_features + groups * (4 * out_features + 48) + 32 * in_features
    assert abs(bits / in_features / out_features - bits_a_weight) <= 0.5 / groups


def test_the_bytes_of_a_mix():
    weight = Exl2Weight.quantize(WEIGHT, [(5, 128), (4, 128)])
    assert 8 * weight.n_bytes == 16 * 128 * 9 + 2 * (16 * 4 + 48) + 32 * 256


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ([(5, 64), (4, 128)], "mix does not add up: 64 rows of 5 bits, 128 rows of 4 bits are 192, in_features is 256"),
        ([], "mix does not add up: nothing are 0, in_features is 256"),
        (
            [(4, 64), (5, 192)],
            "mix must have each width once, most bits first, got 64 rows of 4 bits, 192 rows of 5 bits",
        ),
        ([(7, 256)], "mix must be of 2, 3, 4, 5, 6, 8 bits, got 7"),
        ([(5, 48), (4, 208)], "mix must have multiples of 32 rows, got 48"),
    ],
)
def test_mixes_that_do_not_fit(mix, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        Exl2Weight.quantize(WEIGHT, mix)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(bits_a_weight=1.5), "bits_a_weight must be 2.0"), (dict(bits_a_weight=9), "to 8.0"),
        (dict(group_size=48), "group_size must be a multiple of 32 that divides in_features \\(256\\), got 48"),
    ],
)  # fmt: skip
def test_bits_that_no_mix_has(given, words):
    with pytest.raises(ValueError, match=words):
        exl2.mix_of(**dict(bits_a_weight=4.25, in_features=256, out_features=1024) | given)


def test_tensors_that_do_not_fit():
    weight = Exl2Weight.quantize(WEIGHT, [(5, 128), (4, 128)])
    for name, other, words in (
        ("q_weight", weight.q_weight[:-1], "whole blocks"),
        ("q_weight", weight.q_weight[:-4], "mix does not add up: 128 rows of 5 bits, 96 rows of 4 bits are 224"),
        ("q_groups", weight.q_groups.flip(0), "whole blocks"),
        ("q_scale_max", weight.q_scale_max.float(), "q_scale_max must be float16, got float32"),
        ("q_invperm", weight.q_invperm[:-32], "does not add up"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            replace(weight, **{name: other})
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="a multiple of 8"):
        Exl2Weight.quantize(WEIGHT[:12], [(4, 256)])


def test_it_is_one_of_the_package():
    assert pk.quant.Exl2Weight is Exl2Weight
