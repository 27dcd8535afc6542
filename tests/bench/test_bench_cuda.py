"""bench.layer and bench.op with --device=cuda, end to end on a fake GPU whose every time is known."""

import contextlib
import io
import itertools
import json
import math

import pytest
import torch
from inputs.command_line import assert_refused, flat, run_here
from inputs.fake_gpu import GAP_US, HOST_US, KERNEL_US, fake_gpu, in_a_captured_step

import bench.layer
from bench.backends.torch_layer import TorchLayer
from bench.core import cli, controls
from bench.core.document import program_name
from pykernels.layer import OP_LABELS

LAYER = ["--device=cuda", "--model=tiny", "--ctx=64", "--steps=12", "--warmup=1", "--backend=native,sdpa",
         "--mode=eager,dispatch,native,graph,graph-pdl", "--l2=warm"]  # fmt: skip
STEP_US = KERNEL_US + GAP_US
OPS = {"none": 14, "block": 5}


@pytest.fixture(params=[True, False], ids=["traced", "untraced"])
def gpu(request, monkeypatch):
    with fake_gpu(monkeypatch, request.param) as fake:
        fake.traced = request.param
        yield fake


def measure(capsys, tmp_path, driver, *arguments):
    output = tmp_path / "result.json"
    result = run_here(capsys, driver, *arguments, f"--json={output}")
    assert result.status == 0, result.out + result.err
    return result, json.loads(output.read_text())


@pytest.fixture(scope="module", params=[True, False], ids=["traced", "untraced"])
def layer(request, tmp_path_factory):
    """One run of bench.layer: the fake, the document, and what was printed."""
    folder = tmp_path_factory.mktemp("layer")
    outputs = [f"--json={folder / 'result.json'}", f"--md={folder / 'result.md'}"]
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        fake_gpu(monkeypatch, request.param) as gpu,
        contextlib.redirect_stdout(printed),
    ):
        status = cli.run("bench.layer", bench.layer.command, [*LAYER, *outputs])
    assert status == 0
    gpu.traced = request.param
    text = flat(printed.getvalue()), (folder / "result.md").read_text()
    return gpu, json.loads((folder / "result.json").read_text()), text


def test_the_layer(layer):
    gpu, document, _ = layer
    assert (document["device"], document["repeats"]) == ("cuda", 8)
    arms = {(arm["backend"], arm["fusion"], arm["mode"]): arm for arm in document["arms"] if arm["status"] == "ok"}
    assert len(arms) == 2 * 5 + 4
    for (backend, fusion, mode), arm in arms.items():
        # A fake eager step is one kernel, whatever it calls.
        kernels = OPS[fusion] if backend == "native" and mode != "eager" else 1
        if (backend, mode) == ("sdpa", "dispatch"):
            kernels = arm["launches"]
        assert arm["wall_us"]["p50"] == kernels * STEP_US, (backend, fusion, mode)
        assert arm["steps_per_graph"] == (8 if mode.startswith("graph") else None)
        assert arm["host_us"]["p50"] > 0
        assert arm["host_us_per_kernel"] == pytest.approx(arm["host_us"]["p50"] / arm["launches"])
        if gpu.traced:
            assert arm["device_us"]["p50"] == kernels * KERNEL_US and arm["device_reason"] is None
            assert arm["trace_factor"] == 1 and len(arm["kernels"]) == arm["launches"] == kernels
            assert arm["device_gbs"] == pytest.approx(arm["bytes"] / arm["device_us"]["p50"] / 1e3)
        else:
            assert (arm["device_us"], arm["device_reason"]) == (None, "CUPTI is not here")
    assert arms["native", "none", "native"]["host_us"]["p50"] == HOST_US
    assert arms["native", "none", "graph"]["host_us"]["p50"] == HOST_US / 8
    assert {graph.programmatic for graph in gpu.graphs if len(graph.items) == 8} == {True, False}
    assert arms["native", "block", "graph"]["ratio_to_sdpa_graph"]["p50"] == pytest.approx(1 / 5)
    assert "ratio_to_sdpa_graph" not in arms["native", "block", "native"]
    assert gpu.most_queued <= 512
    relaunched = arms["sdpa", None, "native"]
    assert [node["kind"] for node in relaunched["nodes"]] == ["kernel"] and relaunched["launches"] == 1
    assert relaunched["host_us"]["p50"] == HOST_US
    assert relaunched["against_eager"] == arms["sdpa", None, "graph"]["against_eager"] == "equal"
    assert "against_eager" not in arms["sdpa", None, "eager"]


@pytest.mark.parametrize("mode", ["native", "graph"])
def test_a_captured_step_that_is_not_its_eager_self(capsys, tmp_path, monkeypatch, mode):
    """Within the gate's tolerance, which a last bit is."""
    forward = TorchLayer.forward

    def other(self):
        out = forward(self)
        if in_a_captured_step(gpu):
            out.view(torch.int16)[0, 0] ^= 1
        return out

    monkeypatch.setattr(TorchLayer, "forward", other)
    with fake_gpu(monkeypatch) as gpu:
        _, document = measure(
            capsys,
            tmp_path,
            "bench.layer",
            *LAYER[:4],
            "--warmup=1",
            "--l2=warm",
            "--backend=sdpa",
            f"--mode=eager,{mode}",
        )
    eager, captured = document["arms"]
    assert (captured["status"], captured["against_eager"]) == ("ok", "different")


def test_the_ladder_of_a_layer(layer):
    gpu, document, (words, markdown) = layer
    parts = [part["part"] for part in document["ladder"]["native/none"]]
    expected = ["python", "dispatch", "launch", *(["gap"] if gpu.traced else []), "kernel", "ceiling", "floor"]
    assert parts == expected
    us = {part["part"]: part["us"] for part in document["ladder"]["native/none"]}
    assert math.fsum(us.values()) == pytest.approx(STEP_US, abs=1e-5)
    if gpu.traced:
        assert us["gap"] == 14 * GAP_US
    else:
        assert "kernel includes the gaps' share: no kernel was traced" in document["ladder_notes"]["native/none"]
    assert [part["part"] for part in document["ladder"]["sdpa"]] == expected and "sdpa" not in (
        document["ladder_notes"] if gpu.traced else ()
    )
    for name, parts in document["ladder"].items():
        eager = next(
            a for a in document["arms"] if a["mode"] == "eager" and program_name(a["backend"], a["fusion"]) == name
        )
        assert sum(part["us"] for part in parts) == eager["wall_us"]["p50"]
        assert all(part["low"] <= part["us"] <= part["high"] for part in parts)
    hidden = {part["part"] for part in document["ladder"]["native/none"] if part["hidden"]}
    assert "launch" in hidden and not hidden & {"gap", "kernel", "ceiling", "floor"}
    assert "host clock per step: eager" in words and "graph 0.375 us" in words and "per kernel:" in words
    assert "host clock per step:" in markdown


def test_the_ops_of_a_layer_come_from_the_trace(layer):
    gpu, document, _ = layer
    if not gpu.traced:
        assert document["ops"] == []
        return
    assert [row["op"] for row in document["ops"] if row["fusion"] == "block"] == [
        "qkv_gemv", "gqa_decode", "gemv", "swiglu_gemv", "gemv",
    ]  # fmt: skip
    for row in document["ops"]:
        assert (row["time_us"], row["device_us"]["p50"], row["mode"]) == (None, KERNEL_US, "graph")
        assert row["gbs"] == pytest.approx(row["bytes"] / KERNEL_US / 1e3)


def test_throttled_rounds(layer):
    _, document, (words, _) = layer
    assert (document["throttled_rounds"], document["throttled_left_out"]) == ([1], True)
    for arm in document["arms"]:
        if arm["status"] == "ok":
            assert len(arm["samples_us"]) == 12 and arm["wall_us"]["n"] == 11
    assert "throttled: 1 of 12 rounds, left out of the medians" in words
    assert document["environment"]["gpu_before"]["sm_mhz"] == document["environment"]["gpu_after"]["sm_mhz"] == 1980


TRACED = [flag for flag in LAYER if not flag.startswith(("--mode=", "--steps"))] + [
    "--mode=eager,native,graph", "--fusion=block", "--steps=2", "--repeats=3"]  # fmt: skip


def test_the_trace_of_a_layer(capsys, tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    with fake_gpu(monkeypatch):
        result = run_here(capsys, "bench.layer", *TRACED, f"--trace={path}")
    assert result.status == 0, result.err
    spans = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    labels = ["native/block:eager", "native/block:native", "native/block:graph", "sdpa:eager", "sdpa:native",
              "sdpa:graph"]  # fmt: skip
    arms = sorted((span for span in spans if span["name"] in labels), key=lambda span: span["ts"])
    assert [arm["name"] for arm in arms] == labels
    assert all(before["ts"] + before["dur"] <= after["ts"] for before, after in itertools.pairwise(arms))
    ops = ["qkv_gemv", "gqa_decode", "gemv", "swiglu_gemv", "gemv"]
    held = set()
    for arm in arms:
        inside = [
            span for span in spans if arm["ts"] <= span["ts"] and span["ts"] + span["dur"] <= arm["ts"] + arm["dur"]
        ]
        held |= {id(span) for span in inside}
        kernels = [span["name"] for span in inside if span["cat"] == "kernel"]
        calls = [span["name"] for span in inside if span["cat"] == "call"]
        named = [span["name"] for span in inside if span["cat"] == "range" and span is not arm]
        step = ops if arm["name"] in ("native/block:native", "native/block:graph") else ["eager"]
        assert kernels == 3 * step or arm["name"] == "sdpa:graph", "one sample of three steps"
        if arm["name"].endswith("graph"):
            assert calls == ["cudaGraphLaunch"] and named == []
        else:
            assert calls == ["cudaLaunchKernelExC"] * len(kernels)
            # An eager step of the fake is one kernel: not one an op.
            assert named == (3 * [label for _, label in OP_LABELS["block"]] if step is ops else [])
    assert held == {id(span) for span in spans}, "nothing lies outside of the arms"


def test_a_trace_that_cannot_be_taken_is_refused(capsys, tmp_path, monkeypatch):
    flag = f"--trace={tmp_path / 'trace.json'}"
    on_cpu = run_here(capsys, "bench.layer", "--device=cpu", "--model=tiny", flag)
    assert_refused(on_cpu, f"{flag}: needs a CUDA device: this run is on the CPU")
    with fake_gpu(monkeypatch, traced=False):
        assert_refused(run_here(capsys, "bench.layer", *TRACED, flag), f"{flag}: needs a trace of the kernels: CUPTI")
        nowhere = run_here(capsys, "bench.layer", *TRACED, f"--trace={tmp_path / 'none' / 'trace.json'}")
        assert_refused(nowhere, "--trace=", "in a folder that exists")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (RuntimeError, 2)])
def test_no_half_of_a_trace_is_left(capsys, tmp_path, monkeypatch, error, status):
    """Interrupted while tracing, or every trace refused: the document is whole, and the trace is not there."""
    path, document = tmp_path / "trace.json", tmp_path / "result.json"

    def fail(sampler, *rest):
        sampler(1)
        raise error("lost records")

    with fake_gpu(monkeypatch):
        monkeypatch.setattr("bench.core.device_trace.traced", fail)
        monkeypatch.setattr("bench.core.controls.spin", lambda device: [])
        result = run_here(capsys, "bench.layer", *TRACED, "--backend=native", f"--trace={path}", f"--json={document}")
    assert result.status == status
    assert result.err == f"--trace={path}: not written: no arm was traced\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert json.loads(document.read_text())["interrupted"] is (error is KeyboardInterrupt)


@pytest.mark.parametrize("repeats", [1, 3])
def test_steps_and_copies_of_a_graph(capsys, tmp_path, monkeypatch, repeats):
    with fake_gpu(monkeypatch) as gpu:
        cold = [flag for flag in LAYER if not flag.startswith(("--l2", "--mode=", "--backend", "--steps"))]
        monkeypatch.setattr("bench.core.layer_settings.layer_copies", lambda *args: 4)
        _, document = measure(
            capsys, tmp_path, "bench.layer", *cold, "--backend=native,sdpa", "--mode=graph", "--fusion=block",
            f"--repeats={repeats}", "--steps=8",
        )  # fmt: skip
        assert document["weight_copies"] == 4 and document["repeats"] == repeats
        graphs = [graph for graph in gpu.graphs if len(graph.items) == repeats]
        assert len(graphs) == 2 * 4, "four for each backend, so that every copy has its turn"
        replays = [graph.replays for graph in graphs]
        assert min(replays) > 1 and max(replays) - min(replays) <= 5
        assert {arm["status"] for arm in document["arms"]} == {"ok"}


def test_an_op_against_torch(capsys, tmp_path, gpu):
    small = ["--device=cuda", "--op=rmsnorm", "--model=tiny", "--steps=2", "--warmup=0"]
    result, document = measure(capsys, tmp_path, "bench.op", *small)
    rows = {(row["backend"], row["mode"]): row for row in document["ops"]}
    assert rows.keys() == {("native", "native"), ("native", "graph"), ("native", "eager"),
                           ("torch", "native"), ("torch", "graph"), ("torch", "eager")}  # fmt: skip
    for (_, mode), row in rows.items():
        assert row["status"] == "ok", row["reason"]
        assert row["time_us"]["p50"] == STEP_US and row["host_us"]["p50"] > 0
        assert row["ratio_to_torch"]["p50"] == pytest.approx(1), "like with like"
        assert (row["device_us"] or {}).get("p50") == (KERNEL_US if gpu.traced else None)
        assert row["steps_per_graph"] == (row["repeats"] if mode == "graph" else None)
        assert 200 < row["repeats"] <= 512, "half a millisecond of two microseconds"


@pytest.mark.parametrize("op", ["rmsnorm", "rope_kv_append", "gqa_decode", "silu_mul", "swiglu_gemv", "qkv_gemv", "add",
                                "embedding", "int4_gemv", "int4_swiglu_gemv", "int4_qkv_gemv"])  # fmt: skip
def test_every_op(capsys, tmp_path, monkeypatch, op):
    with fake_gpu(monkeypatch):
        _, document = measure(
            capsys, tmp_path, "bench.op", "--device=cuda", f"--op={op}", "--model=tiny", "--steps=2", "--warmup=0",
            "--ctx=64", "--repeats=2", "--mode=all", "--l2=warm",
        )  # fmt: skip
    states = {(row["backend"], row["mode"]): (row["status"], row["reason"]) for row in document["ops"]}
    assert {mode for (backend, mode), (status, _) in states.items() if backend == "native" and status == "ok"} == {
        "eager", "pybind", "dispatch", "native", "graph", "graph-pdl",
    }  # fmt: skip
    assert {status for status, reason in states.values() if reason != "torch has no such op"} == {"ok"}


def test_float32_is_not_ours(capsys, tmp_path, gpu):
    few = ["--dtype=fp32", "--steps=2", "--fusion=block", "--repeats=1"]
    _, document = measure(capsys, tmp_path, "bench.layer", *LAYER[:3], *LAYER[5:], *few)
    for arm in document["arms"]:
        if arm["backend"] == "native":
            assert (arm["status"], arm["reason"]) == ("unsupported", "has no float32 kernels for CUDA: bf16 or fp16")
    assert {arm["mode"] for arm in document["arms"] if arm["status"] == "ok"} == {
        "eager",
        "dispatch",
        "native",
        "graph",
    }


def test_the_controls(gpu):
    import torch

    device = torch.device("cuda", 0)
    rows = controls.null_op(3, device)
    assert [row["mode"] for row in rows] == ["eager", "pybind", "dispatch", "native", "graph"]
    assert all(row["us"]["p50"] == STEP_US and row["host_us"]["p50"] > 0 for row in rows)
    for row in controls.spin(device=device, steps=3):
        # To the fake clock a spin is a kernel as any other.
        assert row["null_us"] == (KERNEL_US if gpu.traced else STEP_US) and row["net_us"] == 0
        assert row["us"]["p50"] == STEP_US and (row["device_us"] is not None) == gpu.traced


def test_4_bit_kernels(capsys, tmp_path, gpu):
    _, document = measure(
        capsys, tmp_path, "bench.int4", "--device=cuda", "--model=tiny", "--kernel=native,marlin", "--group=64",
        "--steps=2", "--warmup=0", "--repeats=2", "--ctx=64", "--l2=warm", "--predict=l4",
        f"--mode={'all' if gpu.traced else 'eager,graph'}",
    )  # fmt: skip
    rows = {(row["label"], row["backend"], row["mode"]): row for row in document["ops"]}
    for label in ("q", "down", "layer"):
        for mode in ("eager", "graph"):
            dense, four_bit = rows[label, "bf16", mode], rows[label, "native", mode]
            assert dense["status"] == "ok", dense["reason"]
            if four_bit["status"] != "ok":
                continue
            assert four_bit["ratio_to_dense"]["p50"] == 1 and four_bit["host_us"]["p50"] > 0
            assert (four_bit["device_us"] or {}).get("p50") == (
                four_bit["launches"] * KERNEL_US if gpu.traced else None
            )
            # Every kernel takes as long whatever it reads: the gap between two is a launch, as the null op says.
            launch = (1 if label != "layer" else 5) * STEP_US
            assert four_bit["parts_us"]["launch"] <= launch
            assert sum(four_bit["parts_us"].values()) == pytest.approx(four_bit["time_us"]["p50"])
    assert rows["q", "marlin", "graph"]["status"] == "unsupported"
