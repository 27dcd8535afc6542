"""Kernels with in-kernel timestamps on the SIMT executor: the records of every block in order, results as without."""

import numpy as np
import pytest
import torch
from inputs import simt_gemv as gemv
from inputs import simt_gqa_decode as gqa
from inputs import simt_int4 as int4
from inputs.helpers import randn
from inputs.simt import device

from bench.inside import timestamps as stamps
from pykernels.timestamps import MISSING, POINTS

ALL = set(POINTS[1:])
OF_GEMV = ALL - {"first_scores", "combined"}


def run_rmsnorm(dev, x, weight, programmatic=False):
    out = dev.empty(*x.shape, dtype=x.dtype)
    dev.launch(
        "rmsnorm", programmatic, x=dev.to(x), weight=dev.to(weight), out=out, batch=x.shape[0], hidden=x.shape[1],
        eps=1e-6, dtype=x.dtype,
    )  # fmt: skip
    dev.synchronize()
    return out.clone()


def run_gqa(dev, given):
    out, _ = gqa.launch(dev, [dev.to(tensor) for tensor in given])
    dev.synchronize()
    return out.clone()


def int4_case(group_size, batch=2):
    x, weight = int4.gemv_inputs(batch, 768, 70, torch.bfloat16, group_size=group_size)
    return lambda dev: int4.run_gemv(dev, x, weight)


def gemv_case(batch, n_in, n_out):
    inputs = gemv.gemv_inputs(batch, n_in, n_out, torch.bfloat16)
    return lambda dev: gemv.run_gemv(dev, inputs, torch.bfloat16)


def gqa_case(lengths, max_len, heads, kv_heads):
    given = gqa.inputs(lengths, max_len, heads, kv_heads, 64, torch.bfloat16)
    return lambda dev: run_gqa(dev, given)


def rmsnorm_case(hidden):
    x, weight = (randn(*shape, dtype=torch.bfloat16, seed=len(shape)) for shape in ((3, hidden), (hidden,)))
    return lambda dev: run_rmsnorm(dev, x, weight)


CASES = {
    # The op, the points between start and end that its kernel has, and a run.
    "int4 in one phase": ("int4_gemv", OF_GEMV, int4_case(128)),
    "int4, the general kernel": ("int4_gemv", OF_GEMV, int4_case(32)),
    "int4, more warps than pieces": ("int4_gemv", OF_GEMV, int4_case(256, batch=1)),
    "GEMV": ("gemv", OF_GEMV, gemv_case(1, 1024, 64)),
    "GEMV of several": ("gemv", OF_GEMV, gemv_case(3, 520, 129)),
    "attention in clusters": ("gqa_decode", ALL, gqa_case([200], 256, 8, 2)),
    "attention, splits without clusters": ("gqa_decode", ALL, gqa_case([2100], 2112, 4, 1)),
    "attention of a short context": ("gqa_decode", ALL, gqa_case([1, 9], 64, 4, 2)),
    "rmsnorm": ("rmsnorm", {"first_copies", "producers_done", "end"}, rmsnorm_case(512)),
    "rmsnorm of any width": ("rmsnorm", {"producers_done", "end"}, rmsnorm_case(65)),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_a_record_of_the_first_and_the_last_warp_of_every_block(name, seed):
    op, points, run = CASES[name]
    with device(90, seed) as dev:
        expected = run(dev)
    with device(90, seed, timestamps=True) as dev:
        with dev.kernel_timestamps(1000) as found:
            recorded = run(dev)
        unrecorded = run(dev)
    assert torch.equal(recorded, expected) and torch.equal(unrecorded, expected)

    records = found.records
    assert found.lost == 0
    assert {found.kernels[kernel] for kernel in records["kernel"]} == {op}
    assert len(set(records["blocks"])) == 1
    last_warp = records["warp"].max()
    warps = sorted(zip(records["block"].tolist(), records["warp"].tolist(), strict=True))
    assert last_warp > 0
    assert warps == [(block, warp) for block in range(records["blocks"][0]) for warp in (0, last_warp)]
    assert (records["sm"] == records["block"] % 4).all()
    for index, point in enumerate(POINTS[1:]):
        assert ((records["ticks"][:, index] != MISSING) == (point in points)).all(), point
    there = records["ticks"][:, [point in points for point in POINTS[1:]]].astype(np.int64)
    assert (np.diff(there, prepend=0, axis=1) > 0).all()
    # One clock for all here, a tick a nanosecond.
    assert (records["start_ticks"] + records["ticks"][:, -1] < records["end_ns"]).all()


def test_places_run_out():
    _, _, run = CASES["GEMV"]
    with device(90) as dev:
        expected = run(dev)
    with device(90, timestamps=True) as dev:
        with dev.kernel_timestamps(5) as found:
            assert torch.equal(run(dev), expected)
        assert (len(found.records), found.lost) == (5, 3)
        with dev.kernel_timestamps(8) as found:
            assert torch.equal(run(dev), expected)
        assert (len(found.records), found.lost) == (8, 0)


def test_two_recordings_at_once():
    with (
        device(90, timestamps=True) as dev,
        dev.kernel_timestamps(1),
        pytest.raises(RuntimeError, match="being recorded already"),
        dev.kernel_timestamps(1),
    ):
        pass


@pytest.mark.parametrize("seed", range(6))
def test_launches_one_after_another(seed):
    """A chain of PDL launches, whose blocks overlap: records lie launch by launch."""
    dtype, layers, replays = torch.bfloat16, 2, 3
    x, norm = randn(1, 512, dtype=dtype), randn(512, dtype=dtype, seed=1)
    wide, narrow = randn(96, 512, dtype=dtype, seed=2), randn(512, 96, dtype=dtype, seed=3)
    chain = [("rmsnorm", "norm"), ("gemv", "up"), ("gemv", "down")]
    with device(90, seed, timestamps=True) as dev:
        a, normed, b = dev.to(x), dev.empty(1, 512, dtype=dtype), dev.empty(1, 96, dtype=dtype)
        norm, wide, narrow = dev.to(norm), dev.to(wide), dev.to(narrow)
        with dev.kernel_timestamps(10_000) as found:
            for _ in range(layers * replays):
                dev.launch("rmsnorm", True, x=a, weight=norm, out=normed, batch=1, hidden=512, eps=1e-6, dtype=dtype)
                for source, weight, to in ((normed, wide, b), (b, narrow, a)):
                    dev.launch(
                        "gemv", True, x=source, weight=weight, out=to, batch=1, in_features=weight.shape[1],
                        out_features=weight.shape[0], dtype=dtype,
                    )  # fmt: skip
            dev.synchronize()
    summed = stamps.inside(found.records, found.kernels, chain, layers)
    assert (summed["replays"], summed["replays_left_out"]) == (replays, 0)
    assert summed["sm_mhz"]["median"] == pytest.approx(1000, rel=0.01)
    norm_entry, up, down = summed["kernels"]
    assert (norm_entry["blocks"], norm_entry["sms"]) == (1, 1)
    assert (up["blocks"], up["sms"], down["sms"]) == (4, 4, 4)
    assert norm_entry["points"]["streamed_us"] is None and up["points"]["streamed_us"]["mean"] > 0
    for entry in summed["kernels"]:
        passed = sum(time["mean"] for time in entry["points"].values() if time)
        assert passed == pytest.approx(entry["inside_us"]["mean"])
