"""Linear peers: layers and steps whose projections are a 4-bit library's, the libraries as stand-ins or for real."""

import json

import pytest
import torch
from inputs.command_line import assert_refused, run_here
from inputs.fake_gpu import fake_gpu
from inputs.fake_int4_peers import replace_libraries

import pykernels as pk
from bench.backends import Workload, arms_of, int4, of_int4
from bench.backends.int4.projections import Int4Projections
from bench.backends.steps import arms as step_arms
from bench.core.measure import gate

CPU = torch.device("cpu")
TINY = pk.models.get("tiny")
FAKED = ("torchao", "bnb-nf4", "marlin", "machete", "awq", "gptq", "exllamav2", "exl2", "gemlite")
EXLLAMA = ("exllamav2", "exl2")
SMALL = ["--device=cpu", "--steps=2", "--warmup=1", "--model=tiny", "--ctx=16", "--quant=int4"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def libraries(monkeypatch):
    """Every library, faked, and offered on the CPU."""
    with replace_libraries(monkeypatch):
        for name in FAKED:
            monkeypatch.setattr(int4.registry()[name], "availability", classmethod(lambda cls, device: None))
        yield


def workload(symmetric=True, batch=1) -> Workload:
    weights = pk.LayerWeights.random(TINY).quantize(128, symmetric)
    return Workload.of([pk.DecodeLayer(TINY, weights, 20, batch)])


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("name", FAKED)
def test_a_layer_of_a_library_is_right(libraries, name, symmetric):
    """In its own dtype, and by the name that says so."""
    arms = arms_of(of_int4()[name], workload(symmetric, batch=1 if symmetric else 3), ["eager", "dispatch"], ["block"])
    gate(arms)
    kernel = int4.registry()[name]
    assert {arm.backend for arm in arms} == {f"{name}-fp16" if kernel.dtypes == (torch.float16,) else name}
    eager, dispatch = arms
    assert eager.status == "ok", eager.reason
    recorded = name not in ("torchao", "exllamav2", "exl2", "gemlite", "bnb-nf4")
    assert dispatch.status == ("ok" if recorded else "unsupported"), dispatch.reason
    assert len([call for call in eager.kernels if "gemm_half_q_half" in call]) == (7 if name in EXLLAMA else 0)


@pytest.mark.parametrize("name", ["native", "tinygemm", "sdpa", "native-dense"])
def test_what_stands_beside_them(name):
    arms = arms_of(of_int4()[name], workload(False), ["eager", "dispatch"], ["block"])
    gate(arms)
    assert [arm.status for arm in arms] == ["ok", "ok"], [arm.reason for arm in arms]


def test_projections_are_fused_as_their_users_fuse(libraries):
    weights = workload().layers[0].weights
    calls = {name: Int4Projections(int4.registry()[name], weights).calls for name in ("gptq", "tinygemm", "bnb-nf4")}
    assert calls == {"gptq": 4, "tinygemm": 5, "bnb-nf4": 7}
    assert all(kernel.fused_by for name, kernel in int4.registry().items() if name != "native")


@pytest.mark.parametrize("name", FAKED)
def test_another_weight_is_wrong(libraries, monkeypatch, name):
    """The gate is one that can fail: a nibble of the last projection differs, in the eager layer and in the step."""
    kernel = int4.registry()[name]
    prepare = kernel.prepare

    def other(self, weight):
        changed = weight.clone()
        if weight.in_features == TINY.intermediate:
            changed.packed[:, :64] ^= 0x88
        return prepare(self, changed)

    monkeypatch.setattr(kernel, "prepare", other)
    arms = arms_of(of_int4()[name], workload(), ["eager"], ["block"])
    gate(arms)
    assert arms[0].status == "wrong"


@pytest.mark.parametrize("name", FAKED)
def test_a_step_of_a_library_is_right(libraries, name):
    weights = pk.ModelWeights.random(TINY, convert=lambda layer: layer.quantize(128, False), shared_layers=True)
    reference = step_arms.Reference(pk.DecodeModel(TINY, weights, 14), 8)
    arm, driver = step_arms.arm_of(step_arms.backends()[name], reference, "eager", None)
    gate([arm])
    assert arm.status == "ok" and driver is not None, arm.reason
    unseen = [call for call in arm.kernels if "gemm_half_q_half" in call]
    assert len(unseen) == (7 * TINY.n_layers if name in EXLLAMA else 0) and arm.launches == len(arm.kernels)


@pytest.mark.parametrize("name", ["marlin", "bnb-nf4", "exl2"])
def test_a_step_whose_layers_are_switched_off_one_by_one(libraries, name):
    """The value's bias is switched off with them: a fused bias is a copy of it. The last layer, which adds what it is
    known to add, is judged by the numbers of the library's own format, too."""
    spec = pk.models.get("tiny")
    weights = pk.ModelWeights.random(spec, convert=lambda layer: layer.quantize(128))
    assert spec.qkv_bias
    reference = step_arms.Reference(pk.DecodeModel(spec, weights, 14), 8)
    arm, _ = step_arms.arm_of(step_arms.backends()[name], reference, "eager", None)
    gate([arm])
    assert arm.status == "ok", arm.reason


def test_the_real_kernels_of_torch_and_torchao_on_a_cpu(capsys, tmp_path):
    output = tmp_path / "step.json"
    flags = [*SMALL, "--backend=native,tinygemm,torchao,sdpa", "--mode=eager,dispatch", "--attention=sdpa-math"]
    for driver in ("bench.layer", "bench.step"):
        result = run_here(
            capsys, driver, *flags, "--fusion=block", f"--json={output}", *(["--l2=warm"] * (driver == "bench.layer"))
        )
        assert result.status == 0, result.err
        document = json.loads(output.read_text())
        found = {arm["backend"]: (arm["status"], arm["weights"]) for arm in document["arms"] if arm["mode"] == "eager"}
        four_bit = dict.fromkeys(("native", "tinygemm", "torchao"), ("ok", "int4"))
        assert found == four_bit | {"sdpa": ("ok", "bf16")}
        assert document["quant"]["group_size"] == 128
    dense = next(arm["paper"]["weight_bytes"] for arm in document["arms"] if arm["backend"] == "sdpa" and arm["paper"])
    of_4_bits = {arm["paper"]["weight_bytes"] for arm in document["arms"] if arm["weights"] == "int4" and arm["paper"]}
    assert dense == TINY.weight_bytes(torch.bfloat16)
    assert of_4_bits == {document["memory"]["weight_bytes"]} and max(of_4_bits) < dense


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--quant=none", "--backend=awq"], ("--backend=awq", "given with --quant=int4 or a quantised folder")),
        (["--quant=none", "--arm=tinygemm:eager"], ("--arm=", "given with --quant=int4")),
        (["--quant=int3"], ("--quant=int3", "none, int4")),
        (["--group=48"], ("--group=48", "32, 64, a multiple of 128")),
        (["--group=1024"], ("--group=1024", "a divisor of in_features")),
        (["--quant=none", "--asymmetric"], ("--asymmetric=true", "given with --quant=int4")),
        (["--attention=flex"], ("--attention=flex", "one of sdpa, ")),
        (["--attention=sdpa-math", "--backend=native"], ("--attention=sdpa-math", "given with a 4-bit library")),
    ],
)
def test_bad_flags_of_a_step(capsys, flags, words):
    assert_refused(run_here(capsys, "bench.step", *SMALL, *flags), *words)


def test_a_library_that_refuses_the_shape_says_which(libraries):
    spec = pk.models.get("tiny")
    weights = pk.LayerWeights.random(spec).quantize(32)
    layer = pk.DecodeLayer(spec, weights, 20)
    arms = arms_of(of_int4()["machete"], Workload.of([layer]), ["eager"], ["block"])
    assert arms[0].status == "unsupported" and arms[0].reason == "qkv: takes groups of 64, 128 or the whole row, not 32"


@pytest.mark.parametrize("driver", ["bench.layer", "bench.step"])
@pytest.mark.usefixtures("no_pictures")
def test_libraries_on_a_gpu(capsys, monkeypatch, tmp_path, libraries, driver):
    """A stand-in of one: every mode, the clocks, the document, and the report's Figure 8 of it."""
    output = tmp_path / "run.json"
    own = ["--l2=warm", "--repeats=2"] if driver == "bench.layer" else ["--layers=1"]
    flags = ["--model=tiny", "--ctx=16", "--steps=2", "--warmup=1", "--quant=int4", "--fusion=block", *own]
    with fake_gpu(monkeypatch):
        names = "native,marlin,awq,exllamav2,sdpa,native-dense"
        result = run_here(capsys, driver, *flags, f"--backend={names}", f"--json={output}")
    assert result.status == 0, result.out + result.err
    document = json.loads(output.read_text())
    modes = {}
    for arm in document["arms"]:
        if arm["status"] == "ok":
            modes.setdefault(arm["backend"], []).append(arm["mode"])
    of_torch = ["eager", "native", "graph"]
    recorded = ["eager", "dispatch", "native", "graph"] if driver == "bench.layer" else of_torch
    for name, expected in (
        ("marlin", recorded), ("awq-fp16", recorded), ("exllamav2-fp16", of_torch), ("sdpa", recorded),
    ):  # fmt: skip
        assert modes[name] == expected, name
    assert "graph-pdl" in modes["native"] and "graph-pdl" in modes["native-dense"]
    if driver == "bench.step":
        made = run_here(capsys, "bench.report", str(tmp_path), "--no-svg")
        assert made.status == 0, made.err
        text = (tmp_path / "report" / "report.md").read_text()
        section = text[text.index("Figure 8") :].partition("\n## ")[0]
        assert "| measured | awq-fp16 | int4 |" in section and "| published | L4: bnb-nf4 | 4-bit | 59.36 |" in section
