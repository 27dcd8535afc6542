"""Unions and steps of intervals, against a count of every nanosecond."""

import random
from types import SimpleNamespace

import pytest

from bench.core.intervals import merged, split_steps, union_ns


@pytest.mark.parametrize("seed", range(200))
def test_union_against_every_nanosecond(seed):
    generator = random.Random(seed)
    intervals = []
    for _ in range(generator.randrange(12)):
        start = generator.randrange(60)
        intervals.append((start, start + generator.choice((0, 1, 2, 5, 20))))
    busy = {time for start, end in intervals for time in range(start, end)}
    assert union_ns(intervals) == len(busy)
    assert {time for start, end in merged(intervals) for time in range(start, end)} == busy
    found = merged(intervals)
    assert all(start < end for start, end in found)
    assert all(before[1] < after[0] for before, after in zip(found, found[1:], strict=False))


def test_nanoseconds_of_today_are_exact():
    start = 1_800_000_000_000_000_001
    assert union_ns([(start, start + 1), (start + 2, start + 5)]) == 4


def test_an_interval_that_ends_before_it_starts():
    for function in (merged, union_ns):
        with pytest.raises(ValueError, match=r"^an interval must end after its start, got 5\.\.4 ns$"):
            function([(1, 2), (5, 4)])


def named(names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=name, number=number) for number, name in enumerate(names)]


@pytest.mark.parametrize(("names", "steps"), [("abab", 2), ("abaaba", 2), ("aaaa", 4), ("abc", 1), ("aaaa", 2)])
def test_split_steps(names, steps):
    cut = split_steps(named(names), steps)
    assert len(cut) == steps and {len(step) for step in cut} == {len(names) // steps}
    assert [kernel.number for step in cut for kernel in step] == list(range(len(names)))


@pytest.mark.parametrize(
    ("names", "steps", "message"),
    [
        ("ababac", 3, "kernels must repeat from step to step: kernel 1 of step 2 is 'c', and of step 0 'b'"),
        ("abba", 2, "kernels must repeat from step to step: kernel 0 of step 1 is 'b', and of step 0 'a'"),
        ("aba", 2, "kernels must be a multiple of 2 steps, at least one a step, got 3"),
        ("", 2, "kernels must be a multiple of 2 steps, at least one a step, got 0"),
        ("ab", 0, "steps must be at least 1, got 0"),
    ],
)
def test_steps_that_do_not_repeat(names, steps, message):
    with pytest.raises(ValueError) as raised:
        split_steps(named(names), steps)
    assert str(raised.value) == message
