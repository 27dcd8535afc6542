"""Quantised Hugging Face folders: every configuration's dialect, shards, labels that lie, and what is refused."""

import json
import warnings

import pytest
import torch
from inputs.covering import pairwise
from inputs.quantized import plain
from safetensors.torch import load_file, save_file

import pykernels as pk
from pykernels import quant

MODULE = "model.layers.0.mlp.up_proj"
GPTQ = dict(quant_method="gptq", bits=4, group_size=64, desc_act=False, sym=False, checkpoint_format="gptq")
AWQ = dict(quant_method="awq", bits=4, group_size=64, zero_point=True, version="gemm")
COMPRESSED = dict(
    quant_method="compressed-tensors",
    format="pack-quantized",
    config_groups=dict(
        group_0=dict(
            targets=["Linear"], weights=dict(num_bits=4, type="int", symmetric=False, strategy="group", group_size=64)
        )
    ),
)


def trained(symmetric: bool = False, rows: int = 64) -> quant.QuantizedWeight:
    """A weight whose mean is near zero, as a trained one's is."""
    values = torch.randn(rows, 256, generator=torch.Generator().manual_seed(3)) * 0.02
    return quant.round_to_nearest(values, 64, symmetric, torch.float16)


def write(folder, tensors, config=None, file="config.json", wrapped=True, shards=1):
    """A checkpoint folder with one module, its tensors dealt out over `shards` files."""
    named = {f"{MODULE}.{suffix}": tensor for suffix, tensor in tensors.items()}
    if shards == 1:
        save_file(named, folder / "model.safetensors")
    else:
        weight_map = {}
        for shard in range(shards):
            name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {key: named[key] for i, key in enumerate(named) if i % shards == shard}
            save_file(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if config is not None:
        (folder / file).write_text(json.dumps({"quantization_config": config} if wrapped else config))


def read(folder) -> quant.QuantizedWeight:
    """The module, with no warning allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return quant.read_quantized(folder, MODULE)


FORMATS = {
    "gptq v1": (GPTQ, lambda weight: quant.gptq.pack(weight, 1)),
    "gptq v2": (GPTQ | dict(checkpoint_format="gptq_v2"), lambda weight: quant.gptq.pack(weight, 2)),
    "awq": (AWQ, quant.awq.pack),
    "compressed-tensors": (COMPRESSED, quant.compressed_tensors.pack),
}


@pairwise
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
def test_every_format(tmp_path, format_, symmetric, shards):
    config, pack = FORMATS[format_]
    weight = trained(symmetric)
    write(tmp_path, pack(weight), config, shards=shards)
    assert quant.equal(read(tmp_path), weight)
    layout = pk.Int4Weight.from_folder(tmp_path, MODULE, torch.bfloat16)
    assert layout.dtype == torch.bfloat16
    assert quant.equal(layout.to(torch.float16).plain(), pk.Int4Weight.from_plain(weight, torch.bfloat16).to(
        torch.float16).plain())  # fmt: skip


@pytest.mark.parametrize("format_", ["gptq v1", "gptq v2", "compressed-tensors"])
def test_act_order(tmp_path, format_):
    config, pack = FORMATS[format_]
    ordered = trained()
    perm = torch.randperm(256, generator=torch.Generator().manual_seed(5))
    groups = (torch.arange(256) // 64)[perm].int()
    weight = quant.QuantizedWeight(ordered.q[:, perm].contiguous(), ordered.scales, ordered.zeros, 64, groups)
    write(tmp_path, pack(weight), config)
    assert quant.equal(read(tmp_path), weight)


@pytest.mark.parametrize(
    ("config", "file", "wrapped", "pack"),
    [
        (dict(bits=4, group_size=64, desc_act=True), "quantize_config.json", False, FORMATS["gptq v1"][1]),
        (dict(w_bit=4, q_group_size=64, version="GEMM"), "quant_config.json", False, quant.awq.pack),
        ({"compression_config": COMPRESSED}, "config.json", False, quant.compressed_tensors.pack),
    ],
    ids=["quantize_config.json", "quant_config.json", "compression_config"],
)
def test_older_places_of_the_configuration(tmp_path, config, file, wrapped, pack):
    weight = trained()
    write(tmp_path, pack(weight), config, file, wrapped)
    assert quant.equal(read(tmp_path), weight)


def test_a_whole_row_is_minus_one(tmp_path):
    weight = quant.round_to_nearest(torch.randn(64, 256) * 0.02, -1, False, torch.float16)
    write(tmp_path, quant.gptq.pack(weight, 2), GPTQ | dict(group_size=-1, checkpoint_format="gptq_v2"))
    assert quant.equal(read(tmp_path), weight)


def write_modules(folder, weights, version, label):
    """A GPTQ folder of so many modules, that of MODULE first."""
    named = {}
    for index, weight in enumerate(weights):
        module = MODULE.replace("layers.0", f"layers.{index}")
        named |= {f"{module}.{suffix}": tensor for suffix, tensor in quant.gptq.pack(weight, version).items()}
    save_file(named, folder / "model.safetensors")
    config = GPTQ | dict(checkpoint_format="gptq" if label == 1 else "gptq_v2")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


def off_zero(shift: float, seed: int) -> quant.QuantizedWeight:
    """A matrix whose mean lies that many of its standard deviations off zero."""
    values = (torch.randn(64, 256, generator=torch.Generator().manual_seed(seed)) + shift) * 0.02
    return quant.round_to_nearest(values, 64, False, torch.float16)


@pytest.mark.parametrize(("count", "symmetric"), [(1, True), (9, False), (9, True)])
@pytest.mark.parametrize("label", [1, 2])
def test_a_label_that_lies(tmp_path, label, count, symmetric):
    weights, holds = [trained(symmetric)] * count, 3 - label
    write_modules(tmp_path, weights, holds, label)
    with pytest.warns(UserWarning, match=f"is labelled GPTQ v{label} and holds v{holds} .*: read as v{holds}"):
        found = quant.read_quantized(tmp_path, MODULE)
    assert quant.equal(found, weights[0])


@pytest.mark.parametrize("label", [1, 2])
def test_of_one_module_a_label_stands(tmp_path, label):
    write_modules(tmp_path, [trained()], 3 - label, label)
    assert not quant.equal(read(tmp_path), trained())


@pytest.mark.parametrize(("label", "shift"), [(1, -0.3), (2, 0.4)])
def test_a_true_label_stands_where_matrices_lie_off_zero(tmp_path, label, shift):
    """By itself each of these says the other version."""
    skewed = off_zero(shift, 0)
    packed = quant.gptq.pack(skewed, label)
    assert quant.gptq.decide_version(packed["qweight"], packed["qzeros"]) == 3 - label
    write_modules(
        tmp_path, [skewed, *(off_zero(shift if seed % 2 else 0.0, seed) for seed in range(1, 12))], label, label
    )
    assert quant.equal(read(tmp_path), skewed)


@pytest.mark.parametrize(
    ("packing", "pack"),
    [("auto_round:auto_gptq", FORMATS["gptq v1"][1]), ("auto_round:auto_awq", quant.awq.pack)],
)
def test_auto_round_folders(tmp_path, packing, pack):
    config = dict(quant_method="auto-round", packing_format=packing, bits=4, group_size=64, sym=False, data_type="int",
                  iters=200, autoround_version="0.9.0", extra_config={"lm_head": {"bits": 16}})  # fmt: skip
    write(tmp_path, pack(trained()), config)
    assert quant.equal(read(tmp_path), trained())


@pytest.mark.parametrize("label", [1, 2])
def test_where_the_data_do_not_tell_the_label_is_believed(tmp_path, label):
    weight = plain(8, 32, 32)
    weight.q[:] = weight.zeros  # the mean of q - zero is 0.5 steps from where either version would have it
    weight.q[:, ::2] += weight.q[:, ::2] < 15
    tensors = quant.gptq.pack(weight, 2)
    assert quant.gptq.decide_version(tensors["qweight"], tensors["qzeros"]) is None
    write(tmp_path, tensors, GPTQ | dict(group_size=32, checkpoint_format="gptq" if label == 1 else "gptq_v2"))
    assert quant.equal(read(tmp_path), quant.gptq.unpack(**tensors, version=label))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is not quantised: config.json has no quantization_config"),
        ([4], r"quantization_config must be an object, got \[4\]"),
        (
            dict(quant_method="bitsandbytes"),
            "compressed-tensors, auto-round, got 'bitsand",
        ),
        (GPTQ | dict(bits=8), "bits must be 4, got 8"),
        (GPTQ | dict(checkpoint_format="marlin"), "checkpoint_format must be 'gptq' or 'gptq_v2', got 'marlin'"),
        (GPTQ | dict(group_size=0), "group_size must be -1 or a positive integer, got 0"),
        (AWQ | dict(bits=3), "bits must be 4, got 3"),
        (AWQ | dict(version="gemv"), "version must be 'gemm', got 'gemv'"),
        (
            COMPRESSED | dict(format="int-quantized"),
            "must be 'pack-quantized' or 'mixed-precision', got 'int-quantized'",
        ),
        (COMPRESSED | dict(transform_config={"config_groups": {"R4": {}}}), "transform_config must be left out"),
        (COMPRESSED | dict(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme must be left out"),
        (GPTQ | dict(rotation="hadamard"), "rotation must be left out: it is not known"),
        (
            dict(quant_method="auto-round", bits=4, packing_format="auto_round:marlin"),
            "packing_format must be of auto_gptq",
        ),
        (dict(quant_method="auto-round", bits=4, act_bits=8), "act_bits must be absent, 16 or 32"),
        (COMPRESSED | dict(config_groups={}), "config_groups must be an object of at least one group"),
        (
            COMPRESSED | dict(config_groups=dict(a=dict(weights=dict(num_bits=8)))),
            r"config_groups\.a\.weights\.num_bits must be 4, got 8",
        ),
        (
            COMPRESSED | dict(config_groups=dict(a=dict(weights=dict(num_bits=4, type="int", strategy="tensor")))),
            r"config_groups\.a\.weights\.strategy must be 'group' or 'channel', got 'tensor'",
        ),
        (COMPRESSED | dict(config_groups=dict(a=3)), r"config_groups\.a\.weights must be an object, got None"),
    ],
)
def test_configurations_refused(tmp_path, config, message):
    write(tmp_path, quant.gptq.pack(trained(), 1), config)
    with pytest.raises(ValueError, match=message) as caught:
        quant.read_quantized(tmp_path, MODULE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format_", "change", "message"),
    [
        ("gptq v1", dict(qzeros=None), f"there is no tensor {MODULE}.qzeros"),
        ("awq", dict(scales=None), f"there is no tensor {MODULE}.scales"),
        ("compressed-tensors", dict(weight_shape=None), f"there is no tensor {MODULE}.weight_shape"),
        ("gptq v1", dict(qweight=torch.zeros(3, 3)), f"{MODULE}: qweight must be of shape"),
        ("gptq v1", dict(qweight=torch.zeros(32)), f"{MODULE}: qweight and scales must be matrices"),
        ("gptq v1", dict(g_idx=torch.full((256,), 4, dtype=torch.int32)), r"g_idx must be in 0\.\.3 .*, got 4\.\.4"),
        ("awq", dict(qweight=torch.zeros(256, 8)), f"{MODULE}: qweight must be int32, got float32"),
        ("compressed-tensors", dict(weight_shape=torch.tensor([64])), "weight_shape must be 2 integers"),
        ("compressed-tensors", dict(weight_scale=torch.ones(64)), "weight_scale must be of shape"),
    ],
)
def test_tensors_refused(tmp_path, format_, change, message):
    config, pack = FORMATS[format_]
    tensors = {name: tensor for name, tensor in (pack(trained()) | change).items() if tensor is not None}
    write(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=message):
        quant.read_quantized(tmp_path, MODULE)


@pytest.mark.parametrize("sharded", [False, True])
def test_files_by_another_name(tmp_path, sharded):
    """As AutoGPTQ names them."""
    weight = trained()
    write(tmp_path, quant.gptq.pack(weight, 1), GPTQ, shards=2 if sharded else 1)
    name = "model.safetensors.index.json" if sharded else "model.safetensors"
    (tmp_path / name).rename(tmp_path / name.replace("model", "gptq_model-4bit-64g"))
    assert quant.equal(read(tmp_path), weight)
    if not sharded:
        save_file({"a": torch.zeros(1)}, tmp_path / "another.safetensors")
        with pytest.raises(ValueError, match=r"model\.safetensors: there is no such file"):
            read(tmp_path)


def test_an_index_that_names_what_is_not_there(tmp_path):
    write(tmp_path, quant.gptq.pack(trained(), 1), GPTQ, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    files[f"{MODULE}.qweight"], files[f"{MODULE}.qzeros"] = files[f"{MODULE}.qzeros"], files[f"{MODULE}.qweight"]
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(ValueError, match=f"the index names {MODULE}.qweight, which is not in it"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": files | {f"{MODULE}.qweight": "../model.safetensors"}}))
    with pytest.raises(ValueError, match="must map tensors to files in weight_map"):
        read(tmp_path)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_layer_that_was_not_converted(tmp_path, format_):
    """modules_to_not_convert and ignore: the dense weight is in the folder, and named."""
    config, pack = FORMATS[format_]
    write(tmp_path, pack(trained()), config)
    tensors = dict(load_file(tmp_path / "model.safetensors"), **{"lm_head.weight": torch.zeros(8, 8)})
    save_file(tensors, tmp_path / "model.safetensors")
    assert quant.equal(read(tmp_path), trained())
    with pytest.raises(ValueError, match=r"there is no tensor lm_head\.\w+, but lm_head.weight: .* is not quantised"):
        quant.read_quantized(tmp_path, "lm_head")


def test_gptq_with_layers_of_sizes_of_their_own(tmp_path):
    """GPTQModel's `dynamic`: this layer has groups of 64, the configuration says 128."""
    weight, config = trained(), GPTQ | dict(group_size=128)
    write(tmp_path, quant.gptq.pack(weight, 1), config | dict(dynamic={r"+:.*up_proj": {"group_size": 64}}))
    assert quant.equal(read(tmp_path), weight)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    with pytest.raises(ValueError, match=r"scales must be of shape \[64, 2\], got \[64, 4\]"):
        read(tmp_path)


def test_a_layer_of_8_bits_is_not_taken_for_4(tmp_path):
    """`dynamic` may say 8 bits too: then qweight has twice the rows, but the zero points twice the columns."""
    tensors = quant.gptq.pack(trained(), 1) | {"qweight": torch.zeros(64, 64, dtype=torch.int32),
                                               "qzeros": torch.zeros(4, 16, dtype=torch.int32)}  # fmt: skip
    del tensors["g_idx"]
    write(tmp_path, tensors, GPTQ | dict(dynamic={"+:.*": {"bits": 8}}))
    with pytest.raises(ValueError, match=r"qzeros must be of shape \[4, 8\], got \[4, 16\]"):
        read(tmp_path)


def test_compressed_tensors_of_mixed_precision(tmp_path):
    """Every group has its format then; the layers of those that are packed in 4 bits are read."""
    four = COMPRESSED["config_groups"]["group_0"] | dict(format="pack-quantized")
    eight = dict(format="float-quantized", weights=dict(num_bits=8, type="float", strategy="channel"))
    config = COMPRESSED | dict(format="mixed-precision", config_groups=dict(a=eight, b=four))
    write(tmp_path, quant.compressed_tensors.pack(trained()), config)
    assert quant.equal(read(tmp_path), trained())
    assert quant.quantization_of(tmp_path).group_size == 64
    config |= dict(config_groups=dict(a=eight))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    with pytest.raises(ValueError, match=r"config_groups must be of a group that is 'pack-quantized' .*, got \['a'\]"):
        read(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        quant.read_quantized(tmp_path / "nowhere", MODULE)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        quant.quantization_of(tmp_path)
