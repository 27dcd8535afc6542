"""When the rounds of a run may end before --steps of them: the medians are sure enough, or time is up.

@dataclass(kw_only=True)
class Settings(StopFlags): ...      # --stop-noise=0.5% and --max-seconds=20 beside --steps
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import typer

from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import Flags
from bench.core.measure import Arm, Sampler

LEAST_ROUNDS = 10
"""Fewer say nothing of how sure a median is."""


def noise_of(samples_us: np.ndarray) -> float:
    """Half the width of the median's 95% interval as a share of the median, by order statistics: no distribution is
    assumed."""
    ordered = np.sort(samples_us)
    reach = 1.96 * math.sqrt(len(ordered)) / 2
    low, high = math.floor(len(ordered) / 2 - reach), math.ceil(len(ordered) / 2 + reach)
    low, high = max(low, 0), min(high, len(ordered) - 1)
    return float((ordered[high] - ordered[low]) / 2 / np.median(ordered))


def parse_noise(flag: str, text: str) -> float | None:
    """`0.5%` or `0.005` as a share; None where it is empty."""
    if not text:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise flag_error(flag, text, "a share of the median in 0..1, or in per cent: 0.5%")
    return share


def _noise(text: str) -> str:
    parse_noise("--stop-noise", text)
    return text


def _max_seconds(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise flag_error("--max-seconds", value, "a positive number of seconds, or 0 for any")
    return value


@dataclass
class StopRule:
    """noise: the largest noise_of() that any arm may have; seconds: what the rounds may take. None: not asked about.
    `why` says what ended the rounds, None where all of them were taken."""

    noise: float | None = None
    seconds: float | None = None
    why: str | None = None
    rounds: int = 0
    _began: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        """The rounds begin."""
        self._began, self.why, self.rounds = time.monotonic(), None, 0

    def reached(self, arms: Sequence[Arm], rounds: int) -> bool:
        """May they end after so many rounds of those arms?"""
        return self.reached_by([np.array(a.samples_us) for a in arms if a.status == "ok" and a.samples_us], rounds)

    def reached_by(self, samples_us: Sequence[np.ndarray], rounds: int) -> bool:
        """The same of samples, those of each arm that has any."""
        self.rounds = rounds
        if self.seconds is not None and time.monotonic() - self._began >= self.seconds:
            self.why = "seconds"
        elif self.noise is not None and rounds >= LEAST_ROUNDS and samples_us:
            self.why = "noise" if max(map(noise_of, samples_us)) <= self.noise else None
        return self.why is not None

    def document(self) -> Document:
        """The key `stop` of a document; nothing where no rule was given."""
        if self.noise is None and self.seconds is None:
            return {}
        return {"stop": {"noise": self.noise, "seconds": self.seconds, "why": self.why, "rounds": self.rounds}}


def take(sampler: Sampler, most: int, rule: StopRule, chunk: int = LEAST_ROUNDS) -> np.ndarray:
    """Samples of one sampler alone, `chunk` at a time, until the rule is reached or `most` are taken: float64
    [samples], microseconds."""
    if rule.noise is None and rule.seconds is None:
        return sampler(most)  # in one go, as it is without a rule
    rule.begin()
    taken = np.empty(0)
    while len(taken) < most:
        taken = np.concatenate([taken, sampler(min(chunk, most - len(taken)))])
        if rule.reached_by([taken], len(taken)):
            break
    return taken


@dataclass(kw_only=True)
class StopFlags(Flags):
    """The flags of a driver whose rounds may end early."""

    stop_noise: Annotated[
        str,
        typer.Option(
            "--stop-noise",
            help="end the rounds, after ten, when every median's 95% interval is within such a share, as 0.5%: "
            "--steps are the most then",
            callback=_noise,
        ),
    ] = ""
    max_seconds: Annotated[
        float,
        typer.Option(
            "--max-seconds", help="end the rounds after this time, of a group of arms; 0: any", callback=_max_seconds
        ),
    ] = 0.0

    def stop_rule(self) -> StopRule:
        """The rule that the flags give."""
        return StopRule(parse_noise("--stop-noise", self.stop_noise), self.max_seconds or None)
