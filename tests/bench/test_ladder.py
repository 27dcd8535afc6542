"""The ladder: its parts, their order, their signs, and that they add up exactly."""

import itertools
import math

import numpy as np
import pytest

from bench.core import ladder, statistics

BYTES = 466_115_072
READ_GBS, SPEC_GBS = 100.0, 150.0
# Clocks of a layer in microseconds, from counts of nanoseconds as perf_counter_ns gives them.
MEDIANS_US = {"eager": 6200.123, "dispatch": 6100.457, "native": 5900.789}
AVAILABLE = [
    ("eager", *rest) for n in range(3) for rest in itertools.combinations(("dispatch", "native"), n)
]  # eager is the chain's top: it is always there


def samples(median: float, seed: int = 0, rounds: int = 31) -> np.ndarray:
    """Noise whose median is exactly `median`."""
    noise = np.sort(np.random.default_rng(seed).standard_normal(rounds))
    values = median * (1 + 0.01 * (noise - noise[rounds // 2]))
    return np.random.default_rng(seed + 1).permutation(values)


def make(modes=tuple(MEDIANS_US), spec_gbs: float | None = SPEC_GBS, **changed: float):
    """The ladder of those modes, as parts by name, and the note."""
    clocks = {mode: samples({**MEDIANS_US, **changed}[mode], seed) for seed, mode in enumerate(modes)}
    parts, note = ladder.ladder(clocks, samples(READ_GBS, 9), BYTES, spec_gbs)
    return parts, note


def by_name(parts: list[ladder.Part]) -> dict[str, float]:
    """Microseconds of every part."""
    return {part.part: part.us for part in parts}


@pytest.mark.parametrize("spec_gbs", [SPEC_GBS, 80.0, None])
@pytest.mark.parametrize("modes", AVAILABLE, ids="+".join)
@pytest.mark.parametrize("seed", range(5))
def test_parts_add_up_to_eager_exactly(modes, spec_gbs, seed):
    generator = np.random.default_rng(seed)
    clocks = {mode: generator.integers(10**3, 10**10, 30) / 1000 for mode in modes}
    parts, _ = ladder.ladder(clocks, generator.uniform(1, 5000, 30), BYTES, spec_gbs)
    eager = float(np.median(clocks["eager"]))
    for order in (parts, parts[::-1], sorted(parts, key=lambda part: part.us)):
        assert sum(part.us for part in order) == ladder.on_grid(eager)
    # The grid is finer than the clocks: half a nanosecond is the least that medians of theirs differ by.
    assert abs(ladder.on_grid(eager) - eager) <= 2**-21
    assert f"{ladder.on_grid(eager):.4f}" == f"{eager:.4f}"


@pytest.mark.parametrize("us", [0.0, 1.0, 123.5, 2.0**31, 1e6 + 2**-20])
def test_what_lies_on_the_grid_stays(us):
    assert ladder.on_grid(us) == us
    assert ladder.on_grid(us + 2**-22) == us


@pytest.mark.parametrize(
    ("modes", "names"),
    [
        (("eager", "dispatch", "native"), ["python", "dispatch", "kernel", "ceiling", "floor"]),
        (("eager", "dispatch"), ["python", "kernel", "ceiling", "floor"]),
        (("eager", "native"), ["python", "kernel", "ceiling", "floor"]),
        (("eager",), ["kernel", "ceiling", "floor"]),
    ],
    ids=str,
)
def test_names_and_order(modes, names):
    assert [part.part for part in make(modes)[0]] == names
    assert [part.part for part in make(modes, None)[0]] == [name for name in names if name != "ceiling"]
    # The order is the chain's, not that in which the clocks were given.
    assert make(modes[::-1])[0][0].part == names[0]


def test_each_part_is_what_it_says():
    parts = by_name(make()[0])
    assert parts == pytest.approx(
        {
            "python": 6200.123 - 6100.457,
            "dispatch": 6100.457 - 5900.789,
            "kernel": 5900.789 - 4661.15072,
            "ceiling": 4661.15072 - 466_115.072 / 150,
            "floor": 466_115.072 / 150,
        },
        abs=1e-5,
    )


def test_what_is_missing_stays_in_the_next_part():
    full, no_dispatch, no_native = (
        by_name(make(modes)[0]) for modes in (MEDIANS_US, ("eager", "native"), ("eager", "dispatch"))
    )
    assert no_dispatch["python"] == full["python"] + full["dispatch"]
    assert no_dispatch["kernel"] == full["kernel"]
    assert no_native["kernel"] == full["kernel"] + full["dispatch"]
    assert no_native["python"] == full["python"]
    only = by_name(make(("eager",))[0])
    assert only["kernel"] == full["python"] + full["dispatch"] + full["kernel"]


@pytest.mark.parametrize(
    ("modes", "spec_gbs", "words"),
    [
        (("eager", "dispatch", "native"), SPEC_GBS, []),
        (("eager", "native"), SPEC_GBS, ["python includes the dispatcher's share"]),
        (("eager", "dispatch"), SPEC_GBS, ["kernel includes the dispatcher's share"]),
        (("eager",), SPEC_GBS, ["kernel includes Python's and the dispatcher's shares"]),
        (("eager", "dispatch", "native"), None, ["floor is at the measured read bandwidth"]),
        (("eager",), None, ["kernel includes Python's", "floor is at the measured read bandwidth"]),
    ],
)
def test_the_note_says_what_could_not_be_told_apart(modes, spec_gbs, words):
    _, note = make(modes, spec_gbs)
    assert len(note.splitlines()) == bool(words)
    assert len([part for part in note.split("; ") if part]) == len(words)
    for word in words:
        assert word in note


def test_other_modes_take_no_part():
    clocks = {mode: samples(median, seed) for seed, (mode, median) in enumerate(MEDIANS_US.items())}
    read = samples(READ_GBS, 9)
    extended = clocks | {"pybind": samples(1.0), "graph": samples(2.0)}
    assert ladder.ladder(extended, read, BYTES, SPEC_GBS) == ladder.ladder(clocks, read, BYTES, SPEC_GBS)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (dict(dispatch=6300.0), "python"),
        (dict(native=6150.0), "dispatch"),
        (dict(native=4000.0), "kernel"),
        (dict(spec_gbs=60.0), "ceiling"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_are_signed(changed, part):
    parts, _ = make(**changed)
    us = by_name(parts)
    assert us[part] < 0
    assert sum(us.values()) == ladder.on_grid(6200.123)


@pytest.mark.parametrize("spec_gbs", [SPEC_GBS, None])
@pytest.mark.parametrize("modes", AVAILABLE, ids="+".join)
def test_every_part_lies_within_its_interval(modes, spec_gbs):
    parts, _ = make(modes, spec_gbs)
    for part in parts:
        assert part.low <= part.us <= part.high, part
        assert (part.low == part.high) == (part.part == "floor" and spec_gbs is not None), part
        assert math.isfinite(part.low) and math.isfinite(part.high)


def test_differences_are_paired_by_round():
    eager, dispatch = samples(6200.0, 0), samples(6100.0, 1)
    mood = 500 * np.random.default_rng(3).standard_normal(31)
    parts, _ = ladder.ladder({"eager": eager + mood, "dispatch": eager - 100 + mood}, samples(READ_GBS), BYTES, None)
    assert (parts[0].low, parts[0].high) == pytest.approx((100.0, 100.0))
    parts, _ = ladder.ladder({"eager": eager, "dispatch": dispatch}, samples(READ_GBS), BYTES, None)
    assert (parts[0].low, parts[0].high) == statistics.difference_interval(eager, dispatch)


CUDA_US = {"eager": 210.0, "dispatch": 190.5, "native": 130.25, "graph": 100.75, "device": 92.5}
PARTS = ["python", "dispatch", "launch", "gap", "kernel", "ceiling", "floor"]
CUDA_BYTES = 400_000_000


def on_gpu(clocks=tuple(CUDA_US), host_us=None, spec_gbs=4800.0, device_samples=31):
    """The ladder of those clocks on a GPU of 4,400 GB/s."""
    taken = {
        clock: samples(CUDA_US[clock], seed, device_samples if clock == "device" else 31)
        for seed, clock in enumerate(clocks)
    }
    read = samples(4400.0, 9)
    return ladder.ladder(taken, read, CUDA_BYTES, spec_gbs, ladder.CUDA_CHAIN, host_us)


def test_the_parts_on_a_gpu():
    parts, note = on_gpu()
    assert [part.part for part in parts] == PARTS and note == ""
    us = by_name(parts)
    assert (us["python"], us["dispatch"], us["launch"], us["gap"]) == (19.5, 60.25, 29.5, 8.25)
    assert us["kernel"] == pytest.approx(92.5 - 400_000 / 4400, abs=1e-5)
    assert sum(us.values()) == 210.0
    assert not any(part.hidden for part in parts)


@pytest.mark.parametrize(
    ("clocks", "names", "words"),
    [
        (("eager", "dispatch", "graph", "device"), ["python", "launch", "gap", "kernel"],
         "launch includes the dispatcher's share: there is no native arm"),
        (("eager", "graph"), ["launch", "kernel"],
         "launch includes Python's and the dispatcher's shares: there is no dispatch and no native arm; "
         "kernel includes the gaps' share: no kernel was traced"),
        (("eager", "dispatch", "native", "device"), ["python", "dispatch", "gap", "kernel"],
         "gap includes the launches' share: there is no graph arm"),
        (("eager", "native", "graph", "device"), ["framework", "launch", "gap", "kernel"],
         "framework is Python and the dispatcher together: there is no dispatch arm"),
        (("eager",), ["kernel"], "kernel includes Python's, the dispatcher's, the launches' and the gaps' shares"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_clocks_that_a_gpu_s_ladder_lacks(clocks, names, words):
    parts, note = on_gpu(clocks)
    assert [part.part for part in parts] == [*names, "ceiling", "floor"]
    assert sum(part.us for part in parts) == 210.0
    assert note.startswith(words)


@pytest.mark.parametrize(
    ("host_us", "clocks", "hidden"),
    [
        ({"eager": 200.0, "dispatch": 90.0, "native": 31.0, "graph": 3.0}, tuple(CUDA_US), ["dispatch", "launch"]),
        ({"eager": 90.0}, tuple(CUDA_US), ["python"]),
        ({"eager": 90.0, "native": 31.0}, ("eager", "native", "graph", "device"), ["framework", "launch"]),
        ({"graph": 3.0, "device": 1.0}, tuple(CUDA_US), []),
        ({"eager": 95.0, "dispatch": 92.0}, ("eager", "dispatch", "device"), []),
        ({"eager": 1.0}, ("eager", "dispatch"), []),
    ],
    ids=str,
)
def test_what_the_device_hides(host_us, clocks, hidden):
    parts, _ = on_gpu(clocks, host_us)
    assert [part.part for part in parts if part.hidden] == hidden


def test_the_device_s_samples_are_resampled_on_their_own():
    parts, _ = on_gpu(device_samples=7)
    gap = next(part for part in parts if part.part == "gap")
    graph, device = samples(CUDA_US["graph"], 3), samples(CUDA_US["device"], 4, 7)
    assert (gap.low, gap.high) == statistics.difference_interval(graph, device, paired=False)
    assert gap.low < gap.us < gap.high
    # Every sample of both counts: cut to the shorter, the interval is another.
    assert (gap.low, gap.high) != statistics.difference_interval(graph[:7], device, paired=False)
