"""A captured step launched again node by node: mode ``native`` of code that has no launchers of ours.

A CUDA graph of torch's holds what a step launched: kernels with their arguments, fills and copies of memory. Launched
one by one through the driver from a C++ loop, they cost what launching costs, and neither Python nor the dispatcher::

    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        step()
    again = pk.runtime.Relaunch(graph, owners=[step])
    again.run(torch.cuda.current_stream().cuda_stream)
    samples_us = pk.runtime.cuda_timed_loop([again], stream, warmup=0, samples=30)

A relaunch reads and writes the memory that the capture did. It does no more than a replay of the graph: what the host
did while the step was captured is not done again, and a random number generator does not go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pykernels import _runtime

DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Node:
    """One launch of a step: `kind` is kernel, memset or memcpy."""

    kind: str
    name: str
    """A kernel's, demangled; else what it does, in words."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    """Dynamic, of a block."""
    bytes: int
    """That a memset or memcpy writes."""
    attributes: tuple[str, ...]
    """Those that differ from the default: `cluster 2x1x1`, `cooperative`, `programmatic`, `priority -5`, ..."""


class Relaunch:
    """The nodes of a captured step, in an order that the graph's edges allow.

    graph: a ``torch.cuda.CUDAGraph(keep_graph=True)`` that has been captured; it need not be instantiated. It is kept,
    with the memory of its pool, and so are the `owners` of whatever else the step reads.
    serialise: run parallel branches one after another, where the step has any; without it they are refused.
    programmatic: parts of the names of kernels that get programmatic stream serialization (PDL), whatever the graph
    says of them.

    Raises ValueError where the step holds what cannot be launched by itself (a host function, a child graph, a
    conditional node, an allocation), has parallel branches or launches nothing; RuntimeError where the driver fails.
    """

    def __init__(
        self,
        graph: "torch.cuda.CUDAGraph",
        *,
        device: int | None = None,
        serialise: bool = False,
        programmatic: Sequence[str] = (),
        owners: Sequence[Any] = (),
        library: str = DRIVER,
    ) -> None:
        self._held = (graph, tuple(owners))
        index = torch.cuda.current_device() if device is None else device
        self._launches = _runtime.Relaunch(graph.raw_cuda_graph(), index, serialise, list(programmatic), library)

    def run(self, stream: int = 0) -> None:
        """Enqueue every node on a ``cudaStream_t`` of the graph's device."""
        self._launches.run(stream)

    def __len__(self) -> int:
        return len(self._launches)

    @property
    def nodes(self) -> list[Node]:
        """What is launched, in order."""
        return [
            Node(n.kind, n.name, n.grid, n.block, n.shared_bytes, n.bytes, tuple(n.attributes))
            for n in self._launches.nodes
        ]

    @property
    def branches(self) -> int:
        """How many nodes do not wait for the one before them; 0 where the step is a chain."""
        return self._launches.branches


def timed(
    relaunches: Sequence[Relaunch], stream: int, warmup: int, samples: int, repeats: int, host: bool
) -> np.ndarray:
    """What ``pk.runtime.cuda_timed_loop`` and ``cuda_host_loop`` do with relaunches: float64 [samples], us a step."""
    launches = [relaunch._launches for relaunch in relaunches]
    return _runtime.cuda_timed_relaunches(launches, stream, warmup, samples, repeats, host)
