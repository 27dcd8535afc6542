"""The controls around a cell: a process of their own, what it measures, and what becomes of it."""

import json
import os
import signal

import pytest
import torch
from inputs.command_line import run_here, run_module_here
from inputs.fake_gpu import KERNEL_US, fake_gpu

from bench.core import gpu_state
from bench.fleet import cells, controls

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """A ceiling of a MiB."""
    monkeypatch.setattr("bench.core.ceiling.last_level_cache_bytes", lambda device: 1 << 20)


def test_the_process_answers_every_time_and_is_started_again():
    process = controls.Process(CPU)
    first = process.measure()
    assert first["reason"] is None and first["read_gbs"] > 0 and first["clocks"] is None
    assert first["spin_us"] >= first["spin_asked_us"] and set(first["null_us"]) == {
        "eager", "pybind", "dispatch", "native",
    }  # fmt: skip
    pid = process._process.pid
    os.kill(pid, signal.SIGKILL)
    process._process.wait()
    assert process.measure()["reason"] is None and process._process.pid != pid
    process._process.stdin.close()
    assert process._process.wait(60) == 0, "it ends with whoever started it"


def test_what_cannot_be_measured_has_its_reason(monkeypatch):
    process = controls.Process(CPU, limit_s=0.2)
    monkeypatch.setattr(controls, "module_command", lambda *_: ["sleep", "60"])
    assert process.measure()["reason"] == "the controls were not done after 0.2 s"
    monkeypatch.setattr(controls, "module_command", lambda *_: ["sh", "-c", "exit 3"])
    found = process.measure()
    assert found["reason"] == "the process of the controls ended with status 3" and found["read_gbs"] is None
    process.end()


def test_on_a_gpu_the_controls_are_of_that_gpu_and_trace_nothing(monkeypatch):
    with fake_gpu(monkeypatch, devices=2) as gpu:
        torch.cuda.set_device(1)
        device = torch.device("cuda", 1)
        found = controls.measure(device, gpu_state.Monitor(device))
    assert found["null_us"]["native"] > KERNEL_US and found["null_host_us"].keys() == found["null_us"].keys()
    assert found["clocks"]["sm_mhz"] == 1980 and found["read_gbs"] > 0
    assert {what for what, devices in gpu.used.items() if devices != {1}} == set() and "trace" not in gpu.used


def test_a_cell_has_both_sets(capsys, monkeypatch, small, tmp_path):
    sets = iter(range(10))
    monkeypatch.setattr(cells, "run_module", run_module_here)
    monkeypatch.setattr(
        controls.Process, "measure", lambda self: controls.nothing("") | {"read_gbs": 10.0 + next(sets)}
    )
    flags = ["--model=tiny", "--ctx=8", "--batch=1", "--steps=2", "--warmup=1", "--arm=native/block:native"]
    result = run_here(capsys, "bench.sweep", *flags, "--device=cpu", f"--out={tmp_path}")
    assert result.status == 0, result.err
    cell = json.loads((tmp_path / "tiny_ctx8_b1.json").read_text())
    assert [cell["controls"][when]["read_gbs"] for when in ("before", "after")] == [10.0, 11.0]
    assert cell["controls"]["doubt"] is None and len(cell["node"]["name"]) == 8
