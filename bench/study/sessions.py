"""Statistics over sessions: what N fresh processes say of two arms, and what that means for a registered claim."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from bench.core.errors import UsageError
from bench.core.spread import Spread, spread
from bench.core.toml_file import read_toml

DEFAULT_THRESHOLDS = Path(__file__).parent / "thresholds.toml"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One registered threshold; the file says what its fields mean."""

    name: str
    claim: str
    expectation: Literal["above", "below", "differs"]
    threshold: Annotated[float, msgspec.Meta(ge=1, le=1e6)]
    min_sessions: Annotated[int, msgspec.Meta(ge=1)]
    wrong: Literal["most", "any"] | None = None
    gpu: str | None = None
    ctx: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] | None = None

    def matches(self, device: str, ctx: int) -> bool:
        """Is it registered for this device and context?"""
        named = self.gpu is None or re.search(rf"\b{re.escape(self.gpu)}\b", device) is not None
        return named and (self.ctx is None or ctx in self.ctx)


class _Rules(msgspec.Struct, forbid_unknown_fields=True):
    rule: Annotated[list[Rule], msgspec.Meta(min_length=1)]


def load_rules(path: Path) -> tuple[list[Rule], str]:
    """The rules of a thresholds file and its SHA-256. Raises UsageError, one line, where it is none."""
    rules, content = read_toml(path, _Rules, "a thresholds file")
    for rule in rules.rule:
        if rule.expectation != "differs" and rule.wrong is None:
            raise UsageError(f"{path}: wrong must be most or any ({rule.name}), got None")
    return rules.rule, hashlib.sha256(content).hexdigest()


def choose_rule(rules: Sequence[Rule], name: str, device: str, ctx: int) -> Rule:
    """The rule of that name, or (where it is empty) the first that matches. Raises UsageError where there is none."""
    for rule in rules:
        if rule.name == name if name else rule.matches(device, ctx):
            return rule
    allowed = ", ".join(rule.name for rule in rules)
    raise UsageError(f"--rule={name}: must be one of {allowed}" if name else f"no rule matches {device} at ctx {ctx}")


def judge(rule: Rule, speedups: Sequence[float], found: Spread) -> tuple[str, str]:
    """supported, refuted or undecided, and why, in words."""
    n = len(speedups)
    interval = f"{found.low:.3f} to {found.high:.3f}"
    if n < rule.min_sessions:
        return "undecided", f"{n} finished sessions, the rule asks for {rule.min_sessions}"
    if rule.expectation == "differs":
        low, high = 1 / rule.threshold, rule.threshold
        if found.high < low or found.low > high:
            return "supported", f"the interval {interval} lies outside {low:.3f} to {high:.3f}"
        if low <= found.low and found.high <= high:
            return "refuted", f"the interval {interval} lies inside {low:.3f} to {high:.3f}: no effect"
        return "undecided", f"the interval {interval} crosses a limit of {low:.3f} to {high:.3f}"
    above = rule.expectation == "above"
    wrong = sum((speedup < rule.threshold) if above else (speedup > rule.threshold) for speedup in speedups)
    if wrong > n / 2 if rule.wrong == "most" else wrong > 0:
        return "refuted", f"{wrong} of {n} sessions lie on the wrong side of {rule.threshold:g}"
    if found.low > rule.threshold if above else found.high < rule.threshold:
        return "supported", f"the interval {interval} lies {rule.expectation} {rule.threshold:g}"
    return "undecided", f"the interval {interval} holds {rule.threshold:g}"


def analyse(a_us: Sequence[float], b_us: Sequence[float], rule: Rule) -> dict[str, object]:
    """The whole of it: per-session medians of both arms (microseconds, paired) to a verdict.

    Returns the keys `a`, `b`, `speedup` (A / B, a :class:`Spread` each), `verdict` and `because`. With no session at
    all the spreads are None.
    """
    if not len(a_us):
        return {"a": None, "b": None, "speedup": None, "verdict": "undecided", "because": "no session finished"}
    a, b = np.asarray(a_us, dtype=np.float64), np.asarray(b_us, dtype=np.float64)
    speedups = a / b
    found = spread(speedups)
    verdict, because = judge(rule, speedups.tolist(), found)
    return {"a": vars(spread(a)), "b": vars(spread(b)), "speedup": vars(found), "verdict": verdict, "because": because}
