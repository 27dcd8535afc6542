"""The weights of a decoder layer or model: random ones of a realistic scale, or a local Hugging Face folder's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pykernels.checkpoint import tensor_files
from pykernels.checkpoint_parts import Part, read_int4, read_tensor, unused
from pykernels.files import user_path
from pykernels.quant import PARTS, Int4Weight, quantization_of
from pykernels.spec import ModelSpec

PROJECTIONS = ("q_weight", "k_weight", "v_weight", "o_weight", "gate_weight", "up_weight", "down_weight")
"""The fields of :class:`LayerWeights` that may be of 4 bits."""


def _normals(
    dtype: torch.dtype, device: torch.device | str, seed: int
) -> Callable[[tuple[int, ...], float, float], Tensor]:
    """A function of (shape, mean, standard deviation) whose calls draw one after another from one seeded generator."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(shape: tuple[int, ...], mean: float, std: float) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(mean, std, generator=generator)

    return normal


Projection: TypeAlias = Any
"""A Tensor or an Int4Weight. Which of them is so of all projections of a layer at once (`LayerWeights.is_int4`), and a
union of each could not say that."""

Norm: TypeAlias = Any
"""A Tensor, or None of a model without norms before attention and the MLP (`ModelSpec.pre_norms`)."""


@dataclass
class LayerWeights:
    """Projections are [out_features, in_features], norms [hidden]; biases and norms that the model has not are None.

    The projections are tensors, or all of them 4-bit weights whose scales are of the norms' dtype. `input_norm` and
    `post_norm` come before attention and before the MLP, `attention_out_norm` and `mlp_out_norm` behind them; `q_norm`
    and `k_norm` are those of a QK norm, of sizes spec.qk_norm_sizes.
    """

    input_norm: Norm
    q_weight: Projection
    k_weight: Projection
    v_weight: Projection
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_weight: Projection
    post_norm: Norm
    gate_weight: Projection
    up_weight: Projection
    down_weight: Projection
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    attention_out_norm: Tensor | None = None
    mlp_out_norm: Tensor | None = None

    def __post_init__(self) -> None:
        four_bit = [name for name in PROJECTIONS if isinstance(getattr(self, name), Int4Weight)]
        if four_bit and len(four_bit) < len(PROJECTIONS):
            raise ValueError(f"projections must be all tensors or all Int4Weight, got Int4Weight for {four_bit} only")
        if four_bit:
            for first, *others in (("q_weight", "k_weight", "v_weight"), ("gate_weight", "up_weight")):
                self._share_perm(first, others)

    def _share_perm(self, first: str, others: list[str]) -> None:
        # Act-order takes its order from the activations, so projections of one input have the same one, each in a
        # tensor of its own. The kernels know equal orders by their address: x is laid out once for all of them.
        perm = getattr(self, first).perm
        for name in others:
            weight = getattr(self, name)
            both = perm is not None and weight.perm is not None
            if both and weight.perm is not perm and torch.equal(perm, weight.perm):
                setattr(self, name, Int4Weight(weight.packed, weight.scales, weight.zeros, perm))

    @property
    def is_int4(self) -> bool:
        """Are the projections 4-bit weights?"""
        return isinstance(self.q_weight, Int4Weight)

    @property
    def n_bytes(self) -> int:
        """Bytes of everything that is there."""
        return sum(
            value.n_bytes if isinstance(value, Int4Weight) else value.numel() * value.element_size()
            for value in self.named().values()
        )

    def int4_format(self) -> tuple[int | dict[str, int], bool, bool]:
        """Of 4-bit projections: their group size (-1: the whole row; where they differ, that of each of PROJECTIONS by
        name), whether any has zero points, whether any is act-ordered."""
        four_bit = {name: value for name, value in self.named().items() if isinstance(value, Int4Weight)}
        zeros, perm = (any(getattr(one, part) is not None for one in four_bit.values()) for part in ("zeros", "perm"))
        sizes = {one.group_size for one in four_bit.values() if one.n_groups > 1} or {-1}
        size = min(sizes)
        if len(sizes) == 1 and (size == -1 or all(one.in_features % size == 0 for one in four_bit.values())):
            return size, zeros, perm
        return {name: one.group_size if one.n_groups > 1 else -1 for name, one in four_bit.items()}, zeros, perm

    def quantize(self, group_size: int = 128, symmetric: bool = True) -> "LayerWeights":
        """The same with 4-bit projections, rounded to nearest; norms and biases are shared."""
        rounded: dict[str, Any] = {
            name: Int4Weight.quantize(getattr(self, name), group_size, symmetric) for name in PROJECTIONS
        }
        return replace(self, **rounded)

    def dequantize(self, dtype: torch.dtype = torch.float64) -> "LayerWeights":
        """The same with projections as tensors of `dtype`; itself where they are tensors already."""
        if not self.is_int4:
            return self
        return replace(self, **{name: getattr(self, name).dequantize(dtype) for name in PROJECTIONS})

    def to(self, dtype: torch.dtype) -> "LayerWeights":
        """The same in another dtype: tensors, and the scales of 4-bit projections."""
        return replace(self, **{name: value.to(dtype) for name, value in self.named().items()})

    @staticmethod
    def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...] | None]:
        """The shape of every field; None for a bias the model does not have."""
        q_rows, kv_rows = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        biased = spec.qkv_bias
        pre, post = ((spec.hidden,) if there else None for there in (spec.pre_norms, spec.post_norms))
        q_norm, k_norm = ((size,) if size else None for size in spec.qk_norm_sizes)
        return {
            "input_norm": pre,
            "q_weight": (q_rows, spec.hidden),
            "k_weight": (kv_rows, spec.hidden),
            "v_weight": (kv_rows, spec.hidden),
            "q_bias": (q_rows,) if biased else None,
            "k_bias": (kv_rows,) if biased else None,
            "v_bias": (kv_rows,) if biased else None,
            "o_weight": (spec.hidden, q_rows),
            "post_norm": pre,
            "gate_weight": (spec.intermediate, spec.hidden),
            "up_weight": (spec.intermediate, spec.hidden),
            "down_weight": (spec.hidden, spec.intermediate),
            "q_norm": q_norm,
            "k_norm": k_norm,
            "attention_out_norm": post,
            "mlp_out_norm": post,
        }

    def check(self, spec: ModelSpec) -> None:
        """Raise ValueError, one line, unless every tensor is of that model: there, and of its shape."""
        for name, shape in self.shapes(spec).items():
            value = getattr(self, name)
            found = None
            if value is not None:
                int4 = isinstance(value, Int4Weight)
                found = (value.out_features, value.in_features) if int4 else tuple(value.shape)
            if found != shape:
                expected, got = ("None" if size is None else list(size) for size in (shape, found))
                raise ValueError(f"weights: {name} must be {expected} ({spec.name}), got {got}")

    @classmethod
    def random(
        cls,
        spec: ModelSpec,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> "LayerWeights":
        """Seeded normal weights of a trained model's scale.

        Projections have standard deviation 1 / sqrt(in_features), which keeps activations near 1 through the
        layer; norms lie around 1, biases around 0.
        """
        normal = _normals(dtype, device, seed)
        tensors: dict[str, Any] = {}
        for name, shape in cls.shapes(spec).items():
            if shape is None:
                tensors[name] = None
            elif name.endswith("_norm"):
                tensors[name] = normal(shape, 1.0 - spec.norm_offset, 0.1)
            elif name.endswith("_bias"):
                tensors[name] = normal(shape, 0.0, 0.5)
            else:
                tensors[name] = normal(shape, 0.0, shape[1] ** -0.5)
        return cls(**tensors)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        layer: int,
        spec: ModelSpec,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> "LayerWeights":
        """Layer `layer` of a Hugging Face checkpoint folder, model.safetensors or its shards.

        Of fused projections (Phi-3's qkv_proj and gate_up_proj) each part's rows are read into a tensor of their own;
        the rows of q and k go where spec.rotary_order says. Projections are taken as they are: a checkpoint of another
        dtype than `dtype` is refused, not converted. Norms
        and biases of another are converted, and a UserWarning says so. The projections of a quantised folder (GPTQ,
        AWQ, compressed-tensors, AutoRound) become 4-bit weights, whose scales alone are rounded to `dtype`. A tensor of
        the layer that is not used is refused, unless it changes nothing.
        Raises ValueError, one line naming the file or tensor, what was expected and what was found.
        """
        folder = user_path(folder)
        if not 0 <= layer < spec.n_layers:
            raise ValueError(f"layer must be in 0..{spec.n_layers - 1} ({spec.name}), got {layer}")
        files = tensor_files(folder)
        quantised = quantization_of(folder) is not None
        tensors: dict[str, Any] = {}
        prefix = f"{text_prefix(files)}layers.{layer}."
        used = set()
        for name, shape in cls.shapes(spec).items():
            if shape is None:
                tensors[name] = None
                continue
            part = _part_of(spec, prefix, name, files)
            tensor_name = part.tensor
            # Layers that a folder leaves as they were (modules_to_not_convert, ignore) have their dense weight there.
            if quantised and name in PROJECTIONS and tensor_name not in files:
                module = tensor_name.removesuffix(".weight")
                tensors[name] = read_int4(folder, module, part, shape, dtype).to(device)
                used |= {f"{module}.{piece}" for piece in PARTS}
                continue
            if tensor_name not in files:
                raise ValueError(f"weights {folder}: there is no tensor {tensor_name}")
            convert = name not in PROJECTIONS
            tensors[name] = read_tensor(folder / files[tensor_name], part, shape, dtype, convert).to(device)
            used.add(tensor_name)
        for name in sorted(name for name in files if name.startswith(prefix) and name not in used):
            if words := unused(folder / files[name], name):
                raise ValueError(f"weights {folder / files[name]}: {name} {words}")
        try:
            return cls(**tensors)
        except ValueError as error:
            raise ValueError(f"weights {folder}: {prefix[:-1]}: {error}") from None

    def named(self) -> dict[str, Projection]:
        """The tensors that are there, by field."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def clone(self) -> "LayerWeights":
        """A copy in memory of its own."""
        return replace(self, **{name: value.clone() for name, value in self.named().items()})


_CHECKPOINT_NAMES = {
    "input_norm": "input_layernorm.weight",
    "q_weight": "self_attn.q_proj.weight",
    "k_weight": "self_attn.k_proj.weight",
    "v_weight": "self_attn.v_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_weight": "self_attn.o_proj.weight",
    "post_norm": "post_attention_layernorm.weight",
    "gate_weight": "mlp.gate_proj.weight",
    "up_weight": "mlp.up_proj.weight",
    "down_weight": "mlp.down_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
# Of models with norms behind attention and the MLP: what is named post_attention_layernorm comes behind it there.
_POST_NORM_NAMES = {
    "post_norm": "pre_feedforward_layernorm.weight",
    "attention_out_norm": "post_attention_layernorm.weight",
    "mlp_out_norm": "post_feedforward_layernorm.weight",
}
_FUSED = {
    "self_attn.qkv_proj": ("q_weight", "k_weight", "v_weight"),
    "mlp.gate_up_proj": ("gate_weight", "up_weight"),
}
"""Modules that hold the rows of several projections, in that order."""

_TEXT_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "model.text_model.")
"""Where the tensors of a decoder are: by itself, and as the text side of a vision-language model."""

_VISION = ("visual.", "vision_tower.", "vision_model.", "multi_modal_projector.", "image_newline")
"""Tensors of a vision-language model that are not of its text side, as older checkpoints name them."""


def text_prefix(files: Mapping[str, str]) -> str:
    """What the names of a decoder's tensors begin with in a folder of these tensors."""
    for prefix in _TEXT_PREFIXES:
        if any(name.startswith(f"{prefix}layers.") for name in files):
            return prefix
    return _TEXT_PREFIXES[0]


def _part_of(spec: ModelSpec, prefix: str, name: str, files: Mapping[str, str]) -> Part:
    """Of the field `name` of LayerWeights in a layer whose tensors begin with `prefix`."""
    own = prefix + (_CHECKPOINT_NAMES | (_POST_NORM_NAMES if spec.post_norms else {}))[name]
    order = None
    if name in ("q_weight", "k_weight", "q_bias", "k_bias", "q_norm", "k_norm") and spec.rotary_order:
        heads = spec.n_heads if name[0] == "q" else spec.n_kv_heads
        heads = 1 if name.endswith("_norm") and spec.qk_norm == "head" else heads
        order = [head * spec.head_dim + dim for head in range(heads) for dim in spec.rotary_order]
    for module, fields_ in _FUSED.items():
        fused = f"{prefix}{module}.weight"
        there = fused in files or any(f"{prefix}{module}.{part}" in files for part in PARTS)
        if name not in fields_ or not there:
            continue
        rows = [shape[0] for field in fields_ if (shape := LayerWeights.shapes(spec)[field])]
        index = fields_.index(name)
        return Part(fused, sum(rows[:index]), sum(rows), order)
    return Part(own, order=order)


@dataclass
class ModelWeights:
    """`embedding` and `lm_head` are [vocab, hidden] (one tensor where the model ties them), `final_norm` [hidden]."""

    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Tensor
    lm_head: Tensor

    @classmethod
    def random(
        cls,
        spec: ModelSpec,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shared_layers: bool = False,
        convert: Callable[[LayerWeights], LayerWeights] = lambda layer: layer,
    ) -> "ModelWeights":
        """Seeded normal weights of a trained model's scale, as :meth:`LayerWeights.random`; scaled embeddings near 1.

        `convert` is called with each layer as it is made (``lambda layer: layer.quantize(128)``, say): one layer is
        there in both forms at a time. With `shared_layers` all layers are one set of weights: a model too large for the
        memory can be stepped through, but a cache larger than a layer would find them there.
        """
        normal = _normals(dtype, device, seed)
        embedding = normal((spec.vocab, spec.hidden), 0.0, 1.0 / spec.embedding_scale)
        final_norm = normal((spec.hidden,), 1.0 - spec.norm_offset, 0.1)
        lm_head = embedding if spec.tied_embeddings else normal((spec.vocab, spec.hidden), 0.0, spec.hidden**-0.5)
        if shared_layers:
            layers = [convert(LayerWeights.random(spec, dtype, device, seed + 1))] * spec.n_layers
        else:
            layers = [
                convert(LayerWeights.random(spec, dtype, device, seed + 1 + index)) for index in range(spec.n_layers)
            ]
        return cls(embedding, layers, final_norm, lm_head)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        spec: ModelSpec,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> "ModelWeights":
        """The first `spec.n_layers` layers of a Hugging Face checkpoint folder and its tables, as they are.

        Raises ValueError as :meth:`LayerWeights.from_folder`.
        """
        folder = user_path(folder)
        files = tensor_files(folder)

        def read(name: str, shape: tuple[int, ...], convert: bool = False) -> Tensor:
            if name not in files:
                module = name.removesuffix(".weight")
                packed = [part for part in ("qweight", "weight_packed") if f"{module}.{part}" in files]
                words = f", but {module}.{packed[0]}: {module} must not be quantised" if packed else ""
                raise ValueError(f"weights {folder}: there is no tensor {name}{words}")
            return read_tensor(folder / files[name], Part(name), shape, dtype, convert).to(device)

        table, prefix = (spec.vocab, spec.hidden), text_prefix(files)
        embedding_name, norm = f"{prefix}embed_tokens.weight", f"{prefix}norm.weight"
        heads = ("lm_head.weight", "language_model.lm_head.weight")
        head = heads[1] if heads[1] in files else heads[0]
        embedding = read(embedding_name, table)
        layers = [LayerWeights.from_folder(folder, index, spec, dtype, device) for index in range(spec.n_layers)]
        final_norm = read(norm, (spec.hidden,), convert=True)
        if not spec.tied_embeddings:
            lm_head = read(head, table)
        else:
            lm_head = embedding
            if head in files and not torch.equal(read(head, table), embedding):
                raise ValueError(
                    f"weights {folder / files[head]}: {head} is not {embedding_name}, and the configuration "
                    "says tie_word_embeddings: true"
                )
        known, others = {embedding_name, norm, head}, (f"{prefix}layers.", *_VISION)
        for name in sorted(name for name in files if name not in known and not name.startswith(others)):
            if prefix != "model." and not name.startswith(prefix):
                continue  # not of the text side
            if words := unused(folder / files[name], name):
                raise ValueError(f"weights {folder / files[name]}: {name} {words}")
        return cls(embedding, layers, final_norm, lm_head)

    def mapped(self, convert: Callable[[LayerWeights], LayerWeights]) -> "ModelWeights":
        """The same tables with every layer converted; layers that were one stay one."""
        converted = {id(layer): convert(layer) for layer in self.layers}
        return replace(self, layers=[converted[id(layer)] for layer in self.layers])

    def to(self, dtype: torch.dtype) -> "ModelWeights":
        """The same in another dtype: tables, norms, projections, and the scales of 4-bit projections."""
        embedding = self.embedding.to(dtype)
        lm_head = embedding if self.lm_head is self.embedding else self.lm_head.to(dtype)
        layers = self.mapped(lambda layer: layer.to(dtype)).layers
        return ModelWeights(embedding, layers, self.final_norm.to(dtype), lm_head)

    @property
    def n_bytes(self) -> int:
        """Bytes of everything that is there, once each."""
        layers = {id(layer): layer.n_bytes for layer in self.layers}
        tables = {id(table): table for table in (self.embedding, self.final_norm, self.lm_head)}
        return sum(layers.values()) + sum(table.numel() * table.element_size() for table in tables.values())

    def checkpoint(self) -> dict[str, Tensor]:
        """The same tensors by the names a Hugging Face checkpoint has for them (lm_head only where it is not tied)."""
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.final_norm}
        if self.lm_head is not self.embedding:
            named["lm_head.weight"] = self.lm_head
        for index, layer in enumerate(self.layers):
            named |= {f"model.layers.{index}.{_CHECKPOINT_NAMES[k]}": tensor for k, tensor in layer.named().items()}
        return named
