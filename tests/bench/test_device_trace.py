"""The device's clock from kernel intervals: steps by count and by name, and traces that do not fit."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import pykernels as pk
from bench.core import device_trace
from bench.core.measure import Arm
from pykernels.trace import Call, Kernel


def kernel(begin_us: float, end_us: float, name: str = "k", correlation: int = 0) -> Kernel:
    return Kernel(name, int(1000 * begin_us), int(1000 * end_us), 0, 7, correlation, 0, (1, 1, 1), (32, 1, 1), 32, 0, 0)


def call(begin_us: float, end_us: float, correlation: int = 0, name: str = "cudaLaunchKernel") -> Call:
    return Call(name, int(1000 * begin_us), int(1000 * end_us), correlation, 1, False)


@pytest.fixture
def tracing(monkeypatch):
    """A trace that holds what is put into its list."""
    kernels: list = []

    @contextmanager
    def cuda_trace():
        trace = SimpleNamespace(kernels=[], calls=[])
        yield trace
        trace.kernels = list(kernels)

    monkeypatch.setattr(pk.runtime, "cuda_trace", cuda_trace, raising=False)
    monkeypatch.setattr(pk.runtime, "trace_reason", lambda: None, raising=False)
    return kernels


def steps(count: int, overlap: float = 0.0):
    """Steps of two kernels, 10 and 20 us, 2 us apart; the next step begins `overlap` before the last has ended."""
    for step in range(count):
        begin = step * (34 - overlap)
        yield kernel(begin, begin + 10, "a")
        yield kernel(begin + 12, begin + 32 + overlap, "b")


def test_steps_are_cut_by_count(tracing):
    tracing += reversed(list(steps(device_trace.SAMPLES * 3)))
    found = device_trace.traced(lambda n: np.full(n, 51.0), 34.0, repeats=3)
    assert found.samples_us.tolist() == [30.0] * (device_trace.SAMPLES - 1) * 3, "the first sample does not count"
    assert found.kernels == ["a", "b"] and found.trace_factor == 1.5
    assert found.kernel_us.tolist() == [[10.0, 20.0]] * (device_trace.SAMPLES - 1) * 3


def test_a_graph_s_kernels_overlap_across_its_steps(tracing):
    tracing += steps(device_trace.SAMPLES * 4, overlap=4.0)
    graph = device_trace.traced(lambda n: np.ones(n), 1.0, repeats=4, steps_per_graph=4)
    # Four steps of 30 us and the last one's overhang of 6, the gap of 2 in each left out.
    assert graph.samples_us.tolist() == [pytest.approx((4 * 30 + 6 - 4 * 2) / 4)] * (device_trace.SAMPLES - 1)
    assert len(graph.kernels) == 2 and graph.kernel_us.shape == ((device_trace.SAMPLES - 1) * 4, 2)


def test_a_trace_that_does_not_fit_is_refused_alone(tracing):
    tracing += list(steps(device_trace.SAMPLES))[:-1]
    arm = Arm("sdpa", "eager", sampler=lambda n: np.ones(n), samples_us=[1.0], kernels=["told"], launches=9)
    failed = Arm("native", "graph", status="wrong", reason="off")
    found, refused = device_trace.trace_arms([arm, failed], 1)
    assert found == {} and refused == {
        "sdpa:eager": "ValueError: kernels must be a multiple of 6 steps, at least one a step, got 11"
    }
    assert (arm.status, arm.kernels, arm.launches) == ("ok", ["told"], 9)


def test_an_error_without_words_is_refused_alone_too(tracing):
    def sampler(n: int):
        raise RuntimeError

    found, refused = device_trace.trace_arms([Arm("sdpa", "eager", sampler=sampler, samples_us=[1.0])], 1)
    assert found == {} and refused == {"sdpa:eager": "RuntimeError"}


def test_the_sample_that_is_kept():
    """Two steps of a longer trace: their launches, and what the host called between them, but nothing outside."""
    steps = [[kernel(100, 110, correlation=3)], [kernel(112, 120, correlation=5)]]
    inside = [call(20, 22, 3), call(24, 25, 4, "cudaEventRecord"), call(26, 30, 5), call(27, 29, 5, "cuLaunchKernel")]
    outside = [call(10, 12, 1), call(14, 15, 2), call(31, 32, 6), call(19, 40, 7, "cudaEventSynchronize")]
    sample = device_trace.sample_of(steps, [*outside, *inside])
    assert sample.steps == 2 and sample.kernels == [steps[0][0], steps[1][0]]
    assert sample.calls == inside
    assert device_trace.sample_of(steps, outside).calls == []


def test_steps_of_other_kernels_are_refused(tracing):
    tracing += list(steps(device_trace.SAMPLES))
    tracing[7] = replace(tracing[7], name="c")
    with pytest.raises(ValueError, match="kernel 1 of step 3 is 'c', and of step 0 'b'"):
        device_trace.traced(lambda n: np.ones(n), 1.0, repeats=1)


def test_a_build_without_the_trace_says_so(monkeypatch):
    monkeypatch.delattr(pk.runtime, "trace_reason", raising=False)
    arm = Arm("native", "eager", sampler=lambda n: np.ones(n), samples_us=[1.0])
    assert device_trace.trace_arms([arm], 1) == ({}, {"native:eager": "this build has no CUPTI trace"})
