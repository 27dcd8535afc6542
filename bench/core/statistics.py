"""Summaries and intervals of alternated samples.

Arms are measured in rounds: every round takes one sample of every arm (bench.core.measure). The machine's mood
drifts over a run, so samples of one round belong together: the round is what the bootstrap resamples, and
differences are taken within the same resampled rounds.
"""

from collections.abc import Callable

import numpy as np
import scipy  # its parts load when they are used: a second less for a driver that has nothing to sum up

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20260530


def summary(samples: np.ndarray) -> dict[str, float | int]:
    """p20, p50, p80 (linear interpolation) and n of the samples, in the samples' unit."""
    p20, p50, p80 = np.percentile(samples, (20, 50, 80))
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80), "n": len(samples)}


def interval(statistic: Callable[..., np.ndarray], *arms: np.ndarray, paired: bool = True) -> tuple[float, float]:
    """The 95% bootstrap interval of `statistic` over resampled rounds.

    arms: float64 [rounds] each, sample r of all of them from round r; with `paired` False, samples of passes of
    their own, [n] each, which are resampled independently. `statistic` maps arms resampled to [..., rounds] to
    [...]. scipy's percentile bootstrap: the medians of a few dozen samples take few distinct values, on which BCa's
    acceleration is not defined. Fewer than two samples of an arm give a point.
    """
    columns = [np.asarray(arm, dtype=np.float64) for arm in arms]
    rounds = min(len(column) for column in columns)
    if paired:
        columns = [column[:rounds] for column in columns]
    if rounds < 2:
        value = float(statistic(*(column[None] for column in columns))[0])
        return value, value

    def of_rounds(chosen: np.ndarray, axis: int) -> np.ndarray:
        chosen = np.moveaxis(chosen, axis, -1)
        return statistic(*(column[chosen] for column in columns))

    def of_samples(*chosen: np.ndarray, axis: int) -> np.ndarray:
        return statistic(*(np.moveaxis(column, axis, -1) for column in chosen))

    result = scipy.stats.bootstrap(
        (np.arange(rounds),) if paired else tuple(columns),
        of_rounds if paired else of_samples,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def median(samples: np.ndarray) -> np.ndarray:
    """The median over the last axis."""
    return np.median(samples, axis=-1)


def difference_interval(a: np.ndarray, b: np.ndarray, paired: bool = True) -> tuple[float, float]:
    """The 95% interval of median(a) - median(b), paired by round unless told otherwise."""
    return interval(lambda x, y: median(x) - median(y), a, b, paired=paired)


def ratio_interval(a: np.ndarray, b: np.ndarray, paired: bool = True) -> tuple[float, float]:
    """The 95% interval of median(a) / median(b), paired by round unless told otherwise."""
    return interval(lambda x, y: median(x) / median(y), a, b, paired=paired)
