"""Bad arguments: one line that names the flag, the value and what is allowed; exit status 2; no file left."""

import json
import os

import pytest
import torch
from inputs.command_line import assert_refused, flat, run, run_here
from inputs.documents import check_written
from safetensors.torch import save_file

import pykernels as pk
from bench.core import cli

CONFIG = dict(
    model_type="qwen2", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=32, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=1e4,
)  # fmt: skip
SMALL = ["--model=tiny", "--ctx=32", "--steps=2", "--warmup=0"]


@pytest.mark.parametrize(
    ("driver", "flag", "allowed"),
    [
        ("bench.layer", "--backend=cuda-magic", "native, sdpa"),
        ("bench.layer", "--backend=native,", "native, sdpa"),
        ("bench.layer", "--mode=fast", "eager, pybind, dispatch, native, graph, graph-pdl"),
        ("bench.layer", "--model=gpt-2", "qwen2.5-7b, mistral-7b-v0.3, llama-3.1-8b, qwen3-8b"),
        ("bench.layer", "--fusion=all-of-it", "none, block"),
        ("bench.layer", "--dtype=int8", "bf16, fp16, fp32"),
        ("bench.layer", "--device=tpu", "auto, cpu, cuda"),
        ("bench.layer", "--repeats=-1", "0..4096"),
        ("bench.layer", "--l2=tepid", "cold, warm"),
        ("bench.layer", "--ctx=0", "1..32768"),
        ("bench.layer", "--ctx=-5", "1..32768"),
        ("bench.layer", "--ctx=32769", "1..32768"),
        ("bench.layer", "--ctx=many", ""),
        ("bench.layer", "--batch=0", "1..8"),
        ("bench.layer", "--batch=9", "1..8"),
        ("bench.layer", "--steps=1", "2..100000"),
        ("bench.layer", "--warmup=-1", "0..10000"),
        ("bench.layer", "--threads=-1", "0..256"),
        ("bench.layer", "--threads=257", "0..256"),
        ("bench.layer", "--spec-gbs=-1", "a positive number"),
        ("bench.layer", "--spec-gbs=nan", "a positive number"),
        ("bench.layer", "--spec-gbs=1e-300", "0.001..1e+06 GB/s"),
        ("bench.layer", "--group=64", "given with --quant=int4"),
        ("bench.layer", "--asymmetric", "given with --quant=int4"),
        ("bench.layer", "--layer=1", "given with --weights"),
        ("bench.layer", "--seed=-1", "0..2147483647"),
        ("bench.layer", "--plot=ladder.txt", ".png, .svg or .pdf"),
        ("bench.layer", "--frobnicate", ""),
        ("bench.op", "--op=matmul", "rmsnorm, gemv"),
        ("bench.op", "--mode=fast", "eager, pybind, dispatch, native"),
        ("bench.op", "--device=tpu", "auto, cpu, cuda"),
        ("bench.op", "--repeats=4097", "0..4096"),
        ("bench.op", "--model=gpt-2", "qwen2.5-7b"),
        ("bench.op", "--ctx=64,0", "1..32768"),
        ("bench.op", "--ctx=64,x", "an integer"),
        ("bench.op", "--ctx=2.5", "an integer"),
        ("bench.op", "--batch=9", "1..8"),
        ("bench.op", "--aa=-1", "0..1000"),
        ("bench.op", "--duration-us=0", "0.1..1e+06"),
        ("bench.op", "--seed=-1", "0..2147483647"),
        ("bench.int4", "--steps=1", "2..100000"),
        ("bench.stack", "--seed=2147483648", "0..2147483647"),
        ("bench.stack", "--threads=257", "0..256"),
        ("bench.stack", "--limit-s=0", "a positive number of seconds"),
        ("bench.attention", "--seed=-1", "0..2147483647"),
        ("bench.attention", "--warmup=10001", "0..10000"),
        ("bench.attention", "--l2=tepid", "cold, warm"),
        ("bench.attention", "--plugin-timeout-s=nan", "a positive number of seconds"),
        ("bench.step", "--memory-limit-gb=-1", "a positive number, or 0"),
        ("bench.doctor", "--backend=native", ""),
    ],
)
def test_a_flag(capsys, tmp_path, driver, flag, allowed):
    output = tmp_path / "result.json"
    small = [] if driver == "bench.doctor" else [word for word in SMALL if driver == "bench.layer"]
    result = run_here(capsys, driver, *small, flag, f"--json={output}")
    name, _, value = flag.partition("=")
    assert_refused(result, name, value.split(",")[-1], allowed)
    assert os.listdir(tmp_path) == []


def test_two_files_of_one_name(capsys, tmp_path):
    path = tmp_path / "result.json"
    result = run_here(capsys, "bench.layer", *SMALL, f"--json={path}", f"--csv={tmp_path}/./result.json")
    assert_refused(result, "--csv", "another file than that of --json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--op=gemv", "--aa=2", "--json"], "left out with --aa"),
        (["--op=null", "--csv"], "left out with --op=null"),
    ],
)
def test_a_file_that_would_not_be_written(capsys, tmp_path, flags, words):
    *flags, output = flags
    assert_refused(run_here(capsys, "bench.op", *flags, f"{output}={tmp_path}/x"), f"{output}={tmp_path}/x", words)
    assert os.listdir(tmp_path) == []


def test_modes_that_torch_has_not(capsys):
    on_cpu = ["--model=tiny", "--device=cpu"]  # a GPU has mode native of torch too
    result = run_here(capsys, "bench.op", "--op=gemv", *on_cpu, "--backend=torch", "--mode=pybind,native")
    assert_refused(result, "--mode=pybind,native", "eager, dispatch, graph for torch")


def test_groups_that_do_not_divide_the_rows(capsys):
    result = run_here(capsys, "bench.layer", *SMALL, "--quant=int4", "--group=384")
    assert_refused(result, "--group=384", "in_features, which is 512 (tiny, q)")


@pytest.mark.parametrize("flag", ["--seed=-1", "--threads=-1", "--threads=257"])
def test_what_a_child_would_refuse_is_refused_before_it(capsys, tmp_path, flag):
    ab, json = ["bench.ab", f"--json={tmp_path}/ab.json"], f"--json={tmp_path}/x.json"
    for driver in (["bench.sweep", f"--out={tmp_path}/out"], ab, ["bench.stack", json]):
        assert_refused(run_here(capsys, *driver, "--model=tiny", flag), flag, "must be in 0..")
    assert os.listdir(tmp_path) == []


def test_a_sweep_into_no_folder(capsys):
    assert_refused(run_here(capsys, "bench.sweep", "--out=", "--model=tiny"), "--out=", "the name of a folder")


def test_a_gpu_older_than_the_kernels(monkeypatch, capsys):
    monkeypatch.setattr("pykernels.runtime.build_info", lambda: {"cuda": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    assert cli.device("auto") == cli.device("cpu") == torch.device("cpu")
    refused = "cuda needs compute capability 8.0 or newer, and Tesla T4 has 7.5"
    assert_refused(run_here(capsys, "bench.op", "--device=cuda"), "--device=cuda: must be cpu or auto here", refused)


def test_a_gpu_that_the_build_has_no_code_for(monkeypatch, capsys, tmp_path):
    info = {**pk.runtime.build_info(), "cuda": True, "cuda_architectures": "90a-real"}
    monkeypatch.setattr("pykernels.runtime.build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA L4")
    needs = "NVIDIA L4 needs kernels for compute capability 8.9, and this build has 90a-real: "
    command = "CMAKE_ARGS=-DPYKERNELS_CUDA_ARCHITECTURES=89-real make build"
    for flag in ("--device=cuda", "--device=auto"):
        assert_refused(run_here(capsys, "bench.op", flag), f"{flag}: must be cpu here", needs + command)
    assert cli.device("cpu") == torch.device("cpu")
    # doctor says it, and what runs on the CPU.
    result = run_here(capsys, "bench.doctor", f"--json={tmp_path}/doctor.json")
    assert result.status == 0 and flat(f"not used: {needs}{command}") in flat(result.out)
    document = json.loads((tmp_path / "doctor.json").read_text())
    check_written(document)
    assert document["gpu_reason"] == needs + command
    assert {entry["name"]: entry["reason"] for entry in document["backends"]}["native"] is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert cli.device("auto") == torch.device("cuda", 0) and cli.no_code_for() is None


@pytest.mark.parametrize(("built", "seen"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_device(monkeypatch, capsys, built, seen):
    monkeypatch.setattr("pykernels.runtime.build_info", lambda: {"cuda": built})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 0))
    assert cli.device("cpu") == torch.device("cpu")
    if built and seen:
        assert cli.device("auto") == cli.device("cuda") == torch.device("cuda", 0)
        return
    assert cli.device("auto") == torch.device("cpu")
    missing = "a CUDA device, and torch sees none" if built else "a build with CUDA kernels"
    for driver in ("bench.layer", "bench.op"):
        assert_refused(run_here(capsys, driver, "--device=cuda"), "--device=cuda: must be cpu or auto", missing)
    assert_refused(run_here(capsys, "bench.op", "--mode=graph"), "--mode=graph", "eager, pybind, dispatch, native")


@pytest.mark.parametrize("flag", ["--json", "--csv", "--md", "--plot"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing/result.png", "missing does not"),
        ("folder.png", "is a folder"),
        ("file.png/x.png", "file.png does not"),
    ],
)
def test_an_output_that_cannot_be_written(capsys, tmp_path, flag, path, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.png").write_text("")
    result = run_here(capsys, "bench.layer", *SMALL, f"{flag}={tmp_path / path}")
    assert_refused(result, flag, str(tmp_path / path), words)
    assert sorted(os.listdir(tmp_path)) == ["file.png", "folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert_refused(run_here(capsys, "bench.layer", *SMALL, f"--json={tmp_path}/x.json"), "--json", "Permission denied")


def test_a_context_beyond_memory(capsys, monkeypatch):
    monkeypatch.setattr("bench.core.layer_settings.available_bytes", lambda device: 1 << 20)
    result = run_here(capsys, "bench.layer", "--model=tiny", "--ctx=32768")
    assert_refused(result, "--ctx=32768", "small enough for the memory available (0.0 GiB)")


def test_an_op_beyond_memory(capsys, monkeypatch):
    monkeypatch.setattr("bench.backends.op_arms.available_bytes", lambda device: 1 << 10)
    assert_refused(run_here(capsys, "bench.op", "--op=gemv", "--model=tiny"), "--op=gemv", "are available")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object, got list"),
        (json.dumps(CONFIG | {"model_type": "gpt2"}), "qwen3_vl_text, got 'gpt2'"),
        (json.dumps(CONFIG | {"num_key_value_heads": 3}), "num_attention_heads must be a multiple of"),
        (json.dumps(CONFIG | {"num_attention_heads": 6}), "hidden_size must be a multiple of num_attention_heads"),
        (json.dumps(CONFIG | {"num_key_value_heads": 0}), "num_key_value_heads must be"),
        # Left unsaid it is 32 to qwen2, as to transformers.
        (
            json.dumps({k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}),
            "num_attention_heads must be a multiple of num_key_value_heads (32), got 4",
        ),
    ],
)
def test_a_config(capsys, tmp_path, text, words):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert_refused(run_here(capsys, "bench.layer", f"--config={path}"), str(path), words)


def checkpoint(folder, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    spec = pk.models.from_config(folder)
    from pykernels.weights import _CHECKPOINT_NAMES

    tensors = {
        f"model.layers.0.{_CHECKPOINT_NAMES[name]}": changes.get(name, tensor)
        for name, tensor in pk.LayerWeights.random(spec).named().items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_weights_that_are_right_run(capsys, tmp_path):
    checkpoint(tmp_path)
    result = run_here(
        capsys, "bench.layer", f"--weights={tmp_path}", "--ctx=16", "--steps=2", "--warmup=0", "--backend=native",
        "--l2=warm",
    )  # fmt: skip
    assert result.status == 0 and "one decode layer of" in result.out


def test_weights_of_the_wrong_shape(capsys, tmp_path):
    checkpoint(tmp_path, o_weight=torch.zeros(64, 32, dtype=torch.bfloat16))
    result = run_here(capsys, "bench.layer", f"--weights={tmp_path}", "--ctx=16")
    assert_refused(result, "o_proj.weight must be of shape [64, 64], got [64, 32]")


def test_weights_of_another_dtype(capsys, tmp_path):
    checkpoint(tmp_path)
    result = run_here(capsys, "bench.layer", f"--weights={tmp_path}", "--ctx=16", "--dtype=fp16")
    assert_refused(result, "must be F16, got BF16 (read it with --dtype=bf16)")


def test_a_truncated_file(capsys, tmp_path):
    path = checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    result = run_here(capsys, "bench.layer", f"--weights={tmp_path}", "--ctx=16")
    assert_refused(result, str(path), "is not a whole safetensors file")


@pytest.mark.parametrize(("flag", "words"), [("--layer=2", "layer must be in 0..1"), ("--layer=-1", "0..1")])
def test_a_layer_the_checkpoint_has_not(capsys, tmp_path, flag, words):
    checkpoint(tmp_path)
    assert_refused(run_here(capsys, "bench.layer", f"--weights={tmp_path}", "--ctx=16", flag), words)


def test_a_missing_folder_of_weights(capsys, tmp_path):
    assert_refused(run_here(capsys, "bench.layer", f"--weights={tmp_path}/none"), f"--weights={tmp_path}/none")


@pytest.mark.parametrize(
    "arguments", [["bench.layer", "--model=gpt-2"], ["bench.op", "--op=x"], ["bench.doctor", "-x"]]
)
def test_the_process_ends_the_same(arguments):
    assert_refused(run(*arguments), arguments[0], arguments[1].partition("=")[0])
