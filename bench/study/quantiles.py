"""Quantiles of latencies with their intervals, and shares past a deadline: scipy's.

A quantile's interval is that of the binomial test on the order statistics (scipy.stats.quantile_test), which assumes
nothing about the distribution, but takes steps as independent. Blocks of steps differ by more than that: the machine's
weather changes between them. So the interval is at least that of the blocks taken as a cluster sample (Woodruff, 1952):
Student's interval of the share of each block's steps that lie below the quantile, read off the distribution.
"""

import math
from collections.abc import Sequence

import numpy as np
import scipy

from bench.core.document import Document
from bench.core.statistics import CONFIDENCE

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def steps_needed(quantile: float) -> int:
    """The fewest samples of which some lies above the quantile in 97.5 of 100 experiments: with fewer, its interval has
    no upper end."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(quantile))


def _share_below(samples: np.ndarray, value: float, of: float, sizes: Sequence[int]) -> tuple[float, float]:
    """Student's 95% interval, around `of`, of the share of a block's samples below the value."""
    ends = np.cumsum(sizes)[:-1]
    # Of what equals the value half lies below it: blocks of one and the same sample do not differ.
    shares = [((part < value).mean() + (part <= value).mean()) / 2 for part in np.split(samples, ends) if len(part)]
    if len(shares) < 2:
        return of, of
    reach = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(shares) - 1) * scipy.stats.sem(shares)
    return max(of - reach, 0.0), min(of + reach, 1.0)


def quantile(samples: np.ndarray, of: float, sizes: Sequence[int] = ()) -> Document:
    """`value` with `low` and `high`, its 95% interval, in the samples' unit. All three are null where there are fewer
    samples than `needs`. sizes: how many of the samples each block has, in their order."""
    needs = steps_needed(of)
    if len(samples) < needs:
        return {"value": None, "low": None, "high": None, "needs": needs}
    value = float(np.quantile(samples, of))
    interval = scipy.stats.quantile_test(samples, q=value, p=of).confidence_interval(CONFIDENCE)
    low, high = np.quantile(samples, _share_below(samples, value, of, sizes)) if len(sizes) > 1 else (value, value)
    return {
        "value": value, "low": min(float(interval.low), float(low)), "high": max(float(interval.high), float(high)),
        "needs": needs,
    }  # fmt: skip


def summary(samples: np.ndarray, sizes: Sequence[int] = ()) -> Document:
    """p50, p90, p99 and p99.9 with their intervals, the largest, and how many there are; sizes as in quantile()."""
    largest = float(samples.max()) if len(samples) else None
    found = {name: quantile(samples, of, sizes) for name, of in QUANTILES.items()}
    return found | {"max": largest, "n": len(samples)}


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
