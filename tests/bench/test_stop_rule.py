"""When rounds may end before --steps of them."""

import numpy as np
import pytest
from inputs.command_line import COMMANDS, assert_refused, run_here

from bench.core import measure, stop_rule
from bench.core.errors import UsageError
from bench.core.measure import Arm
from bench.core.stop_rule import LEAST_ROUNDS, StopRule, noise_of


def test_noise_is_that_of_the_median_s_interval():
    samples = np.arange(1.0, 101.0)  # median 50.5; its 95% interval by order statistics is the 40th to the 60th or so
    assert noise_of(np.random.default_rng(0).permutation(samples)) == pytest.approx(10.5 / 50.5, abs=0.02)
    assert noise_of(np.full(30, 7.0)) == 0.0
    assert noise_of(np.array([1.0, 100.0])) > 0.9  # two samples say nothing


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_the_median_that_often(seed):
    generator = np.random.default_rng(seed)
    held = 0
    for _ in range(400):
        drawn = generator.exponential(1.0, 40) + 10
        half = noise_of(drawn) * np.median(drawn)
        held += abs(np.median(drawn) - (10 + np.log(2))) <= 2 * half
    assert held >= 380


@pytest.mark.parametrize(("text", "share"), [("", None), ("0.5%", 0.005), ("0.02", 0.02), ("50%", 0.5)])
def test_shares(text, share):
    assert stop_rule.parse_noise("--stop-noise", text) == share


@pytest.mark.parametrize("text", ["0", "0%", "1", "100%", "-1%", "nan", "much", "%", "1e999"])
def test_bad_shares(text):
    with pytest.raises(UsageError, match=f"^--stop-noise={text}: must be a share"):
        stop_rule.parse_noise("--stop-noise", text)


def rounds_taken(rule: StopRule, samples, rounds: int = 100) -> int:
    turns = iter(samples)
    arm = Arm("a", "eager", sampler=lambda n: np.array([next(turns) for _ in range(n)]))
    rule.begin()
    assert measure.alternate([arm], 1, rounds, ended=lambda done: rule.reached([arm], done))
    return len(arm.samples_us)


def test_quiet_rounds_end_after_the_least_number():
    rule = StopRule(noise=0.01)
    assert rounds_taken(rule, [5.0] * 300) == LEAST_ROUNDS
    assert rule.document()["stop"] == {"noise": 0.01, "seconds": None, "why": "noise", "rounds": LEAST_ROUNDS}


def test_noisy_rounds_go_on_to_the_end():
    rule = StopRule(noise=0.001)
    assert rounds_taken(rule, np.random.default_rng(0).uniform(1, 2, 300)) == 100
    assert rule.document()["stop"]["why"] is None


def test_time_is_up(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(stop_rule.time, "monotonic", lambda: float(next(clock)))
    rule = StopRule(seconds=5.0)
    assert rounds_taken(rule, [5.0] * 300) == 5 and rule.why == "seconds"


def test_without_a_rule_all_rounds_are_taken_and_nothing_is_said():
    rule = StopRule()
    assert rounds_taken(rule, [5.0] * 300) == 100 and rule.document() == {}


def test_samples_of_one_sampler_alone():
    asked = []

    def sampler(n: int) -> np.ndarray:
        asked.append(n)
        return np.full(n, 5.0)

    rule = StopRule(noise=0.01)
    assert len(stop_rule.take(sampler, 35, rule)) == LEAST_ROUNDS and rule.document()["stop"]["why"] == "noise"
    assert len(stop_rule.take(sampler, 35, StopRule())) == 35 and asked == [10, 35], "in one go without a rule"
    noisy = iter(np.random.default_rng(0).uniform(1, 2, 100))
    rule = StopRule(noise=0.001)
    assert len(stop_rule.take(lambda n: np.array([next(noisy) for _ in range(n)]), 35, rule)) == 35
    assert rule.document()["stop"] == {"noise": 0.001, "seconds": None, "why": None, "rounds": 35}


def test_every_driver_that_takes_samples_has_the_rule(capsys):
    """bench.rate has --seconds, bench.report and bench.compare take none."""
    with_rule = [
        name for name in COMMANDS if name not in ("bench.rate", "bench.report", "bench.compare", "bench.doctor")
    ]
    assert len(with_rule) > 8
    for name in with_rule:
        assert_refused(run_here(capsys, name, "--stop-noise=0"), "--stop-noise", "a share of the median")
