"""Quantised layers of a local Hugging Face folder: what its configuration says, and what its tensors say."""

import functools
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pykernels.checkpoint import open_tensors, read_config, tensor_files
from pykernels.files import user_path
from pykernels.quant import awq, compressed_tensors, gptq
from pykernels.quant.weight import QuantizedWeight

METHODS = ("gptq", "awq", "compressed-tensors", "auto-round")

PARTS = (
    "qweight", "qzeros", "scales", "g_idx",
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx",
)  # fmt: skip
"""What the tensors of a quantised layer are called, after its name."""

# Of every method, the keys that are read or that change nothing: how the rounding was found, and who loads it. A key
# that is not here is refused unless it is off, since a rotation or a scheme of activations would be one of them.
_SAID = frozenset((
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "sym", "zero_point", "version", "meta", "backend",
    "modules_to_not_convert", "model_name_or_path", "quantizer",
))  # fmt: skip
_KNOWN = {
    "gptq": _SAID | frozenset((
        "checkpoint_format", "format", "dynamic", "desc_act", "static_groups", "true_sequential", "damp_percent",
        "damp_auto_increment", "lm_head", "pack_dtype", "model_file_base_name", "dataset", "tokenizer",
        "block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize", "batch_size",
        "pad_token_id", "use_cuda_fp16", "model_seqlen", "max_input_length", "use_exllama", "exllama_config",
        "disable_exllama", "cache_block_outputs", "act_group_aware", "mse", "method", "quant_lm_head", "iters", "lr",
        "minmax_lr", "nsamples", "seqlen", "gradient_accumulate_steps", "enable_minmax_tuning", "enable_quanted_input",
        "low_gpu_mem_usage", "scale_dtype", "data_type", "train_bs", "amp", "autoround_version", "parallel_packing",
        "offload_to_disk", "offload_to_disk_path", "fail_safe", "v2", "v2_alpha", "hessian_chunk_size",
    )),
    "awq": _SAID | frozenset((
        "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "scaling_factors", "lm_head", "iters",
        "nsamples", "seqlen", "scale_dtype", "data_type", "autoround_version",
    )),
    "compressed-tensors": _SAID | frozenset((
        "format", "config_groups", "ignore", "quantization_status", "global_compression_ratio", "sparsity_config",
    )),
    "auto-round": _SAID | frozenset((
        "packing_format", "data_type", "extra_config", "act_bits", "act_data_type", "act_dynamic", "act_group_size",
        "act_sym", "iters", "lr", "minmax_lr", "nsamples", "seqlen", "batch_size", "gradient_accumulate_steps",
        "enable_minmax_tuning", "enable_quanted_input", "low_gpu_mem_usage", "scale_dtype", "amp", "autoround_version",
        "block_name_to_quantize", "to_quant_block_names", "enable_norm_bias_tuning", "enable_torch_compile", "dataset",
        "quant_lm_head", "lm_head", "static_kv_dtype", "super_bits", "super_group_size", "enable_alg_ext",
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """How a folder is quantised, by its own words.

    method: gptq, awq or compressed-tensors; group_size: -1 is the whole row, None where the configuration does not
    say; gptq_version: the label, 1 or 2, None for the other methods. `source` is the file that says so.
    """

    method: str
    group_size: int | None
    gptq_version: int | None
    source: Path


def _fail(source: Path, field: str, allowed: str, value: object) -> ValueError:
    return ValueError(f"config {source}: {field} must be {allowed}, got {value!r}")


def _group_size(source: Path, value: object) -> int | None:
    if value is None or (type(value) is int and (value == -1 or value > 0)):
        return value
    raise _fail(source, "group_size", "-1 or a positive integer", value)


def _gptq(source: Path, fields: dict[str, Any]) -> Quantization:
    if fields.get("bits") != 4:
        raise _fail(source, "bits", "4", fields.get("bits"))
    label = fields.get("checkpoint_format") or fields.get("format") or "gptq"  # older writers have no such field
    if label not in ("gptq", "gptq_v2"):
        raise _fail(source, "checkpoint_format", "'gptq' or 'gptq_v2'", label)
    # `dynamic` gives layers sizes of their own: every layer's shapes tell its.
    group_size = None if fields.get("dynamic") else _group_size(source, fields.get("group_size"))
    return Quantization("gptq", group_size, 2 if label == "gptq_v2" else 1, source)


def _awq(source: Path, fields: dict[str, Any]) -> Quantization:
    bits = fields.get("bits", fields.get("w_bit"))
    if bits != 4:
        raise _fail(source, "bits", "4", bits)
    version = str(fields.get("version", "gemm")).lower()
    if version != "gemm":
        raise _fail(source, "version", "'gemm'", version)
    return Quantization("awq", _group_size(source, fields.get("group_size", fields.get("q_group_size"))), None, source)


def _is_packed_4_bit(group: dict[str, Any]) -> bool:
    weights = group.get("weights")
    return group.get("format") == "pack-quantized" and isinstance(weights, dict) and weights.get("num_bits") == 4


def _compressed_tensors(source: Path, fields: dict[str, Any]) -> Quantization:
    mixed = fields.get("format") == "mixed-precision"  # then every group has a format of its own
    if not mixed and fields.get("format") != "pack-quantized":
        raise _fail(source, "format", "'pack-quantized' or 'mixed-precision'", fields.get("format"))
    sparsity = fields.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise _fail(source, "sparsity_config", "absent or of format 'dense'", sparsity)
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _fail(source, "config_groups", "an object of at least one group", groups)
    sizes = set()
    for name, group in groups.items():
        if mixed and isinstance(group, dict) and not _is_packed_4_bit(group):
            continue
        weights = group.get("weights") if isinstance(group, dict) else None
        for field in ("input_activations", "output_activations"):
            if isinstance(group, dict) and group.get(field):
                raise _fail(source, f"config_groups.{name}.{field}", "null: activations are not rounded", group[field])
        if not isinstance(weights, dict):
            raise _fail(source, f"config_groups.{name}.weights", "an object", weights)
        for field, allowed in (("num_bits", (4,)), ("type", ("int",)), ("strategy", ("group", "channel"))):
            if weights.get(field) not in allowed:
                words = " or ".join(map(repr, allowed))
                raise _fail(source, f"config_groups.{name}.weights.{field}", words, weights.get(field))
        sizes.add(-1 if weights["strategy"] == "channel" else _group_size(source, weights.get("group_size")))
    if not sizes:
        raise _fail(source, "config_groups", "of a group that is 'pack-quantized' with num_bits 4", [*groups])
    # Groups of layers with different sizes: every layer's shapes tell its own.
    return Quantization("compressed-tensors", sizes.pop() if len(sizes) == 1 else None, None, source)


def _auto_round(source: Path, fields: dict[str, Any]) -> Quantization:
    """AutoRound's own method: GPTQ's v1 tensors or AWQ's, as `packing_format` says (or `backend`, before that)."""
    packing = str(fields.get("packing_format") or fields.get("backend") or "auto_round:auto_gptq")
    if fields.get("data_type", "int") != "int":
        raise _fail(source, "data_type", "'int'", fields["data_type"])
    if fields.get("act_bits") not in (None, 16, 32):
        raise _fail(source, "act_bits", "absent, 16 or 32: activations are not rounded", fields["act_bits"])
    if fields.get("static_kv_dtype"):
        raise _fail(source, "static_kv_dtype", "absent: the cache is not rounded", fields["static_kv_dtype"])
    for layer, own in (fields.get("extra_config") or {}).items():
        if isinstance(own, dict) and own.get("bits", 4) not in (4, 16, 32):
            raise _fail(source, f"extra_config.{layer}.bits", "4 or 16", own["bits"])
    own_sizes = any(
        isinstance(own, dict) and "group_size" in own for own in (fields.get("extra_config") or {}).values()
    )
    if "awq" in packing:
        found = _awq(source, {"bits": fields.get("bits"), "group_size": fields.get("group_size")})
    elif "gptq" in packing:
        found = _gptq(source, {"bits": fields.get("bits"), "group_size": fields.get("group_size")})
    else:
        raise _fail(source, "packing_format", "of auto_gptq or auto_awq", packing)
    return replace(found, group_size=None) if own_sizes else found


_READERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors,
            "auto-round": _auto_round}  # fmt: skip


def quantization_of(folder: str | Path) -> Quantization | None:
    """How the folder is quantised; None where nothing in it says that it is.

    Read from `quantization_config` (or `compression_config`) in config.json, else from quantize_config.json (GPTQ) or
    quant_config.json (AWQ). Raises ValueError, one line naming the file and the field, where this is no 4-bit
    format that can be read here.
    """
    folder = user_path(folder)
    source = folder / "config.json"
    config = read_config(source) if source.exists() else {}
    fields, method = config.get("quantization_config") or config.get("compression_config"), None
    if fields is None:
        for name, implied in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).exists():
                source, method = folder / name, implied
                fields = read_config(source)
                break
        else:
            return None
    if not isinstance(fields, dict):
        raise _fail(source, "quantization_config", "an object", fields)
    method = fields.get("quant_method", method)
    if method not in METHODS:
        raise _fail(source, "quant_method", "one of " + ", ".join(METHODS), method)
    for key, value in fields.items():
        harmless = value is None or value is False or value in ("", [], {})
        if key not in _KNOWN[method] and not harmless:
            raise _fail(source, key, "left out: it is not known, and might change what the weights mean", value)
    return _READERS[method](source, fields)


def _read_tensors(folder: Path, module: str, required: list[str], optional: list[str]) -> dict[str, Tensor]:
    files = tensor_files(folder)
    found = {}
    for suffix in required + optional:
        name = f"{module}.{suffix}"
        if name in files:
            with open_tensors(folder / files[name]) as file:
                if name not in file.keys():  # noqa: SIM118 - the file is not a mapping
                    raise ValueError(f"weights {folder / files[name]}: the index names {name}, which is not in it")
                found[suffix] = file.get_tensor(name)
        elif suffix in required:
            dense = f", but {module}.weight: that layer is not quantised" if f"{module}.weight" in files else ""
            raise ValueError(f"weights {folder}: there is no tensor {name}{dense}")
    return found


# Votes of so many modules are read, and so many rows of each: enough for a mean, and no matter of seconds.
_VOTERS, _VOTING_ROWS = 24, 256
# A trained matrix may lie off zero by as much as the version does. Several dozens of them do not all do so.
_LEAST_VOTERS = 8


def gptq_version(folder: Path, label: int) -> int:
    """1 or 2 for a whole folder: its label, unless the modules' own words (:func:`pykernels.quant.gptq.decide_version`)
    are overwhelmingly against it.

    Those of symmetric modules are certain: the zero is 7 or 8 everywhere. Of others at least eight must speak, all of
    them against the label. A UserWarning says that it was overruled.
    """
    files = tensor_files(folder)
    modules = [name.removesuffix(".qzeros") for name in sorted(files) if name.endswith(".qzeros")]
    modules = modules[:: -(-len(modules) // _VOTERS)] if modules else []
    parts = tuple((module, *(files.get(f"{module}.{part}") for part in PARTS[:4])) for module in modules)
    paths = {folder / name for _, *names in parts for name in names if name}
    return _gptq_version(
        folder, label, parts, tuple(sorted(path.stat().st_mtime_ns for path in paths if path.exists()))
    )


@functools.lru_cache(maxsize=8)
def _gptq_version(folder: Path, label: int, modules: tuple[tuple[str, ...], ...], changed: tuple[int, ...]) -> int:
    certain, votes = [], []
    for module, qweight, qzeros, _, g_idx in modules:
        if qweight is None:
            continue
        with open_tensors(folder / qweight) as file:
            rows = file.get_slice(f"{module}.qweight")[:, :_VOTING_ROWS]
        with open_tensors(folder / qzeros) as file:
            zeros = file.get_slice(f"{module}.qzeros")[:, : _VOTING_ROWS // 8]
        order = None
        if g_idx is not None:
            with open_tensors(folder / g_idx) as file:
                order = file.get_tensor(f"{module}.g_idx")
        symmetric = gptq.symmetric_version(zeros)
        certain += [symmetric] if symmetric else []
        votes += [vote] if not symmetric and (vote := gptq.decide_version(rows, zeros, order)) else []
    said = 3 - label
    against = certain if certain else votes
    overruled = bool(against) and set(against) == {said} and (bool(certain) or len(votes) >= _LEAST_VOTERS)
    if not overruled:
        return label
    warnings.warn(
        f"weights {folder}: is labelled GPTQ v{label} and holds v{said} ({len(against)} of {len(modules)} modules that "
        f"were looked at say so): read as v{said}", stacklevel=4,
    )  # fmt: skip
    return said


def read_quantized(folder: str | Path, module: str) -> QuantizedWeight:
    """The weight of a quantised linear layer, such as ``model.layers.0.mlp.up_proj``, in plain form.

    GPTQ's label stands unless the tensors of the whole folder are overwhelmingly against it; they are believed then,
    and a UserWarning says so (:func:`gptq_version`). Raises ValueError, one line naming the folder and the tensor, what
    was expected and what was found.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise ValueError(f"weights {folder}: there is no such folder")
    quantization = quantization_of(folder)
    if quantization is None:
        raise ValueError(f"weights {folder}: is not quantised: config.json has no quantization_config")
    method, group_size = quantization.method, quantization.group_size
    try:
        if method == "gptq":
            tensors = _read_tensors(folder, module, ["qweight", "qzeros", "scales"], ["g_idx"])
            gptq.unpack(**tensors, version=1, group_size=group_size)  # refuses what does not fit, before votes are read
            label = quantization.gptq_version
            assert label is not None  # the reader of a GPTQ configuration always sets it
            return gptq.unpack(**tensors, version=gptq_version(folder, label), group_size=group_size)
        if method == "awq":
            return awq.unpack(**_read_tensors(folder, module, ["qweight", "qzeros", "scales"], []))
        tensors = _read_tensors(
            folder, module, ["weight_packed", "weight_scale", "weight_shape"], ["weight_zero_point", "weight_g_idx"]
        )
        return compressed_tensors.unpack(**tensors, group_size=group_size)
    except ValueError as error:
        if str(error).startswith("weights "):
            raise
        raise ValueError(f"weights {folder}: {module}: {error}") from None
