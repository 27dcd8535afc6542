"""A weight of a checkpoint: a tensor, or rows of one, read as it is needed."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pykernels.checkpoint import open_tensors
from pykernels.quant import Int4Weight


@dataclass(frozen=True)
class Part:
    """Where a weight lies: rows of a tensor, `first` on, of `rows` in all (0: the whole tensor), and in what order its
    rows go into memory (None: as they are)."""

    tensor: str
    first: int = 0
    rows: int = 0
    order: list[int] | None = None


_SAFETENSORS_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPE_FLAGS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


def read_tensor(path: Path, part: Part, shape: tuple[int, ...], dtype: torch.dtype, convert: bool = False) -> Tensor:
    """A tensor of a file, or the rows of one, of that shape. convert: one of another float type is rounded to `dtype`,
    and a warning says so. Raises ValueError, one line naming the file and the tensor, where it is not there, of another
    shape or type."""
    tensor = _read_rows(path, part, shape, dtype, convert)
    return tensor if part.order is None else tensor[part.order]


def _read_rows(path: Path, part: Part, shape: tuple[int, ...], dtype: torch.dtype, convert: bool) -> Tensor:
    name, whole = part.tensor, (part.rows or shape[0], *shape[1:])
    rows = slice(part.first, part.first + shape[0])
    with open_tensors(path) as file:
        if name not in file.keys():  # noqa: SIM118 - the file is not a mapping
            raise ValueError(f"weights {path}: the index names {name}, which is not in it")
        header = file.get_slice(name)
        found_shape, found_type = tuple(header.get_shape()), header.get_dtype()
        if found_shape != whole:
            raise ValueError(f"weights {path}: {name} must be of shape {list(whole)}, got {list(found_shape)}")
        wanted = _SAFETENSORS_TYPES[dtype]
        if found_type == wanted:
            return header[rows] if part.rows else file.get_tensor(name)
        if not convert or found_type not in _DTYPE_FLAGS:
            flag = _DTYPE_FLAGS.get(found_type)
            hint = f" (read it with --dtype={flag})" if flag else ""
            raise ValueError(f"weights {path}: {name} must be {wanted}, got {found_type}{hint}")
        tensor = file.get_tensor(name)
        converted = tensor.to(dtype)
        if not torch.equal(converted.isfinite(), tensor.isfinite()):
            raise ValueError(f"weights {path}: {name} is {found_type} and has numbers too large for {wanted}")
        # The same words for every layer: they are said once.
        warnings.warn(f"weights {path.parent}: norms or biases of {found_type} are converted to {wanted}", stacklevel=3)
        return converted


def unused(path: Path, name: str) -> str | None:
    """Why a tensor that this model does not use is in the way; None where it changes nothing: the angles that older
    llama checkpoints carry along, and biases that are zero."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    if not name.endswith(".bias"):
        return "is not used: the model that is computed here has no such tensor"
    with open_tensors(path) as file:
        if name not in file.keys():  # noqa: SIM118 - the file is not a mapping
            return "is named by the index and not in the file"
        return "is not zero, and the model has no such bias" if bool(file.get_tensor(name).any()) else None


def read_int4(folder: Path, module: str, part: Part, shape: tuple[int, ...], dtype: torch.dtype) -> Int4Weight:
    """The same of a quantised module, of [out_features, in_features] `shape`, its scales of `dtype`. Raises ValueError,
    one line naming the module, where it is of another shape or cannot be read."""
    try:
        weight = Int4Weight.from_folder(folder, module, dtype)
    except ValueError as error:
        text = str(error)
        raise ValueError(
            text if text.startswith(("weights ", "config ")) else f"weights {folder}: {module}: {text}"
        ) from None
    found, whole = (weight.out_features, weight.in_features), (part.rows or shape[0], *shape[1:])
    if found != whole:
        raise ValueError(f"weights {folder}: {module} must be of shape {list(whole)}, got {list(found)}")
    if not part.rows and part.order is None:
        return weight
    rows = torch.arange(part.first, part.first + shape[0])[slice(None) if part.order is None else part.order]
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return Int4Weight(weight.packed[rows], weight.scales[rows], zeros, weight.perm)
