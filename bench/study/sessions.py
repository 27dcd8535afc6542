"""Statistics over sessions: what N fresh processes say of two arms, and what that means for a registered claim."""

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.errors import UsageError
from bench.core.files import read_file
from bench.core.spread import Spread, spread

DEFAULT_THRESHOLDS = Path(__file__).parent / "thresholds.toml"


@dataclass(frozen=True)
class Rule:
    """One registered threshold; the file says what its fields mean."""

    name: str
    claim: str
    expectation: str
    threshold: float
    min_sessions: int
    wrong: str | None = None
    gpu: str | None = None
    ctx: tuple[int, ...] | None = None

    def matches(self, device: str, ctx: int) -> bool:
        """Is it registered for this device and context?"""
        named = self.gpu is None or re.search(rf"\b{re.escape(self.gpu)}\b", device) is not None
        return named and (self.ctx is None or ctx in self.ctx)


def load_rules(path: Path) -> tuple[list[Rule], str]:
    """The rules of a thresholds file and its SHA-256. Raises UsageError, one line, where it is none."""
    try:
        content = read_file(path)
    except UsageError as error:
        raise UsageError(f"{path}: is not a thresholds file: {str(error).removeprefix(f'{path}: ')}") from None
    try:
        tables = tomllib.loads(content.decode())["rule"]
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
            raise ValueError("rule must be tables, [[rule]]")
        rules = [_rule(path, fields) for fields in tables]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: is not a thresholds file: {error}") from None
    return rules, hashlib.sha256(content).hexdigest()


def _rule(path: Path, fields: dict) -> Rule:
    ctx = fields.get("ctx")
    rule = Rule(**{**fields, "ctx": None if ctx is None else tuple(ctx)})
    for name in ("name", "claim", "expectation", "wrong", "gpu"):
        value = getattr(rule, name)
        if not isinstance(value, str) and (value is not None or name in ("name", "claim", "expectation")):
            raise UsageError(f"{path}: {name} must be a string, got {value!r}")
    for name, kinds, values in (
        ("threshold", (int, float), [rule.threshold]),
        ("min_sessions", (int,), [rule.min_sessions]),
        ("ctx", (int,), rule.ctx or ()),
    ):
        if not all(type(value) in kinds and 0 < value < float("inf") for value in values):
            numbers = "positive integers" if kinds == (int,) else "a positive number"
            raise UsageError(f"{path}: {name} must be {numbers}, got {fields[name]!r}")
    if rule.expectation not in ("above", "below", "differs"):
        raise UsageError(f"{path}: expectation must be above, below or differs, got {rule.expectation!r}")
    if rule.expectation != "differs" and rule.wrong not in ("most", "any"):
        raise UsageError(f"{path}: wrong must be most or any ({rule.name}), got {rule.wrong!r}")
    if not rule.threshold >= 1:
        raise UsageError(f"{path}: threshold must be at least 1 ({rule.name}), got {rule.threshold!r}")
    return rule


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
