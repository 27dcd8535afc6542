"""CUDA plug-ins on a GPU, compiled by NVRTC through CuPy. Skipped without a GPU or without CuPy.

Without them the same arguments go through a fake (tests/bench/test_plugins_fake_cupy.py); nvcc compiles the example.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from inputs.command_line import ROOT, run
from inputs.helpers import GPU

import pykernels as pk
from bench.attention import arms as attention_arms
from bench.attention import cases as attention_cases
from bench.attention.arms import Plan
from bench.backends import Workload, arms_of
from bench.backends.op_cases import cases
from bench.core.measure import Rotation, alternate, gate
from bench.core.samplers import Samplers
from bench.int4 import validate
from bench.plugins.loading import Journal, Plugin, load_attention, load_int4, load_layer, load_op

pytest.importorskip("cupy", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

GQA_DECODE = ROOT / "examples" / "gqa_decode_plugin.cu"
ATTENTION = ROOT / "examples" / "attention_plugin.py"
INT4_GEMV = ROOT / "examples" / "int4_gemv.cu"
PLUGINS = ROOT / "tests" / "inputs" / "plugins"


def plugin(path, name) -> Plugin:
    return Plugin(path, name, f"{path}:{name}")


def workload(name, batch, position=250, ctx=300) -> Workload:
    """Two copies in the middle of their cache; every slot from their own on is NaN."""
    spec = pk.models.get(name)
    weights = pk.LayerWeights.random(spec, device="cuda")
    layers = [pk.DecodeLayer(spec, weights.clone(), ctx, batch, device="cuda") for _ in range(2)]
    for layer in layers:
        layer.set_position(position)
        for cache in (layer.k_cache, layer.v_cache):
            cache[:, :, position:] = float("nan")
    return Workload.of(layers, 4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["tiny", "qwen2.5-7b", "llama-3.1-8b"])
@pytest.mark.parametrize(("path", "kernel"), [(GQA_DECODE, "gqa_decode"), (ATTENTION, "Attention")])
def test_the_examples_in_a_layer(tmp_path, path, kernel, name, batch):
    backend = load_layer(plugin(path, kernel), Journal(tmp_path), GPU)
    arms = arms_of(backend, workload(name, batch), ["eager", "graph"], ["none"])
    gate(arms)
    assert alternate(arms, 1, 3)
    assert [(arm.status, arm.reason, len(arm.samples_us)) for arm in arms] == [("ok", None, 3)] * 2


@pytest.mark.parametrize("group", [32, 128, -1])
def test_the_4_bit_example(tmp_path, group):
    kernel = load_int4(plugin(INT4_GEMV, "int4_gemv"), Journal(tmp_path), GPU)
    found = list(validate.validate(kernel, GPU, kernel.dtypes, (group,), (True, False)))
    assert validate.right(found), "\n".join(one.reason for one in validate.failed(found))
    assert {one.case for one in found if one.status == "refused"} == {"act-order"}


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_4_bit_example_is_timed(tmp_path, mode):
    output, asked = tmp_path / "int4.json", f"{INT4_GEMV}:int4_gemv"
    flags = ["--what=shapes", "--model=tiny", f"--mode={mode}", "--steps=3", f"--json={output}"]
    result = run("bench.int4", f"--kernel=native,{asked}", *flags)
    assert result.status == 0, result.out + result.err
    own = [e for e in json.loads(output.read_text())["ops"] if e["backend"] == "int4_gemv.cu:int4_gemv"]
    assert own and {(e["status"], e["reason"], e["device_reason"]) for e in own} == {("ok", None, None)}
    assert all(e["device_us"] and e["ratio_to_dense"] for e in own)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(
    ("path", "kernel", "op", "dtype"),
    [
        (GQA_DECODE, "gqa_decode", "gqa_decode", torch.bfloat16),
        (PLUGINS / "gemv.cu", "gemv", "gemv", torch.float16),
    ],
)
def test_one_op(tmp_path, path, kernel, op, dtype, mode):
    make = load_op(plugin(path, kernel), Journal(tmp_path), op)
    for case in cases(op, pk.models.get("llama-3.1-8b"), [1, 33, 2048], 2, dtype, 0, GPU):
        with torch.inference_mode():
            instances = [case.make(), case.make()]
            arm = make(case, instances, mode, Samplers(Rotation(2), 4, GPU))
        gate([arm])
        assert alternate([arm], 1, 3)
        assert (arm.status, arm.reason, len(arm.samples_us)) == ("ok", None, 3), case.shape


@pytest.mark.parametrize(("path", "kernel"), [(GQA_DECODE, "gqa_decode"), (ATTENTION, "Attention")])
def test_the_examples_alone(tmp_path, path, kernel):
    watched = load_attention(plugin(path, kernel), Journal(tmp_path), GPU)
    plan = Plan([watched.label], ["eager", "graph"], ["outside"], 30, 1, watched=watched)
    (cell,) = attention_cases.cells([pk.models.get("qwen2.5-7b")], [333], [2])
    inputs = attention_cases.Inputs(cell, torch.bfloat16, GPU, 0)
    arms = attention_arms.make_arms([inputs, inputs.copy()], plan, Rotation(2), lambda name: None)
    assert alternate(arms, 1, 3)
    assert [(arm.status, arm.reason, len(arm.samples_us)) for arm in arms] == [("ok", None, 3)] * 2


# Seconds that the process of a plug-in may take: its start is in them, and a hang takes all of them.
LIMIT_S = 60
HANG_S = 25

FAULTS = {
    "overruns": ("wrong", "wrote outside the attention's out: 2 bytes changed, the first 6 bytes past its end"),
    "faults": ("error", "illegal memory access"),
    "hangs": ("error", f"was not done after {HANG_S} s"),
    "writes_nothing": ("wrong", "got nan"),
    "attention": ("error", "CompileException"),
    "gqa_decode": ("ok", None),
}


def arguments(name, tmp_path) -> tuple[list[str], Path]:
    """The arguments of bench.layer for one of them beside native and sdpa, and the document it writes."""
    source = {"attention": PLUGINS / "does_not_compile.cu", "gqa_decode": GQA_DECODE}
    path, output = source.get(name, PLUGINS / "misbehaving.cu"), tmp_path / f"{name}.json"
    hangs = name == "hangs"
    return [
        f"--device={GPU}", "--model=tiny", "--ctx=64", "--steps=4", "--l2=warm",
        f"--mode={'eager' if hangs else 'eager,graph'}", f"--plugin-timeout-s={HANG_S if hangs else LIMIT_S}",
        f"--backend=native,sdpa,{path}:{name}", f"--json={output}",
    ], output  # fmt: skip


def test_each_costs_its_own_arms_only(tmp_path):
    runs = {name: arguments(name, tmp_path) for name in FAULTS}
    with ThreadPoolExecutor(len(runs)) as together:  # nothing here looks at a time
        results = dict(zip(runs, together.map(
            lambda run_of: run("bench.layer", *run_of[0], timeout_s=300), runs.values()
        ), strict=True))  # fmt: skip
    for name, (status, reason) in FAULTS.items():
        assert results[name].status == (0 if status in ("ok", "unsupported") else 1), (
            results[name].out + results[name].err
        )
        arms = json.loads(runs[name][1].read_text())["arms"]
        modes = ("eager",) if name == "hangs" else ("eager", "graph")
        assert {(arm["backend"].split(":")[-1], arm["mode"]) for arm in arms} == {
            (backend, mode) for backend in ("native", "sdpa", name) for mode in modes
        }  # fmt: skip
        for arm in arms:
            if arm["backend"] in ("native", "sdpa"):
                assert arm["status"] == "ok" and arm["wall_us"], (name, arm["backend"], arm["mode"])
            else:
                assert arm["status"] == status and (reason or "") in (arm["reason"] or ""), (name, arm["mode"])
                assert bool(arm["wall_us"]) == (status == "ok")
