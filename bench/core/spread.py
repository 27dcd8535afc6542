"""Mean, spread and the mean's interval over a few values, each of a process of its own: sessions of an arm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from bench.core.statistics import CONFIDENCE, SEED

RESAMPLES = 10_000


def expanded_level(n: int, confidence: float = CONFIDENCE) -> float:
    """The level at which a percentile bootstrap of n values covers their mean `confidence` of the time.

    A resampled mean spreads by sqrt((n - 1) / n) of what it should, and as a normal where the truth is Student's t:
    at n = 10 a plain 95% interval covers about 90%. The expanded percentile interval (Hesterberg, 2015) asks for the
    level that makes up for both.
    """
    t = scipy.stats.t.ppf((1 + confidence) / 2, n - 1)
    return float(1 - 2 * scipy.stats.norm.sf(math.sqrt(n / (n - 1)) * t))


def mean_interval(values: Sequence[float] | np.ndarray, expanded: bool = True) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean: scipy's, percentile, 10,000 resamples.

    `expanded` corrects for few values (:func:`expanded_level`); without it the interval is the study's. One value,
    or equal ones, give a point.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    result = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", vectorized=True, batch=RESAMPLES,
        confidence_level=expanded_level(len(values)) if expanded else CONFIDENCE, rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@dataclass(frozen=True)
class Spread:
    """Of one quantity over sessions. `sd` is the sample's (n - 1); `cv` = sd / mean; `low` to `high` the interval of
    the mean, `plain_low` to `plain_high` the study's, which covers too little at few sessions."""

    n: int
    mean: float
    sd: float
    cv: float
    low: float
    high: float
    plain_low: float
    plain_high: float


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Mean, SD, CV and intervals of at least one value."""
    values = np.asarray(values, dtype=np.float64)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    return Spread(
        len(values), mean, sd, float(scipy.stats.variation(values, ddof=1)) if len(values) > 1 else 0.0,
        *mean_interval(values), *mean_interval(values, expanded=False),
    )  # fmt: skip
