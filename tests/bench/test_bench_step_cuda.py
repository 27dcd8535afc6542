"""bench.step with --device=cuda, end to end on a fake GPU whose every time is known."""

import json

import numpy as np
import pytest
import torch
from inputs.command_line import flat, run_here
from inputs.fake_gpu import GAP_US, HOST_US, KERNEL_US, fake_gpu

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.backends.steps import drivers as step_drivers
from bench.core import device_trace, measure
from pykernels.layer import OP_LABELS

STEP = ["--device=cuda", "--model=tiny", "--ctx=32", "--steps=12", "--warmup=2", "--backend=native,sdpa"]
KERNEL_STEP_US = KERNEL_US + GAP_US
TINY = pk.models.get("tiny")
OPS = {"none": 14 * TINY.n_layers + 4, "block": 5 * TINY.n_layers + 4}


@pytest.fixture(scope="module", params=[True, False], ids=["traced", "untraced"])
def step(request, tmp_path_factory):
    """One run of bench.step (untraced of one fusion): whether it was traced, the document, and what was printed."""
    import contextlib
    import io

    from bench.core import cli
    from bench.step import __main__ as driver

    output, printed = tmp_path_factory.mktemp("step") / "step.json", io.StringIO()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        fake_gpu(monkeypatch, request.param),
        contextlib.redirect_stdout(printed),
    ):
        flags = [*STEP, *([] if request.param else ["--fusion=block"]), f"--json={output}"]
        assert cli.run("bench.step", driver.command, flags) == 0
    return request.param, json.loads(output.read_text()), flat(printed.getvalue())


def test_every_mode_is_measured_and_right(step):
    traced, document, words = step
    arms = {(arm["backend"], arm["fusion"], arm["mode"]): arm for arm in document["arms"] if arm["status"] == "ok"}
    fusions = OPS if traced else ["block"]
    expected = {("native", fusion, mode) for fusion in fusions for mode in step_arms.STEP_MODES}
    assert arms.keys() == expected | {("sdpa", None, mode) for mode in ("eager", "native", "graph")}
    for (backend, fusion, mode), arm in arms.items():
        # A fake eager step is one kernel, whatever it calls.
        kernels = OPS[fusion] if backend == "native" and mode not in ("eager", "pybind") else 1
        assert arm["wall_us"]["p50"] == kernels * KERNEL_STEP_US and 0 < arm["max_rel_error"] < 0.05
        assert arm["host_us"]["p50"] > 0 and arm["steps_per_graph"] == (1 if mode.startswith("graph") else None)
        assert arm["paper"]["avg_ctx_during_measure"] == np.mean([n for n in range(35, 47) if n != 36]), (
            "a throttled round"
        )
        if mode == "graph-loop":
            assert arm["device_us"] is None and arm["launches"] == kernels
            assert "WHILE node" in arm["device_reason"] if traced else arm["device_reason"] == "CUPTI is not here"
        elif traced:
            assert arm["device_us"]["p50"] == kernels * KERNEL_US and arm["launches"] == kernels
            assert arm["launch_gap_us"] == kernels * GAP_US
            assert arm["launch_gap_share"] == pytest.approx(GAP_US / KERNEL_STEP_US)
            assert arm["profile"]["inflation"] == 1 and arm["profile"]["bw_util"] == arm["profile"]["bw_util_profiled"]
            assert arm["profile"]["bw_util"] == pytest.approx(arm["paper"]["R_floor"])
        else:
            assert (arm["device_us"], arm["device_reason"], arm["profile"]) == (None, "CUPTI is not here", None)
    assert arms["native", "block", "native"]["host_us"]["p50"] == HOST_US
    if traced:
        # Of each gap the first half is the launch's call; a graph has one call for all its kernels.
        native, graph = (arms["native", "block", mode]["profile"] for mode in ("native", "graph"))
        assert native["cpu_cuda_ratio"] == pytest.approx(GAP_US / 2 / KERNEL_US)
        assert graph["cpu_us"] == GAP_US / 2
        assert "native/block:graph-pdl: R_floor" in words and "launch and gaps 16.7% of the step" in words
    assert document["l2_words"].startswith("cold by size: ")
    assert document["memory"]["peak_bytes"] == 5_000_000 and document["throttled_rounds"] == [1]


def test_the_ladder_and_the_launches(step):
    traced, document, _ = step
    parts = [part["part"] for part in document["ladder"]["native/block"]]
    assert parts == ["python", "dispatch", "launch", *(["gap"] if traced else []), "kernel", "ceiling", "floor"]
    per_layer = {arm["fusion"]: arm["launches_per_layer"] for arm in document["arms"] if arm["backend"] == "native"}
    assert per_layer == ({"none": 14, "block": 5} if traced else {"block": 5})


def test_the_anatomy_and_the_block(step):
    traced, document, _ = step
    if not traced:
        assert document["ops"] == [] and document["timelines"] == {}
        return
    for fusion in OPS:
        rows = [row for row in document["ops"] if row["fusion"] == fusion]
        assert sum(row["count"] for row in rows) == OPS[fusion]
        assert sum(row["device_us"]["p50"] for row in rows) == OPS[fusion] * KERNEL_US
        assert sum(row["bytes"] for row in rows) == document["bytes"]["step_streamed"][fusion]
        assert {(row["mode"], row["time_us"]) for row in rows} == {("graph", None)}
        for mode in ("native", "graph", "graph-pdl"):
            block = document["timelines"][f"native/{fusion}:{mode}"]
            assert [kernel["label"] for kernel in block] == [label for _, label in OP_LABELS[fusion]]
            starts = [kernel["start_us"] for kernel in block]
            assert starts == [KERNEL_STEP_US * i for i in range(len(block))]
            assert all(kernel["end_us"] - kernel["start_us"] == KERNEL_US for kernel in block)


def test_kv_len_grows_from_step_to_step_in_graphs_too(monkeypatch):
    with fake_gpu(monkeypatch), torch.inference_mode():
        model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY, device="cuda"), 64, device="cuda")
        reference = step_arms.Reference(model, 40)
        visited = {}
        for name, mode, fusion in (("native", "graph", "block"), ("sdpa", "graph", None), ("sdpa", "eager", None)):
            [arm] = step_arms.arms_of(step_arms.backends()[name], reference, [mode], [fusion], 45)
            measure.gate([arm])
            assert arm.status == "ok", arm.reason
            for layer in model.layers:
                layer.k_cache[:, :, 40:] = float("nan")
            model.token.fill_(5)
            tokens = []
            arm.sampler(3)  # the untimed first steps: 40, 41, 42
            for _ in range(4):
                assert len(arm.sampler(2)) == 2
                tokens.append(int(model.token))
            written = ~model.layers[-1].k_cache[0, 0, :, 0].isnan()
            assert written.nonzero().flatten().tolist() == list(range(47)), "42 to 46, each from the one before"
            assert len(arm.tracing()(device_trace.SAMPLES)) == device_trace.SAMPLES
            assert not model.layers[-1].k_cache[0, 0, :51].isnan().any()
            visited[name, mode] = tokens
        assert visited["sdpa", "graph"] == visited["sdpa", "eager"]
        assert len(set(visited["native", "graph"])) > 1


def test_a_graph_of_torch_s_is_one_a_position(monkeypatch):
    with fake_gpu(monkeypatch) as gpu, torch.inference_mode():
        model = pk.DecodeModel(TINY, pk.ModelWeights.random(TINY, device="cuda"), 24, device="cuda")
        driver = step_drivers.TorchGraphDriver(model, 20)
        assert len(gpu.graphs) == 4
        driver.stand(21)
        driver.run(2)
        driver.step()
        assert [graph.replays for graph in gpu.graphs] == [0, 1, 1, 1]
        assert torch.equal(model.token, driver.logits().argmax(-1))


def test_transformers_is_an_arm_like_the_others(capsys, tmp_path, monkeypatch):
    output = tmp_path / "step.json"
    with fake_gpu(monkeypatch):
        few = ["--arm=native:graph,transformers:eager", f"--json={output}"]
        assert run_here(capsys, "bench.step", *STEP, *few).status == 0
    native, theirs = json.loads(output.read_text())["arms"]
    assert theirs["status"] == "ok" and theirs["host_us"] is None and theirs["device_us"]["p50"] == KERNEL_US
    assert theirs["profile"]["cpu_cuda_ratio"] > 0 and theirs["ratio_to_transformers"]["p50"] == 1
    assert native["ratio_to_transformers"]["p50"] == theirs["wall_us"]["p50"] / native["wall_us"]["p50"]


def test_a_backend_that_fails_costs_itself_alone(capsys, tmp_path, monkeypatch):
    def fail(model):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(step_arms, "TransformersDriver", fail)
    output = tmp_path / "step.json"
    with fake_gpu(monkeypatch):
        few = ["--arm=native:graph,transformers:eager", f"--json={output}"]
        result = run_here(capsys, "bench.step", *STEP, *few)
    assert (result.status, result.err) == (1, "bench.step: error: transformers:eager: RuntimeError: no kernel image\n")
    native, theirs = json.loads(output.read_text())["arms"]
    assert (theirs["status"], theirs["reason"]) == ("error", "RuntimeError: no kernel image")
    assert native["status"] == "ok" and native["launches_per_layer"] == 5 and theirs["launches_per_layer"] is None


def test_float32_is_not_ours(capsys, tmp_path, monkeypatch):
    output = tmp_path / "step.json"
    with fake_gpu(monkeypatch):
        few = ["--dtype=fp32", "--arm=native:graph,sdpa:graph", f"--json={output}"]
        assert run_here(capsys, "bench.step", *STEP, *few).status == 0
    native, sdpa = json.loads(output.read_text())["arms"]
    assert (native["status"], native["reason"]) == ("unsupported", "has no float32 kernels for CUDA: bf16 or fp16")
    assert sdpa["status"] == "ok"
