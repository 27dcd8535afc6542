"""Plug-ins in CUDA source, over a CuPy that is none: what they are given, what they may ask for, what is wrong."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from inputs.command_line import run_here
from inputs.fake_cupy import FakeCupy, tensor_at
from inputs.fake_gpu import KERNEL_US, fake_gpu
from inputs.user_plugins import CPU, GEMV, GQA_DECODE, INT4_GEMV, gated, plugin
from inputs.workloads import workload

import pykernels as pk
from bench.attention import arms as attention_arms
from bench.backends import MODES
from bench.backends.op_cases import cases
from bench.backends.plain import LibraryLayer
from bench.core.measure import gate
from bench.int4 import validate
from bench.int4.trials import trials
from bench.plugins.cuda_kernel import Kernel
from bench.plugins.loading import Journal, load_int4, load_op


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(LibraryLayer, "device_reason", classmethod(lambda cls, device: None))
    monkeypatch.setattr(Kernel, "_current", None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=77))
    return fake


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cuda_kernel_gets_what_it_declares(tmp_path, cupy, batch):
    (arm,) = gated(tmp_path, GQA_DECODE, "gqa_decode", workload(batch=batch))
    assert (arm.status, arm.reason, len(arm.samples_us)) == ("ok", None, 2)
    assert arm.kernels.count("gqa_decode (CUDA, by NVRTC)") == 1
    (kernel,) = cupy.kernels
    assert set(kernel.launches) == {((8, batch), (256,), 0, 77)}


def test_a_cuda_kernel_of_one_op(tmp_path, cupy):
    from bench.core.measure import Rotation
    from bench.core.samplers import Samplers

    make = load_op(plugin(GEMV, "gemv"), Journal(tmp_path), "gemv")
    for case in cases("gemv", pk.models.get("tiny"), [16], 2, torch.float16, 0, CPU):
        instances = [case.make(), case.make()]
        samplers = Samplers(Rotation(2), 1, CPU)
        arm = make(case, instances, "eager", samplers)
        gate([arm])
        assert (arm.status, arm.reason) == ("ok", None)
        n_in, n_out = instances[0].inputs["weight"].shape[::-1]
        assert set(cupy.kernels[-1].launches) == {((n_out, 2), (32,), 4 * n_in, 77)}
        assert make(case, instances, "native", samplers) is None


def int4_trials(path, tmp_path, groups, cases=None):
    """What comes of a CUDA kernel's trials in bf16."""
    kernel = load_int4(plugin(path, "int4_gemv"), Journal(tmp_path), CPU)
    given = [
        trial
        for trial in trials(torch.bfloat16, groups, (True, False), kernel.max_batch)
        if cases is None or trial.case in cases
    ]
    return [validate.run_trial(kernel, trial, CPU) for trial in given]


def test_a_4_bit_cuda_kernel_is_validated(tmp_path, cupy):
    found = int4_trials(INT4_GEMV, tmp_path, (64,))
    assert not validate.failed(found) and validate.right(found), validate.verdict("it", found)
    assert {one.case: one.reason for one in found if one.status == "refused"} == {"act-order": "takes no act-order"}
    assert {one.symmetric for one in found if one.status == "ok"} == {True, False}
    launches = {launch for kernel in cupy.kernels for launch in kernel.launches}
    assert launches >= {((32, batch), (128,), 0, 77) for batch in range(1, 9)} | {((1, 1), (128,), 0, 77)}


def test_what_a_4_bit_cuda_kernel_declares_is_what_it_takes(tmp_path, cupy):
    path = tmp_path / "changed.cu"
    text = INT4_GEMV.read_text().replace("const unsigned char* zeros,", "const int* perm,")
    path.write_text(text.replace("block=128", "block=128 require=batch<=2 and group_size>32"))
    found = int4_trials(path, tmp_path, (32, 128), {"random", "powers of two", "act-order"})
    assert {(one.status, one.reason) for one in found if not one.symmetric and one.case != "act-order"} == {
        ("refused", "takes no zero points")
    }
    small = [one for one in found if one.symmetric and one.group_size == 32]
    words = "requires batch<=2 and group_size>32, and batch is {}, group_size is 32"
    assert {one.reason for one in small} == {words.format(1), words.format(2)}
    taken = [one for one in found if one.symmetric and one.group_size == 128]
    assert {one.status for one in taken} == {"ok"} and {one.batch for one in taken} == {1, 2}


@pytest.mark.parametrize(
    ("spoiled", "offset", "words"),
    [
        ("out", 2 * 128, "wrote outside out: 1 bytes changed, the first 0 bytes past its end"),
        ("out", -1, "wrote outside out: 1 bytes changed, the first 0 bytes before its begin"),
        ("packed", 0, "wrote into packed: 1 elements changed, the first at [0, 0]"),
        ("x", 0, "run must leave x, and what lies beside it, as it is"),
    ],
)
def test_a_4_bit_cuda_kernel_that_writes_what_is_not_its_own(tmp_path, cupy, spoiled, offset, words):
    def spoil(given):
        tensor_at(given[spoiled] + offset, (1,), torch.uint8).bitwise_xor_(1)

    cupy.afterwards = spoil
    trial = next(iter(trials(torch.bfloat16, (128,), (True,), 1)))
    found = validate.run_trial(load_int4(plugin(INT4_GEMV, "int4_gemv"), Journal(tmp_path), CPU), trial, CPU)
    assert (found.status, found.reason) == ("wrong", words)


def timed_int4(capsys, tmp_path, *flags):
    """bench.int4 as in a plug-in's own process. Returns its run, and the plug-in's entries."""
    output = tmp_path / "int4.json"
    result = run_here(
        capsys, "bench.int4", "--device=cuda", "--model=tiny", "--steps=3", "--warmup=1", "--what=shapes",
        f"--kernel={INT4_GEMV}:int4_gemv", f"--plugin-journal={tmp_path}", f"--json={output}", *flags,
    )  # fmt: skip
    ops = [entry for entry in json.loads(output.read_text())["ops"] if entry["backend"] == "int4_gemv.cu:int4_gemv"]
    return result, ops


@pytest.mark.parametrize(("spoils", "status"), [(False, "ok"), (True, "wrong")])
def test_a_4_bit_cuda_kernel_is_measured(monkeypatch, capsys, tmp_path, cupy, spoils, status):
    if spoils:
        cupy.afterwards = lambda given: tensor_at(given["out"] - 1, (1,), torch.uint8).fill_(1)
    with fake_gpu(monkeypatch):
        result, ops = timed_int4(capsys, tmp_path, "--mode=eager,native,graph", "--l2=warm", "--repeats=1")
    assert result.status == spoils, result.out + result.err
    assert {(entry["mode"], entry["status"]) for entry in ops} == {
        (mode, status) for mode in ("eager", "native", "graph")
    }
    assert not spoils or {entry["reason"] for entry in ops} == {
        "wrote outside out: 1 bytes changed, the first 0 bytes before its begin"
    }


def test_what_a_first_call_launches_is_not_traced(monkeypatch, capsys, tmp_path, cupy):
    """A kernel's out is made, and its surroundings are filled, when a copy of the weight is first used."""
    compiled = 0
    with fake_gpu(monkeypatch) as gpu:

        def fill(given):
            nonlocal compiled
            if compiled < len(cupy.kernels):
                compiled += 1
                gpu.launch("fill")

        cupy.afterwards = fill
        _, ops = timed_int4(capsys, tmp_path, "--mode=eager", "--l2=cold", "--repeats=3")
    assert {entry["copies"] > 3 for entry in ops} == {True}
    assert {(entry["device_us"] or {}).get("p50") for entry in ops} == {KERNEL_US}, ops[0]["device_reason"]


def test_a_4_bit_cuda_kernel_needs_a_gpu(capsys, tmp_path):
    output = tmp_path / "found.json"
    asked = f"--kernel={INT4_GEMV}:int4_gemv"
    result = run_here(capsys, "bench.int4", "--validate", "--device=cpu", asked, f"--json={output}")
    assert result.status == 0 and "int4_gemv.cu:int4_gemv: unsupported: needs a CUDA device" in result.out
    (kernel,) = json.loads(output.read_text())["kernels"]
    assert kernel["reason"].startswith("needs a CUDA device") and kernel["trials"] == []


def test_more_shared_memory_than_the_default_is_asked_for(tmp_path, cupy):
    path = tmp_path / "large.cu"
    path.write_text(GQA_DECODE.read_text().replace("block=256", "block=256 shared=100*1024"))
    (arm,) = gated(tmp_path, path, "gqa_decode", workload(batch=2))
    assert arm.status == "ok" and cupy.kernels[0].max_dynamic_shared_size_bytes == 100 * 1024


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (("#include <cuda_bf16.h>", "#error no"), "error", "CompileError: /tmp/x.cu(3): error: #error directive"),
        (("block=256", "block=head_dim*32"), "error", "SourceError: block must be of 1..1024 threads, got 2048"),
        (("head_dim==64 or head_dim==128", "head_dim>64"), "unsupported", "requires head_dim>64, and head_dim is 64"),
        (("dtype=bf16", "dtype=fp32"), "unsupported", "is a kernel for float32 by its launchtax line, got bfloat16"),
    ],
)
def test_a_cuda_kernel_that_does_not_fit(tmp_path, cupy, change, status, reason):
    path = tmp_path / "changed.cu"
    path.write_text(GQA_DECODE.read_text().replace(*change).replace("using bf16 = __nv_bfloat16;", ""))
    (arm,) = gated(tmp_path, path, "gqa_decode", workload(batch=2, copies=1))
    assert (arm.status, arm.reason) == (status, reason)


def test_modes_of_a_cuda_kernel(monkeypatch, capsys, tmp_path, cupy):
    """bench.layer as in a plug-in's own process, on a fake GPU."""
    output = tmp_path / "layer.json"
    with fake_gpu(monkeypatch):
        result = run_here(
            capsys, "bench.layer", "--device=cuda", "--model=tiny", "--ctx=40", "--steps=3", "--warmup=1", "--l2=warm",
            f"--backend=sdpa,{GQA_DECODE}:gqa_decode", "--mode=eager,native,graph", f"--plugin-journal={tmp_path}",
            f"--json={output}",
        )  # fmt: skip
    assert result.status == 0, result.out + result.err
    arms = [arm for arm in json.loads(output.read_text())["arms"] if arm["backend"] != "sdpa"]
    assert [(arm["mode"], arm["status"]) for arm in arms] == [
        ("eager", "ok"), ("native", "ok"), ("graph", "ok"),
    ]  # fmt: skip
    native = next(arm for arm in arms if arm["mode"] == "native")
    assert native["against_eager"] == "equal" and native["nodes"][0]["attributes"] == []
    graph = next(arm for arm in arms if arm["mode"] == "graph")
    assert graph["steps_per_graph"] == 8 and graph["ratio_to_sdpa_graph"]["p50"] > 0
    assert cupy.stream == 0  # the fake GPU's


def test_a_cuda_kernel_that_asks_for_pdl_is_launched_so(monkeypatch, capsys, tmp_path, cupy):
    path, output = tmp_path / "pdl.cu", tmp_path / "layer.json"
    path.write_text(GQA_DECODE.read_text().replace("block=256", "block=256 pdl=1"))
    with fake_gpu(monkeypatch):
        result = run_here(
            capsys, "bench.layer", "--device=cuda", "--model=tiny", "--ctx=40", "--steps=2", "--warmup=1", "--l2=warm",
            f"--backend={path}:gqa_decode", "--mode=eager,native", f"--plugin-journal={tmp_path}", f"--json={output}",
        )  # fmt: skip
    assert result.status == 0, result.out + result.err
    native = next(arm for arm in json.loads(output.read_text())["arms"] if arm["mode"] == "native")
    assert (native["status"], native["nodes"][0]["attributes"]) == ("ok", ["programmatic"])


def test_a_cuda_kernel_in_bench_attention(monkeypatch, capsys, tmp_path, cupy):
    """As in a plug-in's own process, on a fake GPU; at group 4 and 8."""
    output = tmp_path / "attention.json"
    with fake_gpu(monkeypatch):
        monkeypatch.setattr(
            attention_arms, "synchronised_sampler", lambda steps, rotation: lambda n: torch.full((n,), 7.0)
        )
        result = run_here(
            capsys, "bench.attention", "--device=cuda", "--model=tiny", "--heads=16/2x64", "--ctx=40", "--batch=2",
            "--calls=4", "--warmup=1", "--l2=warm", "--sessions=0", f"--backend={GQA_DECODE}:gqa_decode,sdpa",
            f"--plugin-journal={tmp_path}", f"--json={output}",
        )  # fmt: skip
    assert result.status == 0, result.out + result.err
    arms = [arm for arm in json.loads(output.read_text())["arms"] if arm["backend"] != "sdpa"]
    assert [(arm["group_size"], arm["mode"], arm["status"]) for arm in arms] == [
        (group, mode, "ok") for group in (4, 8) for mode in ("eager", "native", "graph")
    ]  # fmt: skip
    assert all(arm["wall_us"] and arm["device_us"] for arm in arms if arm["mode"] == "eager")
    assert Journal(tmp_path).read("modes")["graph"] is None


def test_a_cuda_kernel_needs_a_gpu(tmp_path):
    arms = gated(tmp_path, GQA_DECODE, "gqa_decode", workload(batch=2, copies=1), MODES)
    assert [(arm.status, arm.reason[:19]) for arm in arms] == [("unsupported", "needs a CUDA device")] * len(MODES)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "needs CuPy 14 or later (pip install 'launchtax[plugins]'): "),
        (SimpleNamespace(cuda=SimpleNamespace(Stream=object), __version__="13.6.0"), "found 13.6.0"),
    ],
)
def test_without_cupy(monkeypatch, tmp_path, cupy, module, words):
    monkeypatch.setitem(sys.modules, "cupy", module)
    (arm,) = gated(tmp_path, GQA_DECODE, "gqa_decode", workload(batch=2, copies=1))
    assert arm.status == "unsupported" and words in arm.reason
