"""Layer weights: random ones, and those of a checkpoint folder with all that can be wrong with it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from inputs.covering import pairwise
from safetensors.torch import save_file
from torch import Tensor

import pykernels as pk

SPEC = pk.models.ModelSpec("small", 32, 48, 3, 4, 2, 8, 16, 1e6, 1e-6, True, False, 128)
UNBIASED = pk.models.ModelSpec("unbiased", 32, 48, 3, 4, 2, 8, 16, 1e6, 1e-6, False, False, 128)
SHAPES = {
    "input_norm": (32,), "q_weight": (32, 32), "k_weight": (16, 32), "v_weight": (16, 32), "q_bias": (32,),
    "k_bias": (16,), "v_bias": (16,), "o_weight": (32, 32), "post_norm": (32,), "gate_weight": (48, 32),
    "up_weight": (48, 32), "down_weight": (32, 48),
}  # fmt: skip
CHECKPOINT_NAMES = {
    "input_norm": "input_layernorm.weight", "q_weight": "self_attn.q_proj.weight",
    "k_weight": "self_attn.k_proj.weight", "v_weight": "self_attn.v_proj.weight", "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias", "v_bias": "self_attn.v_proj.bias", "o_weight": "self_attn.o_proj.weight",
    "post_norm": "post_attention_layernorm.weight", "gate_weight": "mlp.gate_proj.weight",
    "up_weight": "mlp.up_proj.weight", "down_weight": "mlp.down_proj.weight",
}  # fmt: skip
Q_NAME = "model.layers.1.self_attn.q_proj.weight"


def checkpoint_tensors(spec: pk.models.ModelSpec = SPEC, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Two layers, 0 and 1, under their names in a checkpoint; every layer has numbers of its own."""
    return {
        f"model.layers.{layer}.{CHECKPOINT_NAMES[field]}": tensor
        for layer in range(2)
        for field, tensor in pk.LayerWeights.random(spec, dtype, seed=layer).named().items()
    }


def write_single(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint in one file."""
    path = folder / "model.safetensors"
    save_file(checkpoint_tensors() if tensors is None else tensors, path)
    return path


def write_sharded(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    """A checkpoint in two files, every other tensor in the second, and their index."""
    tensors = checkpoint_tensors() if tensors is None else tensors
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    return write_index(folder, {"weight_map": weight_map})


def write_index(folder: Path, content: object) -> Path:
    """An index of any content."""
    path = folder / "model.safetensors.index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def complaint(folder: Path, layer: int = 1, spec: pk.models.ModelSpec = SPEC, dtype=torch.bfloat16) -> str:
    """The one line with which from_folder refuses a folder."""
    with pytest.raises(ValueError) as raised:
        pk.LayerWeights.from_folder(folder, layer, spec, dtype)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("spec", [SPEC, UNBIASED], ids=lambda spec: spec.name)
def test_random_weights_have_the_specs_shapes(spec):
    weights = pk.LayerWeights.random(spec).named()
    expected = {name: shape for name, shape in SHAPES.items() if spec.qkv_bias or not name.endswith("_bias")}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == expected
    assert sum(tensor.numel() for tensor in weights.values()) == spec.layer_weight_elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_weights_are_of_a_trained_models_scale(dtype):
    spec = pk.models.get("tiny")
    for name, tensor in pk.LayerWeights.random(spec, dtype).named().items():
        assert tensor.dtype == dtype and tensor.is_contiguous()
        mean = 1.0 if name.endswith("_norm") else 0.0
        deviation = {"norm": 0.1, "bias": 0.5, "weight": tensor.shape[-1] ** -0.5}[name.split("_")[1]]
        # Five standard errors: of the mean, and of the standard deviation.
        error = 5 * deviation / tensor.numel() ** 0.5
        assert tensor.float().mean().item() == pytest.approx(mean, abs=error), name
        assert tensor.float().std().item() == pytest.approx(deviation, abs=error), name


def test_random_weights_follow_their_seed():
    first, same, other = (pk.LayerWeights.random(SPEC, seed=seed).named() for seed in (5, 5, 6))
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name]), name
        assert not torch.equal(tensor, other[name]), name
    assert not torch.equal(first["k_weight"], first["v_weight"])


@pytest.mark.parametrize("spec", [SPEC, UNBIASED], ids=lambda spec: spec.name)
def test_a_clone_has_memory_of_its_own(spec):
    weights = pk.LayerWeights.random(spec)
    clone = weights.clone()
    assert weights.named().keys() == clone.named().keys()
    for name, tensor in weights.named().items():
        assert torch.equal(tensor, clone.named()[name])
        assert tensor.data_ptr() != clone.named()[name].data_ptr()


@pairwise
@pytest.mark.parametrize("write", [write_single, write_sharded])
@pytest.mark.parametrize("spec", [SPEC, UNBIASED], ids=lambda spec: spec.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reads_a_checkpoint_back(write, spec, dtype, tmp_path):
    write(tmp_path, checkpoint_tensors(spec, dtype))
    for layer in range(2):
        read = pk.LayerWeights.from_folder(tmp_path, layer, spec, dtype)
        expected = pk.LayerWeights.random(spec, dtype, seed=layer)
        assert read.named().keys() == expected.named().keys()
        for name, tensor in read.named().items():
            assert tensor.dtype == dtype and torch.equal(tensor, expected.named()[name]), name
        assert (read.q_bias is None) == (not spec.qkv_bias)


def test_a_missing_folder(tmp_path):
    assert complaint(tmp_path / "none") == f"weights {tmp_path / 'none'}: there is no such folder"
    write_single(tmp_path)
    file = tmp_path / "model.safetensors"
    assert complaint(file) == f"weights {file}: there is no such folder"


def test_a_folder_without_weights(tmp_path):
    assert complaint(tmp_path) == f"weights {tmp_path / 'model.safetensors'}: there is no such file"


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_the_model_does_not_have(layer, tmp_path):
    write_single(tmp_path)
    assert complaint(tmp_path, layer) == f"layer must be in 0..2 (small), got {layer}"


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_a_layer_that_the_checkpoint_does_not_have(write, tmp_path):
    write(tmp_path)
    message = complaint(tmp_path, 2)
    assert str(tmp_path) in message and "model.layers.2.input_layernorm.weight" in message


@pytest.mark.parametrize("size", [0, 4, 100, -1])
@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_a_truncated_file(write, size, tmp_path):
    write(tmp_path)
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:size])
    message = complaint(tmp_path)
    assert str(path) in message and "is not a whole safetensors file" in message


def test_a_header_that_is_no_header(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x05\0\0\0\0\0\0\0{\n\n\n}" + bytes(64))
    assert str(path) in complaint(tmp_path)


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (32, 32, 1), (1024,)], ids=str)
def test_a_wrong_shape(shape, tmp_path):
    path = write_single(tmp_path, checkpoint_tensors() | {Q_NAME: torch.zeros(shape, dtype=torch.bfloat16)})
    assert complaint(tmp_path) == f"weights {path}: {Q_NAME} must be of shape [32, 32], got {list(shape)}"


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.float32, "must be BF16, got F32 (read it with --dtype=fp32)"),
        (torch.float16, "must be BF16, got F16 (read it with --dtype=fp16)"),
        (torch.float64, "must be BF16, got F64"),
        (torch.int8, "must be BF16, got I8"),
        (torch.float8_e4m3fn, "must be BF16, got F8_E4M3"),
    ],
    ids=str,
)
def test_a_wrong_dtype(dtype, words, tmp_path):
    path = write_single(tmp_path, checkpoint_tensors() | {Q_NAME: torch.zeros(32, 32).to(dtype)})
    assert complaint(tmp_path) == f"weights {path}: {Q_NAME} {words}"


@pytest.mark.parametrize("write", [write_single, write_sharded])
@pytest.mark.parametrize("field", ["input_norm", "k_bias", "down_weight"])
def test_a_missing_tensor(write, field, tmp_path):
    tensors = checkpoint_tensors()
    name = f"model.layers.1.{CHECKPOINT_NAMES[field]}"
    del tensors[name]
    write(tmp_path, tensors)
    message = complaint(tmp_path)
    assert str(tmp_path) in message and name in message


def test_a_bias_that_the_model_does_not_have(tmp_path):
    write_single(tmp_path)
    message = complaint(tmp_path, spec=UNBIASED)
    assert message.endswith("self_attn.k_proj.bias is not zero, and the model has no such bias")


def test_biases_that_are_zero(tmp_path):
    """AutoGPTQ writes them for every projection of a llama."""
    tensors = checkpoint_tensors(UNBIASED)
    zero = {f"model.layers.1.self_attn.{name}_proj.bias": torch.zeros(32, dtype=torch.float16) for name in "qkvo"}
    write_single(tmp_path, tensors | zero | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    read = pk.LayerWeights.from_folder(tmp_path, 1, UNBIASED, torch.bfloat16)
    assert read.q_bias is None and torch.equal(read.q_weight, tensors["model.layers.1.self_attn.q_proj.weight"])


@pytest.mark.parametrize(
    "name", ["self_attn.q_norm.weight", "mlp.down_proj.R4_input.weight", "self_attn.q_proj.weight_scale_inv", "new"]
)
def test_a_tensor_that_the_model_does_not_have(name, tmp_path):
    path = write_single(tmp_path, checkpoint_tensors() | {f"model.layers.1.{name}": torch.zeros(4)})
    words = "is not used: the model that is computed here has no such tensor"
    assert complaint(tmp_path) == f"weights {path}: model.layers.1.{name} {words}"
    assert pk.LayerWeights.from_folder(tmp_path, 0, SPEC, torch.bfloat16), "another layer's"


def test_a_bias_of_another_projection(tmp_path):
    name = "model.layers.1.self_attn.o_proj.bias"
    write_single(tmp_path, checkpoint_tensors() | {name: torch.ones(32)})
    assert complaint(tmp_path).endswith(f"{name} is not zero, and the model has no such bias")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_norms_and_biases_of_another_float_type_are_converted(stored, tmp_path):
    tensors = checkpoint_tensors()
    other = {name: t.to(stored) for name, t in tensors.items() if "norm" in name or name.endswith("bias")}
    write_single(tmp_path, tensors | other)
    kind = {torch.float32: "F32", torch.float16: "F16"}[stored]
    with pytest.warns(UserWarning, match=f"norms or biases of {kind} are converted to BF16"):
        read = pk.LayerWeights.from_folder(tmp_path, 1, SPEC, torch.bfloat16)
    for name, tensor in read.named().items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, tensors[f"model.layers.1.{CHECKPOINT_NAMES[name]}"], rtol=0, atol=1e-7)


def test_a_norm_that_the_other_type_cannot_hold(tmp_path):
    name = "model.layers.1.input_layernorm.weight"
    tensors = {key: t.to(torch.float16) for key, t in checkpoint_tensors().items()}
    path = write_single(tmp_path, tensors | {name: torch.full((32,), 1e6)})
    with pytest.raises(ValueError) as raised:
        pk.LayerWeights.from_folder(tmp_path, 1, SPEC, torch.float16)
    assert str(raised.value) == f"weights {path}: {name} is F32 and has numbers too large for F16"


def model_tensors(spec) -> dict[str, torch.Tensor]:
    return pk.ModelWeights.random(spec).checkpoint()


def test_a_head_beside_tables_that_are_tied(tmp_path):
    """The same one is no more than a copy; another makes another model of it (tie_word_embeddings: true)."""
    tied = dataclasses.replace(SPEC, n_layers=1, tied_embeddings=True)
    tensors = model_tensors(tied)
    table = tensors["model.embed_tokens.weight"]
    write_single(tmp_path, tensors | {"lm_head.weight": table.clone()})
    assert torch.equal(pk.ModelWeights.from_folder(tmp_path, tied).lm_head, table)
    path = write_single(tmp_path, tensors | {"lm_head.weight": table + 1})
    with pytest.raises(
        ValueError, match="lm_head.weight is not model.embed_tokens.weight, .* tie_word_embeddings"
    ) as e:
        pk.ModelWeights.from_folder(tmp_path, tied)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("name", ["score.weight", "model.embed_positions.weight", "lm_head.bias"])
def test_a_tensor_beside_the_layers_that_is_not_used(name, tmp_path):
    spec = dataclasses.replace(SPEC, n_layers=1)
    write_single(tmp_path, model_tensors(spec) | {name: torch.ones(4)})
    with pytest.raises(ValueError, match=f"{name} is not"):
        pk.ModelWeights.from_folder(tmp_path, spec)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "sub/outside.safetensors", ".."])
def test_an_index_that_names_a_file_outside_the_folder(file, tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file(checkpoint_tensors(), place / "outside.safetensors")
    index = write_index(folder, {"weight_map": dict.fromkeys(checkpoint_tensors(), file)})
    message = complaint(folder)
    assert str(index) in message and "outside the folder" in message


@pytest.mark.parametrize(
    "content",
    ["{", "", "[]", "5", {}, {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": None}, "[" * 100_000],
    ids=["broken", "empty", "a list", "a number", "no map", "a list as map", "no names", "null", "nested too deep"],
)
def test_a_broken_index(content, tmp_path):
    write_single(tmp_path)
    index = write_index(tmp_path, content)
    message = complaint(tmp_path)
    assert str(index) in message and "weight_map" in message


def test_an_index_that_names_a_missing_file(tmp_path):
    write_sharded(tmp_path)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.unlink()
    assert complaint(tmp_path) == f"weights {shard}: there is no such file"


def test_an_index_that_names_the_wrong_file(tmp_path):
    path = write_single(tmp_path)
    tensors = checkpoint_tensors()
    del tensors[Q_NAME]
    write_single(tmp_path, tensors)
    write_index(tmp_path, {"weight_map": dict.fromkeys(checkpoint_tensors(), path.name)})
    assert complaint(tmp_path) == f"weights {path}: the index names {Q_NAME}, which is not in it"
