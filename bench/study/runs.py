"""Two runs of the same work compared: what is noise within a session, what between sessions, and what is neither.

A session is one process. Its samples share a page placement, a frequency, a neighbour: two sessions of the same work
differ by more than their samples say. So the session is the replicate. Where a side has several, their medians are
compared, and nothing need be assumed. Where it has one, how far sessions of this machine lie apart has to be told.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from bench.core.spread import expanded_level
from bench.core.statistics import CONFIDENCE, RESAMPLES, SEED

KNOWN_SHIFT = 0.01
"""The standard deviation of the medians of sessions, as a share of the time, where nobody says another: what two runs
of one machine are known to differ by, page placement and scheduler alone (docs/measuring.md)."""

_SHIFT_FREEDOM = 9
"""A shift is known as well as ten sessions tell it."""

_POOL = 200


def correlation_time(samples: np.ndarray) -> float:
    """How many samples in a row count as one: 1 + 2 * the sum of the autocorrelations, of ranks, as long as the sums of
    neighbouring pairs are positive (Geyer, 1992). 1 where samples are independent; large where they drift."""
    n = len(samples)
    if n < 4 or np.ptp(samples) == 0:
        return 1.0
    scores = scipy.stats.norm.ppf((scipy.stats.rankdata(samples) - 0.5) / n)
    scores -= scores.mean()
    correlations = np.correlate(scores, scores, "full")[n - 1 :] / float(scores @ scores)
    total = 0.0
    for k in range(0, n - 1, 2):
        pair = float(correlations[k] + correlations[k + 1])
        if pair <= 0:
            break
        total += pair
    return min(max(2 * total - 1, 1.0), n / 2)


@dataclass(frozen=True)
class Run:
    """One session's samples, summed up. `log_us`: of the median; `error`: its standard error by the samples' own noise;
    `effective`: so many independent samples are worth as much."""

    log_us: float
    error: float
    effective: float


def run_of(samples: np.ndarray) -> Run:
    """The median's error is that of so many independent samples of a normal of the same quartiles, and half of what the
    session drifted by."""
    logs, n = np.log(samples), len(samples)
    effective = n / correlation_time(samples)
    if n < 2:
        return Run(float(logs[0]), math.nan, 1.0)
    spread = float(scipy.stats.iqr(logs)) / 1.349 if n >= 8 else 0.0
    spread = spread or float(logs.std(ddof=1))
    error = math.hypot(math.sqrt(math.pi / 2) * spread / math.sqrt(effective), drift_of(logs) / 2)
    return Run(float(np.median(logs)), error, effective)


def drift_of(logs: np.ndarray) -> float:
    """By how much a session changed from its first sample to its last (Theil and Sen's slope), 0 where Kendall's tau
    finds no trend. Where between its ends the session would have come to rest nobody knows."""
    if len(logs) < 8 or np.ptp(logs) == 0 or scipy.stats.kendalltau(np.arange(len(logs)), logs).pvalue > 0.05:
        return 0.0
    return abs(float(scipy.stats.theilslopes(logs).slope)) * (len(logs) - 1)


@dataclass(frozen=True)
class Found:
    """B against A: `ratio` of the medians of sessions (the geometric mean of several), its 95% interval, and p."""

    a_us: float
    b_us: float
    ratio: float
    low: float
    high: float
    p: float


def compare(a: Sequence[np.ndarray], b: Sequence[np.ndarray], shift: float = KNOWN_SHIFT) -> Found:
    """a, b: the samples of every session of a side, microseconds.

    With two sessions or more on both sides: Welch's t test of the sessions' log medians, and an interval that resamples
    sessions, and blocks of samples within them. With one on a side: the samples' errors, by their effective size, and
    `shift`, the known standard deviation between sessions.
    """
    logs_a, logs_b = (np.array([np.log(np.median(samples)) for samples in side]) for side in (a, b))
    ratio = float(logs_b.mean() - logs_a.mean())
    if min(len(a), len(b)) >= 2:
        p = p_of_sessions(logs_a, logs_b)
        low, high = _hierarchical(a, b)
    else:
        p, low, high = _by_known_shift([run_of(x) for x in a], [run_of(x) for x in b], ratio, shift)
    a_us, b_us = (float(np.exp(logs.mean())) for logs in (logs_a, logs_b))
    return Found(a_us, b_us, math.exp(ratio), low, high, p)


def p_of_sessions(logs_a: np.ndarray, logs_b: np.ndarray) -> float:
    """Of the log medians of two sessions or more a side: Welch's t test, two-sided."""
    if np.ptp([*logs_a, *logs_b]) == 0:
        return 1.0
    return float(scipy.stats.ttest_ind(logs_b, logs_a, equal_var=False).pvalue)


def least_difference(shift: float) -> float:
    """Below that share no difference of one session a side can be told from what sessions differ by anyhow."""
    return float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, 2 * _SHIFT_FREEDOM)) * math.sqrt(2) * shift


def _by_known_shift(a: Sequence[Run], b: Sequence[Run], ratio: float, shift: float) -> tuple[float, float, float]:
    variance, squares = 0.0, 0.0
    for runs in (a, b):
        # The mean of several sessions of one side is as sure as they are many.
        own = sum(run.error**2 for run in runs) / len(runs) ** 2
        freedom = max(sum(run.effective for run in runs) - len(runs), 1.0)
        between = shift**2 / len(runs)
        variance += own + between
        squares += own**2 / freedom + between**2 / _SHIFT_FREEDOM
    if not variance > 0:  # one sample, whose noise nobody knows, or no noise at all
        return (1.0 if math.isnan(variance) or ratio == 0 else 0.0), math.exp(ratio), math.exp(ratio)
    freedom = variance**2 / squares if squares > 0 else math.inf
    error = math.sqrt(variance)
    half = float(scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p = 2 * float(scipy.stats.t.sf(abs(ratio) / error, freedom))
    return p, math.exp(ratio - half), math.exp(ratio + half)


def _medians(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log medians of the session's samples, resampled by blocks of its correlation time: float64 [_POOL]."""
    n, length = len(samples), max(math.ceil(correlation_time(samples)), 1)
    starts = rng.integers(0, n, size=(_POOL, math.ceil(n / length)))
    chosen = ((starts[..., None] + np.arange(length)) % n).reshape(_POOL, -1)[:, :n]
    return np.log(np.median(samples[chosen], axis=1))


def _hierarchical(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> tuple[float, float]:
    """The interval of the ratio: scipy's bootstrap of sessions, each drawn with a resampled median."""
    rng = np.random.default_rng(SEED)
    pools = [np.array([_medians(samples, rng) for samples in side]) for side in (a, b)]

    def statistic(*sessions: np.ndarray, axis: int) -> np.ndarray:
        means = [
            pool[chosen, rng.integers(0, _POOL, size=chosen.shape)].mean(axis=axis)
            for pool, chosen in zip(pools, sessions, strict=True)
        ]
        return means[1] - means[0]

    result = scipy.stats.bootstrap(
        tuple(np.arange(len(side)) for side in (a, b)), statistic, n_resamples=RESAMPLES, method="percentile",
        vectorized=True, confidence_level=expanded_level(min(len(a), len(b))), rng=rng,
    )  # fmt: skip
    return math.exp(result.confidence_interval.low), math.exp(result.confidence_interval.high)
