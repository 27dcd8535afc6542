"""Whole quantised Hugging Face folders through bench.step: what the step decodes is what transformers decodes with the
dequantised weights."""

import json

import pytest
import torch
from inputs.command_line import assert_refused, run_here, run_module_here
from inputs.documents import check_written
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

import pykernels as pk
from bench import ab, sweep
from bench.backends.steps import arms as step_arms
from bench.core.measure import gate
from bench.fleet import cells as fleet_cells
from bench.step.entries import step_ops
from bench.step.settings import Settings
from pykernels.quant import awq, gptq
from pykernels.weights import PROJECTIONS

GROUP, TOKENS, FIRST = 32, 24, 7
SIZES = dict(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=160, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
CONFIG = LlamaConfig(**SIZES)
# Modules qkv_proj and gate_up_proj, of which each projection is some rows; 24 of 32 dimensions are rotated.
PHI3 = Phi3Config(
    **SIZES, pad_token_id=0, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75)
)

pytestmark = pytest.mark.usefixtures("one_thread")


def packed_by_compressed_tensors(dense, weight):
    """By the library's own compressor: of the dense weight and of the scales and zero points found for it."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    arguments = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP)
    state = {
        "weight": dense, "weight_scale": weight.scales,
        "weight_zero_point": (weight.explicit_zeros().int() - 8).to(torch.int8),
    }  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    return BaseCompressor.load_from_registry("pack-quantized").compress(state, scheme)


FORMATS = {
    "gptq": (dict(quant_method="gptq", bits=4, group_size=GROUP), lambda _, weight: gptq.pack(weight, 1)),
    "awq": (
        dict(quant_method="awq", bits=4, group_size=GROUP, version="gemm"), lambda _, weight: awq.pack(weight),
    ),
    "compressed-tensors": (
        dict(
            quant_method="compressed-tensors", format="pack-quantized",
            config_groups={
                "group_0": {"weights": dict(num_bits=4, type="int", strategy="group", group_size=GROUP)},
            },
        ),
        packed_by_compressed_tensors,
    ),
}  # fmt: skip


def write_folder(path, name, of=CONFIG, coarser=()):
    """A folder of that format, and transformers' model of the same weights, dequantised, in fp16. coarser: modules in
    groups of twice the size, as GPTQModel's `dynamic` has them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(of, attn_implementation="eager").half().eval()
    config, pack = FORMATS[name]
    tensors = {}
    for key, tensor in model.state_dict().items():
        module, _, part = key.rpartition(".")
        if module.endswith("_proj") and part == "weight":
            dense = torch.empty(tensor.shape).normal_(0, tensor.shape[1] ** -0.5).half()
            weight = pk.quant.round_to_nearest(dense, GROUP * (1 + module.endswith(tuple(coarser))), symmetric=False)
            tensors |= {f"{module}.{suffix}": value.contiguous() for suffix, value in pack(dense, weight).items()}
            tensor.copy_(weight.dequantize(torch.float16))
        else:
            if "norm" not in key:
                tensor.normal_(0, 1 if "embed" in key else 0.1)
            tensors[key] = tensor.clone()
    config = config | {"dynamic": {module: {"group_size": 2 * GROUP} for module in coarser}} if coarser else config
    (path / "config.json").write_text(json.dumps(of.to_dict() | {"quantization_config": config}))
    save_file(tensors, path / "model.safetensors")
    return model


def decoded_by_transformers(model) -> list[int]:
    tokens = model.generate(
        torch.tensor([[FIRST]]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )  # fmt: skip
    return tokens[0, 1:].tolist()


# All layers alike, and one that is not.
MIXED = {"up_proj": ("mlp.up_proj",), "1.down_proj": ("layers.1.mlp.down_proj",)}


@pytest.mark.parametrize("mixed", MIXED)
def test_a_step_of_several_group_sizes(tmp_path, mixed):
    write_folder(tmp_path, "gptq", coarser=MIXED[mixed])
    settings = Settings(weights=str(tmp_path), dtype="fp16", device="cpu", ctx=8, steps=2, arm="native/block:native")
    settings.check()
    model = settings.make_model()
    sizes, zeros, _ = settings.int4_format
    assert sizes == (
        dict.fromkeys(PROJECTIONS, GROUP) | {"up_weight": 2 * GROUP}
        if mixed == "up_proj"
        else {f"{layer}.{name}": GROUP for layer in (0, 1) for name in PROJECTIONS} | {"1.down_weight": 2 * GROUP}
    )
    projections = [getattr(layer, name) for layer in model.weights.layers for name in PROJECTIONS]
    others = sum(layer.n_bytes for layer in model.weights.layers) - sum(weight.n_bytes for weight in projections)
    norms = settings.spec.n_layers * 2 * settings.spec.hidden * 2
    assert others == norms and 2 * settings.layer_bytes(True) == sum(weight.n_bytes for weight in projections) + norms
    down = [op.bytes for op in step_ops(settings, "block") if op.label == "down+residual"]
    assert (down[0] == down[1]) == (mixed == "up_proj")
    arm, _ = step_arms.arm_of(settings.known["native"], step_arms.Reference(model, 8), "native", "block")
    gate([arm])
    assert (arm.status, arm.reason) == ("ok", None)


def test_a_document_of_several_group_sizes(capsys, tmp_path):
    write_folder(tmp_path, "gptq", coarser=MIXED["1.down_proj"])
    output = tmp_path / "step.json"
    flags = [f"--weights={tmp_path}", "--dtype=fp16", "--device=cpu", "--ctx=8", "--steps=2", "--warmup=1"]
    result = run_here(capsys, "bench.step", *flags, "--arm=native/block:native", f"--json={output}")
    document = json.loads(output.read_text())
    assert result.status == 0 and "int4 in groups of 32, 64" in result.out
    assert document["quant"]["group_size"]["1.down_weight"] == 2 * GROUP
    check_written(document)


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_tokens_are_those_of_the_dequantised_model(tmp_path, name):
    arms = "native/none:native,native/block:eager,tinygemm:eager,sdpa:eager,native-dense:dispatch,transformers:eager"
    check_tokens(tmp_path, decoded_by_transformers(write_folder(tmp_path, name)), arms)


@pytest.mark.parametrize("name", FORMATS)
def test_fused_projections_and_partial_rotary(tmp_path, name):
    model = write_folder(tmp_path, name, PHI3)
    assert any("qkv_proj" in key for key in load_file(tmp_path / "model.safetensors"))
    check_tokens(tmp_path, decoded_by_transformers(model), "native/none:native,native/block:eager")


def check_tokens(folder, expected: list[int], arms: str) -> None:
    """Every arm's step of the folder decodes those."""
    assert len(set(expected)) > 5, "a sequence of one token would be right by chance"
    settings = Settings(weights=str(folder), dtype="fp16", device="cpu", ctx=1, steps=2, arm=arms)
    settings.check()
    settings.layers = 0
    model = settings.make_model()
    assert settings.int4_format == (GROUP, True, False) and model.weights.layers[0].is_int4
    assert not hasattr(model.weights.lm_head, "packed") and model.weights.lm_head.dtype == torch.float16
    reference = step_arms.Reference(long := grown(settings, model), 1)
    for backend, modes, fusions in settings.groups:
        arm, driver = step_arms.arm_of(settings.known[backend], reference, modes[0], fusions[0] if fusions else None)
        assert arm.status == "ok" and driver is not None, arm.reason
        long.token.fill_(FIRST)
        driver.stand(0)
        found = []
        with torch.inference_mode():
            for _ in range(TOKENS):
                driver.step()
                found.append(int(long.token))
        assert found == expected, arm.label


def grown(settings, model) -> pk.DecodeModel:
    """The same weights with room for all tokens."""
    return pk.DecodeModel(settings.spec, model.weights, TOKENS + 2, 1, model.dtype)


def test_a_folder_s_step_is_measured(capsys, tmp_path):
    write_folder(tmp_path, "gptq")
    output = tmp_path / "step.json"
    flags = [f"--weights={tmp_path}", "--dtype=fp16", "--device=cpu", "--ctx=8", "--steps=2", "--warmup=1"]
    result = run_here(
        capsys, "bench.step", *flags, "--backend=native,sdpa", "--mode=native,eager", "--fusion=block",
        f"--json={output}",
    )  # fmt: skip
    document = json.loads(output.read_text())
    assert result.status == 0 and document["weights"] == "checkpoint"
    assert document["quant"] == {"format": "int4", "group_size": GROUP, "zero_points": True, "act_order": False}
    labels = {op["op"]: op["label"] for op in document["ops"]}
    assert labels["gemv"] == "lm_head" and labels["int4_qkv_gemv"] == "norm+qkv+rope x2"
    assert {arm["status"] for arm in document["arms"]} <= {"ok", "unsupported"}


def test_what_is_wrong_with_a_folder(capsys, tmp_path):
    write_folder(tmp_path, "awq")
    flags = [f"--weights={tmp_path}", "--dtype=fp16", "--device=cpu", "--ctx=8", "--steps=2"]
    assert_refused(
        run_here(capsys, "bench.step", *flags, "--group=64"), "--group=64", "left out: the weights of --weights"
    )
    tensors = load_file(tmp_path / "model.safetensors")
    dense = {
        f"model.layers.1.{module}.weight": torch.zeros(shape).half()
        for module, shape in (
            ("self_attn.q_proj", (128, 128)), ("self_attn.k_proj", (64, 128)), ("self_attn.v_proj", (64, 128)),
            ("self_attn.o_proj", (128, 128)), ("mlp.gate_proj", (256, 128)), ("mlp.up_proj", (256, 128)),
            ("mlp.down_proj", (128, 256)),
        )
    }  # fmt: skip
    kept = {name: value for name, value in tensors.items() if not name.startswith("model.layers.1.") or "norm" in name}
    save_file(kept | dense, tmp_path / "model.safetensors")
    assert_refused(run_here(capsys, "bench.step", *flags), "layers must be all of 4 bits or all dense, 1 is dense")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "aqlm"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_refused(run_here(capsys, "bench.step", *flags), "quant_method must be one of gptq, awq", "'aqlm'")


def test_the_chain_of_a_quantised_folder(capsys, monkeypatch, tmp_path):
    """Sweep, ab, compare and report, as they take dense weights."""
    monkeypatch.setattr(fleet_cells, "run_module", run_module_here)
    monkeypatch.setattr(ab, "run_module", run_module_here)
    checkpoint, out = tmp_path / "tiny-awq", tmp_path / "out"
    checkpoint.mkdir()
    write_folder(checkpoint, "awq")
    shared = ["--dtype=fp16", "--device=cpu", "--steps=2", "--warmup=1"]
    flags = [f"--weights={checkpoint}", *shared]
    swept = run_here(
        capsys, "bench.sweep", *flags, "--ctx=8", "--batch=1", "--arm=native/block:native,sdpa:eager,tinygemm:eager",
        "--no-controls", f"--out={out}",
    )  # fmt: skip
    assert swept.status == 0, swept.out + swept.err
    [cell] = out.glob("*.json")
    assert cell.name == "tiny-awq_ctx8_b1.json"
    of_folder = json.loads(cell.read_text())
    assert of_folder["cell"] == {"model": "tiny-awq", "ctx": 8, "batch": 1}, "no path of this machine"
    assert of_folder["quant"]["group_size"] == GROUP and [arm["status"] for arm in of_folder["arms"]] == ["ok"] * 3
    second = json.loads(cell.read_text())  # another library's run, which joins the first in the report's table
    second["arms"][2]["backend"] = "marlin"
    (out / "tiny-awq_second.json").write_text(json.dumps(second))
    compared = run_here(
        capsys, "bench.ab", *flags, "--ctx=8", "--a=native/block:native", "--b=sdpa:eager", "--sessions=1",
        f"--json={out}/ab.json",
    )  # fmt: skip
    assert compared.status == 0, compared.err
    assert json.loads((out / "ab.json").read_text())["quant"] == of_folder["quant"]
    [cell_of_4_bits] = sweep.Settings(model="tiny", quant="int4", group=64, ctx="8", batch="1").cells()
    assert cell_of_4_bits.name == "tiny_int4-g64_ctx8_b1"
    assert run_here(capsys, "bench.compare", str(cell), str(cell)).status == 0
    of_folder["quant"]["group_size"] = 64
    (tmp_path / "other.json").write_text(json.dumps(of_folder))
    other = run_here(capsys, "bench.compare", str(cell), str(tmp_path / "other.json"))
    assert other.status == 2 and "quant.group_size 32 and 64" in other.err
    made = run_here(capsys, "bench.report", str(out), "--no-svg", "--price=CPU=1")
    assert made.status == 0, made.err
    text = (out / "report" / "report.md").read_text()
    assert "Steps with 4-bit weights (the study's Figure 8)" in text and "tiny-awq int4 g32 zeros" in text
    section = text[text.index("Figure 8") :].partition("\n## ")[0]
    for published in ("62.32", "59.36", "45.24", "17.36"):
        assert published in section
    assert "on the same weights in fp16: sdpa; all others in int4" in section
    assert section.count("| backend | weights |") == 1
    for row in ("run 1 | tinygemm | int4", "run 2 | marlin | int4", "run 2 | sdpa | fp16"):
        assert f"| measured, {row} |" in section
    [picture] = (out / "report" / "figures").glob("int4-steps-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
