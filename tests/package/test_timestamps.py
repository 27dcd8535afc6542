"""In-kernel timestamps summed up: known intervals in, the exact table out."""

import msgspec
import numpy as np
import pytest
from inputs.timestamp_records import TICKS_PER_US, Records

import pykernels as pk
from bench.core.schema.machine import InsideKernel
from bench.inside import timestamps as stamps
from pykernels.timestamps import RECORD

LAYER = [("qkv_gemv", "qkv"), ("gqa_decode", "attention"), ("gemv", "o"), ("gemv", "down")]
KERNELS = ["gemv", "qkv_gemv", "rmsnorm", "gqa_decode"]
# Of each op: when it passes its points, after the layer's begin. The second starts before the first has ended.
PASSED = {
    "qkv": [0.0, 1.0, 1.5, 3.5, None, 9.0, None, 10.0],
    "attention": [8.0, 9.0, 10.5, 11.0, 12.0, 14.0, 15.5, 16.0],
    "o": [17.0, None, 18.0, None, None, None, None, 20.0],
    "down": [20.0, 20.5, 22.0, 23.0, None, 28.0, None, 29.0],
}
LAYER_US = 30.0
N_SMS = 6


def recording(layers=2, replays=8, sms_of=None, **options) -> Records:
    made = Records(KERNELS)
    for index in range(replays * layers):
        # A replay begins 40 us after the end of the one before.
        begin = LAYER_US * index + 40.0 * (index // layers)
        for op, label in LAYER:
            passed = [None if us is None else begin + us for us in PASSED[label]]
            made.launch(op, passed, (sms_of or {}).get(label, range(N_SMS)), **options)
    return made


def summed(records, layers=2, kernels=KERNELS) -> dict:
    return stamps.inside(records, kernels, LAYER, layers)


def means(entry: dict) -> dict[str, float | None]:
    times = {"gap": entry["gap_us"], **entry["points"], "inside": entry["inside_us"]}
    return {name.removesuffix("_us"): time and pytest.approx(time["mean"], abs=1e-3) for name, time in times.items()}


_NONE = dict.fromkeys(("first_copies", "x_ready", "first_scores", "streamed", "combined"))
EXPECTED = {
    "qkv": _NONE | dict(gap=1.0, first_copies=1.0, producers_done=0.5, x_ready=2.0, streamed=5.5, end=1.0, inside=10.0),
    "attention": dict(
        gap=-2.0, first_copies=1.0, producers_done=1.5, x_ready=0.5, first_scores=1.0, streamed=2.0, combined=1.5,
        end=0.5, inside=8.0,
    ),
    "o": _NONE | dict(gap=1.0, producers_done=1.0, end=2.0, inside=3.0),
    "down": _NONE | dict(gap=0.0, first_copies=0.5, producers_done=1.5, x_ready=1.0, streamed=5.0, end=1.0, inside=9.0),
}  # fmt: skip


def test_every_interval_comes_out():
    found = summed(recording().array())
    assert [(entry["op"], entry["label"]) for entry in found["kernels"]] == LAYER
    for entry in found["kernels"]:
        assert means(entry) == EXPECTED[entry["label"]]
        assert (entry["blocks"], entry["sms"]) == (N_SMS, N_SMS)
    assert (found["replays"], found["replays_left_out"], found["sms"]) == (8, 0, N_SMS)
    clock = found["sm_mhz"]
    assert clock["low"] == pytest.approx(TICKS_PER_US, rel=1e-4) == clock["median"] == clock["high"]


def test_points_that_a_kernel_does_not_have_are_in_the_schema():
    kernels = summed(recording().array())["kernels"]
    assert any(None in entry["points"].values() for entry in kernels)
    msgspec.convert(kernels, list[InsideKernel])


def test_what_the_kernels_add_is_the_chain():
    """From the start of a replay to its end, on every SM: two layers less the rest of the second."""
    found = summed(recording().array())
    assert found["accounted_us"] == pytest.approx((2 * LAYER_US - 1.0) / 2, abs=1e-3)
    # The first op of a replay has no gap: in the other layer it adds 11 us.
    assert [entry["adds_us"] for entry in found["kernels"]] == pytest.approx([10.5, 6.0, 4.0, 9.0], abs=1e-3)
    assert found["kernels"][0]["gap_us"]["n"] == 8 * N_SMS
    assert found["kernels"][1]["gap_us"]["n"] == 2 * 8 * N_SMS


def test_an_sm_passes_a_point_when_its_last_warp_does():
    found = summed(recording(late_us=0.25).array())
    qkv, attention = found["kernels"][:2]
    assert means(qkv) == EXPECTED["qkv"] | dict(first_copies=1.25, gap=0.75, inside=10.25)
    assert means(attention)["gap"] == -2.25


def test_records_of_a_launch_come_in_any_order():
    expected = summed(recording().array())
    assert summed(recording(rng=np.random.default_rng(1)).array()) == expected


def test_blocks_of_one_warp():
    found = summed(recording(warps=(0,)).array())
    assert [means(entry) for entry in found["kernels"]] == list(EXPECTED.values())


def test_an_sm_without_a_block():
    """Attention on two SMs of six: the others wait in the gap of the op behind it, and the sum stays the chain's."""
    found = summed(recording(sms_of={"attention": [1, 4]}).array())
    attention, o = found["kernels"][1:3]
    assert (attention["blocks"], attention["sms"]) == (2, 2)
    assert means(attention) == EXPECTED["attention"]
    assert attention["inside_us"]["n"] == 2 * 8 * 2
    assert attention["adds_us"] == pytest.approx(6.0 * 2 / 6, abs=1e-3)
    assert o["gap_us"]["mean"] == pytest.approx((1.0 * 2 + 7.0 * 4) / 6, abs=1e-3)
    assert found["accounted_us"] == pytest.approx((2 * LAYER_US - 1.0) / 2, abs=1e-3)


def test_several_blocks_on_an_sm():
    """The SM starts with its first and ends with its last."""
    made = Records(["add"])
    for index in range(200):
        begin = 3.0 * index
        made.launch("add", [begin, None, begin + 0.5, None, None, None, None, begin + 1.0], [0, 1, 0, 0])
    (entry,) = stamps.inside(made.array(), made.kernels, [("add", "residual")], 4)["kernels"]
    assert (entry["blocks"], entry["sms"]) == (4, 2)
    assert entry["inside_us"]["mean"] == pytest.approx(1.0, abs=1e-3)
    assert entry["gap_us"]["mean"] == pytest.approx(2.0, abs=1e-3)


def test_launches_of_one_op_with_other_numbers_of_blocks_and_warps():
    """o and down are both gemv; neither the number of blocks nor that of warps tells them apart in every layer."""
    assert summed(recording(sms_of={"o": range(3)}).array())["kernels"][3]["blocks"] == N_SMS
    made = Records(["gemv"])
    for index in range(400):
        begin = 10.0 * index
        made.launch("gemv", [begin, None, begin, *[None] * 4, begin + 1.0], range(4), warps=(0, 15))
        made.launch("gemv", [begin + 2, None, begin + 2, *[None] * 4, begin + 5.0], range(4), warps=(0, 7))
    o, down = stamps.inside(made.array(), made.kernels, [("gemv", "o"), ("gemv", "down")], 2)["kernels"]
    assert o["inside_us"]["mean"] == pytest.approx(1.0, abs=1e-3)
    assert down["inside_us"]["mean"] == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("places", [1000, 777, 768, 100])
def test_overflow(places):
    """A replay takes 2 x 4 x 6 x 2 = 96 records; those behind the last whole one do not count."""
    records = recording(replays=8).array()
    assert len(records) == 768
    found = summed(records[:places])
    assert found["replays"] == min(places, 768) // 96
    assert found["replays_left_out"] == (1 if places % 96 and places < 768 else 0)
    assert [means(entry) for entry in found["kernels"]] == list(EXPECTED.values())


@pytest.mark.parametrize("lost", [0, 11, 12, 3 * 96 + 95])
def test_records_that_are_not_there_are_noticed(lost):
    """Only the latest can be missing: else what follows would be taken for another launch's."""
    with pytest.raises(ValueError, match="has not the records of its blocks"):
        summed(np.delete(recording(replays=8).array(), lost))


def test_no_whole_replay():
    with pytest.raises(ValueError, match=r"no replay of 2 x 4 kernels was recorded whole, of 1 begun"):
        summed(recording().array()[:95])


def test_nothing_recorded():
    with pytest.raises(ValueError, match="recorded whole, of 0 begun"):
        summed(np.empty(0, RECORD))


def test_a_kernel_missing():
    made = Records(KERNELS)
    for _ in range(4):
        made.launch("qkv_gemv", PASSED["qkv"], range(2))
        made.launch("gemv", PASSED["o"], range(2))
    with pytest.raises(ValueError, match="launch 1 that was recorded is of gemv, and the layer's is of gqa_decode"):
        summed(made.array())


def test_a_recording_too_short_to_tell_the_clock():
    with pytest.raises(ValueError, match="spans less than 100 us"):
        summed(recording(layers=2, replays=1).array())


def test_clocks_differ_from_sm_to_sm():
    records = recording().array()
    slow = records["sm"] == 3
    base = records["start_ticks"][slow].min()
    records["start_ticks"][slow] = base + (records["start_ticks"][slow] - base) * 9 // 10
    there = records["ticks"] != 0xFFFFFFFF
    records["ticks"] = np.where(slow[:, None] & there, records["ticks"] * 9 // 10, records["ticks"])
    clock = summed(records)["sm_mhz"]
    assert clock["low"] == pytest.approx(0.9 * TICKS_PER_US, rel=1e-3)
    assert clock["median"] == clock["high"] == pytest.approx(TICKS_PER_US, rel=1e-3)


def test_a_build_without_stamps_says_how_to_get_them():
    if pk.runtime.build_info()["timestamps"]:
        pytest.skip("this build has them")
    assert pk.runtime.timestamps_reason() == (
        "this build has no in-kernel timestamps: CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build"
    )
    with pytest.raises(RuntimeError, match="CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON"), pk.runtime.kernel_timestamps(0, 10):
        pass
