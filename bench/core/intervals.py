"""Intervals of time on the device: how long it was busy, and a trace cut into its steps.

An interval is (start_ns, end_ns), integers, half open. Intervals may overlap and come in any order.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Interval = tuple[int, int]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Kernel = TypeVar("Kernel", bound=_Named)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union as disjoint intervals in order; those that touch are one, and those of no length count nothing.

    Raises ValueError where one ends before it starts.
    """
    union: list[Interval] = []
    for start_ns, end_ns in sorted(intervals):
        if end_ns < start_ns:
            raise ValueError(f"an interval must end after its start, got {start_ns}..{end_ns} ns")
        if end_ns == start_ns:
            continue
        if union and start_ns <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end_ns))
        else:
            union.append((start_ns, end_ns))
    return union


def union_ns(intervals: Iterable[Interval]) -> int:
    """Length of the union, nanoseconds: what the device clock reads, however kernels overlap."""
    return sum(end_ns - start_ns for start_ns, end_ns in merged(intervals))


def split_steps(kernels: Sequence[Kernel], steps: int) -> list[list[Kernel]]:
    """Cut a trace's kernels, in order of their start, into `steps` lists of equal length.

    Raises ValueError, naming the index, where the count is no multiple of `steps` or where the names of a step are not
    those of the first: the cut would then be between the wrong kernels.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    count, rest = divmod(len(kernels), steps)
    if rest or not count:
        raise ValueError(f"kernels must be a multiple of {steps} steps, at least one a step, got {len(kernels)}")
    cut = [list(kernels[i * count : (i + 1) * count]) for i in range(steps)]
    for i, step in enumerate(cut):
        for j, (kernel, first) in enumerate(zip(step, cut[0], strict=True)):
            if kernel.name != first.name:
                raise ValueError(
                    f"kernels must repeat from step to step: kernel {j} of step {i} is {kernel.name!r}, "
                    f"and of step 0 {first.name!r}"
                )
    return cut
