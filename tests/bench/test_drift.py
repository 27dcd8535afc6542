"""Drift: quiet series pass, throttled and creeping ones are flagged."""

import numpy as np
import pytest
from scipy import stats

from bench.study import drift


def series(seed: int, n: int = 30, noise: float = 0.01) -> np.ndarray:
    return 100.0 * np.exp(noise * np.random.default_rng(seed).standard_normal(n))


def test_quiet_series_are_not_flagged():
    assert sum(drift.test(series(seed, noise=noise)).drifting for seed in range(500) for noise in (0.01, 0.1)) <= 10


@pytest.mark.parametrize("at", [8, 16, 22])
def test_a_throttled_clock_is_flagged(at):
    # The study's own case (its Appendix A): the first 16 steps at 20-21 ms, the last 14 at 17-18.
    found = [drift.test(np.where(np.arange(30) < at, 1.0, 1.15) * series(seed)) for seed in range(100)]
    assert sum(one.drifting for one in found) >= 99
    assert sum(abs(one.step_at - at) <= 3 for one in found) >= 90
    assert np.median([one.change for one in found]) == pytest.approx(0.15, abs=0.02)


def test_a_creeping_clock_is_flagged():
    creep = 1 + 0.08 * np.linspace(0, 1, 30)
    assert sum(drift.test(creep * series(seed)).drifting for seed in range(100)) >= 99


def test_a_significant_but_tiny_change_is_not():
    assert not drift.test(100.0 + 0.01 * np.arange(30)).drifting


def test_one_outlier_is_no_drift():
    values = series(0)
    values[4] *= 5
    assert not drift.test(values).drifting


def test_the_trend_is_scipy_s():
    values = series(3)
    tau, p = stats.kendalltau(np.arange(30), values)
    found = drift.test(values)
    assert (found.kendall_tau, found.p_trend) == (pytest.approx(tau), pytest.approx(p))


@pytest.mark.parametrize("values", [[], [1.0], [2.0] * 30, list(range(7))])
def test_nothing_to_tell(values):
    assert not drift.test(values).drifting


def test_the_lines_name_the_arm():
    entry = dict(backend="native", fusion="block", mode="native", drift=vars(drift.test(1.0 + np.arange(30) / 100)))
    [line] = drift.lines({"arms": [entry, entry | {"drift": None}]})
    assert line.startswith("drifting: native/block:native changed by +")
