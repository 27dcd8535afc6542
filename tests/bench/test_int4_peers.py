"""The adapters of other people's 4-bit kernels, over stand-ins that read the layouts: what they hand over is right."""

import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from inputs import fake_int4_peers
from inputs.helpers import assert_close, randn

import pykernels as pk
from bench.backends import int4
from bench.backends.int4 import base, tinygemm
from bench.int4 import validate

CPU = torch.device("cpu")
PEERS = ("torchao", "bnb-nf4", "marlin", "machete", "awq", "gptq", "exllamav2", "exl2", "gemlite")
FEW = ("random", "powers of two", "zero scale")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def libraries(monkeypatch):
    with fake_int4_peers.replace_libraries(monkeypatch):
        yield


@cache
def trials(dtype, group, symmetric):
    """Some trials of a validation, for all adapters: they get copies."""
    found = []
    for trial in validate.trials(dtype, (group,), (symmetric,), 2):
        if trial.case in FEW and trial.weight.in_features < 2000:
            found.append(trial)
        if trial.case == "one-hot":  # every 16th row of the identity: a stand-in unpacks the weight for every call
            found.append(replace(trial, inputs=trial.inputs[::16]))
    return found


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("group", [128, -1])
@pytest.mark.parametrize("name", PEERS)
def test_what_an_adapter_hands_over_is_right(libraries, name, group, symmetric):
    kernel = int4.registry()[name]
    found = [validate.run_trial(kernel, trial, CPU) for trial in trials(kernel.dtypes[0], group, symmetric)]
    assert not [one for one in found if one.status in ("wrong", "error")]
    takes_it = kernel.group_sizes is None or group in kernel.group_sizes
    assert any(one.status == "ok" for one in found) == takes_it


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("in_features", [128, 1024, 3584])
def test_the_tiles_of_torch_s_cuda_kernel(libraries, in_features, symmetric):
    """And torchao's use of it, whose weights are padded to 1024 columns."""
    dense, x = randn(24, in_features, dtype=torch.bfloat16), randn(3, in_features, dtype=torch.bfloat16, seed=1)
    weight = pk.Int4Weight.quantize(dense, 128, symmetric)
    packed, scales = tinygemm.tile_packed(weight.plain().q), tinygemm.scales_and_zeros(weight)
    assert packed.shape == (3, in_features // 128, 32, 4)
    torchao = int4.registry()["torchao"]()
    read = torchao.prepare(weight)
    assert read[0].shape == (3, -(-in_features // 1024) * 8, 32, 4)
    expected = x.double() @ torchao.multiplies_by(weight).T
    for got in (torch.ops.aten._weight_int4pack_mm(x, packed, 128, scales), torchao.run(x)):
        assert_close(got, expected, torch.bfloat16)


def test_exl2_is_tuned_before_anything_is_captured(libraries, monkeypatch):
    """The library measures its first calls of a shape, each with an event that it waits for."""
    kernel = int4.registry()["exl2"]
    monkeypatch.setattr(kernel, "TUNING_CALLS", 201)
    calls = []
    one, other = kernel(), kernel()
    for made in (one, other):
        made.prepare(pk.Int4Weight.quantize(randn(32, 128, dtype=torch.float16), 128))
        made._run = lambda x, *_: calls.append(x.shape[0])
    for batch, made in ((1, one), (1, one), (1, other), (2, one)):
        made.run(torch.zeros(batch, 128, dtype=torch.float16))
    assert calls == [1] * 204 + [2] * 202


def test_exllamav2_is_imported_without_the_rest_of_its_package(monkeypatch, tmp_path):
    package = tmp_path / "exllamav2"
    package.mkdir()
    (package / "__init__.py").write_text("import a_tokeniser_that_is_not_there")
    (package / "ext.py").write_text("make_q_matrix = 1")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("exllamav2", "exllamav2.ext"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        assert int4.registry()["exllamav2"].library().make_q_matrix == 1
    finally:
        for name in ("exllamav2", "exllamav2.ext"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", PEERS)
def test_a_stand_in_notices_another_weight(libraries, name):
    """The comparison above is one that can fail."""
    kernel = int4.registry()[name]
    trial = trials(kernel.dtypes[0], 128, True)[0]
    other = pk.Int4Weight.from_plain(trial.weight.plain())
    other.packed[0, :16] ^= 0x88

    class Other(kernel):
        def prepare(self, weight):
            return super().prepare(other)

    assert validate.run_trial(Other, trial, CPU).status == "wrong"


@pytest.mark.parametrize("name", PEERS)
def test_a_library_that_is_not_there_says_so_itself(monkeypatch, name):
    kernel = int4.registry()[name]
    for module in [kernel.package, *(one for one in sys.modules if one.startswith(f"{kernel.package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv("PYKERNELS_VLLM_LIB", raising=False)
    reason = kernel.availability(CPU)
    assert f"{kernel.package} is not installed: " in reason and kernel.package in reason.rpartition("installed: ")[2]
    assert ("runs on cuda only" in reason) == ("cpu" not in kernel.devices)


def test_a_vllm_library_without_the_ops(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.delenv("PYKERNELS_VLLM_LIB", raising=False)
    assert "has no op marlin_gemm, gptq_marlin_repack" in int4.registry()["marlin"].library_reason()
    monkeypatch.setenv("PYKERNELS_VLLM_LIB", str(tmp_path / "none.so"))
    reason = int4.registry()["marlin"].library_reason()
    assert reason.startswith("vllm cannot be loaded: ") and "none.so" in reason


@pytest.mark.parametrize(
    ("capability", "name", "words"),
    [((7, 5), "marlin", "needs compute capability 8.0, and the GPU's is 7.5"), ((8, 9), "machete", "Hopper"),
     ((10, 0), "machete", "Hopper"), ((7, 0), "tinygemm", "8.0 or more")],
)  # fmt: skip
def test_a_gpu_that_is_too_old(libraries, monkeypatch, capability, name, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    cuda = torch.device("cuda", 0)
    assert words in int4.registry()[name].availability(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert int4.registry()[name].availability(cuda) is None


def test_refusals_name_what_is_taken():
    weight = pk.Int4Weight.quantize(torch.randn(72, 256).bfloat16(), 32, symmetric=False)
    kernels = int4.registry()
    assert kernels["machete"].refusal(weight, 1) == "takes groups of 64, 128 or the whole row, not 32"
    assert kernels["marlin"].refusal(weight, 1) == "takes out_features that are a multiple of 64, not 72"
    assert kernels["gptq"].refusal(weight, 1) == "takes fp16 activations, not bf16"
    assert kernels["native"].refusal(weight, 9) == "takes a batch of at most 8, not 9"
    assert kernels["native"].refusal(weight, 8) is None
    half = weight.to(torch.float16)
    half.zeros[0, 0] = 0
    assert "no zero point of 0" in kernels["exllamav2"].refusal(half, 1)

    class Symmetric(kernels["native"]):
        zeros, act_order = False, False

    assert Symmetric.refusal(weight, 1) == "takes no zero points"
    plain = pk.quant.QuantizedWeight(
        weight.plain().q, weight.scales, None, 32, (torch.arange(256) % 8).to(torch.int32)
    )  # fmt: skip
    assert Symmetric.refusal(pk.Int4Weight.from_plain(plain), 1) == "takes no act-order"


def test_sizes_in_words():
    assert base.sizes((32, 64, -1)) == "32, 64 or the whole row"
    assert base.sizes((128,)) == "128"
