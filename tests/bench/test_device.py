"""--device=cuda:N: every clock, stream, graph, trace and question to NVML is of that GPU and no other."""

import json

import pynvml
import pytest
import torch
from inputs.command_line import assert_refused, run_here
from inputs.fake_gpu import fake_gpu

import bench
from bench.core import cli, environment, gpu_state
from bench.core.run import Machine
from bench.rate.energy import NvmlCounter

SMALL = ["--model=tiny", "--steps=3", "--warmup=1"]
DRIVERS = {
    "bench.layer": [*SMALL, "--ctx=16", "--backend=native,sdpa", "--fusion=block", "--mode=all"],
    "bench.step": [*SMALL, "--ctx=16", "--arm=native/block:native,native/block:graph,sdpa:eager,sdpa:graph"],
    "bench.op": [*SMALL, "--op=rmsnorm", "--mode=all"],
    "bench.attention": ["--model=tiny", "--ctx=16", "--batch=1", "--backend=native,sdpa", "--sessions=0", "--calls=12"],
    "bench.int4": [*SMALL, "--what=layer", "--kernel=native"],
}
WHAT = {"launch", "event", "stream", "hold", "timed loop", "host loop", "capture", "trace", "monitor", "environment"}
"""What a run of bench.layer in every mode does with a GPU."""


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_clock_follows(capsys, monkeypatch, tmp_path, driver):
    output = tmp_path / "result.json"
    with fake_gpu(monkeypatch, devices=2) as gpu:
        result = run_here(capsys, driver, *DRIVERS[driver], "--device=cuda:1", f"--json={output}")
    assert result.status == 0, result.err
    document = json.loads(output.read_text())
    assert document["device"] == "cuda"
    assert {what for what, devices in gpu.used.items() if devices != {1}} == set()
    if driver == "bench.layer":
        assert gpu.used.keys() >= WHAT and document["environment"]["gpu"]["index"] == 1
    assert {kernel.device for kernel in gpu.kernels} == {1}


def test_a_callable_s_inputs_name_the_gpu(monkeypatch):
    with fake_gpu(monkeypatch, devices=2) as gpu:
        bench.measure(torch.add, torch.ones(8), torch.ones(8), steps=3, device="cuda:1")
        assert gpu.current == 0, "the caller's current device is left as it was"
    assert {what for what, devices in gpu.used.items() if devices != {1}} == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuda:2", "a GPU that torch sees: cuda:0 to cuda:1, 2 in all"),
        ("cuda:99999", "one of auto, cpu, cuda, cuda:N"),
        ("cuda:", "one of auto, cpu, cuda, cuda:N"),
        ("cuda:-1", "one of auto, cpu, cuda, cuda:N"),
        ("gpu", "one of auto, cpu, cuda, cuda:N"),
    ],
)
def test_no_such_device(capsys, monkeypatch, text, words):
    with fake_gpu(monkeypatch, devices=2):
        assert_refused(run_here(capsys, "bench.layer", "--model=tiny", f"--device={text}"), f"--device={text}", words)


def test_who_only_starts_others_makes_no_context(monkeypatch):
    with fake_gpu(monkeypatch, devices=2) as gpu:
        assert cli.device("cuda:1", use=False) == torch.device("cuda", 1) and gpu.current == 0
        assert cli.device("cuda:1") == torch.device("cuda", 1) and gpu.current == 1


class Nvml:
    """Three GPUs in the bus's order. torch sees the third as its first and the first as its second, as with
    CUDA_VISIBLE_DEVICES=2,0."""

    uuids = ("GPU-a", "GPU-b", "GPU-c")
    seen_by_torch = (2, 0)

    def __init__(self, monkeypatch, uuid_known: bool = True) -> None:
        def by_uuid(uuid):
            if not uuid_known:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return self.uuids.index(uuid)

        def properties(device):
            index = self.seen_by_torch[device.index]
            return type("Properties", (), {
                "uuid": self.uuids[index].removeprefix("GPU-"), "pci_domain_id": 0, "pci_bus_id": 16 + index,
                "pci_device_id": 0,
            })  # fmt: skip

        fakes = {
            "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": by_uuid,
            "nvmlDeviceGetHandleByPciBusId": lambda bus: ["00000000:10:00.0", "00000000:11:00.0",
                                                          "00000000:12:00.0"].index(bus),
            "nvmlDeviceGetName": lambda handle: f"GPU number {handle}",
            "nvmlDeviceGetUUID": lambda handle: self.uuids[handle],
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1000 + handle,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1000 * handle,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(pynvml, name, fake)
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


@pytest.mark.parametrize("uuid_known", [True, False], ids=["by uuid", "by bus id"])
@pytest.mark.parametrize(("index", "nvml_index"), [(0, 2), (1, 0)])
def test_nvml_s_gpu_is_torch_s(monkeypatch, index, nvml_index, uuid_known):
    Nvml(monkeypatch, uuid_known)
    device = torch.device("cuda", index)
    assert environment.collect(device)["gpu"]["name"] == f"GPU number {nvml_index}"
    assert environment.collect(device)["gpu"]["index"] == index
    assert gpu_state.Monitor(device).clocks()["sm_mhz"] == 1000 + nvml_index
    assert NvmlCounter(device).joules() == nvml_index
    assert Machine(device).document()["gpu"]["uuid"] == Nvml.uuids[nvml_index]


def test_on_a_cpu_the_machine_s_first_gpu_is_named(monkeypatch):
    Nvml(monkeypatch)
    assert environment.collect()["gpu"]["name"] == "GPU number 0"
