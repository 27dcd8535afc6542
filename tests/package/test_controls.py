"""The controls hold on this machine: the null op costs next to nothing, and the timer is right."""

import os

import pytest
from inputs import busy
from inputs.busy import assert_takes

from bench.core import controls


@pytest.mark.parametrize(("mode", "limit_us"), [("native", 0.1), ("pybind", 0.5)])
def test_the_null_op_is_cheap(mode, limit_us):
    def measure_us() -> float:
        return next(row["us"]["p50"] for row in controls.null_op(4) if row["mode"] == mode)

    assert_takes(measure_us, 1e-6, limit_us)


def test_the_null_op_is_measured_in_every_mode():
    rows = controls.null_op(4)
    assert [row["mode"] for row in rows] == ["eager", "pybind", "dispatch", "native"]
    for row in rows:
        assert row["us"]["n"] == 4 and 0 < row["us"]["p20"] <= row["us"]["p50"] <= row["us"]["p80"]


@pytest.mark.parametrize("clock", ["native", "python"])
def test_a_spin_of_a_millisecond_takes_a_millisecond(clock):
    def measure_us() -> float:
        # Python's clock is around the call, which takes microseconds too: of several spins at once they are few.
        (row,) = controls.spin((1000.0,), steps=1 if clock == "native" else 4)
        return row["us"]["p50"] if clock == "native" else row["outside_us"]

    assert_takes(measure_us, 1000.0, 1010.0)


def test_spins_keep_their_order_and_never_end_early():
    rows = controls.spin((50.0, 200.0), steps=4)
    assert [row["asked_us"] for row in rows] == [50.0, 200.0]
    for row in rows:
        assert row["us"]["n"] == 4
        assert row["us"]["p20"] >= row["asked_us"] and row["outside_us"] >= row["asked_us"]


def test_a_bound_on_a_time(monkeypatch):
    """A time too short fails on any machine, one too long on a quiet one; others' work makes a skip, and it says so."""
    monkeypatch.setattr(busy, "other_work", lambda: None)
    times = iter([30.0, 11.0, 10.5])
    assert_takes(lambda: next(times), 10, 11)
    assert next(times) == 10.5, "one within the limit is enough"
    with pytest.raises(AssertionError, match="the least of 300 measurements is 12 us"):
        assert_takes(lambda: 12.0, 10, 11)
    monkeypatch.setattr(busy, "other_work", lambda: "load average 7.0 on 2 cores")
    with pytest.raises(pytest.skip.Exception, match="12 us, at most 11 us are allowed; load average 7.0 on 2 cores"):
        assert_takes(lambda: 12.0, 10, 11)
    with pytest.raises(AssertionError):
        assert_takes(lambda: 9.9, 10, 11)


def test_other_work_is_noticed(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (31.0, 0.0, 0.0))
    assert "load average 31.0 on " in busy.other_work()
