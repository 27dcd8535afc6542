"""bench.int4 end to end on the tiny model, what binds by hand-made clocks, the prediction, and the SASS."""

import csv
import json
import shutil
import subprocess
from functools import partial

import pytest
import torch
from inputs.command_line import ROOT, assert_refused, flat, run_here
from inputs.documents import check_written
from inputs.helpers import torch_threads

import pykernels as pk
from bench.backends import int4
from bench.core import environment, floors, measure
from bench.int4 import groups, plain_reads, predict
from bench.int4 import sass as sass
from bench.int4.parts import PARTS, Parts, split
from bench.study import paper

TINY = pk.models.get("tiny")
# Warm: cold copies of weights as small as these are hundreds.
SMALL = ["--device=cpu", "--steps=3", "--warmup=1", "--model=tiny", "--ctx=64", "--l2=warm"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small products: threads would only wait for one another."""
    with torch_threads(1):
        yield


@pytest.mark.parametrize(
    ("flags", "beyond", "words"),
    [
        (["--what=shapes"], 1000, ["--model=tiny: must be smaller models: 512 -> ", "needs 0.0 GiB, 0.0 GiB are"]),
        (["--what=layer"], 1000, ["--model=tiny: must be smaller models: a layer of tiny needs 0.0 GiB, "]),
        (["--what=shapes", "--kernel=native,tinygemm,marlin,machete,awq,gptq"], 600_000,
         ["--kernel=native,tinygemm,marlin,machete,awq,gptq: must be fewer: ", "needs 0.0 GiB in 6 layouts"]),
    ],
)  # fmt: skip
def test_what_memory_cannot_hold(capsys, monkeypatch, flags, beyond, words):
    monkeypatch.setattr(groups, "available_bytes", lambda device: beyond)
    assert_refused(run_here(capsys, "bench.int4", *SMALL, *flags), *words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with every output: its folder and its document."""
    from bench.core import cli
    from bench.int4 import __main__ as driver

    folder = tmp_path_factory.mktemp("int4")
    outputs = [f"--{kind}={folder}/int4.{kind}" for kind in ("json", "csv", "md")] + [f"--plot={folder}/int4.png"]
    flags = [*SMALL, "--kernel=native,tinygemm,marlin", "--group=32", "--asymmetric", "--predict=l4", *outputs]
    assert cli.run("bench.int4", driver.command, flags) == 0
    return folder, json.loads((folder / "int4.json").read_text())


def test_every_shape_and_the_layer_were_measured(finished):
    _, document = finished
    check_written(document)
    assert (document["schema"], document["kind"], document["interrupted"]) == ("launchtax/1", "int4", False)
    assert (document["group_size"], document["symmetric"], document["dtype"]) == (32, False, "bf16")
    labels = dict.fromkeys(entry["label"] for entry in document["ops"])
    assert list(labels) == [*floors.LINEAR_SHAPES, "layer"]
    for label in labels:
        arms = {f"{e['backend']}:{e['mode']}": e["status"] for e in document["ops"] if e["label"] == label}
        wanted = {"bf16:native", "bf16:eager", "native:native", "native:eager"}
        assert {arm for arm, status in arms.items() if status == "ok"} >= wanted
        if label != "layer":
            assert arms["torch-bf16:eager"] == "ok" and arms["tinygemm:eager"] == "ok"
            assert arms["marlin:eager"] == "unsupported"


def test_the_bytes_are_those_of_each_layout(finished):
    _, document = finished
    for label, sizes in floors.LINEAR_SHAPES.items():
        n_in, n_out = sizes(TINY)
        n_bytes = {e["backend"]: e["bytes"] for e in document["ops"] if e["label"] == label}
        assert n_bytes["bf16"] == n_bytes["torch-bf16"] == floors.gemv(1, n_in, n_out, 2)
        assert n_bytes["native"] == floors.int4_gemv(1, n_in, n_out, 2, group_size=32, zeros=True)
        # half a byte a weight, a scale and a zero of two bytes a group
        assert n_bytes["tinygemm"] == n_out * (n_in // 2 + n_in // 32 * 4) + 2 * (n_in + n_out)
    layer = {e["backend"]: e["bytes"] for e in document["ops"] if e["label"] == "layer"}
    ops = floors.layer_ops(TINY, "block", 1, 64, torch.bfloat16, 32, True)
    assert layer["native"] == sum(op.bytes for op in ops)
    assert layer["bf16"] == sum(op.bytes for op in floors.layer_ops(TINY, "block", 1, 64, torch.bfloat16))


def test_ratios_bandwidths_and_parts_hold_together(finished):
    _, document = finished
    measured = [entry for entry in document["ops"] if entry["status"] == "ok"]
    dense = {(e["label"], e["mode"]): e for e in measured if e["backend"] == "bf16"}
    for entry in measured:
        base, time_us = dense[entry["label"], entry["mode"]], entry["time_us"]["p50"]
        assert entry["gbs"] == pytest.approx(entry["bytes"] / time_us / 1e3)
        assert entry["share_of_read"] == pytest.approx(entry["gbs"] / entry["ceiling"]["read_gbs"])
        assert entry["ratio_to_dense"]["p50"] == pytest.approx(base["time_us"]["p50"] / time_us)
        assert entry["ideal_ratio"] == pytest.approx(base["bytes"] / entry["bytes"])
        assert entry["share_of_ideal"] == pytest.approx(entry["ratio_to_dense"]["p50"] / entry["ideal_ratio"])
        assert (entry["share_of_plain_read"] is None) == (entry["label"] == "layer")
        if entry["label"] != "layer":
            assert entry["share_of_plain_read"] == pytest.approx(entry["plain_read_us"] / time_us) and time_us > 0
        assert sum(entry["parts_us"].values()) == pytest.approx(time_us)
        assert min(entry["parts_us"].values()) >= 0 and tuple(entry["parts_us"]) == PARTS
        assert entry["parts_us"][entry["binds"]] == max(entry["parts_us"].values())
        assert 0 < entry["max_rel_error"] < 0.01 or entry["label"] == "layer"
        assert entry["layout_error"] is None or (entry["layout_error"] > 0) == (entry["backend"] == "tinygemm")


def test_a_plain_read_reads_everything():
    read = plain_reads.plain_read(1000, 2, 1, ["native", "eager", "graph"], torch.device("cpu"))
    assert read.bytes == 1024 and [arm.mode for arm in read.arms] == ["native", "eager"]
    measure.gate(read.arms)
    assert [arm.status for arm in read.arms] == ["ok", "ok"]
    entries = [{"mode": "native", "status": "ok", "bytes": 512, "time_us": {"p50": 4.0}},
               {"mode": "pybind", "status": "ok", "bytes": 512, "time_us": {"p50": 4.0}}]  # fmt: skip
    read.arms[0].samples_us = [6.0, 6.0]
    plain_reads.compare(entries, [read])
    assert (entries[0]["plain_read_us"], entries[0]["share_of_plain_read"]) == (3.0, 0.75)
    assert entries[1]["plain_read_us"] is None
    short = plain_reads.plain_read(1024, 1, 1, ["eager"], torch.device("cpu"))
    short.arms[0].check = partial(short.arms[0].check.func, short.arms[0].check.args[0], lambda: None, 1)
    measure.gate(short.arms)
    assert short.arms[0].status == "wrong" and "checksum" in short.arms[0].reason


def test_what_a_run_writes(finished):
    folder, document = finished
    rows = list(csv.DictReader((folder / "int4.csv").open()))
    assert len(rows) == len(document["ops"]) and {row["kind"] for row in rows} == {"op"}
    text = (folder / "int4.md").read_text()
    assert "published, not measured here" in text and "PREDICTION, L4" in text and document["command"] in text
    assert "marlin" in text and "tinygemm multiplies by other weights" in text
    assert (folder / "int4.png").read_bytes().startswith(b"\x89PNG")


PLUGINS = ROOT / "tests" / "inputs" / "plugins"


def test_plugins_are_measured_in_processes_of_their_own(capsys, tmp_path):
    output, bad = tmp_path / "int4.json", PLUGINS / "int4_misbehaving.py"
    asked = f"native,{bad}:Right,{bad}:Dies,{PLUGINS / 'raises_at_import.py'}:X"
    result = run_here(capsys, "bench.int4", *SMALL, "--what=shapes", f"--kernel={asked}", f"--json={output}")
    # Its own plug-ins end in errors, which is what the status says; the others are measured all the same.
    assert result.status == 1, result.out + result.err
    assert "bench.int4: error: raises_at_import.py:X:eager (and 7 more): ImportError: libsomething" in result.err
    document = json.loads(output.read_text())
    found = {(e["backend"], e["mode"], e["label"]): e for e in document["ops"]}
    assert len(found) == len(document["ops"]) == len(floors.LINEAR_SHAPES) * (2 + 1 + 2 + 3)
    reached = True
    for label, sizes in floors.LINEAR_SHAPES.items():
        right = found["int4_misbehaving.py:Right", "eager", label]
        assert right["status"] == "ok" and right["ratio_to_dense"]["p50"] > 0 and right["binds"] in PARTS
        # What was finished before it died is kept.
        died = found["int4_misbehaving.py:Dies", "eager", label]
        reached = reached and sizes(TINY)[0] != 1408
        wanted = ("ok", None) if reached else ("error", "ended by SIGSEGV, while it was checked")
        assert (died["status"], died["reason"]) == wanted
        assert bool(died["time_us"]) == (died["status"] == "ok")
        absent = found["raises_at_import.py:X", "eager", label]
        assert (absent["status"], absent["reason"][:27]) == ("error", "ImportError: libsomething.s")
        assert found["native", "native", label]["status"] == "ok"
    assert (
        not reached and found["int4_misbehaving.py:Dies", "eager", next(iter(floors.LINEAR_SHAPES))]["status"] == "ok"
    )
    assert [entry["backend"].split(":")[1] for entry in document["plugins"]] == ["Right", "Dies", "X"]
    assert "error: int4_misbehaving.py:Dies (" in flat(result.out) and "ended by SIGSEGV" in flat(result.out)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode=native"], ["--mode=native: must be with one of eager, graph for"]),
        (["--what=layer"], ["--what=layer: must be with shapes for", "a layer has our own kernels alone"]),
        (["--plugin-timeout-s=0"], ["--plugin-timeout-s=0.0: must be a positive number of seconds"]),
    ],
)
def test_runs_that_take_no_plugin(capsys, flags, words):
    asked = f"--kernel={PLUGINS / 'int4_misbehaving.py'}:Right"
    assert_refused(run_here(capsys, "bench.int4", *SMALL, asked, *flags), *words)


def test_published_figures_are_the_paper_s(finished):
    _, document = finished
    assert [figure["value"] for figure in document["published"].values()] == [62.32, 59.36, 45.24, 17.36, 13.09]
    assert all(paper.figures()[name].place == figure["place"] for name, figure in document["published"].items())


def test_the_prediction_is_arithmetic_on_what_was_measured(finished):
    _, document = finished
    (found,) = document["predictions"]
    layers = [e for e in document["ops"] if (e["label"], e["backend"], e["status"]) == ("layer", "native", "ok")]
    best = min(layers, key=lambda entry: entry["time_us"]["p50"])
    share = best["share_of_spec"] or best["share_of_read"]
    assert found["share"] == share and found["published_gbs"] == 300
    assert found["layer_us"] == pytest.approx(best["bytes"] / (300 * share) / 1e3)
    head = floors.gemv(1, TINY.hidden, TINY.vocab, 2)
    assert found["step_floor_ms"] == pytest.approx((TINY.n_layers * best["bytes"] + head) / 300e6)
    assert found["step_ms"] == pytest.approx(found["step_floor_ms"] / share)
    assert any("no evidence for a GPU" in words for words in found["assumptions"])


def test_what_is_predicted_for():
    assert predict.GPUS["rtx-4090"] == "RTX 4090" and set(predict.GPUS.values()) == set(environment.GPU_SPECS)


def test_a_wrong_kernel_gets_no_time(capsys, monkeypatch, tmp_path):
    class Wrong(int4.registry()["tinygemm"]):
        def run(self, x):
            return super().run(x) * 1.1

    monkeypatch.setattr(int4, "_KERNELS", (Wrong,))
    output = tmp_path / "int4.json"
    flags = [*SMALL, "--what=shapes", "--kernel=tinygemm", "--mode=eager", f"--json={output}"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 1 and "wrong: tinygemm" in flat(result.out)
    wrong = [entry for entry in json.loads(output.read_text())["ops"] if entry["backend"] == "tinygemm"]
    assert wrong and all(entry["status"] == "wrong" and entry["time_us"] is None for entry in wrong)


def test_what_was_measured_is_in_the_file_at_any_time(capsys, monkeypatch, tmp_path):
    """After every group, for an end that nobody can catch; Ctrl-C keeps the same."""
    from bench.int4 import measure

    output, left, true = tmp_path / "int4.json", [], measure.measure_group

    def cut(*arguments):
        if output.exists():
            left.append(json.loads(output.read_text()))
        if len(left) == 2:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(measure, "measure_group", cut)
    flags = [*SMALL, "--kernel=native", "--mode=native", "--what=shapes", f"--json={output}"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 130 and "INTERRUPTED" in result.out
    assert [document["interrupted"] for document in left] == [True, True]
    assert [list(dict.fromkeys(entry["label"] for entry in one["ops"])) for one in left] == [["q"], ["q", "kv"]]
    assert json.loads(output.read_text())["ops"] == left[-1]["ops"]


@pytest.mark.parametrize(("launches", "null_us"), [(None, 0.5), (1, 0.5), (3, 1.5)])
def test_a_call_of_several_kernels_waits_for_as_many_launches(monkeypatch, launches, null_us):
    """By its trace. What they compute beyond that is the 4-bit kernel's."""
    import numpy as np

    from bench.core import device_trace
    from bench.core import measure as core_measure
    from bench.int4 import measure
    from bench.int4.groups import Counted, Group

    arm = core_measure.Arm("padded", "graph")
    arm.launches = launches
    entry = {"backend": "padded", "mode": "graph", "status": "ok", "samples_us": [9.0], "bytes": 1000, "null_us": 0.5,
             "host_us": None, "launches": None, "time_us": {"p50": 9.0}, "reason": None,
             "ceiling": {"spec_gbs": None, "read_gbs": 1.0, "copy_gbs": 1.0}}  # fmt: skip
    sample = device_trace.Sample(1, [], [])
    found = device_trace.Traced(np.array([9.0]), ["a"] * (launches or 0), np.zeros((1, 1)), 1.0, sample)
    monkeypatch.setattr(core_measure, "gate", lambda arms: None)
    traces = {arm.label: found} if launches else {}
    monkeypatch.setattr(device_trace, "trace_arms", lambda arms, repeats, warmup: (traces, {arm.label: "why"}))
    group = Group({}, [arm], {arm.label: Counted(1000, 1, 1)}, 1)
    measure.trace_group(group, [entry], type("Settings", (), {"dtype_name": "bf16"}))
    assert entry["null_us"] == null_us and entry["parts_us"]["launch"] == null_us


def test_a_kernel_of_the_other_half_precision_is_measured_in_it_with_ours_beside_it(capsys, monkeypatch, tmp_path):
    """The same 4-bit weights: q as they are, scales as near as that dtype has them."""
    given: dict[str, pk.Int4Weight] = {}

    class OnlyHalf(int4.registry()["tinygemm"]):
        name, dtypes = "only-half", (torch.float16,)

        def prepare(self, weight):
            given.setdefault("fp16", weight)
            return super().prepare(weight)

    class Tinygemm(int4.registry()["tinygemm"]):
        def prepare(self, weight):
            given.setdefault("bf16", weight)
            return super().prepare(weight)

    monkeypatch.setattr(int4, "_KERNELS", (int4.registry()["native"], Tinygemm, OnlyHalf))
    output = tmp_path / "int4.json"
    flags = [*SMALL, "--what=shapes", "--kernel=all", "--mode=eager", f"--json={output}"]
    assert run_here(capsys, "bench.int4", *flags).status == 0
    ops = json.loads(output.read_text())["ops"]
    assert all(entry["status"] == "ok" for entry in ops)
    wanted = {"bf16": "bf16", "torch-bf16": "bf16", "native": "bf16", "tinygemm": "bf16", "native-fp16": "fp16",
              "only-half-fp16": "fp16"}  # fmt: skip
    for label in floors.LINEAR_SHAPES:
        assert {entry["backend"]: entry["dtype"] for entry in ops if entry["label"] == label} == wanted
    assert all(entry["ratio_to_dense"] for entry in ops) and given["fp16"].dtype == torch.float16
    assert torch.equal(given["fp16"].packed, given["bf16"].packed)
    assert torch.equal(given["fp16"].scales.float(), given["bf16"].scales.float())


def test_a_library_is_asked_once_whether_it_is_there(capsys, monkeypatch):
    asked = []

    class Absent(int4.registry()["tinygemm"]):
        name, dtypes = "absent", (torch.float16,)

        @classmethod
        def availability(cls, device):
            asked.append(device)
            return "it took minutes to find out that it does not compile"

    monkeypatch.setattr(int4, "_KERNELS", (int4.registry()["native"], Absent))
    result = run_here(capsys, "bench.int4", *SMALL, "--what=shapes", "--mode=eager", "--steps=2")
    assert result.status == 0 and len(asked) == 1
    assert "unsupported: absent (q, kv" in flat(result.out) and "native-fp16" not in result.out


def test_shapes_that_models_share_are_one():
    specs = [pk.models.get(name) for name in ("mistral-7b-v0.3", "llama-3.1-8b")]
    found = groups.shapes(specs)
    shared = [shape for shape in found if len(shape.models) == 2]
    assert {shape.label for shape in shared} == {"q", "kv", "o", "gate/up", "down"}
    assert [shape.n_out for shape in found if shape.label == "lm_head"] == [32768, 128256]


@pytest.mark.parametrize(
    ("clocks", "parts", "binds"),
    [
        # 1 MB at 100 GB/s are 10 us.
        (dict(time_us=12, null_us=1), Parts(10, 1, 1, 0), "bandwidth"),
        (dict(time_us=50, null_us=1), Parts(10, 1, 39, 0), "kernel"),
        (dict(time_us=50, null_us=1, device_us=20), Parts(10, 30, 10, 0), "launch"),
        (dict(time_us=50, null_us=1, host_us=49), Parts(10, 40, 0, 0), "launch"),
        (dict(time_us=50, null_us=1, host_us=30), Parts(10, 1, 39, 0), "kernel"),
        (dict(time_us=50, null_us=1, dense=Parts(40, 1, 5, 0)), Parts(10, 1, 5, 34), "dequantisation"),
        (dict(time_us=50, null_us=1, dense=Parts(40, 1, 60, 0)), Parts(10, 1, 39, 0), "kernel"),
        (dict(time_us=50, null_us=60, dense=Parts(40, 1, 5, 0)), Parts(10, 40, 0, 0), "launch"),
        (dict(time_us=8, null_us=1, device_us=7), Parts(8, 0, 0, 0), "bandwidth"),  # found in a cache
    ],
)
def test_what_binds(clocks, parts, binds):
    found = split(n_bytes=1_000_000, read_gbs=100.0, **clocks)
    assert found == parts and found.binds == binds
    assert sum(vars(found).values()) == clocks["time_us"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--group=48"], ("--group=48", "32, 64, a multiple of 128, or -1")),
        (["--what=bars"], ("--what=bars", "shapes, layer")),
        (["--predict=tpu"], ("--predict=tpu", "l40s, l4, rtx-4090")),
        (["--predict=l4", "--what=shapes"], ("--predict=l4", "--what=layer")),
        (["--arch=sm75"], ("--arch=sm75", "sm80, sm89, sm90a")),
        (["--dtype=int8"], ("--dtype=int8", "bf16, fp16, fp32")),
        (["--mode=graph"], ("--mode=graph", "eager, pybind, dispatch, native")),
        (["--group=1024"], ("--group=1024", "a divisor of in_features", "512 (tiny, q)")),
    ],
)
def test_bad_flags(capsys, flags, words):
    assert_refused(run_here(capsys, "bench.int4", "--model=tiny", "--device=cpu", *flags), *words)


def test_the_list(capsys):
    result = run_here(capsys, "bench.int4", "--list", "--device=cpu")
    assert result.status == 0
    for name, kernel in int4.registry().items():
        assert f"{name} " in result.out and kernel.description in flat(result.out)


# SASS.

SASS = """\
\t\tFunction : _ZN4fine16int4_gemv_kernelILi4EEEvPK5uint4
        /*0000*/                   LDG.E.NA.128.CONSTANT R4, [R2.64] ;   /* 0x0 */
        /*0010*/                   LOP3.LUT R5, R4, 0xf000f, R6, 0xea, !PT ;   /* 0x0 */
                                                                           /* 0x0 */
        /*0020*/                   EXIT ;   /* 0x0 */
\t\tFunction : _ZN5async8Int4GemvEv
        /*0000*/                   LDGSTS.E.BYPASS.128 [R4], [R2.64] ;   /* 0x0 */
        /*0010*/                   MOV R7, 0xf000f ;   /* 0x0 */
        /*0020*/                   LOP3.LUT R5, R4, R7, R6, 0xea, !PT ;   /* 0x0 */
\t\tFunction : _ZN4poor9int4_gemvEv
        /*0000*/                   LDG.E.64 R4, [R2.64] ;   /* 0x0 */
        /*0010*/                   STL.64 [R1], R4 ;   /* 0x0 */
        /*0020*/                   LDL R4, [R1] ;   /* 0x0 */
\t\tFunction : _ZN3dequant4gemvEPK4int4
        /*0000*/                   LDG.E R4, [R2.64] ;   /* 0x0 */
"""
RESOURCES = """\
 Function _ZN4fine16int4_gemv_kernelILi4EEEvPK5uint4:
  REG:22 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:376 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4poor9int4_gemvEv:
  REG:255 STACK:256 SHARED:0 LOCAL:0 CONSTANT[0]:380 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_reading_sass():
    fine, asynchronous, poor = sass.read(SASS, RESOURCES)
    assert (fine.registers, fine.instructions, fine.wide_loads, fine.lop3, fine.nibble_masks) == (22, 3, 1, 1, 1)
    assert not fine.problems and not asynchronous.problems and asynchronous.registers is None
    assert (poor.registers, poor.local_memory) == (255, 2)
    assert [problem.split(":")[0] for problem in poor.problems] == [
        "has no 16-byte load", "has no LOP3", "masks no nibbles (0xf000f or 0xf0f0f0f)", "uses local memory",
    ]  # fmt: skip


GOOD_AND_BAD = """\
template <int n> __global__ void int4_gemv_good(const uint4* w, const float* x, float* y) {
    const uint4 v = w[threadIdx.x];
    unsigned sum = v.y ^ v.z ^ v.w;
    for (int i = 0; i < 4; ++i) sum += ((v.x >> 4 * i) & 0x000f000fu) | 0x43004300u;
    y[threadIdx.x] = sum * x[n];
}
__global__ void int4_gemv_bad(const unsigned char* w, const float* x, float* y, int k) {
    float a[64];
    for (int i = 0; i < 64; ++i) a[i] = (w[i] & 15) * x[i];
    for (int i = 0; i < k; ++i) y[i] = a[static_cast<int>(x[i]) & 63];
}
void use(uint4* w, float* x) {
    int4_gemv_good<1><<<1, 32>>>(w, x, x);
    int4_gemv_bad<<<1, 1>>>(reinterpret_cast<unsigned char*>(w), x, x, 3);
}
"""


@pytest.mark.skipif(not (shutil.which("nvcc") and sass.tool("cuobjdump")), reason="needs nvcc and cuobjdump")
def test_sass_of_a_real_compilation(tmp_path):
    (tmp_path / "k.cu").write_text(GOOD_AND_BAD)
    subprocess.run(["nvcc", "-arch=sm_89", "-c", "k.cu", "-o", "k.o"], cwd=tmp_path, check=True)
    kernels = {("bad" in kernel.name): kernel for kernel in sass.inspect("sm_89", tmp_path / "k.o")}
    assert not kernels[False].problems and kernels[False].registers
    assert any("local memory" in problem for problem in kernels[True].problems)
    assert sass.has_ptx("sm_89", tmp_path / "k.o") and not sass.has_ptx("sm_90a", tmp_path / "k.o")
    with pytest.raises(RuntimeError, match="k.o has no SASS for sm_80"):
        sass.inspect("sm_80", tmp_path / "k.o")


@pytest.mark.parametrize(
    ("built", "found", "words"),
    [(False, None, "nvcc was not found when it was built"), (True, None, "cuobjdump is not on the PATH")],
)
def test_sass_that_cannot_be_looked_at(capsys, monkeypatch, built, found, words):
    monkeypatch.setattr(pk.runtime, "build_info", lambda: {"cuda": built})
    monkeypatch.setattr(sass, "tool", lambda name: found)
    monkeypatch.setattr(sass.Path, "exists", lambda path: True)
    result = run_here(capsys, "bench.int4", "--arch=sm89", "--device=cpu")
    assert result.status == 1 and "--arch=sm89: unsupported: " in result.out and words in flat(result.out)


@pytest.mark.parametrize(
    ("architectures", "ran"),
    [
        ("90a-real", False),
        ("89-real 90a-real", False),
        ("75 90", False),
        ("89-virtual 90a-real", True),
        ("80 89-real 90a-real", True),
    ],
)
def test_ptx_runs_without_any_tool_and_without_sass(capsys, monkeypatch, architectures, ran):
    monkeypatch.setattr(pk.runtime, "build_info", lambda: {"cuda": True, "cuda_architectures": architectures})
    monkeypatch.setattr(sass, "reason", lambda: "cuobjdump is not here")
    monkeypatch.setattr("bench.core.cli.device", lambda flag: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    commands = []

    def run(command, env, **rest):
        commands.append((command[2:], env["CUDA_FORCE_PTX_JIT"]))
        said = "native: relative error against float64\n case shape\n\nnative: WRONG in 3 of 9 trials\n  wrong: one"
        return subprocess.CompletedProcess(command, 1, said, "a warning")

    monkeypatch.setattr(subprocess, "run", run)
    result = run_here(capsys, "bench.int4", "--arch=sm89")
    assert "unsupported: cuobjdump is not here" in result.out and result.status == 1
    assert ("native: WRONG in 3" in flat(result.out)) == ran == ("PTX for sm_89: there" in result.out)
    assert ("89-virtual;90a-real" in flat(result.out)) == (not ran)
    assert commands == [(["bench.int4", "--validate", "--kernel=native", "--device=cuda"], "1")] * ran


@pytest.mark.parametrize("poor", [False, True])
def test_the_command_judges_sass(capsys, monkeypatch, poor):
    kernels = sass.read(SASS, RESOURCES)[: 3 if poor else 2]
    monkeypatch.setattr(sass, "reason", lambda: None)
    monkeypatch.setattr(sass, "inspect", lambda name: kernels)
    monkeypatch.setattr(sass, "has_ptx", lambda name: True)
    result = run_here(capsys, "bench.int4", "--arch=sm89", "--device=cpu")
    assert result.status == poor and ("uses local memory: 2 LDL or STL" in flat(result.out)) == poor
    assert "that needs a GPU newer than compute capability 8.9" in flat(result.out)
