"""A graph of the null kernel, replayed from C++ and from torch."""

from functools import partial
from typing import ClassVar

import numpy as np
import torch

import pykernels as pk
from bench.core import samplers
from bench.launch.launchers.base import FromCpp, FromPython, Launcher, Ready, current_stream, null_program, pointers


class GraphLoop(Launcher):
    """Our own graph."""

    name = "graph"
    description = "C++ loop over cudaGraphLaunch of one null kernel"
    arguments = (1,)
    nodes: ClassVar[int] = 1

    def make(self, arguments: int, device: torch.device) -> Ready:
        graph, stream = pk.runtime.CudaGraph([null_program(device)] * self.nodes), current_stream()
        graph.replay(stream)

        def timed(warmup: int, samples: int, repeats: int, host: bool) -> np.ndarray:
            if host:
                return pk.runtime.cuda_host_loop([graph], stream, warmup, samples)
            return pk.runtime.cuda_timed_loop([graph], stream, warmup, samples, repeats)

        return FromCpp(timed, partial(graph.replay, stream), self.nodes)


class GraphOf100(GraphLoop):
    name = "graph-100"
    description = "the same of a hundred, a launch of them"
    nodes = 100


class TorchGraph(Launcher):
    name = "torch-graph"
    description = "torch.cuda.CUDAGraph.replay() of one null op from Python"
    arguments = (1,)

    def make(self, arguments: int, device: torch.device) -> Ready:
        (x,) = pointers(1, device)
        (graph,) = samplers.capture([partial(pk.ops.null, x)], 1)
        graph.replay()
        return FromPython(graph.replay, device)
