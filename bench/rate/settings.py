"""The flags of bench.rate, and what they come to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import typer

from bench.backends.steps import arms as step_arms
from bench.backends.steps.settings import StepModelSettings
from bench.core import cli, shards
from bench.core.errors import flag_error
from bench.core.output_flags import OutputFlags
from bench.rate import load

GPU_ARMS = "sdpa:eager,transformers:eager,sdpa:graph,native/block:eager,native/block:graph,native/block:graph-pdl"
CPU_ARMS = "sdpa:eager,native/block:eager,native/block:native"
INT4_GPU_ARMS = (
    "sdpa:eager,sdpa:graph,native-dense/block:graph-pdl,native/block:eager,native/block:graph,native/block:graph-pdl"
)
"""Over 4-bit weights: native's steps, and 16-bit ones on the same weights dequantised beside them."""
DEFAULT_HZ = "0,10,30,100"
WINDOW = 32
"""Positions that steps go through from --ctx on, again and again, so that every rate sees the same work: the cache
would grow by as many slots as there are steps."""
MAX_HZ = 10_000
MAX_BURST = 256
SECOND_NAME = "@2"
"""Behind the name of an arm of --aa, which is measured under both."""


@dataclass(kw_only=True)
class Settings(StepModelSettings, OutputFlags):
    """The flags of one run."""

    arm: Annotated[
        str, typer.Option("--arm", help="comma-separated backend[/fusion]:mode. Default: six arms on a GPU, three else")
    ] = ""
    aa: Annotated[str, typer.Option("--aa", help="one of --arm, measured under a second name too")] = ""
    hz: Annotated[str, typer.Option("--hz", help="steps due a second, comma-separated; 0: back to back")] = (
        "0,10,30,100"
    )
    seconds: Annotated[
        str, typer.Option("--seconds", help="of every arm at every rate; or one for each of --hz, comma-separated")
    ] = "15"
    blocks: Annotated[int, typer.Option("--blocks", help="turns that those seconds are divided into")] = 4
    idle_s: Annotated[float, typer.Option("--idle-s", help="without work before every block, seconds")] = 0.5
    burst: Annotated[int, typer.Option("--burst", help="tokens a due time: an action chunk")] = 1
    deadline_ms: Annotated[float, typer.Option("--deadline-ms", help="of a step's latency; 0: its period")] = 0.0
    load: Annotated[
        str, typer.Option("--load", help="none, cpu:N (busy host threads), copy (host to device); comma-separated")
    ] = "none"
    shard: shards.ShardFlag = ""

    @cached_property
    def arms(self) -> list[tuple[str, str | None, str]]:
        """(backend, fusion, mode), in the order of the tables."""
        on_cuda = (INT4_GPU_ARMS if self.four_bit else GPU_ARMS) if self.target.type == "cuda" else CPU_ARMS
        text = self.arm or on_cuda
        return step_arms.parse_arms("--arm", text, self.target)

    @cached_property
    def twice(self) -> tuple[str, str | None, str] | None:
        """The arm of --aa."""
        if not self.aa:
            return None
        parsed = step_arms.parse_arm("--aa", self.aa)
        if parsed not in self.arms:
            raise flag_error("--aa", self.aa, "one of the arms that are measured (--arm)")
        return parsed

    @cached_property
    def rates(self) -> list[float]:
        """--hz."""
        return list(dict.fromkeys(cli.numbers("--hz", self.hz, 0, MAX_HZ, float)))

    @cached_property
    def seconds_each(self) -> list[float]:
        """--seconds, one a rate."""
        found = cli.numbers("--seconds", self.seconds, 0.01, 86_400, float)
        if len(found) not in (1, len(self.rates)):
            raise flag_error("--seconds", self.seconds, f"one number, or one for each of the {len(self.rates)} of --hz")
        return found * len(self.rates) if len(found) == 1 else found

    @cached_property
    def loads(self) -> list[str]:
        """--load."""
        return load.parse("--load", self.load, self.target.type == "cuda")

    @cached_property
    def points(self) -> list[tuple[str, float, float]]:
        """(load, rate, seconds) of every cell of an arm, rates within loads; of --shard its share. The arms are not
        divided: they are compared within a process."""
        timed = list(zip(self.rates, self.seconds_each, strict=True))
        every, share = [(load, hz, seconds) for load in self.loads for hz, seconds in timed], shards.parse(self.shard)
        share.check(len(every))
        return share.of(every, lambda point: point[2])

    @property
    def positions(self) -> int:
        """The window, or as many as a burst takes."""
        return max(WINDOW, self.burst) + 1

    def beside_bytes(self) -> int:
        """One set of dequantised layers for the arms that multiply by those, and one of its own a 4-bit library."""
        if not self.four_bit:
            return 0
        known, layers = step_arms.backends(), 1 if self.shared_weights else self.spec.n_layers
        names = {name for name, _, _ in self.arms}
        dense = any(name != "native" and known[name].peer is None for name in names)
        peers = sum(known[name].peer is not None for name in names)
        return layers * (dense * self.layer_bytes(False) + peers * self.layer_bytes(True))

    def deadline_us(self, hz: float) -> float | None:
        """When a step at this rate is late: --deadline-ms, else its period; None back to back without a deadline."""
        if self.deadline_ms:
            return self.deadline_ms * 1000
        return 1e6 / hz if hz else None

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit."""
        cli.number("--burst", self.burst, 1, MAX_BURST)
        cli.number("--blocks", self.blocks, 1, 1000)
        if not 0 <= self.idle_s <= 60:
            raise flag_error("--idle-s", self.idle_s, "in 0..60")
        if not 0 <= self.deadline_ms <= 1e6:
            raise flag_error("--deadline-ms", self.deadline_ms, "in 0..1e+06; 0 is the period")
        self.check_model()
        step_arms.check_quantised("--arm", [name for name, _, _ in self.arms], self.four_bit)
        assert self.arms and self.points
        assert self.twice is None or self.twice
