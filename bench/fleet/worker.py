"""What a node does for a cluster's driver: say who it is, and measure cells. Nothing here knows of Ray."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.core.document import Document
from bench.fleet import node
from bench.fleet.cells import Cell, Measurer

_measurers: dict[str, Measurer] = {}


def _as_any_program() -> None:
    """Ray's workers have niceness 15, so that even Ray's own processes go before a cell's host clocks. Whoever may, as
    root may, takes that back."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def identity() -> Document:
    """What a node says of itself."""
    _as_any_program()
    return node.identity()


def measure_cell(
    cell: dict[str, Any], flags: list[str], kind: str, on_gpu: bool, with_controls: bool, limit_s: float
) -> Document:
    """Measure one cell on this node. Raises ValueError where its GPU is of another kind."""
    _as_any_program()
    if kind and (lie := node.lie(kind, node.gpu_names())):
        raise ValueError(lie)
    # A process is used again for cells of another GPU: its children see that one, and it never uses one itself.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if on_gpu else "cpu"
    if visible not in _measurers:
        _measurers[visible] = Measurer(torch.device("cuda", 0) if on_gpu else torch.device("cpu"), with_controls)
    with tempfile.TemporaryDirectory() as folder:
        return _measurers[visible].measure(Cell(**cell), flags, Path(folder) / "cell.json", limit_s)
