"""Blocks of due steps: the loop that is timed, free of torch, so that a test can drive it by a clock of its own.

A step is due at a time, whoever is late. Step i of a block is due at `first + i * period`, and its latency runs from
then until its last token is on the host: a step that begins late because the one before it was late is charged for it,
as in an open-loop load test. At rate 0 a step is due when the one before it is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

SECOND_NS = 1_000_000_000
LEAD_NS = 5_000_000
"""From the begin of a block to its first due time."""


class Clock(Protocol):
    """What pk.runtime has: monotonic_ns() and wait_until()."""

    def now_ns(self) -> int:
        """Nanoseconds of a clock that never goes back."""

    def wait_until(self, due_ns: int) -> int:
        """Return at `due_ns`, or at once where it is past; the clock's reading then."""


class Stepper(Protocol):
    """One arm: what it does for a step."""

    def prepare(self) -> None:
        """What must be done before the next step, outside of its latency."""

    def step(self) -> None:
        """Decode the tokens of one due time, until they are on the host."""


@dataclass
class Times:
    """Of the steps of one arm at one rate under one load, block after block; nanoseconds of the clock."""

    due_ns: list[int] = field(default_factory=list)
    begin_ns: list[int] = field(default_factory=list)
    end_ns: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Steps of each block."""

    def _first(self) -> np.ndarray:
        """Which steps open a block: bool [steps]."""
        opens = np.zeros(len(self.due_ns), dtype=bool)
        opens[np.cumsum([0, *self.blocks[:-1]])[: len(self.blocks)]] = True
        return opens

    def latencies_us(self, first: bool = False) -> np.ndarray:
        """From due to done: float64 [steps], of the steps that open a block, or of all others."""
        opens = self._first()
        us = (np.array(self.end_ns) - np.array(self.due_ns)) / 1000
        return us[opens if first else ~opens]

    def late_us(self) -> np.ndarray:
        """From due until the host was there to begin: float64 [steps], the opening ones left out. What a step before
        it made it wait for is in it."""
        return ((np.array(self.begin_ns) - np.array(self.due_ns)) / 1000)[~self._first()]

    def intervals_us(self) -> np.ndarray:
        """From one step's end to the next one's, within blocks: float64 [steps - blocks]."""
        ends = np.split(np.array(self.end_ns), np.cumsum(self.blocks)[:-1])
        return np.concatenate([np.diff(block) for block in ends]) / 1000 if self.blocks else np.array([])


def run_block(stepper: Stepper, clock: Clock, hz: float, seconds: float, times: Times) -> int:
    """One block of an arm: the steps that are due in `seconds` (at least 2), or back to back until they are over where
    hz is 0. Appends to `times`. Returns how long it took, nanoseconds, from its begin to its last step's end."""
    due_ns, begin_ns, end_ns = [], [], []
    start = clock.now_ns()
    if hz:
        period_ns, count = SECOND_NS / hz, max(round(seconds * hz), 2)
        first = start + LEAD_NS
        for index in range(count):
            stepper.prepare()
            due = first + round(index * period_ns)
            begin = clock.wait_until(due)
            stepper.step()
            end_ns.append(clock.now_ns())
            due_ns.append(due)
            begin_ns.append(begin)
    else:
        until = start + round(seconds * SECOND_NS)
        while len(end_ns) < 2 or end_ns[-1] < until:
            stepper.prepare()
            begin = clock.now_ns()
            stepper.step()
            end_ns.append(clock.now_ns())
            due_ns.append(begin)
            begin_ns.append(begin)
    times.due_ns += due_ns
    times.begin_ns += begin_ns
    times.end_ns += end_ns
    times.blocks.append(len(end_ns))
    return end_ns[-1] - start


def timer_error_us(clock: Clock, waits: int = 500, period_ns: int = 2_000_000) -> np.ndarray:
    """How late the clock ends its waits where nothing runs: float64 [waits], microseconds."""
    first = clock.now_ns() + period_ns
    dues = [first + index * period_ns for index in range(waits)]
    return np.array([clock.wait_until(due) - due for due in dues]) / 1000


def turns(arms: Sequence[str], blocks: int, run: Callable[[int, str], None]) -> None:
    """run(block, arm) for every block of every arm: arms alternate, every other time backwards, so that all of them
    see the same machine."""
    for block in range(blocks):
        for arm in arms if block % 2 == 0 else arms[::-1]:
            run(block, arm)
