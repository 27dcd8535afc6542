"""NVTX ranges of the harness carry the arm: backend, fusion and mode."""

import numpy as np

from bench.core import measure
from bench.core.measure import Arm
from pykernels import ranges


class Domain:
    """A stand-in for nvtx's, where a tool listens."""

    def __init__(self) -> None:
        self.open, self.seen = [], []

    def get_event_attributes(self, message: str) -> str:
        return message

    def push_range(self, name: str) -> None:
        self.open.append(name)

    def pop_range(self) -> None:
        self.open.pop()


def test_an_arm_s_samples_lie_in_a_range_of_its_label(monkeypatch):
    domain = Domain()
    monkeypatch.setattr(ranges, "_domain", domain)
    monkeypatch.setattr(ranges.nvtx, "Domain", Domain)

    def sampler(n: int) -> np.ndarray:
        domain.seen.append(list(domain.open))
        return np.ones(n)

    arm = Arm("native", "graph-pdl", "block", sampler=sampler, host_sampler=sampler)
    assert measure.alternate([arm], 1, 2)
    assert domain.seen == [["native/block:graph-pdl"]] * 3 and domain.open == []
    domain.seen.clear()
    measure.measure_host([arm], 1, 2)
    assert domain.seen == [["native/block:graph-pdl host"]] * 2


def test_a_sampler_that_raises_leaves_no_range_open(monkeypatch):
    domain = Domain()
    monkeypatch.setattr(ranges, "_domain", domain)
    monkeypatch.setattr(ranges.nvtx, "Domain", Domain)

    def sampler(n: int) -> np.ndarray:
        raise RuntimeError("no")

    arm = Arm("sdpa", "native", sampler=sampler)
    measure.alternate([arm], 1, 1)
    assert arm.status == "error" and domain.open == []


def test_without_a_tool_there_is_no_range():
    with ranges.named("sdpa:native"):
        pass
