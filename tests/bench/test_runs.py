"""Two runs compared: false alarms of runs that are the same, by every kind of noise; and effects that are found."""

import numpy as np
import pytest

from bench.study.runs import compare, correlation_time, least_difference, p_of_sessions, run_of

N, NOISE, TRIALS = 30, 0.02, 200
AT_MOST = 0.08
"""Of 200 trials of a test of 5% more than 16 are alarms once in thirty times."""


def ar1(rng, correlation: float) -> np.ndarray:
    values, noise = np.empty(N), rng.standard_normal(N)
    values[0] = noise[0]
    for i in range(1, N):
        values[i] = correlation * values[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    return values


def session(rng, kind: str, centre: float = 100.0, noise: float = NOISE) -> np.ndarray:
    """The samples of one process."""
    values = noise * (ar1(rng, 0.5) if kind == "AR(1) 0.5" else rng.standard_normal(N))
    if kind == "drift of 5%":  # of a clock that warms up, or cools down
        values += rng.choice((-1, 1)) * np.linspace(0, 0.05, N)
    if kind == "shift of 1%":
        values += 0.01 * rng.standard_normal()
    return centre * np.exp(values)


KINDS = ("iid", "AR(1) 0.5", "drift of 5%", "shift of 1%")


def alarms(kind: str, sessions: int, seed: int, **known) -> float:
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(TRIALS):
        a, b = ([session(rng, kind) for _ in range(sessions)] for _ in range(2))
        if sessions == 1:
            found += compare(a, b, **known).p < 0.05
        else:  # the interval, which takes longer, could only take an alarm back
            found += (
                p_of_sessions(*(np.array([np.log(np.median(samples)) for samples in side]) for side in (a, b))) < 0.05
            )
    return found / TRIALS


@pytest.mark.parametrize("sessions", [1, 3, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_against_itself(kind, sessions):
    assert alarms(kind, sessions, seed=11) <= AT_MOST


@pytest.mark.parametrize("kind", ["iid", "AR(1) 0.5", "drift of 5%"])
def test_one_session_by_its_own_noise_alone(kind):
    """The effective sample size does without a known shift."""
    assert alarms(kind, 1, seed=12, shift=0.0) <= AT_MOST


def test_two_per_cent_of_ten_sessions():
    rng = np.random.default_rng(13)
    alone = among_eight = 0
    for _ in range(30):
        a, b = ([session(rng, "shift of 1%", centre, 0.01) for _ in range(10)] for centre in (100, 102))
        result = compare(a, b)
        alone += result.p < 0.05 and result.low > 1
        among_eight += result.p < 0.05 / 8 and result.low > 1  # eight arms, by Holm's first step
    # Welch's test of such sessions has a power of 98%, and of 87% among eight arms: 26 of 30, fewer than 22 once in 60.
    assert alone >= 27 and among_eight >= 22


def test_what_one_session_cannot_decide():
    rng = np.random.default_rng(14)
    a, b = ([session(rng, "iid", centre, 0.001)] for centre in (100, 102))
    assert compare(a, b).p > 0.05 > compare(a, b, shift=0.001).p
    assert least_difference(0.01) == pytest.approx(0.0297, abs=1e-4)


@pytest.mark.parametrize("n", [3, 30])
def test_a_large_difference_of_few_samples(n):
    rng = np.random.default_rng(15)
    a, b = ([centre * np.exp(0.02 * rng.standard_normal(n))] for centre in (100, 150))
    found = compare(a, b)
    assert found.p < 0.01 and 1.2 < found.low < 1.5 < found.high < 1.9


def test_one_sample_decides_nothing():
    assert compare([np.array([100.0])], [np.array([200.0])]).p == 1.0


def test_the_interval_covers_the_ratio():
    rng, covered, trials = np.random.default_rng(16), 0, 60
    for _ in range(trials):
        a, b = ([session(rng, "shift of 1%", centre) for _ in range(5)] for centre in (100, 105))
        found = compare(a, b)
        covered += found.low <= 1.05 <= found.high
    assert covered / trials >= 0.9


def test_the_correlation_time():
    rng = np.random.default_rng(17)
    times = {kind: np.mean([correlation_time(session(rng, kind)) for _ in range(200)]) for kind in KINDS}
    assert times["iid"] < 1.7 and 1.8 < times["AR(1) 0.5"] < 4 and times["drift of 5%"] > 2
    assert correlation_time(np.linspace(1, 2, 30)) > 8
    assert correlation_time(np.full(30, 5.0)) == 1.0
    assert run_of(np.array([3.0])).effective == 1.0
