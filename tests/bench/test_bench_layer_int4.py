"""bench.layer on 4-bit weights: rounded ones, and those of quantised Hugging Face folders."""

import json

import pytest
import torch
from inputs.command_line import assert_refused, flat, run_here
from safetensors.torch import load_file, save_file

import pykernels as pk
from bench.core import floors
from pykernels.quant import awq, compressed_tensors, gptq
from pykernels.weights import _CHECKPOINT_NAMES, PROJECTIONS

TINY = pk.models.get("tiny")
# Warm: cold copies of weights as small as these are hundreds.
SMALL = ["--device=cpu", "--steps=3", "--warmup=1", "--model=tiny", "--ctx=64", "--l2=warm"]


def test_a_layer_rounded_to_4_bits(capsys, tmp_path):
    output = tmp_path / "layer.json"
    flags = [*SMALL, "--quant=int4", "--group=64", "--asymmetric", "--backend=native,sdpa", f"--json={output}"]
    result = run_here(capsys, "bench.layer", *flags, "--fusion=block")
    document = json.loads(output.read_text())
    assert result.status == 0 and "int4 in groups of 64 with zero points" in flat(result.out)
    assert document["quant"] == {"format": "int4", "group_size": 64, "zero_points": True, "act_order": False}
    counted = [op.bytes for op in floors.layer_ops(TINY, "block", 1, 64, torch.bfloat16, 64, True)]
    assert [op["bytes"] for op in document["ops"]] == counted
    assert document["bytes"]["layer_streamed"] == {"block": sum(counted)}
    weights = pk.LayerWeights.random(TINY).quantize(64, False)
    dense = TINY.layer_weight_elements * 2
    saved = TINY.weight_bytes(torch.bfloat16) - document["bytes"]["paper"]["weight_bytes"]
    assert saved == TINY.n_layers * (dense - weights.n_bytes)
    by_status = {arm["backend"]: arm["status"] for arm in document["arms"] if arm["mode"] == "eager"}
    assert by_status == {"native": "ok", "sdpa": "ok"}
    assert "on the same weights in bf16: sdpa; all others in int4" in flat(result.out)
    for arm in document["arms"]:
        dense_ops = floors.layer_ops(TINY, "none", 1, 64, torch.bfloat16)
        assert (arm["weights"], arm["bytes"]) == (
            ("bf16", sum(op.bytes for op in dense_ops)) if arm["backend"] == "sdpa" else ("int4", sum(counted))
        )


def test_a_dense_layer_says_so(capsys, tmp_path):
    output = tmp_path / "layer.json"
    assert run_here(capsys, "bench.layer", *SMALL, "--backend=native", "--mode=native", f"--json={output}").status == 0
    assert json.loads(output.read_text())["quant"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--quant=int8"], ("--quant=int8", "none, int4")),
        (["--backend=native,marlin"], ("--backend=marlin", "given with --quant=int4 or a quantised folder")),
        (["--quant=int4", "--attention=compile"], ("--attention=compile", "one of sdpa, ")),
        (["--attention=sdpa-math"], ("--attention=sdpa-math", "given with one of tinygemm, ")),
        (["--quant=int4", "--group=33"], ("--group=33", "32, 64, a multiple of 128")),
        (["--quant=int4", "--group=1024"], ("--group=1024", "a divisor of in_features")),
    ],
)
def test_bad_flags_of_the_layer(capsys, flags, words):
    assert_refused(run_here(capsys, "bench.layer", *SMALL, *flags), *words)


CONFIG = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
FORMATS = {
    "gptq": (dict(quant_method="gptq", bits=4, group_size=32, checkpoint_format="gptq"), lambda w: gptq.pack(w, 1)),
    "awq": (dict(quant_method="awq", bits=4, group_size=32, version="gemm"), awq.pack),
    "compressed-tensors": (
        dict(
            quant_method="compressed-tensors", format="pack-quantized",
            config_groups={"group_0": {"weights": dict(num_bits=4, type="int", strategy="group", group_size=32)}},
        ),
        compressed_tensors.pack,
    ),
}  # fmt: skip


def folder_of(path, format_, symmetric=False, **changes):
    """A quantised checkpoint of one layer, and the weights in it."""
    config, pack = FORMATS[format_]
    (path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": config} | changes))
    spec = pk.models.from_config(path)
    weights = pk.LayerWeights.random(spec, torch.float16).quantize(32, symmetric)
    tensors = {}
    for name, value in weights.named().items():
        key = f"model.layers.0.{_CHECKPOINT_NAMES[name]}"
        if name in PROJECTIONS:
            module = key.removesuffix(".weight")
            tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in pack(value.plain()).items()}
        else:
            tensors[key] = value
    save_file(tensors, path / "model.safetensors")
    return spec, weights


@pytest.mark.parametrize("symmetric", [False, True], ids=["zero points", "symmetric"])
@pytest.mark.parametrize("format_", FORMATS)
def test_a_quantised_folder(tmp_path, format_, symmetric):
    spec, weights = folder_of(tmp_path, format_, symmetric)
    read = pk.LayerWeights.from_folder(tmp_path, 0, spec, torch.float16)
    assert read.is_int4 and read.int4_format() == (32, not symmetric, False) and read.n_bytes == weights.n_bytes
    for name, value in weights.named().items():
        found = getattr(read, name)
        same = pk.quant.equal(found.plain(), value.plain()) if name in PROJECTIONS else torch.equal(found, value)
        assert same, name


def test_a_layer_of_a_quantised_folder(capsys, tmp_path):
    folder_of(tmp_path, "gptq")
    output = tmp_path / "layer.json"
    flags = [f"--weights={tmp_path}", "--dtype=fp16", "--backend=native", "--ctx=32", "--steps=3", "--device=cpu"]
    flags += ["--l2=warm"]
    result = run_here(capsys, "bench.layer", *flags, f"--json={output}")
    document = json.loads(output.read_text())
    assert result.status == 0 and document["weights"] == "checkpoint" and document["quant"]["group_size"] == 32
    assert {arm["status"] for arm in document["arms"] if not arm["mode"].startswith("graph")} == {"ok"}
    assert document["bytes"]["ops"]["block"][0]["op"] == "int4_qkv_gemv"


def test_what_is_wrong_with_a_quantised_folder(capsys, tmp_path):
    folder_of(tmp_path, "awq", intermediate_size=512)
    (tmp_path / "config.json").write_text(
        json.dumps(CONFIG | {"quantization_config": FORMATS["awq"][0], "hidden_size": 256})
    )
    flags = [f"--weights={tmp_path}", "--dtype=fp16", "--ctx=32"]
    refused = run_here(capsys, "bench.layer", *flags)
    assert_refused(refused, str(tmp_path), "input_layernorm.weight must be of shape [256], got [128]")


def dense_in(path, spec, names) -> None:
    """Those projections of the folder's layer as a writer leaves what it does not convert."""
    tensors = load_file(path / "model.safetensors")
    for name in names:
        key = f"model.layers.0.{_CHECKPOINT_NAMES[name]}"
        tensors = {other: tensor for other, tensor in tensors.items() if not other.startswith(key[: -len("weight")])}
        tensors[key] = torch.zeros(pk.LayerWeights.shapes(spec)[name]).half()
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("format_", FORMATS)
def test_projections_that_were_not_converted(capsys, tmp_path, format_):
    """All of a layer's: it is a dense one. Some: refused, and they are named."""
    spec, _ = folder_of(tmp_path, format_)
    dense_in(tmp_path, spec, ["down_weight"])
    result = run_here(capsys, "bench.layer", f"--weights={tmp_path}", "--dtype=fp16", "--ctx=32", "--device=cpu")
    assert_refused(result, "projections must be all tensors or all Int4Weight, got Int4Weight for ['q_weight', ")
    dense_in(tmp_path, spec, PROJECTIONS)
    assert not pk.LayerWeights.from_folder(tmp_path, 0, spec, torch.float16).is_int4


def test_an_lm_head_of_4_bits_is_named(tmp_path):
    spec, _ = folder_of(tmp_path, "gptq")
    path = tmp_path / "model.safetensors"
    tables = {"model.embed_tokens.weight": torch.zeros(spec.vocab, spec.hidden).half(),
              "model.norm.weight": torch.ones(spec.hidden).half(), "lm_head.qweight": torch.zeros(1)}  # fmt: skip
    save_file(load_file(path) | tables, path)
    with pytest.raises(ValueError, match="lm_head.weight, but lm_head.qweight: lm_head must not be quantised"):
        pk.ModelWeights.from_folder(tmp_path, spec, torch.float16)


def test_projections_of_two_group_sizes():
    weights = pk.LayerWeights.random(TINY).quantize(64)
    assert weights.int4_format() == (64, False, False)
    weights.q_weight = pk.LayerWeights.random(TINY).quantize(32).q_weight
    sizes, zeros, perm = weights.int4_format()
    assert (zeros, perm) == (False, False) and sizes == dict.fromkeys(PROJECTIONS, 64) | {"q_weight": 32}
    for fusion in ("none", "block"):
        ops, coarse = (floors.layer_ops(TINY, fusion, 1, 32, torch.bfloat16, size) for size in (sizes, 64))
        scales = TINY.n_heads * TINY.head_dim * (TINY.hidden // 32 - TINY.hidden // 64) * 2
        more = {op.label: op.bytes - other.bytes for op, other in zip(ops, coarse, strict=True)}
        assert more.pop("q" if fusion == "none" else "norm+qkv+rope") == scales and not any(more.values())
    assert pk.LayerWeights.random(TINY).quantize(-1, False).int4_format() == (-1, True, False)
