"""How a run is measured beside the ceiling and closed, whatever its driver is."""

import json

import numpy as np
import pytest
import torch

from bench.core import measure
from bench.core.ceiling import Ceiling
from bench.core.measure import Arm
from bench.core.outputs import Outputs
from bench.core.run import Machine, Measurement, close, take_rounds

SPEC = (100.0, "--spec-gbs")


@pytest.fixture(scope="module")
def ceiling():
    return Ceiling(torch.device("cpu"))


def measurement(ceiling: Ceiling | None, *arms: Arm) -> Measurement:
    for arm in ceiling.arms if ceiling else ():
        arm.samples_us = []
    return Measurement(arms, ceiling, SPEC, None)


def constant(us: float) -> Arm:
    return Arm("mine", "eager", sampler=lambda n: np.full(n, us))


def test_all_that_is_asked_for_is_measured(ceiling):
    arm, looked = constant(3.0), []
    arm.host_sampler = arm.sampler
    found = measurement(ceiling, arm)
    found.take(1, 4, lambda: looked.append(list(arm.host_samples_us)))
    assert arm.samples_us == [3.0] * 4 and looked == [[3.0] * 4], "the host's clock comes before what is looked at"
    assert not found.interrupted and found.bandwidths["read_gbs"] > 0 and found.bandwidths["spec_gbs"] == 100.0


def test_rounds_of_several_groups_begin_anew(ceiling):
    for rounds in (3, 2):
        arm = constant(3.0)
        assert take_rounds([arm], ceiling, 1, rounds, None) == {}
        assert arm.samples_us == [3.0] * rounds
        assert len(ceiling.read.samples_us) == len(ceiling.copy.samples_us) == rounds
    read_gbs = ceiling.bandwidths(100.0)["read_gbs"]
    assert read_gbs == np.median(ceiling.read_gbs()) and ceiling.document(*SPEC)["read_gbs"] == read_gbs


def test_ctrl_c_ends_the_rounds_of_a_group(ceiling):
    calls = []

    def cut(n: int) -> np.ndarray:
        calls.append(n)
        if len(calls) == 3:  # warm-up, a round, and then
            raise KeyboardInterrupt
        return np.full(n, 3.0)

    with pytest.raises(KeyboardInterrupt):
        take_rounds([Arm("mine", "eager", sampler=cut)], ceiling, 1, 9, None)


def test_ctrl_c_in_the_first_round_leaves_nothing(ceiling):
    def cut(n: int) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measurement(ceiling, Arm("mine", "eager", sampler=cut)).take(1, 4, lambda: None)


def test_ctrl_c_in_a_later_round_keeps_the_rounds_and_looks_no_closer(ceiling):
    calls = []

    def cut(n: int) -> np.ndarray:
        calls.append(n)
        if len(calls) == 4:  # warm-up, two rounds, and then
            raise KeyboardInterrupt
        return np.full(n, 3.0)

    arm, looked = Arm("mine", "eager", sampler=cut), []
    found = measurement(ceiling, arm)
    found.take(1, 9, lambda: looked.append(1))
    assert found.interrupted and arm.samples_us == [3.0] * 2 and looked == [] and found.bandwidths["read_gbs"] > 0


@pytest.mark.parametrize("place", ["host", "afterwards"])
def test_ctrl_c_after_the_rounds_keeps_them_all(ceiling, monkeypatch, place):
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    if place == "host":
        monkeypatch.setattr(measure, "measure_host", cut)
    arm = constant(3.0)
    found = measurement(ceiling, arm)
    found.take(1, 4, cut if place == "afterwards" else lambda: None)
    assert found.interrupted and arm.samples_us == [3.0] * 4


def test_without_memory_for_the_ceiling_nothing_is_measured():
    arm = constant(3.0)
    found = measurement(None, arm)
    found.take(1, 4, lambda: pytest.fail("there is nothing to look at"))
    assert arm.samples_us == [] and not found.interrupted
    assert found.bandwidths == {"spec_gbs": 100.0, "spec_source": "--spec-gbs", "read_gbs": None, "copy_gbs": None}


def test_why_an_arm_has_no_trace_is_said_of_each():
    arms = [constant(1.0), Arm("other", "graph", status="error", reason="out of luck"), constant(1.0)]
    arms[2].backend = "third"
    found = measurement(None, *arms)
    found.untraced = {arms[0].label: "lost records"}
    entries = [{"host_us": None, "launches": 1, "bytes": 1} for _ in arms]
    found.add_device_keys(entries)
    reasons = [entry["device_reason"] for entry in entries]
    assert reasons == ["lost records", "not traced: out of luck", "not traced: the run was interrupted"]
    assert all(entry["device_us"] is None and entry["steps_per_graph"] is None for entry in entries)


def test_the_machine_on_a_cpu_has_no_gpu_state():
    machine = Machine(torch.device("cpu"))
    assert machine.monitor is None and "gpu_before" not in machine.document() and "gpu_after" not in machine.document()


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"arms": [{"status": "ok"}, {"status": "unsupported"}]}, 0),
        ({"arms": [{"status": "ok"}, {"status": "wrong"}]}, 1),
        ({"arms": [], "ops": [{"status": "wrong"}]}, 1),
        ({"arms": [{"status": "ok"}], "ops": [{"label": "an op of a layer has no status"}]}, 0),
        ({"arms": [], "sessions": [{"status": "wrong"}]}, 1),
        ({"arms": [{"status": "wrong"}], "interrupted": True}, 130),
    ],
)
def test_the_exit_status(document, status, tmp_path):
    document = {"interrupted": False} | document
    shown, path = [], tmp_path / "run.json"
    assert close(document, Outputs(str(path), "", ""), lambda result, _: shown.append(result)) == status
    assert shown == [document] and json.loads(path.read_text()) == document


def test_the_files_are_written_though_nobody_reads_the_tables(tmp_path):
    def gone(*_: object) -> None:
        raise BrokenPipeError

    path = tmp_path / "run.json"
    with pytest.raises(BrokenPipeError):
        close({"interrupted": False, "arms": []}, Outputs(str(path), "", ""), gone)
    assert path.exists()
