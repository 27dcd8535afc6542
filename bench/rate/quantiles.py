"""Quantiles of latencies with their intervals, and shares past a deadline: scipy's.

A quantile's interval is that of the binomial test on the order statistics (scipy.stats.quantile_test), which assumes
nothing about the distribution. It takes steps as independent; within a block they are not quite, so compare arms by
several sessions (bench.compare) before a small difference is believed.
"""

import math

import numpy as np
import scipy

from bench.core.document import Document
from bench.core.statistics import CONFIDENCE

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def steps_needed(quantile: float) -> int:
    """The fewest samples of which some lies above the quantile in 97.5 of 100 experiments: with fewer, its interval has
    no upper end."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(quantile))


def quantile(samples: np.ndarray, of: float) -> Document:
    """`value` with `low` and `high`, its 95% interval, in the samples' unit. All three are null where there are fewer
    samples than `needs`."""
    needs = steps_needed(of)
    if len(samples) < needs:
        return {"value": None, "low": None, "high": None, "needs": needs}
    value = float(np.quantile(samples, of))
    interval = scipy.stats.quantile_test(samples, q=value, p=of).confidence_interval(CONFIDENCE)
    return {"value": value, "low": float(interval.low), "high": float(interval.high), "needs": needs}


def summary(samples: np.ndarray) -> Document:
    """p50, p90, p99 and p99.9 with their intervals, the largest, and how many there are."""
    largest = float(samples.max()) if len(samples) else None
    return {name: quantile(samples, of) for name, of in QUANTILES.items()} | {"max": largest, "n": len(samples)}


def missed(latencies_us: np.ndarray, deadline_us: float) -> Document:
    """The share of steps that took longer than the deadline, with its 95% interval (Wilson's)."""
    late, n = int((latencies_us > deadline_us).sum()), len(latencies_us)
    if not n:
        return {"deadline_us": deadline_us, "share": None, "low": None, "high": None}
    interval = scipy.stats.binomtest(late, n).proportion_ci(CONFIDENCE, method="wilson")
    return {"deadline_us": deadline_us, "share": late / n, "low": float(interval.low), "high": float(interval.high)}


def ecdf(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution: the sorted samples, and the share of samples larger than each."""
    return np.sort(samples), 1 - np.arange(1, len(samples) + 1) / len(samples)
