"""The CUDA int4 GEMV of long rows, which pairs of blocks share, on the SIMT executor."""

import pytest
import torch
from inputs.helpers import assert_close, randn
from inputs.int4_weights import int4
from inputs.simt import STRUCTS, device
from inputs.simt_int4 import gemv_inputs, run_gemv
from torch import Tensor

import pykernels as pk

LONG = 12800
"""Columns: more than the 12,288 from which blocks share rows, and 25 K tiles for each of two."""


@pytest.mark.parametrize(
    ("n_in", "n_out", "batch", "group_size", "symmetric", "dtype"),
    [
        (LONG, 1, 1, 128, True, torch.bfloat16), (LONG, 7, 4, -1, False, torch.bfloat16),
        (LONG, 18, 3, 256, True, torch.float16), (12288, 9, 2, 128, False, torch.float16),
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


@pytest.mark.parametrize(("n_in", "shared"), [(12288, True), (11776, False)])
def test_from_how_many_columns_on(n_in, shared):
    """Beside the plan with the same warps and a block a row: sums of halves of rows round otherwise. That is seen in
    what is left of the float32 sums behind their first 11 bits."""
    x, weight = gemv_inputs(1, n_in, 18, torch.float16)
    sizes = dict(batch=1, in_features=n_in, out_features=18, dtype=torch.float16,
                 weight=STRUCTS["int4_weight"](n_groups=weight.n_groups))  # fmt: skip
    with device(90) as dev:
        rounded = run_gemv(dev, x, weight)
        left = [run_gemv(dev, x, weight, residual=-rounded)]
        with dev.choosing("int4_gemv", sizes, "fast", warps=8):
            left.append(run_gemv(dev, x, weight, residual=-rounded))
    assert torch.equal(*left) == (not shared)
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
