"""bench.inside end to end on a fake GPU whose kernels leave stamps that are known, and what it refuses."""

import json
from contextlib import contextmanager

import pytest
import torch
from inputs.command_line import assert_refused, flat, run_here
from inputs.fake_gpu import GAP_US, KERNEL_US, fake_gpu
from inputs.timestamp_records import TICKS_PER_US, Records

import pykernels as pk
from pykernels.layer import op_labels
from pykernels.timestamps import POINTS, Timestamps

SMALL = ["--device=cuda", "--model=tiny", "--ctx=64", "--l2=warm", "--warmup=1", "--steps=6", "--repeats=4"]
# After a kernel's start, for the points between start and end.
PASSED = [1.1, 2.6, 4.1, 5.3, 8.0, 9.1]
STEP_US = KERNEL_US + GAP_US


@pytest.fixture
def gpu(monkeypatch):
    """The fake, whose recordings have `records_left_out` fewer places than they ask for."""
    monkeypatch.setenv("COLUMNS", "150")
    with fake_gpu(monkeypatch) as fake:
        fake.records_left_out, fake.recorded = 0, []

        @contextmanager
        def kernel_timestamps(device: int, capacity: int):
            assert device == 0
            stamps, first = Timestamps(), len(fake.kernels)
            yield stamps
            made = Records(["gemv", *{kernel.name for kernel in fake.kernels} - {"gemv"}])
            for kernel in fake.kernels[first:]:
                begin = kernel.start_ns / 1000
                made.launch(kernel.name, [begin, *(begin + us for us in PASSED), kernel.end_ns / 1000], range(3))
            records = made.array()
            places = min(len(records), capacity) - (fake.records_left_out if capacity > 1 else 0)
            stamps.records, stamps.lost, stamps.kernels = records[:places], len(records) - places, made.kernels
            fake.recorded.append(capacity)

        monkeypatch.setattr(pk.runtime, "kernel_timestamps", kernel_timestamps)
        monkeypatch.setattr(pk.runtime, "timestamps_reason", lambda: None)
        yield fake


def measure(capsys, tmp_path, *arguments):
    output = tmp_path / "inside.json"
    result = run_here(capsys, "bench.inside", *SMALL, *arguments, f"--json={output}")
    return result, json.loads(output.read_text()) if output.exists() else None


@pytest.mark.parametrize(
    ("flags", "fusion", "int4"),
    [
        ([], "block", False),
        (["--fusion=none"], "none", False),
        (["--quant=int4", "--group=32"], "block", True),
        (["--quant=int4", "--fusion=none"], "none", True),
    ],
)
def test_a_layer(gpu, capsys, tmp_path, flags, fusion, int4):
    result, document = measure(capsys, tmp_path, *flags, f"--md={tmp_path / 'inside.md'}")
    assert result.status == 0, result.err
    assert (document["kind"], document["device"], document["repeats"]) == ("inside", "cuda", 4)
    assert [(arm["mode"], arm["fusion"], arm["status"]) for arm in document["arms"]] == [
        ("graph", fusion, "ok"),
        ("graph-pdl", fusion, "ok"),
    ]
    layer = op_labels(fusion, int4)
    records = 6 * 4 * len(layer) * 6  # replays, layers, ops, three SMs' two warps
    assert gpu.recorded == [1, records] * 2
    printed, markdown = flat(result.out), (tmp_path / "inside.md").read_text()
    for arm in document["arms"]:
        assert (arm["replays"], arm["replays_left_out"], arm["records"], arm["records_lost"]) == (6, 0, records, 0)
        assert arm["wall_us"]["mean"] == arm["wall_quiet_us"]["mean"] == len(layer) * STEP_US
        # Between two replays there is a gap that is no layer's.
        assert arm["accounted_us"] == pytest.approx(len(layer) * STEP_US - GAP_US / 4, abs=0.01)
        assert arm["unaccounted_us"] == pytest.approx(GAP_US / 4, abs=0.01)
        assert arm["sm_mhz"]["median"] == pytest.approx(TICKS_PER_US, rel=1e-3)
        assert [(entry["op"], entry["label"], entry["sms"]) for entry in arm["kernels"]] == [
            (op, label, 3.0) for op, label in layer
        ]
        for entry in arm["kernels"]:
            assert entry["gap_us"]["mean"] == pytest.approx(GAP_US, abs=0.01)
            assert entry["inside_us"]["mean"] == pytest.approx(KERNEL_US, abs=0.01)
            passed = [entry["points"][f"{point}_us"]["mean"] for point in POINTS[1:]]
            assert passed == pytest.approx([1.1, 1.5, 1.5, 1.2, 2.7, 1.1, 0.9], abs=0.01)
        assert f"native/{fusion}, {arm['mode']}: microseconds" in printed
        assert f"### native/{fusion}, {arm['mode']}: microseconds" in markdown
    for op, label in layer:
        assert f"{op} {label} 3 2.00 1.10 1.50 1.50 1.20 2.70 1.10 0.900 10.00" in printed
        assert f"| {op} | {label} | 3 | 2.00 | 1.10 | 1.50 | 1.50 | 1.20 | 2.70 | 1.10 | 0.900 | 10.00 |" in markdown
    assert "SM clock 2000 MHz" in printed


def test_no_place_for_the_last_records(gpu, capsys, tmp_path):
    gpu.records_left_out = 7
    result, document = measure(capsys, tmp_path, "--mode=graph")
    (arm,) = document["arms"]
    assert (arm["replays"], arm["replays_left_out"], arm["records_lost"]) == (5, 1, 7)
    assert arm["kernels"][-1]["inside_us"]["mean"] == pytest.approx(KERNEL_US, abs=0.01)
    assert "INCOMPLETE: 7 records did not fit, 1 replays left out" in flat(result.out)


def test_a_wrong_layer_gets_no_time(gpu, capsys, tmp_path, monkeypatch):
    """Behind the reference's back its input is another."""
    monkeypatch.setattr(pk.DecodeLayer, "poison", lambda layer: layer.x.mul_(2))
    result, document = measure(capsys, tmp_path, "--mode=graph")
    assert result.status == 1
    (arm,) = document["arms"]
    assert arm["status"] == "wrong" and "kernels" not in arm and "wall_us" not in arm
    assert gpu.recorded == []
    assert "wrong: native/block (graph)" in result.out


def test_records_of_another_chain_are_an_error(gpu, capsys, tmp_path, monkeypatch):
    true_run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda *given: (gpu.launch("rmsnorm"), true_run(*given)))
    result, document = measure(capsys, tmp_path, "--mode=graph")
    (arm,) = document["arms"]
    assert arm["status"] == "error"
    assert "launch 0 that was recorded is of rmsnorm, and the layer's is of qkv_gemv" in arm["reason"]
    assert "launch 0 that was recorded" in flat(result.out)


def test_other_drivers_say_that_the_kernels_have_timestamps(gpu, capsys, monkeypatch):
    layer = ["--device=cuda", "--model=tiny", "--ctx=64", "--l2=warm", "--steps=2", "--backend=native", "--mode=graph"]
    assert "TIMESTAMPS" not in run_here(capsys, "bench.layer", *layer).out
    true_info = pk.runtime.build_info
    monkeypatch.setattr(pk.runtime, "build_info", lambda: {**true_info(), "timestamps": True})
    assert "TIMESTAMPS: the kernels of this build read clocks" in flat(run_here(capsys, "bench.layer", *layer).out)


def test_a_build_without_timestamps(capsys, monkeypatch):
    if pk.runtime.build_info()["timestamps"]:
        pytest.skip("this build has them")
    monkeypatch.setattr("bench.core.cli.device", lambda text: torch.device("cuda", 0))
    assert_refused(
        run_here(capsys, "bench.inside", "--model=tiny"),
        "this build has no in-kernel timestamps: CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build",
    )


def test_a_machine_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(pk.runtime, "timestamps_reason", lambda: None)
    assert_refused(run_here(capsys, "bench.inside", "--model=tiny", "--device=cpu"), "--device=cpu", "must be cuda")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode=eager"], ["--mode=eager", "graph, graph-pdl"]),
        (["--quant=int4", "--fusion=some"], ["--fusion=some", "none, block"]),
        (["--quant=int8"], ["--quant=int8", "none, int4"]),
        (["--group=64"], ["--group=64", "--quant=int4"]),
        (["--steps=1"], ["--steps=1", "2..1000"]),
        (["--repeats=513"], ["--repeats=513", "0..512"]),
        (["--ctx=0"], ["--ctx=0", "1..32768"]),
        (["--batch=9"], ["--batch=9", "1..8"]),
        (["--json=/nowhere/inside.json"], ["--json=/nowhere/inside.json"]),
    ],
)
def test_bad_flags(capsys, flags, words):
    assert_refused(run_here(capsys, "bench.inside", "--model=tiny", *flags), *words)
