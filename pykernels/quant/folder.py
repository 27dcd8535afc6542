"""Quantised layers of a local Hugging Face folder: what its configuration says, and what its tensors say."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pykernels.checkpoint import open_tensors, read_config, tensor_files
from pykernels.quant import awq, compressed_tensors, gptq
from pykernels.quant.weight import QuantizedWeight

METHODS = ("gptq", "awq", "compressed-tensors")


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
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _fail(source, "config_groups", "an object of at least one group", groups)
    sizes = set()
    for name, group in groups.items():
        if mixed and isinstance(group, dict) and not _is_packed_4_bit(group):
            continue
        weights = group.get("weights") if isinstance(group, dict) else None
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


_READERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}


def quantization_of(folder: str | Path) -> Quantization | None:
    """How the folder is quantised; None where nothing in it says that it is.

    Read from `quantization_config` (or `compression_config`) in config.json, else from quantize_config.json (GPTQ) or
    quant_config.json (AWQ). Raises ValueError, one line naming the file and the field, where this is no 4-bit
    format that can be read here.
    """
    folder = Path(folder).expanduser()
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


def read_quantized(folder: str | Path, module: str) -> QuantizedWeight:
    """The weight of a quantised linear layer, such as ``model.layers.0.mlp.up_proj``, in plain form.

    GPTQ's label is not trusted: where the tensors say v1 and the label v2, or the other way about, the tensors are
    believed and a UserWarning says so (see :func:`pykernels.quant.gptq.decide_version`). Raises ValueError, one line
    naming the folder and the tensor, what was expected and what was found.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"weights {folder}: there is no such folder")
    quantization = quantization_of(folder)
    if quantization is None:
        raise ValueError(f"weights {folder}: is not quantised: config.json has no quantization_config")
    method, group_size = quantization.method, quantization.group_size
    try:
        if method == "gptq":
            tensors = _read_tensors(folder, module, ["qweight", "qzeros", "scales"], ["g_idx"])
            label = quantization.gptq_version
            assert label is not None  # the reader of a GPTQ configuration always sets it
            weight = gptq.unpack(**tensors, version=label, group_size=group_size)  # refuses what does not fit
            said = gptq.decide_version(tensors["qweight"], tensors["qzeros"], tensors.get("g_idx"))
            if said in (None, label):
                return weight
            warnings.warn(
                f"weights {folder}: {module} is labelled GPTQ v{label} and holds v{said}: read as v{said}", stacklevel=2
            )
            return gptq.unpack(**tensors, version=said, group_size=group_size)
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
