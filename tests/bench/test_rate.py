"""bench.rate: quantiles, deadlines and energy by a fake clock with known delays, and the driver on the CPU."""

import json
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inputs.command_line import assert_refused, flat, run_here
from inputs.documents import check_written
from inputs.fake_clock import FakeClock, FakeStepper
from inputs.fork_server import true_processes

import pykernels as pk
from bench.rate import energy, load
from bench.rate.blocks import LEAD_NS, Times, run_block, timer_error_us, turns
from bench.rate.measure import RateArm, Watch, cell_document, measure_rate, warm_up
from bench.rate.stepper import TokenStepper
from bench.study import quantiles

MS, US = 1_000_000, 1000


def times_of(durations_ns, hz, seconds, late_ns=0, prepare_ns=0, blocks=1) -> Times:
    clock = FakeClock(late_ns)
    stepper, times = FakeStepper(clock, durations_ns, prepare_ns), Times()
    for _ in range(blocks):
        run_block(stepper, clock, hz, seconds, times)
    return times


def test_a_latency_is_of_the_due_time():
    """A host that wakes 30 us late is in it, and told apart."""
    times = times_of([2 * MS], hz=100, seconds=1, late_ns=30 * US)
    assert len(times.end_ns) == 100 and times.blocks == [100]
    assert np.all(times.latencies_us() == 2030)
    assert np.all(times.late_us() == 30)
    assert np.all(times.intervals_us() == 10_000)


def test_getting_ready_is_in_no_latency_that_has_time_for_it():
    times = times_of([2 * MS], hz=100, seconds=1, prepare_ns=5 * MS)
    assert np.all(times.latencies_us() == 2000)


def test_a_step_that_runs_over_makes_the_next_ones_late():
    """25 ms at 100 Hz: the two that were due meanwhile begin late and are charged for it."""
    times = times_of([2 * MS, 25 * MS, *[2 * MS] * 8], hz=100, seconds=0.1)
    # due at 10 ms: ends at 35; due at 20: begins at 35; due at 30: begins at 37; due at 40: in time.
    assert times.latencies_us()[:5].tolist() == [25_000, 17_000, 9_000, 2_000, 2_000]
    assert times.late_us()[:4].tolist() == [0, 15_000, 7_000, 0]


def test_back_to_back_a_step_is_due_when_the_one_before_is_done():
    times = times_of([3 * MS, 5 * MS], hz=0, seconds=0.04, prepare_ns=1 * MS)
    assert np.all(times.late_us() == 0)
    assert set(times.latencies_us()) == {3000, 5000}
    assert all(next_ - end == MS for end, next_ in zip(times.end_ns, times.due_ns[1:], strict=False))
    assert times.end_ns[-1] - times.due_ns[0] >= 39 * MS


def test_the_first_step_of_a_block_is_told_apart():
    times = times_of([9 * MS, *[2 * MS] * 9], hz=100, seconds=0.1, blocks=3)
    assert times.latencies_us(first=True).tolist() == [9000] * 3
    assert times.latencies_us().tolist() == [2000] * 27
    assert len(times.intervals_us()) == 27, "none from one block to the next"


def test_quantiles_hold_what_they_are_of():
    samples = np.random.default_rng(1).exponential(1000, 20_000)
    for name, of in quantiles.QUANTILES.items():
        found, true = quantiles.summary(samples)[name], -1000 * np.log(1 - of)
        assert found["low"] <= found["value"] <= found["high"]
        assert found["low"] < true < found["high"], name


@pytest.mark.parametrize(("of", "needed"), [(0.5, 6), (0.9, 36), (0.99, 368), (0.999, 3688)])
def test_a_quantile_of_too_few_steps_is_refused_with_the_number_it_needs(of, needed):
    assert quantiles.steps_needed(of) == needed
    samples = np.arange(float(needed))
    assert quantiles.quantile(samples[1:], of) == {"value": None, "low": None, "high": None, "needs": needed}
    assert np.isfinite(quantiles.quantile(samples, of)["high"])


def test_shares_past_a_deadline():
    found = quantiles.missed(np.array([1.0] * 95 + [11.0] * 5), 10)
    assert found["share"] == 0.05 and found["low"] < 0.05 < found["high"] < 0.12
    assert quantiles.missed(np.array([10.0]), 10)["share"] == 0, "at the deadline is in time"


def test_an_arm_under_two_names_lies_within_its_intervals():
    """The same distribution twice, 200 times: the p50 of one lies in the other's interval 95 times of 100, less what
    its own scatter adds (83 of 100 for two independent samples)."""
    generator, within = np.random.default_rng(7), 0
    for _ in range(200):
        a, b = generator.lognormal(0, 0.1, (2, 400))
        interval = quantiles.quantile(a, 0.5)
        within += interval["low"] <= np.median(b) <= interval["high"]
    assert within >= 150


def test_blocks_that_differ_widen_an_interval():
    """A/A in blocks that the machine shifts by half a per cent, as it was seen to: the intervals of two names of one
    arm lie apart 10 times in 200 at most; taken as independent steps they lie apart in most."""
    generator, apart, alone = np.random.default_rng(3), 0, 0
    sizes = [100] * 4
    for _ in range(200):
        shifts = generator.normal(1, 0.005, (2, 4, 1))
        a, b = (shifts * generator.lognormal(0, 0.005, (2, 4, 100))).reshape(2, -1)
        for given in (sizes, ()):
            x, y = (quantiles.quantile(side, 0.5, given) for side in (a, b))
            missed = x["high"] < y["low"] or y["high"] < x["low"]
            apart, alone = apart + (missed and bool(given)), alone + (missed and not given)
    assert apart <= 10 and alone > 60
    same = quantiles.quantile(np.full(400, 2.0), 0.5, sizes)
    assert (same["low"], same["high"]) == (2.0, 2.0), "blocks of the same samples"


def test_a_clock_that_is_late_shows():
    assert np.all(timer_error_us(FakeClock(late_ns=17 * US)) == 17)


def test_the_machines_clock_is_never_early():
    for due_ns in (pk.runtime.monotonic_ns() + 3 * MS, pk.runtime.monotonic_ns() - MS):
        assert pk.runtime.wait_until(due_ns) >= due_ns
        assert pk.runtime.monotonic_ns() >= due_ns


def test_arms_take_turns_backwards_and_forwards():
    order = []
    turns(["a", "b", "c"], 4, lambda block, arm: order.append(arm))
    assert order == list("abccbaabccba")
    assert all(order.count(arm) == 4 for arm in "abc")


class Counter:
    """A device that takes 100 W."""

    name = "fake"

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def joules(self) -> float:
        return self.clock.now * 1e-9 * 100


def rate_arm(clock, durations_ns, name="one") -> RateArm:
    arm = RateArm(name, FakeStepper(clock, durations_ns), nullcontext)
    warm_up(arm, clock, 3)
    return arm


def measured(arm, clock, hz, **given):
    watch = Watch(energy.Meter(Counter(clock)), 40.0, lambda: {"sm_mhz": 1980})
    cells = measure_rate({arm.name: arm}, hz, "none", 1.0, 4, 0.5, clock, watch, lambda: None,
                         lambda s: setattr(clock, "now", clock.now + int(s * 1e9)))  # fmt: skip
    return cell_document(cells[arm.name], **{"burst": 1, "batch": 1, "deadline_us": 10_000, "watch": watch, **given})


def test_energy_of_a_step():
    """Four blocks of 25 steps at 100 Hz: each from its begin, 5 ms before the first due time, to the last token."""
    clock = FakeClock()
    found = measured(rate_arm(clock, [2 * MS]), clock, hz=100, burst=2, batch=3)
    block_s = (LEAD_NS + 24 * 10 * MS + 2 * MS) / 1e9
    assert found["steps"] == 100 and found["blocks"] == [25] * 4
    joules = 4 * block_s * 100
    assert found["energy"]["joules_per_step"] == pytest.approx(joules / 100, rel=1e-6)
    assert found["energy"]["joules_per_token"] == pytest.approx(joules / 600, rel=1e-6)
    assert found["energy"]["watts"] == pytest.approx(100, rel=1e-6)
    assert found["energy"]["net_joules_per_step"] == pytest.approx(joules / 100 * 0.6, rel=1e-6)
    assert found["deadline"]["share"] == 0 and found["latency_us"]["p50"]["value"] == 2000
    assert len(found["gpu"]) == 4


def test_a_rate_that_cannot_be_met_is_measured_back_to_back():
    clock = FakeClock()
    found = measured(rate_arm(clock, [20 * MS]), clock, hz=100)
    assert not found["met"] and found["reason"].startswith("a step takes 20 ms and is due every 10 ms")
    assert found["deadline"]["share"] == 1 and found["latency_us"]["max"] == 20_000


def test_a_counter_that_moves_every_fifth_of_a_second():
    class Coarse:
        name, now = "coarse", 0.0

        def joules(self):
            Coarse.now += 0.001
            return int(Coarse.now / 0.02)

    assert energy.resolution_s(Coarse(), 1.0, now=lambda: Coarse.now) == pytest.approx(0.02, abs=0.0011)


class Ticking:
    """A device that takes 100 W busy and 40 W idle, whose counter moves every 0.1 s; reading it takes 1 ms."""

    name, now, true = "ticking", 0.0, 0.0

    def run(self, seconds: float, watts: float) -> None:
        for _ in range(round(seconds * 1000)):
            self.now, self.true = self.now + 0.001, self.true + 0.001 * watts
            if round(self.now * 1000) % 100 == 0:
                self.shown = self.true

    shown = 0.0

    def joules(self) -> float:
        self.run(0.001, 40)
        return self.shown


def test_a_blocks_energy_is_read_where_the_counter_moves():
    device = Ticking()
    meter = energy.Meter(device, None, 0.1)
    device.run(0.033, 40)
    before, _ = meter.at_a_new_value(lambda: device.now)
    device.run(1.0 + 0.047, 100)
    after, waited_s = meter.at_a_new_value(lambda: device.now)
    assert 0.04 < waited_s < 0.06
    assert after - before - 40 * waited_s == pytest.approx(104.7, abs=0.3), "within the readings' own milliseconds"
    assert energy.Meter(device, None, 0.001).at_a_new_value(lambda: device.now)[1] == 0


def test_the_counter_against_power_and_time():
    """200 W for 1.94 s, counted by a counter that lags up to 0.1 s: exact from move to move. And one that counts 3% too
    much."""
    times = np.arange(0, 1.94, 0.005)
    for factor in (1, 1.03):
        joules = factor * 200 * np.floor(times / 0.1 + 1e-9) * 0.1
        found = energy.against_power(times, joules, np.full(len(times), 200.0))
        assert found.seconds == pytest.approx(1.8) and found.document()["ratio"] == pytest.approx(factor)
    still = energy.against_power(times, np.zeros(len(times)), np.zeros(len(times)))
    assert still.document()["ratio"] is None and still.seconds == pytest.approx(times[-1])


def test_a_check_leaves_the_ramp_out():
    """Power that is an average of the last second rises slowly: what is read before ramp_s does not count."""
    clock = SimpleNamespace(now=0.0)

    def joules() -> float:
        clock.now += 0.01
        return 100 * clock.now

    counter = SimpleNamespace(joules=joules, watts=lambda: 100.0 * (clock.now > 0.5))

    def run() -> None:
        while clock.now < 2:
            time.sleep(0.001)

    found = energy.check(counter, run, ramp_s=0.6, every_s=0.0005, now=lambda: clock.now)
    assert found.document()["ratio"] == pytest.approx(1) and found.seconds > 1


def test_a_counter_that_stands_still_is_none(monkeypatch):
    monkeypatch.setattr(energy, "RaplCounter", lambda: SimpleNamespace(name="RAPL packages", joules=lambda: 7.0))
    monkeypatch.setattr(energy, "resolution_s", lambda counter: None)
    meter = energy.meter_of(torch.device("cpu"))
    assert (meter.counter, meter.reason) == (None, "RAPL packages did not move within a second")


def test_rapl_counts_over_its_wrap(tmp_path):
    for package, energy_uj in (("intel-rapl:0", 900), ("intel-rapl:1", 10), ("intel-rapl:0:0", 5)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "energy_uj").write_text(str(energy_uj))
        (tmp_path / package / "max_energy_range_uj").write_text("999")
    counter = energy.RaplCounter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("60")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("500")
    assert counter.joules() == pytest.approx((200 + 50) / 1e6), "a part of a package is in the package"
    assert counter.joules() == pytest.approx(250 / 1e6)
    with pytest.raises(OSError, match="no RAPL package"):
        energy.RaplCounter(tmp_path / "none")


SMALL = ["--model=tiny", "--device=cpu", "--ctx=16", "--layers=1", "--threads=1", "--blocks=2", "--idle-s=0"]


def test_on_the_cpu(capsys, tmp_path):
    files = [f"--{kind}={tmp_path / name}" for kind, name in
             (("json", "r.json"), ("md", "r.md"), ("csv", "r.csv"), ("plot", "r.png"))]  # fmt: skip
    result = run_here(capsys, "bench.rate", *SMALL, "--hz=0,5", "--seconds=0.4", "--burst=2", "--deadline-ms=1000",
                      "--arm=native:native,native:graph,sdpa:eager", "--aa=native:native", *files)  # fmt: skip
    assert result.status == 0, result.err
    document = json.loads((tmp_path / "r.json").read_text())
    check_written(document)
    assert (document["schema"], document["kind"], document["burst"]) == ("launchtax/1", "rate", 2)
    arms = {entry["name"]: entry for entry in document["arms"]}
    assert list(arms) == ["native/block:native", "native/block:native@2", "native/block:graph", "sdpa:eager"]
    assert arms["native/block:graph"]["status"] == "unsupported" and not arms["native/block:graph"]["cells"]
    for name in ("native/block:native", "native/block:native@2", "sdpa:eager"):
        assert [cell["hz"] for cell in arms[name]["cells"]] == [0, 5]
        for cell in arms[name]["cells"]:
            assert cell["steps"] == sum(cell["blocks"]) >= 4 and len(cell["first_step_us"]) == 2
            assert len(cell["samples_us"]) == cell["steps"] - 2
            assert cell["deadline"]["deadline_us"] == 1e6
    assert document["timer"]["n"] == 500 and document["energy"]["idle_w"] is None or document["energy"]["counter"]
    assert "Steps at a rate" in result.out and "unsupported: native (graph)" in flat(result.out)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "| arm | Hz |" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.csv").read_text().count("\n") == 1 + 6


def test_load_runs_beside_and_ends(capsys, tmp_path):
    with true_processes(), load.running("cpu:1", 0, 20):  # found by its command
        (name,) = [line for line in _processes() if "bench.rate.load" in line][:1]
        assert "cpu 1 20" in name
    assert not [line for line in _processes() if "bench.rate.load cpu 1 20" in line]


def _processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--hz=-1", "in 0..10000"),
        ("--hz=fast", "a number"),
        ("--hz=nan", "in 0..10000"),
        ("--seconds=0", "in 0.01..86400"),
        ("--seconds=1,2", "one for each of the 4 of --hz"),
        ("--seconds=inf", "in 0.01..86400"),
        ("--blocks=0", "in 1..1000"),
        ("--burst=0", "in 1..256"),
        ("--deadline-ms=-1", "in 0..1e+06"),
        ("--idle-s=-1", "in 0..60"),
        ("--load=copy", "none or cpu:N on a CPU"),
        ("--load=cpu:0", "N in 1..256"),
        ("--load=disk", "none, cpu:N"),
        ("--aa=sdpa:native", "one of the arms"),
        ("--arm=native:fast", "backend[/fusion]:mode"),
        ("--ctx=32768", "positions"),
    ],
)
def test_bad_arguments(capsys, flag, words):
    assert_refused(run_here(capsys, "bench.rate", *SMALL[:2], flag), flag.split("=")[0], words)


def test_the_order_of_positions_begins_anew():
    """A window of positions: the same work at every rate."""
    stood, ran = [], []

    class Driver:
        model = SimpleNamespace(token=torch.zeros(1, dtype=torch.int64))

        def stand(self, position):
            stood.append(len(ran))

        def step(self):
            ran.append(1)

    stepper = TokenStepper("one", Driver(), first=8, positions=6, burst=2)
    for _ in range(7):
        stepper.prepare()
        stepper.step()
    assert stood == [0, 6, 12] and len(ran) == 14
    assert all(after - before == 6 for before, after in pairwise(stood))
