"""The alternation: order, warmup, rounds that belong together, arms that fail, and the gate before it all."""

import gc
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pykernels as pk
from bench.backends import MODES, Workload, arms_of, registry
from bench.core import measure
from bench.core.measure import Arm, Rotation, python_sampler


class Bench:
    """Arms named a, b, ... that log when they are sampled and return the number of the call as their time."""

    def __init__(self, names: str = "abc") -> None:
        self.log: list[tuple[str, int]] = []
        self.failures: dict[tuple[str, int], BaseException] = {}
        self.arms = [Arm(name, "eager", sampler=self.sampler(name)) for name in names]

    def sampler(self, name: str):
        def sample(n: int) -> np.ndarray:
            self.log.append((name, n))
            calls = sum(logged == name for logged, _ in self.log)
            if error := self.failures.get((name, calls)):
                raise error
            return np.arange(n) + 10.0 * len(self.log)

        return sample

    def fail(self, name: str, call: int, error: BaseException) -> None:
        """Arm `name` raises in its call-th call: 1 is the warmup, 2 the first round."""
        self.failures[name, call] = error

    def counts(self) -> list[int]:
        """Samples of every arm."""
        return [len(arm.samples_us) for arm in self.arms]


def comparison(ok: bool, error: float = 0.5) -> pk.reference.Comparison:
    """What a check returns."""
    return pk.reference.Comparison(ok, error, 0.1, (0,), 1.0, 2.0, "beyond the tolerance")


@pytest.fixture(scope="module")
def workload() -> Workload:
    spec = pk.models.get("tiny")
    weights = pk.LayerWeights.random(spec)
    return Workload.of([pk.DecodeLayer(spec, weights, 32), pk.DecodeLayer(spec, weights.clone(), 32)])


@pytest.mark.parametrize(("warmup", "warmed"), [(0, 1), (1, 1), (7, 7)])
def test_every_other_round_goes_backwards(warmup, warmed):
    bench = Bench()
    assert measure.alternate(bench.arms, warmup, 4) is True
    assert bench.log[:3] == [("a", warmed), ("b", warmed), ("c", warmed)]
    assert "".join(name for name, _ in bench.log[3:]) == "abccbaabccba"
    assert {n for _, n in bench.log[3:]} == {2}, "one step untimed, one timed"


def test_a_sample_is_the_second_step_of_its_round():
    bench = Bench()
    measure.alternate(bench.arms, 1, 3)
    # The log's length times ten, and one for the second step; three calls were warmup.
    assert [arm.samples_us for arm in bench.arms] == [[41.0, 91.0, 101.0], [51.0, 81.0, 111.0], [61.0, 71.0, 121.0]]


def test_advance_is_called_for_every_arm_of_every_round():
    bench, steps = Bench(), []
    bench.fail("b", 3, ValueError("late"))
    bench.arms.append(measure.unsupported("d", "graph", "needs a GPU"))
    measure.alternate(bench.arms, 1, 4, lambda: steps.append(1))
    assert len(steps) == 3 * 4


def test_a_turn_begins_after_what_comes_before_it():
    bench = Bench("ab")
    measure.alternate(bench.arms, 1, 2, before_turn=lambda: bench.log.append(("settle", 0)))
    assert [name for name, _ in bench.log] == ["a", "b"] + ["settle", "a", "settle", "b", "settle", "b", "settle", "a"]


@pytest.mark.parametrize(("spinning_ms", "waited_ms"), [(0, 1), (9, 10), (1000, 50)])
def test_an_arm_s_turn_waits_until_other_threads_sleep(spinning_ms, waited_ms, monkeypatch):
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    # A second thread that spins takes as much processor time as passes.
    computed_s = lambda: min(now_s[0], spinning_ms / 1000)  # noqa: E731
    clocks = SimpleNamespace(perf_counter=lambda: now_s[0], process_time=computed_s, sleep=sleep)
    monkeypatch.setattr(measure, "time", clocks)
    measure.settle()
    assert now_s[0] == pytest.approx(waited_ms / 1000)


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("first line\nsecond line"), "error", "ValueError: first line"),
        (RuntimeError(""), "error", "RuntimeError"),
        (MemoryError(), "oom", "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", "OutOfMemoryError: CUDA out of memory. Tried"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_arm_that_raises_ends_alone(error, status, reason, call):
    bench = Bench()
    bench.fail("b", call, error)
    assert measure.alternate(bench.arms, 1, 4) is True
    _, failed, _ = bench.arms
    assert (failed.status, failed.reason) == (status, reason)
    assert bench.counts() == [4, 0, 4]
    assert [name for name, _ in bench.log].count("b") == call, "it is not tried again"
    assert {arm.status for arm in (bench.arms[0], bench.arms[2])} == {"ok"}


@pytest.mark.parametrize(
    ("name", "call", "kept"), [("a", 1, 0), ("c", 1, 0), ("a", 2, 0), ("b", 2, 0), ("b", 4, 2), ("a", 5, 3)]
)
def test_ctrl_c_keeps_the_rounds_that_all_arms_finished(name, call, kept):
    bench = Bench()
    bench.fail(name, call, KeyboardInterrupt())
    assert measure.alternate(bench.arms, 1, 5) is False
    assert bench.counts() == [kept] * 3
    assert {arm.status for arm in bench.arms} == {"ok"}
    assert gc.isenabled()


def test_a_wrong_arm_is_never_sampled():
    bench = Bench()
    right, wrong, raising = bench.arms
    right.check, wrong.check = lambda: comparison(True, 0.05), lambda: comparison(False)

    def check() -> pk.reference.Comparison:
        raise MemoryError("no room")

    raising.check = check
    seen = []
    measure.gate(bench.arms, seen.append)
    assert seen == bench.arms
    assert (right.status, right.reason, right.max_rel_error) == ("ok", None, 0.05)
    assert (wrong.status, wrong.reason, wrong.max_rel_error) == ("wrong", "beyond the tolerance", 0.5)
    assert (raising.status, raising.reason, raising.max_rel_error) == ("oom", "MemoryError: no room", None)
    measure.alternate(bench.arms, 1, 3)
    assert {name for name, _ in bench.log} == {"a"} and bench.counts() == [3, 0, 0]


def test_the_gate_leaves_out_what_cannot_run():
    unsupported, unchecked = measure.unsupported("a", "graph", "needs a GPU", "none"), Arm("b", "eager")
    unsupported.check = lambda: pytest.fail("an unsupported arm was checked")
    measure.gate([unsupported, unchecked], lambda arm: pytest.fail("nothing to advance for"))
    assert (unsupported.status, unsupported.reason) == ("unsupported", "needs a GPU")
    assert (unsupported.label, unchecked.label) == ("a/none:graph", "b:eager")


@pytest.mark.parametrize("spoiled", ["nothing is written", "NaN", "another number", "the slot of K", "the slot of V"])
def test_the_gate_finds_what_a_step_spoils(spoiled, workload):
    layer = workload.layers[0]

    def step() -> None:
        if spoiled != "nothing is written":
            layer.forward("block")
        if spoiled == "NaN":
            layer.out[0, 100] = float("nan")
        elif spoiled == "another number":
            layer.out[0, 100] += layer.out.abs().max() / 10
        elif spoiled == "the slot of K":
            layer.k_cache[:, :, 31] = 0
        elif spoiled == "the slot of V":
            layer.v_cache[0, 1, 31, 63] = float("inf")

    arm = Arm("spoiled", "eager", check=workload.checker(step, lambda: layer.out), sampler=lambda n: pytest.fail("ran"))
    measure.gate([arm])
    assert arm.status == "wrong" and "beyond the tolerance" in arm.reason
    assert measure.alternate([arm], 1, 2) is True and arm.samples_us == []


def test_surroundings_hold_around_check_and_samples():
    held, seen = [], []

    @contextmanager
    def surroundings():
        held.append(True)
        try:
            yield
        finally:
            held.pop()

    def sampler(n: int) -> np.ndarray:
        seen.append((len(held), torch.is_inference_mode_enabled(), gc.isenabled()))
        return np.ones(n)

    arm = Arm("a", "eager", sampler=sampler, check=lambda: sampler(1) is None or comparison(True))
    arm.surroundings, arm.host_sampler = surroundings, sampler
    measure.gate([arm])
    measure.alternate([arm], 1, 1)
    measure.measure_host([arm], 1, 1)
    assert seen == [(1, True, True)] + [(1, True, False)] * 4
    assert not held and gc.isenabled() and not torch.is_inference_mode_enabled()


def test_garbage_collection_is_put_back_as_it_was():
    with suppress(ZeroDivisionError), measure.no_garbage_collection():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with measure.no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_rotation_goes_on_where_the_last_one_stopped():
    rotation = Rotation(3)
    takes = [(2, "abc"), (2, "cab"), (3, "bca"), (4, "bca"), (1, "cab"), (0, "abc"), (7, "abc"), (1, "bca")]
    assert ["".join(rotation.take("abc", n)) for n, _ in takes] == [order for _, order in takes]


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_python_sampler_runs_and_times_every_step(repeats, monkeypatch):
    clock_ns, log = [0], []

    def step(name: str) -> None:
        log.append(name)
        clock_ns[0] += 6000 if name == "a" else 2000

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter_ns=lambda: clock_ns[0]))
    rotation = Rotation(2)
    sampler = python_sampler([lambda: step("a"), lambda: step("b")], rotation, repeats)
    samples = sampler(3)
    assert samples.dtype == np.float64
    assert samples.tolist() == ([6.0, 2.0, 6.0] if repeats == 1 else [4.0, 4.0, 4.0])
    assert "".join(log) == ("ab" * 6)[: 3 * repeats]
    # Another arm takes up the shared rotation.
    log.clear()
    python_sampler([lambda: step("c"), lambda: step("d")], rotation)(2)
    assert "".join(log) == ("dc" if repeats == 1 else "cd")
    assert sampler(0).shape == (0,)


@pytest.mark.parametrize("warmup", [0, 2])
def test_arms_of_a_real_backend(warmup, workload):
    arms = [arm for name in ("native", "sdpa", "fa3") for arm in arms_of(registry()[name], workload, MODES, ["block"])]
    measure.gate(arms)
    assert {arm.status for arm in arms} == {"ok", "unsupported"}
    assert all((arm.reason is None) == (arm.status == "ok") for arm in arms)
    assert measure.alternate(arms, warmup, 3) is True
    measure.measure_host(arms, warmup, 2)
    for arm in arms:
        assert len(arm.samples_us) == (3 if arm.status == "ok" else 0)
        assert len(arm.host_samples_us) == (2 if arm.status == "ok" and arm.host_sampler else 0)
        assert all(sample > 0 for sample in arm.samples_us)


def test_a_host_clock_that_fails_does_not_end_the_run():
    bench = Bench("ab")
    for arm in bench.arms:
        arm.host_sampler = arm.sampler
    bench.fail("a", 1, RuntimeError("no host clock"))
    measure.measure_host(bench.arms, 1, 3)
    assert [len(arm.host_samples_us) for arm in bench.arms] == [0, 3]
