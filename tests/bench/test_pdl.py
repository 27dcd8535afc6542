"""Programmatic edges: what each gains, on recorded traces."""

import pytest

from bench.launch import pdl
from pykernels.trace import Kernel


def trace(times: list[tuple[str, float, float]], steps: int, period: float) -> list[list[Kernel]]:
    """Those kernels (name, start, end in us) every `period`."""
    return [
        [
            Kernel(name, round(1000 * (start + s * period)), round(1000 * (end + s * period)), 0, 7, s, 0, (1, 1, 1),
                   (32, 1, 1), 32, 0, 0)
            for name, start, end in times
        ]
        for s in range(steps)
    ]  # fmt: skip


PLAIN = trace([("a", 0, 10), ("b", 11, 20), ("c", 21, 30)], 4, 31)
# b starts inside a and ends a microsecond earlier; c's attribute changes nothing; a's edge is plain.
CHAINED = trace([("a", 0, 10), ("b", 8, 19), ("c", 20, 29)], 4, 30)


def test_what_each_edge_gains():
    found = pdl.edges(PLAIN, CHAINED, [False, True, True], [9.0, 2.0, 0.0])
    assert [(e["from"], e["to"]) for e in found] == [("c", "a"), ("a", "b"), ("b", "c")]
    assert [e["verdict"] for e in found] == ["a plain edge", "gains", "gains nothing"]
    assert [e["overlap_us"] for e in found] == pytest.approx([-1, 2, -1])
    assert [e["gain_us"] for e in found] == pytest.approx([0, 1, 0])
    assert [e["gain_alone_us"] for e in found] == [None, 2.0, 0.0]
    # The gains are those of the step: it took 31 us, and takes 30.
    assert sum(e["gain_us"] for e in found) == pytest.approx(1)


def test_gains_add_up_over_the_step():
    other = trace([("a", 0, 12), ("b", 8, 19), ("c", 18, 28)], 4, 29.5)
    found = pdl.edges(PLAIN, other, [True, True, True], [0.0] * 3)
    assert sum(e["gain_us"] for e in found) == pytest.approx(31 - 29.5)


def test_the_advance_is_from_end_to_end():
    overlaps, advances = pdl.advances_us(PLAIN)
    assert overlaps == pytest.approx([-1, -1, -1]) and advances == pytest.approx([11, 10, 10])
