"""Summaries, and the bootstrap intervals of alternated samples: paired by round, and covering what they claim."""

import numpy as np
import pytest

from bench.core import statistics

ROUNDS = 30


def drifting_pair(seed: int, ratio: float = 1.1, drift: float = 0.2, noise: float = 0.02):
    """Two arms over ROUNDS rounds, a being `ratio` times b; both share the drift of every round."""
    generator = np.random.default_rng(seed)
    mood = 100.0 * np.exp(drift * generator.standard_normal(ROUNDS))
    a, b = (mood * np.exp(noise * generator.standard_normal(ROUNDS)) for _ in range(2))
    return ratio * a, b


def width(bounds: tuple[float, float]) -> float:
    """How wide an interval is."""
    return bounds[1] - bounds[0]


@pytest.mark.parametrize(
    ("samples", "p20", "p50", "p80"),
    [
        ([5.0], 5.0, 5.0, 5.0),
        ([4.0, 1.0, 5.0, 3.0, 2.0, 0.0], 1.0, 2.5, 4.0),
        ([10.0, 0.0], 2.0, 5.0, 8.0),
        (list(range(101)), 20.0, 50.0, 80.0),
    ],
)
def test_summary_interpolates_linearly(samples, p20, p50, p80):
    expected = {"p20": p20, "p50": p50, "p80": p80, "n": len(samples)}
    assert statistics.summary(np.array(samples)) == pytest.approx(expected)


def test_median_is_taken_over_the_last_axis():
    np.testing.assert_array_equal(statistics.median(np.array([[1.0, 9.0, 2.0], [4.0, 3.0, 3.0]])), [2.0, 3.0])


@pytest.mark.parametrize(
    ("interval", "true"), [(statistics.ratio_interval, 1.1), (statistics.difference_interval, 10.0)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(interval, true):
    covered = 0
    for seed in range(200):
        a, b = drifting_pair(seed)
        if interval is statistics.difference_interval:
            # An additive drift: what the two arms share is taken off, not divided out.
            generator = np.random.default_rng(seed)
            mood = 100.0 + 20.0 * generator.standard_normal(ROUNDS)
            a, b = mood + true + generator.standard_normal(ROUNDS), mood + generator.standard_normal(ROUNDS)
        low, high = interval(a, b)
        assert low < high
        covered += low <= true <= high
    # 95% is asked for; 88% is 4.5 standard deviations of 200 draws below it.
    assert covered >= 0.88 * 200


def test_the_median_interval_covers_the_median():
    samples = (10 + np.random.default_rng(seed).standard_normal(ROUNDS) for seed in range(100))
    bounds = [statistics.interval(statistics.median, sample) for sample in samples]
    assert sum(low <= 10.0 <= high for low, high in bounds) >= 86
    # The median of 30 normal samples has a standard error of 1.253 / sqrt(30) = 0.229.
    assert 0.6 < np.mean([width(bound) for bound in bounds]) / (2 * 1.96 * 0.229) < 1.4


@pytest.mark.parametrize("interval", [statistics.ratio_interval, statistics.difference_interval])
def test_a_shared_drift_cancels(interval):
    a, b = drifting_pair(0)
    foreign_rounds = np.random.default_rng(1).permutation(ROUNDS)
    assert width(interval(a, b)) < width(interval(a, b[foreign_rounds])) / 3


def test_the_interval_holds_the_estimate():
    a, b = drifting_pair(3)
    low, high = statistics.ratio_interval(a, b)
    assert low <= np.median(a) / np.median(b) <= high
    assert 1.05 < low < high < 1.15


def test_an_arm_against_itself():
    a, _ = drifting_pair(4)
    assert statistics.difference_interval(a, a) == (0.0, 0.0)
    assert statistics.ratio_interval(a, a) == (1.0, 1.0)


def test_intervals_are_deterministic():
    a, b = drifting_pair(5)
    state = np.random.get_state()[1].copy()
    assert statistics.ratio_interval(a, b) == statistics.ratio_interval(a.copy(), b.copy())
    assert statistics.ratio_interval(a, b) != statistics.ratio_interval(*drifting_pair(6))
    assert (np.random.get_state()[1] == state).all(), "the global generator is the caller's"


def test_one_round_gives_a_point():
    assert statistics.difference_interval(np.array([7.0]), np.array([5.0])) == (2.0, 2.0)
    assert statistics.ratio_interval(np.array([6.0]), np.array([3.0])) == (2.0, 2.0)
    assert statistics.interval(statistics.median, np.array([4.0])) == (4.0, 4.0)


def test_one_sample_against_a_run_of_its_own_gives_the_ratio_of_the_medians():
    many = np.array([9.0, 3.0, 2.0])
    assert statistics.ratio_interval(np.array([6.0]), many, paired=False) == (2.0, 2.0)


def test_equal_samples_give_a_point():
    assert statistics.difference_interval(np.full(9, 7.0), np.full(9, 5.0)) == (2.0, 2.0)


def test_only_rounds_that_both_have_count():
    a, b = drifting_pair(7)
    longer = np.concatenate((b, np.full(10, 1e9)))
    assert statistics.ratio_interval(a, longer) == statistics.ratio_interval(a, b)
