"""Was the machine the same from the first round to the last? A throttled or drifting clock, found in the samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from bench.core.document import entry_name

SIGNIFICANCE = 0.005
"""Of either test; a run has many arms, and each is tested."""

SMALLEST_CHANGE = 0.02
"""A change of the median that is worth a flag, as a share of it: what a step's own growth does not reach."""


@dataclass(frozen=True)
class Drift:
    """What :func:`test` found. `change` is last over first, less 1; `step_at` the round of the sharpest step."""

    drifting: bool
    kendall_tau: float
    p_trend: float
    p_step: float
    step_at: int
    change: float


def test(samples: Sequence[float] | np.ndarray) -> Drift:
    """Does a series of step times drift?

    Two ways to drift, two tests: a trend (Kendall's tau against the round, scipy) and a step, as when a clock is
    throttled (Pettitt's rank test for one change point, 1979, with its approximate p). A series drifts where either
    is significant and the change is large enough to matter: between the first and last third for the trend,
    across the change point for the step. Fewer than 8 samples never drift: the tests have no power there.
    """
    values = np.asarray(samples, dtype=np.float64)
    n = len(values)
    if n < 8 or np.ptp(values) == 0:
        return Drift(False, 0.0, 1.0, 1.0, 0, 0.0)
    tau, p_trend = scipy.stats.kendalltau(np.arange(n), values)
    ranks = scipy.stats.rankdata(values)
    # Pettitt's U of every cut: 2 * (sum of the ranks before it) - cut * (n + 1).
    cuts = np.arange(1, n)
    scores = np.abs(2 * np.cumsum(ranks)[:-1] - cuts * (n + 1))
    cut = int(cuts[scores.argmax()])
    p_step = float(min(2 * np.exp(-6 * scores.max() ** 2 / (n**3 + n**2)), 1.0))
    third = n // 3
    trend_change = float(np.median(values[-third:]) / np.median(values[:third])) - 1
    step_change = float(np.median(values[cut:]) / np.median(values[:cut])) - 1
    trend = p_trend < SIGNIFICANCE and abs(trend_change) > SMALLEST_CHANGE
    step = p_step < SIGNIFICANCE and abs(step_change) > SMALLEST_CHANGE
    change = step_change if step and p_step <= p_trend else trend_change
    return Drift(bool(trend or step), float(tau), float(p_trend), p_step, cut, change)


def lines(document: dict) -> list[str]:
    """One line an arm of a result document whose samples drifted."""
    found = []
    for arm in document["arms"]:
        drift = arm.get("drift")
        if drift and drift["drifting"]:
            found.append(
                f"drifting: {entry_name(arm)} changed by {100 * drift['change']:+.1f}% over its rounds "
                f"(p {min(drift['p_trend'], drift['p_step']):.1g}): compare it by ratio only"
            )
    return found
