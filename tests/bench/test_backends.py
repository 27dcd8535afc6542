"""The peers' adapters: real where torch has the kernel on a CPU, else over fakes of the documented signatures."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from inputs import fake_peers
from inputs.command_line import run_here
from inputs.fake_gpu import fake_gpu
from inputs.workloads import CPU, gated, workload
from torch._inductor.utils import run_and_get_code

from bench.backends import arms_of, fa3, registry
from bench.backends.compile import compiler_reason
from bench.backends.flash import _FlashCache, arguments
from bench.backends.torch_layer import TokenMajorCache

LIBRARIES = {"fa2": "flash_attn", "fa3": "flash_attn_interface", "fa4": "flash_attn.cute", "flashinfer": "flashinfer",
             "flashinfer-tc": "flashinfer", "xqa": "flashinfer"}  # fmt: skip


@pytest.fixture
def fakes(monkeypatch, any_device):
    """All libraries there, as packages."""
    modules = {package: getattr(fake_peers, package.replace(".", "_"))() for package in set(LIBRARIES.values())}
    for package, module in modules.items():
        monkeypatch.setitem(sys.modules, package, module)
    return modules


@pytest.mark.skipif(compiler_reason(CPU) is not None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["flex", "compile"])
def test_compiled_backends_on_the_cpu(name):
    arm = gated(name, workload())
    assert (arm.status, arm.reason) == ("ok", None)
    assert arm.launches == len(arm.kernels)


@pytest.mark.skipif(compiler_reason(CPU) is not None, reason="no C++ compiler")
def test_a_call_of_flex_is_its_kernel_and_no_mask_of_its_own():
    inputs = workload(copies=1).layers[0]
    call = registry()["flex"]().attention(inputs).bound(inputs.x.new_ones(1, 8, 1, inputs.spec.head_dim))
    torch._dynamo.reset()
    with torch.inference_mode(), torch._inductor.config.patch(force_disable_caches=True):
        _, (code,) = run_and_get_code(call)
    assert len(re.findall(r"^ +cpp_fused\w*\(", code, re.MULTILINE)) == 1


def test_the_mask_of_flex_has_blocks_for_the_splits_of_its_decoding_kernel():
    """Of a mask of one block the first split has all keys to itself, and the others none."""
    backend, masks = registry()["flex"](), []
    backend._compiled = lambda *inputs, block_mask, enable_gqa: masks.append(block_mask)
    inputs = workload(copies=1, position=299, ctx=400).layers[0]
    backend.attention(inputs).bound(inputs.x.new_ones(1, 8, 1, inputs.spec.head_dim))()
    (mask,) = masks
    assert mask.BLOCK_SIZE == (128, 128) and mask.shape[-2:] == (1, 300)
    assert mask.to_dense().tolist() == [[[[1, 1, 1]]]]


def test_the_compiled_need_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for name in ("flex", "compile"):
        assert "no no-such-compiler" in registry()[name].availability(CPU)
    assert registry()["compile-graphs"].availability(CPU).startswith("needs a CUDA device")


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("heads", [(8, 2), (7, 1)], ids=["group 4", "group 7"])
def test_a_library_meets_the_reference(fakes, name, batch, heads):
    arm = gated(name, workload(batch=batch, n_heads=heads[0], n_kv_heads=heads[1]))
    assert (arm.status, arm.reason) == ("ok", None)
    assert arm.launches == len(arm.kernels) > 20
    if name.startswith("flashinfer"):
        tensor_cores = name == "flashinfer-tc" or heads == (7, 1)
        assert set(fakes["flashinfer"].seen) == {("single" if batch == 1 else "batch", tensor_cores)}
        words = " on tensor cores" if tensor_cores else " on CUDA cores"
        assert sum(kernel.endswith(words) for kernel in arm.kernels) == 1


@pytest.mark.parametrize(
    ("name", "position"),
    [("flashinfer", 0), ("flashinfer", 15), ("flashinfer", 16), ("flashinfer", 39), ("xqa", 63), ("xqa", 64)],
)
def test_pages_at_their_edges(fakes, name, position):
    assert gated(name, workload(batch=2, position=position, ctx=80)).reason is None


def test_xqa_needs_its_function_and_its_gpu(monkeypatch):
    backend = registry()["xqa"]
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(__version__="0.3"))
    assert backend.library_reason() == "flashinfer is not installed: this flashinfer (0.3) has no xqa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert backend.device_reason(torch.device("cuda")).endswith("10.x or 12.x, and this GPU has 8.9")


@pytest.mark.parametrize("name", ["fa2", "fa3"])
def test_a_library_of_ops_meets_the_reference(monkeypatch, any_device, name):
    backend, loaded = registry()[name], []
    monkeypatch.setenv(backend.library_variable, "/some/library.so")
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    library = getattr(fake_peers, f"{name}_ops")()
    try:
        arm = gated(name, workload(batch=2))
    finally:
        library._destroy()
    assert (arm.status, arm.reason) == ("ok", None)
    assert set(loaded) == {"/some/library.so"}
    assert any(kernel.startswith(f"{backend.namespace}::fwd") for kernel in arm.kernels)


@pytest.mark.parametrize(
    ("words", "batch", "splits"),
    [
        # Of an H200 at batch 1 and 4, what was never written included.
        ([4, -1081049088, 0, 1065943040, 11, -1080082432, 0, 1068097536, 0], 1, [11]),
        ([7, 7, 7, 7, 6, 6, 6, 6, 0], 4, [6, 6, 6, 6]),
        ([1, 1, 1, 1, 1, 0, 0, 0, 2, 3, 2, 3, 2, 0, 0, 0, 0], 5, [2, 3, 2, 3, 2]),
        ([7, 1, 2, 3, 0], 1, [1]),  # one vector: nothing is split
        ([7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0], 1, [6]),  # batches sorted: a third vector
        ([7, 7, 7, 7, 0, 1, 2, 3, 0], 4, None),  # sorted and not split: these are batches
        ([0, 6, 6, 6, 6], 4, None),  # an earlier version: the counter, then the splits
        ([0, 6], 1, None),
        ([1, 1, 40, 8, 2, 64], 1, None),
        ([7, 7, 7, 7, 6, 6, 6, 6, 5], 4, None),
    ],
)
def test_the_splits_of_a_schedule(words, batch, splits):
    metadata = torch.tensor(words, dtype=torch.int32)
    assert fa3.splits_of(metadata, batch) == splits
    assert fa3.plan_of(metadata, batch) == ({"num_splits": splits} if splits else {})


def test_arguments_of_an_op():
    schema = torch.ops.aten.softmax.int._schema  # (Tensor self, int dim, ScalarType? dtype=None)
    x = torch.zeros(2)
    values = arguments(schema, self=x, dim=0)
    assert values[0] is x and values[1:] == [0, None]
    with pytest.raises(NotImplementedError, match="aten::softmax wants an argument dim"):
        arguments(schema, self=x)
    with pytest.raises(TypeError, match="aten::softmax has no argument axis: it has self, dim, dtype"):
        arguments(schema, self=x, dim=0, axis=1)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_row_that_is_not_appended_is_found(monkeypatch, fakes, name):
    monkeypatch.setattr(TokenMajorCache, "append", lambda self, k, v: None)
    arm = gated(name, workload())
    assert arm.status == "wrong" and "got nan" in arm.reason


@pytest.mark.parametrize("row", ["k_row", "v_row"])
def test_a_row_that_is_spoiled_after_the_attention_is_found(monkeypatch, fakes, row):
    true = _FlashCache.attend

    def attend(self, q):
        attended = true(self, q)
        getattr(self, row)[0, 1, 5] += 1
        return attended

    monkeypatch.setattr(_FlashCache, "attend", attend)
    assert gated("fa2", workload()).status == "wrong"


def test_a_kernel_of_wrong_length_is_found(monkeypatch, fakes):
    module = fakes["flash_attn"]
    true = module.flash_attn_with_kvcache
    module.flash_attn_with_kvcache = lambda *caches, cache_seqlens: true(*caches, cache_seqlens=cache_seqlens - 1)
    assert gated("fa2", workload()).status == "wrong"


@pytest.mark.parametrize(("name", "package"), LIBRARIES.items())
def test_an_absent_library(monkeypatch, capsys, tmp_path, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delenv(f"PYKERNELS_{name.upper()}_LIB", raising=False)
    (arm,) = arms_of(registry()[name], workload(copies=1), ["eager"], ["none"])
    assert arm.status == "unsupported"
    assert arm.reason.startswith(f"needs a CUDA device; {package} is not installed: ")
    assert run_here(capsys, "bench.doctor", f"--json={tmp_path}/doctor.json").status == 0
    (entry,) = [b for b in json.loads((tmp_path / "doctor.json").read_text())["backends"] if b["name"] == name]
    assert entry["reason"] == arm.reason and entry["modes"] == [] and entry["install_hint"]


def test_a_library_that_does_not_load(monkeypatch):
    monkeypatch.setenv("PYKERNELS_FA3_LIB", "/no/such/library.so")
    reason = registry()["fa3"].library_reason()
    assert reason.startswith("flash_attn_interface cannot be loaded") and "/no/such/library.so" in reason


def test_a_library_of_other_ops(monkeypatch):
    """FlashAttention-2's named for 3, say."""
    monkeypatch.setenv("PYKERNELS_FA3_LIB", "/some/library.so")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    reason = registry()["fa3"].library_reason()
    assert reason.endswith("cannot be loaded: PYKERNELS_FA3_LIB=/some/library.so has no op _vllm_fa3_C::fwd")


@pytest.mark.parametrize("error", [AttributeError("no such thing\nat all"), ZeroDivisionError()])
def test_whatever_the_import_of_a_library_raises(monkeypatch, error):
    def raises(name):
        raise error

    monkeypatch.setattr("bench.backends.plain.importlib.import_module", raises)
    words = "no such thing" if error.args else "ZeroDivisionError"
    assert registry()["flashinfer"].library_reason() == f"flashinfer cannot be loaded: {words}"


def test_what_the_libraries_refuse(monkeypatch, fakes):
    for name in ("fa2", "fa3", "fa4"):
        arm = gated(name, workload(dtype=torch.float32, copies=1))
        assert (arm.status, arm.reason) == ("unsupported", "FlashAttention only supports fp16 and bf16")
    for name in LIBRARIES:
        for mode in ("pybind", "dispatch", "native", "graph", "graph-pdl"):
            arm = gated(name, workload(copies=1), mode)
            assert arm.status == "unsupported" and arm.reason


@pytest.mark.parametrize(
    ("name", "capability", "words"),
    [
        ("fa2", (7, 5), "Ampere GPUs or newer"),
        ("fa3", (8, 9), "compute capability 9.0, and the GPU's is 8.9"),
        ("fa3", (10, 0), "compute capability 9.0, and the GPU's is 10.0"),
        ("fa4", (8, 9), "needs compute capability 9.0 or 10.x, and this GPU has 8.9"),
        ("fa4", (12, 0), "needs compute capability 9.0 or 10.x, and this GPU has 12.0"),
    ],
)
def test_what_a_gpu_lacks(monkeypatch, name, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert words in registry()[name].device_reason(torch.device("cuda"))


def test_fa4_needs_its_function_and_a_head_dim_that_it_has(monkeypatch, any_device):
    backend = registry()["fa4"]
    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace())
    assert backend.library_reason() == (
        "flash_attn.cute is not installed: this flash_attn.cute has no flash_attn_varlen_func"
    )
    layer = SimpleNamespace(dtype=torch.bfloat16, spec=SimpleNamespace(head_dim=192), device=torch.device("cuda"))
    for major, reason in ((9, None), (10, "head_dim must be a multiple of 8 up to 128, or 256, got 192")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        assert backend.layer_reason(layer) == reason


@pytest.mark.parametrize(("capability", "splits"), [((9, 0), 1), ((10, 3), 0)])
def test_fa4_splits_the_keys_on_blackwell_alone(monkeypatch, fakes, capability, splits):
    """On Hopper it has no kernel that does, and ends in an assertion where it is asked to."""
    inputs, seen = workload(copies=1).layers[0], []
    true = fakes["flash_attn.cute"].flash_attn_varlen_func
    fakes["flash_attn.cute"].flash_attn_varlen_func = lambda *args, **kw: (
        seen.append(kw["num_splits"]) or true(*args, **kw)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    attention = registry()["fa4"]().attention(inputs)
    monkeypatch.setattr(inputs, "device", torch.device("cuda"))
    bound = registry()["fa4"]()._bind(attention, inputs)
    bound(inputs.x.new_ones(1, 1, 8, inputs.spec.head_dim), attention.k_cache, attention.v_cache)
    assert seen == [splits]


def test_graphs_of_the_libraries(monkeypatch, capsys, tmp_path, fakes):
    with fake_gpu(monkeypatch):
        result = run_here(
            capsys, "bench.layer", "--device=cuda", "--model=tiny", "--ctx=40", "--steps=3", "--warmup=1", "--l2=warm",
            f"--backend={','.join(LIBRARIES)}", "--mode=eager,graph", f"--json={tmp_path}/layer.json",
        )  # fmt: skip
    assert result.status == 0, result.out + result.err
    arms = json.loads((tmp_path / "layer.json").read_text())["arms"]
    assert [(arm["mode"], arm["status"]) for arm in arms] == [("eager", "ok"), ("graph", "ok")] * len(LIBRARIES)
    assert [arm["steps_per_graph"] for arm in arms] == [None, 8] * len(LIBRARIES)
