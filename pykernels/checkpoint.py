"""The files of a local Hugging Face folder: its configurations, and model.safetensors or its shards and their index.
Where neither is there, the only file of another name."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pykernels.files import NotRegularError, open_regular, read_regular


def read_config(path: Path) -> dict[str, Any]:
    """A configuration, which is a JSON object. Raises ValueError, one line naming the file, where it is none."""
    try:
        fields = json.loads(read_regular(path).decode())
    except FileNotFoundError:
        raise ValueError(f"config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, NotRegularError) as error:
        raise ValueError(f"config {path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError, and numbers or nesting past Python's limits
        raise ValueError(f"config {path}: is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"config {path}: must be a JSON object, got {type(fields).__name__}")
    return fields


def open_tensors(path: Path) -> safe_open:
    """A safetensors file. Raises ValueError, one line naming the file, where there is none or it is broken."""
    try:
        with open_regular(path):  # safe_open waits for a pipe
            return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"weights {path}: there is no such file") from None
    except NotRegularError as error:
        raise ValueError(f"weights {path}: {error}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights {path}: is not a whole safetensors file: {error}") from None


def _named(folder: Path, ending: str) -> Path:
    """The file of that ending by its usual name, or the only one by another, as older GPTQ writers name theirs."""
    path, others = folder / f"model{ending}", sorted(folder.glob(f"*{ending}"))
    return others[0] if not path.exists() and len(others) == 1 else path


def tensor_files(folder: Path) -> dict[str, str]:
    """Which file of the folder holds each tensor. Raises ValueError, one line naming the folder or file."""
    if not folder.is_dir():
        raise ValueError(f"weights {folder}: there is no such folder")
    index = _named(folder, ".safetensors.index.json")
    if not index.exists():
        whole = _named(folder, ".safetensors")
        with open_tensors(whole) as file:
            return dict.fromkeys(file.keys(), whole.name)
    try:
        files = json.loads(read_regular(index).decode())["weight_map"]
        # A name from the index must stay a name in the folder.
        if not all(Path(file).name == file and file != ".." for file in files.values()):
            raise ValueError("a file outside the folder")
        return files
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"weights {index}: must map tensors to files in weight_map: {error!r}") from None
