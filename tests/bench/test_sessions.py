"""Statistics over sessions: intervals that cover what they say, verdicts that follow the registered rules."""

import numpy as np
import pytest
from scipy import stats

from bench.core import results, statistics
from bench.core import spread as spread_of
from bench.core.errors import UsageError
from bench.study import sessions
from bench.study.sessions import Rule

DRAWS = 1000
RULES, _ = sessions.load_rules(sessions.DEFAULT_THRESHOLDS)
BY_NAME = {rule.name: rule for rule in RULES}
# Ten sessions whose mean, CV and range are those of the study's headline cell (its section 5).
RECORDED = [1.245, 1.252, 1.254, 1.255, 1.257, 1.258, 1.260, 1.262, 1.263, 1.288]


@pytest.fixture
def fewer_resamples(monkeypatch):
    """A tenth: what the limits of hundreds of intervals differ by then is little beside what the draws do."""
    monkeypatch.setattr(spread_of, "RESAMPLES", 1000)


def covered(draw, truth: float, interval) -> float:
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(DRAWS):
        low, high = interval(draw(generator))
        hits += low <= truth <= high
    return hits / DRAWS


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda g: 1.25 + 0.0125 * g.standard_normal(10), 1.25),
        (lambda g: 1.25 * np.exp(0.1 * g.standard_normal(10) - 0.005), 1.25),
        (lambda g: g.uniform(1, 2, 20), 1.5),
    ],
    ids=["normal", "lognormal", "uniform"],
)
@pytest.mark.usefixtures("fewer_resamples")
def test_the_interval_of_the_mean_covers_it(draw, truth):
    assert 0.93 <= covered(draw, truth, spread_of.mean_interval) <= 0.97


def test_the_interval_of_a_median_covers_it():
    draw = lambda g: 100 + 2 * g.standard_normal(30)  # noqa: E731
    assert 0.93 <= covered(draw, 100.0, lambda x: statistics.interval(statistics.median, x)) <= 0.97


@pytest.mark.usefixtures("fewer_resamples")
def test_the_plain_interval_covers_too_little():
    # Why it is not the one that is used.
    plain = lambda values: spread_of.mean_interval(values, expanded=False)  # noqa: E731
    assert covered(lambda g: 1.25 + 0.0125 * g.standard_normal(10), 1.25, plain) < 0.93


def test_the_spread_is_scipy_s():
    found = spread_of.spread(RECORDED)
    values = np.array(RECORDED)
    assert found.mean == pytest.approx(stats.tmean(values)) and found.sd == pytest.approx(stats.tstd(values))
    assert found.cv == pytest.approx(stats.variation(values, ddof=1))
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(20260530)
    )  # fmt: skip
    assert (found.plain_low, found.plain_high) == pytest.approx(tuple(result.confidence_interval))
    assert found.low < found.plain_low < found.mean < found.plain_high < found.high
    assert found.n == 10


def test_the_study_s_interval_is_found_again():
    # 1.259 [1.253, 1.267]: its own data are not in its text, so a set of that mean, CV and range has to do.
    found = spread_of.spread(RECORDED)
    assert (found.mean, found.cv) == (pytest.approx(1.259, abs=0.001), pytest.approx(0.009, abs=0.0005))
    assert (found.plain_low, found.plain_high) == (pytest.approx(1.253, abs=0.001), pytest.approx(1.267, abs=0.001))


def test_one_session_and_equal_ones_give_a_point():
    assert spread_of.mean_interval([1.5]) == (1.5, 1.5) and spread_of.mean_interval([2.0] * 5) == (2.0, 2.0)
    found = spread_of.spread([1.5])
    assert (found.sd, found.cv, found.low, found.high) == (0.0, 0.0, 1.5, 1.5)


def synthetic(seed: int, speedup: float, n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Session medians: a mood that the two arms of a session share, and 1% of noise of each."""
    generator = np.random.default_rng(seed)
    mood = 10_000 * np.exp(0.1 * generator.standard_normal(n))
    a, b = (mood * np.exp(0.01 * generator.standard_normal(n)) for _ in range(2))
    return speedup * a, b


def verdicts(rule: str, speedup: float, repeats: int = 100) -> dict[str, int]:
    counts = dict(supported=0, refuted=0, undecided=0)
    found = []
    for seed in range(repeats):
        a, b = synthetic(seed, speedup)
        found.append(sessions.judge(BY_NAME[rule], (a / b).tolist(), spread_of.spread(a / b))[0])
        counts[found[-1]] += 1
    assert sessions.analyse(*synthetic(0, speedup), BY_NAME[rule])["verdict"] == found[0]
    return counts


@pytest.mark.usefixtures("fewer_resamples")
def test_an_arm_against_itself_has_no_effect():
    counts = verdicts("difference", 1.0)
    assert counts["supported"] <= 5 and counts["refuted"] >= 90
    assert verdicts("launch-bound", 1.0)["supported"] == 0
    assert verdicts("memory-bound", 1.0)["supported"] == 100


@pytest.mark.parametrize(
    ("rule", "speedup", "expected"),
    [
        ("difference", 1.10, "supported"),
        ("difference", 0.90, "supported"),
        ("launch-bound", 1.26, "supported"),
        ("launch-bound", 1.05, "refuted"),
        ("memory-bound", 1.03, "supported"),
        ("memory-bound", 1.30, "refuted"),
    ],
)
@pytest.mark.usefixtures("fewer_resamples")
def test_known_effects_are_found(rule, speedup, expected):
    assert verdicts(rule, speedup)[expected] >= 95


@pytest.mark.usefixtures("fewer_resamples")
def test_what_lies_at_the_threshold_is_seldom_decided():
    counts = verdicts("launch-bound", 1.15)
    assert counts["supported"] <= 5
    counts = verdicts("difference", 1.02)
    assert counts["supported"] + counts["refuted"] <= 10


@pytest.mark.parametrize(
    ("rule", "speedups", "expected", "words"),
    [
        ("launch-bound", RECORDED, "supported", "lies above 1.15"),
        ("launch-bound", [1.2] * 4, "undecided", "4 finished sessions, the rule asks for 5"),
        ("launch-bound", [1.1] * 6 + [1.3] * 4, "refuted", "6 of 10 sessions"),
        ("launch-bound", [1.1] * 4 + [1.3] * 6, "undecided", "holds 1.15"),
        ("memory-bound", [1.02] * 9 + [1.16], "refuted", "1 of 10 sessions"),
        ("memory-bound", [1.028] * 10, "supported", "lies below 1.15"),
        ("difference", [1.0] * 5, "refuted", "no effect"),
        ("difference", [0.9, 1.1] * 5, "undecided", "crosses"),
    ],
)
def test_the_rules(rule, speedups, expected, words):
    verdict, because = sessions.judge(BY_NAME[rule], speedups, spread_of.spread(speedups))
    assert verdict == expected and words in because


@pytest.mark.parametrize(
    ("device", "ctx", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 2048, "launch-bound"),
        ("NVIDIA H100 80GB HBM3", 8192, "difference"),
        ("NVIDIA L4", 2048, "memory-bound"),
        ("NVIDIA L40S", 2048, "difference"),
        ("AMD EPYC 9654", 2048, "difference"),
    ],
)
def test_which_rule_is_taken(device, ctx, name):
    assert sessions.choose_rule(RULES, "", device, ctx).name == name
    assert sessions.choose_rule(RULES, "memory-bound", device, ctx).name == "memory-bound"


def test_a_rule_that_is_not_there():
    with pytest.raises(UsageError, match="--rule=none: must be one of launch-bound, memory-bound, difference"):
        sessions.choose_rule(RULES, "none", "", 0)
    only_l4 = [Rule("l4", "", "below", 1.1, 5, "any", gpu="L4")]
    with pytest.raises(UsageError, match="no rule matches NVIDIA L40S at ctx 64"):
        sessions.choose_rule(only_l4, "", "NVIDIA L40S", 64)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not toml", "is not a thresholds file"),
        ("", "is not a thresholds file"),
        ('[[rule]]\nname = "x"', "is not a thresholds file"),
        (
            '[[rule]]\nname="x"\nclaim="y"\nexpectation="up"\nthreshold=1.1\nmin_sessions=5',
            "expectation: must be one of above, below, differs, got 'up'",
        ),
        (
            '[[rule]]\nname="x"\nclaim="y"\nexpectation="above"\nthreshold=1.1\nmin_sessions=5',
            "wrong must be most or any",
        ),
        ('[[rule]]\nname="x"\nclaim="y"\nexpectation="differs"\nthreshold=nan\nmin_sessions=5', ">= 1.0, got nan"),
        ('[[rule]]\nname="x"\nclaim="y"\nexpectation="differs"\nthreshold=true\nmin_sessions=5', "got `bool`"),
        ('[[rule]]\nname="x"\nclaim="y"\nexpectation="differs"\nthreshold=2\nmin_sessions=5\na=1', "unknown field `a`"),
        ('[[rule]]\nname="x"\nclaim="y"\nexpectation="differs"\nthreshold=0.9\nmin_sessions=5', ">= 1.0, got 0.9"),
    ],
)
def test_a_bad_file(tmp_path, text, words):
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        sessions.load_rules(tmp_path / "rules.toml")


@pytest.mark.parametrize(
    ("host", "wall", "device", "hidden"),
    [
        (5.0, 10.0, 10.0, 5.0),
        (5.0, 10.0, 8.0, 3.0),
        (5.0, 10.0, 2.0, 0.0),
        (None, 10.0, 8.0, None),
        (5.0, 1.0, None, None),
    ],
)
def test_hidden_launch_time(host, wall, device, hidden):
    assert results.hidden_us(host, wall, device) == hidden


def test_no_session_at_all():
    assert sessions.analyse([], [], BY_NAME["difference"])["verdict"] == "undecided"
