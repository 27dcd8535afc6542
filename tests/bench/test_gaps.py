"""The gaps of a traced step and their causes, on recorded traces whose every gap is known."""

import numpy as np
import pytest

from bench.core import gaps, tables
from bench.core.device_trace import Sample, Traced
from bench.core.measure import Arm
from pykernels.trace import Call, Kernel


def kernel(name: str, start_us: float, end_us: float, correlation: int) -> Kernel:
    start, end = round(1000 * start_us), round(1000 * end_us)
    return Kernel(name, start, end, 0, 7, correlation, 0, (1, 1, 1), (32, 1, 1), 32, 0, 0)


def call(correlation: int, start_us: float, end_us: float, name: str = "cudaLaunchKernel") -> Call:
    return Call(name, round(1000 * start_us), round(1000 * end_us), correlation, 1, False)


def only(sample: Sample) -> list[tuple[str, float, float, float, float]]:
    return [(g.before, g.host, g.front_end, g.copy, g.overlap) for g in gaps.gaps_of(sample)]


def test_every_cause():
    kernels = [
        kernel("a", 10, 20, 1), kernel("b", 23, 30, 2), kernel("c", 29, 40, 3), kernel("[memset]", 42, 43, 4),
        kernel("d", 47, 50, 5),
    ]  # fmt: skip
    # b's call returned 2 us after a had ended; c's, memset's and d's long before.
    calls = [call(1, 0, 1), call(2, 21, 22), call(3, 22, 23), call(4, 23, 24, "cudaMemsetAsync"), call(5, 24, 25)]
    found = only(Sample(1, kernels, calls))
    assert found == [
        ("a", 0, 0, 0, 0), ("b", 2, 1, 0, 0), ("c", 0, 0, 0, 1), ("[memset]", 0, 0, 2, 0), ("d", 0, 0, 4, 0)
    ]  # fmt: skip


def test_a_call_that_returns_after_the_kernel_began_is_late_for_the_gap_alone():
    found = only(Sample(1, [kernel("a", 0, 10, 1), kernel("b", 13, 20, 2)], [call(1, 0, 1), call(2, 12, 30)]))
    assert found[1] == ("b", 3, 0, 0, 0)


def test_the_driver_s_call_inside_the_runtime_s_counts_once():
    calls = [call(1, 0, 1), call(2, 8, 12), Call("cuLaunchKernel", 9_000, 11_000, 2, 1, True)]
    found = only(Sample(1, [kernel("a", 0, 10, 1), kernel("b", 13, 20, 2)], calls))
    assert found[1] == ("b", 2, 1, 0, 0)


def test_a_graph_s_replay_is_late_for_its_first_kernel_alone():
    kernels = [kernel("a", 0, 5, 1), kernel("b", 6, 10, 1), kernel("a", 15, 20, 2), kernel("b", 21, 25, 2)]
    calls = [call(1, -5, -1, "cudaGraphLaunch"), call(2, 10, 13, "cudaGraphLaunch")]
    assert only(Sample(2, kernels, calls)) == [("a", 3, 2, 0, 0), ("b", 0, 1, 0, 0)]


def test_a_kernel_within_another_s_time_moves_no_end():
    kernels = [kernel("a", 0, 100, 1), kernel("b", 10, 20, 2), kernel("c", 101, 110, 3)]
    found = only(Sample(1, kernels, [call(i, -1, 0) for i in (1, 2, 3)]))
    assert found == [("a", 0, 0, 0, 0), ("b", 0, 0, 0, 90), ("c", 0, 1, 0, 0)]


def test_the_mean_over_the_steps():
    kernels = [kernel("a", 0, 1, 1), kernel("a", 3, 4, 2), kernel("a", 8, 9, 3)]
    (gap,) = gaps.gaps_of(Sample(3, kernels, [call(i, -1, 0) for i in (1, 2, 3)]))
    assert gap.us == gap.front_end == 3  # of 2 and 4; the first has nothing before it


def test_half_a_step_is_none():
    with pytest.raises(ValueError, match="whole steps, got 3 kernels of 2 steps"):
        gaps.gaps_of(Sample(2, [kernel("a", i, i + 0.5, i) for i in range(3)], []))


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_add_up_to_wall_less_busy(seed):
    generator = np.random.default_rng(seed)
    kernels, at = [], 0.0
    for i in range(40):
        start = at + generator.uniform(-0.5, 3)
        at = start + generator.uniform(1, 5)
        kernels.append(kernel(f"k{i % 10}", start, at, i))
    calls = [call(k.correlation, k.start_ns / 1000 - 2, k.start_ns / 1000 - 0.1) for k in kernels]
    arm = Arm("sdpa", "graph", samples_us=generator.uniform(40, 42, 31).tolist())
    traced = Traced(
        generator.uniform(30, 31, 5), [f"k{i}" for i in range(10)], np.zeros((4, 10)), 1.0, Sample(4, kernels, calls)
    )
    found = gaps.documents([arm, Arm("sdpa", "eager")], {arm.label: traced})
    (document,) = found.values()
    rows, causes = document["rows"], ("host_us", "front_end_us", "copy_us")
    assert len(rows) == 10 and all(row["us"] == pytest.approx(sum(row[c] for c in causes)) for row in rows)
    assert sum(document[c] for c in causes) + document["untraced_us"] == document["sum_us"]
    assert document["sum_us"] == pytest.approx(np.median(arm.samples_us) - np.median(traced.samples_us), abs=2e-6)
    assert sum(row["us"] for row in rows) == pytest.approx(sum(document[c] for c in causes), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("void at::native::(anonymous namespace)::softmax<float>(float*)", "at::native::softmax<float>"),
        ("pykernels::cuda::(anonymous namespace)::rmsnorm_kernel(int)", "pykernels::cuda::rmsnorm_kernel"),
        ("triton_red_fused_0", "triton_red_fused_0"),
        ("[memset]", "[memset]"),
    ],
)
def test_names_of_kernels_in_tables(name, words):
    assert tables.kernel_words(name) == words
