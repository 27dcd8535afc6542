"""The variant of the CUDA int4 GEMV in which pairs of blocks share the rows of a long weight, on the SIMT executor."""

import pytest
import torch
from inputs.helpers import assert_close, randn
from inputs.int4_weights import int4
from inputs.simt import device
from inputs.simt_int4 import gemv_inputs, run_gemv
from torch import Tensor

import pykernels as pk

LONG = 4608
"""Columns: more than the 4,096 from which x is long, and 9 K tiles for each of two blocks."""


@pytest.fixture(autouse=True)
def split(monkeypatch):
    monkeypatch.setenv("PYKERNELS_INT4_VARIANT", "split")


@pytest.mark.parametrize(
    ("n_in", "n_out", "batch", "group_size", "symmetric", "dtype"),
    [
        (LONG, 1, 1, 128, True, torch.bfloat16), (LONG, 7, 4, -1, False, torch.bfloat16),
        (LONG, 18, 3, 256, True, torch.float16), (5120, 9, 2, 128, False, torch.float16),
    ],
)  # fmt: skip
def test_two_blocks_a_row(n_in, n_out, batch, group_size, symmetric, dtype):
    x, weight = gemv_inputs(batch, n_in, n_out, dtype, group_size=group_size, symmetric=symmetric)
    bias, residual = randn(n_out, dtype=dtype, seed=2), randn(batch, n_out, dtype=dtype, seed=3)
    with device(90, seed=batch) as dev:
        out = run_gemv(dev, x, weight, bias, residual, programmatic=batch % 2 == 0)
    assert_close(out, pk.reference.int4_gemv(x, weight, bias, residual), dtype)


def test_rows_of_two_tiles():
    x, weight = gemv_inputs(1, LONG, 530, torch.bfloat16, symmetric=False)
    with device(90) as dev:
        out = run_gemv(dev, x, weight)
    assert_close(out, pk.reference.int4_gemv(x, weight), torch.bfloat16)


def test_the_same_bits_in_any_order_and_under_any_launch():
    x, weight = gemv_inputs(1, LONG, 18, torch.float16, symmetric=False)
    outs = []
    for seed in range(2):
        with device(90, seed) as dev:
            outs.append(run_gemv(dev, x, weight, programmatic=seed == 1))
    assert torch.equal(*outs)


def test_the_default_is_another_kernel(monkeypatch):
    """What is left of the float32 sums behind their first 11 bits: sums of halves of rows round otherwise."""
    x, weight = gemv_inputs(1, LONG, 18, torch.float16)
    with device(90) as dev:
        rounded = run_gemv(dev, x, weight)
    left = []
    for variant in ("split", ""):
        monkeypatch.setenv("PYKERNELS_INT4_VARIANT", variant)
        with device(90) as dev:
            left.append(run_gemv(dev, x, weight, residual=-rounded))
    assert not torch.equal(*left)
    assert bool(((left[0] - left[1]).abs() <= 2.0**-18 * x.abs().sum() * weight.scales.max()).all())


def test_errs_no_more_than_dequantising_first():
    """Root mean square error against the reference, beside that of a float32 product with the dequantised weight."""
    dtype = torch.bfloat16
    weight, x = int4(24, LONG, 128, False, dtype), randn(4, LONG, dtype=dtype)
    expected = pk.reference.int4_gemv(x, weight)

    def error(out: Tensor) -> float:
        return float((out.double() - expected).square().mean().sqrt())

    with device(90) as dev:
        ours = error(run_gemv(dev, x, weight))
    assert ours <= 1.05 * error((x.float() @ weight.dequantize(torch.float32).T).to(dtype))
