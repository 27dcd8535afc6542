"""CUDA plug-ins on a GPU, compiled by NVRTC through CuPy. Skipped without a GPU or without CuPy.

Without them the same arguments go through a fake (tests/test_plugins.py), and nvcc compiles the example.
"""

import json

import pytest
import torch
from command_line import ROOT, run

import pykernels as pk
from bench.backends import Workload, arms_of
from bench.backends.plugin import Journal, Plugin, load_layer, load_op
from bench.core.measure import Rotation, alternate, gate
from bench.core.op_cases import cases
from bench.core.samplers import Samplers

pytest.importorskip("cupy", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and torch.cuda.is_available()), reason="needs a CUDA build and a GPU"
)

GQA_DECODE = ROOT / "examples" / "gqa_decode_plugin.cu"
ATTENTION = ROOT / "examples" / "attention_plugin.py"
PLUGINS = ROOT / "tests" / "plugins"
GPU = torch.device("cuda", 0)


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


def test_each_costs_its_own_arms_only(tmp_path):
    kernels = ("overruns", "faults", "hangs", "writes_nothing")
    asked = [f"{PLUGINS / 'misbehaving.cu'}:{name}" for name in kernels]
    asked += [f"{PLUGINS / 'does_not_compile.cu'}:attention", f"{GQA_DECODE}:gqa_decode"]
    output = tmp_path / "layer.json"
    result = run(
        "bench.layer", "--device=cuda", "--model=tiny", "--ctx=64", "--steps=4", "--mode=eager,graph", "--l2=warm",
        f"--backend=native,sdpa,{','.join(asked)}", "--plugin-timeout-s=60", f"--json={output}", timeout_s=600,
    )  # fmt: skip
    assert result.status == 1, result.out + result.err
    arms = {(arm["backend"].split(":")[-1], arm["mode"]): arm for arm in json.loads(output.read_text())["arms"]}
    for mode in ("eager", "graph"):
        for name in ("native", "sdpa", "gqa_decode"):
            assert arms[name, mode]["status"] == "ok" and arms[name, mode]["wall_us"], (name, mode)
        words = {
            "overruns": ("wrong", "wrote outside the attention's out: 2 bytes changed, the first 6 bytes past its end"),
            "faults": ("error", "illegal memory access"),
            "hangs": ("error", "was not done after 60 s"),
            "writes_nothing": ("wrong", "got nan"),
            "attention": ("error", "CompileException"),
        }
        for name, (status, reason) in words.items():
            assert arms[name, mode]["status"] == status and reason in arms[name, mode]["reason"], (name, mode)
