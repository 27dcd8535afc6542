"""Which rounds a slowed clock has spoilt, and whether a run can do without them."""

import numpy as np
import pynvml
import pytest

from bench.core import gpu_state
from bench.core.measure import Arm


def state(sm_mhz=1980, *reasons):
    return {"sm_mhz": sm_mhz, "clock_event_reasons": list(reasons)}


@pytest.mark.parametrize(
    ("odd", "slowed"),
    [
        (state(), False),
        (state(1980, "GpuIdle", "ApplicationsClocksSetting"), False),
        (state(1980, "SwPowerCap"), False),
        (state(1980, "HwThermalSlowdown"), True),
        (state(1980, "GpuIdle", "SwThermalSlowdown"), True),
        (state(1980, "HwPowerBrakeSlowdown"), True),
        (state(1921), False),
        (state(1920), True),
        (state(1500, "SwPowerCap"), True),
        (state(2100), False),
        (state(None), False),
        ({"sm_mhz": 1980, "clock_event_reasons": None}, False),
        (None, False),
    ],
)
def test_a_round_among_others(odd, slowed):
    assert gpu_state.throttled([state(), state(), odd, state()]) == [False, False, slowed, False]


def test_nothing_is_known():
    assert gpu_state.throttled([None, state(None)]) == [False, False]
    assert gpu_state.throttled([]) == []


@pytest.mark.parametrize(
    ("rounds", "slow", "left_out"), [(30, [], False), (30, [3, 29], True), (12, [0, 1], True), (11, [0, 1], False)]
)
def test_ten_rounds_must_be_left(rounds, slow, left_out):
    states = [state(1980, *(["HwSlowdown"] if index in slow else [])) for index in range(rounds)]
    # A state of a round that was interrupted before all arms had run does not count.
    assert gpu_state.rounds_to_drop([*states, state(1000)], rounds) == (slow, left_out)


class Monitor:
    """A GPU that is slow in its third round."""

    def __init__(self) -> None:
        self.rounds = [state()]  # of a case before

    def poll(self) -> None:
        self.rounds.append(state(1000 if len(self.rounds) == 2 else 1980))


def test_dropped_rounds_are_those_of_every_arm():
    arms = [Arm(name, "eager", sampler=lambda n: np.arange(n, dtype=float)) for name in "ab"]
    finished, keys = gpu_state.alternate_watched(arms, 1, 12, lambda: None, Monitor())
    assert finished and keys == {"throttled_rounds": [2], "throttled_left_out": True}
    assert [(len(arm.samples_us), len(arm.kept_us)) for arm in arms] == [(12, 11)] * 2
    # The next case forgets them.
    arms[0].samples_us, arms[1].samples_us = [], []
    monitor = Monitor()
    monitor.poll = lambda: monitor.rounds.append(state())
    _, keys = gpu_state.alternate_watched(arms, 1, 12, lambda: None, monitor)
    assert keys == {"throttled_rounds": [], "throttled_left_out": False} and len(arms[0].kept_us) == 12


def test_a_cpu_has_no_such_keys():
    arm = Arm("a", "eager", sampler=lambda n: np.ones(n))
    assert gpu_state.alternate_watched([arm], 1, 2, lambda: None, None) == (True, {})


def test_reasons_have_names():
    bits = pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonGpuIdle
    assert sorted(gpu_state.reason_names(bits)) == ["GpuIdle", "HwSlowdown"]
    assert gpu_state.reason_names(0) == [] and gpu_state.reason_names(None) is None
