"""--shard=i/n: a run's parts divided among n machines that know nothing of one another.

Every machine works out the same division, so that a folder is all they share; a shard can be run again, later or
elsewhere. Shares are even by expected cost: the dearest part first, each to the shard that has least so far (longest
processing time first, Graham 1969).
"""

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import typer

from bench.core.errors import flag_error

Part = TypeVar("Part")

ShardFlag = Annotated[
    str,
    typer.Option(
        "--shard", help="i/n: the i-th of n shares alone, even by expected cost; i from 1. Array jobs, CI, containers"
    ),
]

_MOST = 10_000


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` shares."""

    index: int = 1
    count: int = 1

    @property
    def words(self) -> str:
        """i/n"""
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """For names of files that shares in one folder have each for themselves; empty of the whole."""
        return f"-{self.index}of{self.count}" if self.count > 1 else ""

    def check(self, parts: int, flag: str = "--shard") -> None:
        """Raise UsageError where there are fewer parts than shares: one of those would have nothing to do."""
        if self.count > parts:
            raise flag_error(flag, self.words, f"of {parts} shares at most: the run has so many parts")

    def of(self, parts: Sequence[Part], cost: Callable[[Part], float] = lambda part: 1.0) -> list[Part]:
        """This share of the parts, in their order. `cost` is what each is expected to take, in any unit."""
        loads = [(0.0, number) for number in range(self.count)]
        owned: set[int] = set()
        for position in sorted(range(len(parts)), key=lambda position: (-cost(parts[position]), position)):
            load, number = heapq.heappop(loads)
            heapq.heappush(loads, (load + cost(parts[position]), number))
            if number == self.index - 1:
                owned.add(position)
        return [part for position, part in enumerate(parts) if position in owned]


def parse(text: str, flag: str = "--shard") -> Shard:
    """The share that i/n names; of an empty text all there is. Raises UsageError."""
    if not text:
        return Shard()
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= _MOST:
        raise flag_error(flag, text, "i/n with i in 1..n, such as 2/4")
    return Shard(int(match[1]), int(match[2]))
