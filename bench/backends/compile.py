"""`compile`: the plain torch layer, default SDPA in it, through torch.compile, a whole step at once.

KV layout: the layer's own, [batch, n_kv_heads, ctx, head_dim]. Compilation happens while the arm is made.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

import pykernels as pk
from bench.backends.plain import PlainLayer
from bench.backends.sdpa import sdpa
from bench.backends.torch_layer import Attention, LayerCache, TorchLayer


def compiler_reason(device: torch.device) -> str | None:
    """Why inductor cannot compile for that device; None where what it needs is there."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "inductor needs triton on CUDA: No module named 'triton'"
    compiler = os.environ.get("CXX") or "g++"
    return None if shutil.which(compiler) else f"inductor needs a C++ compiler on the CPU: no {compiler} (set CXX)"


def room_for(compilations: int) -> AbstractContextManager[None]:
    """Torch gives up on code that it has compiled a number of times. Copies of a layer, all of the same code, do not
    count while they are compiled for the first time."""
    from torch._dynamo import config  # a second of import, for those who compile

    return config.patch(
        recompile_limit=config.recompile_limit + compilations,
        accumulated_recompile_limit=config.accumulated_recompile_limit + compilations,
    )


class Compile(PlainLayer):
    """Inductor's default. Mode graph captures the code it made like any other step's."""

    name = "compile"
    description = "torch.compile of the plain torch layer"
    no_dispatch = "the step is code that torch.compile makes, no chain of calls of torch's dispatcher"

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return compiler_reason(device)

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return LayerCache(layer, sdpa)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "torch.compile of the layer"

    def _calls(self, layer: TorchLayer) -> list[str]:
        # What inductor fused is not known from outside; on a GPU the trace names the kernels.
        return [self.kernel_name(layer.layer)]

    def _steps(self, layers: list[TorchLayer]) -> Sequence[Callable[[], object]]:
        # fullgraph: a break in the graph, or a recompilation too many, is an error and not a slow arm.
        steps = [torch.compile(layer.forward, dynamic=False, fullgraph=True) for layer in layers]
        with room_for(len(layers)):
            for step in steps:
                step()
        return steps


class CompileGraphs(Compile):
    """mode="reduce-overhead": inductor's own CUDA graphs, one replay a call."""

    name = "compile-graphs"
    description = 'torch.compile of the plain torch layer, mode="reduce-overhead"'
    results_last = False  # inductor's graphs share their memory

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "needs a CUDA device: inductor has nothing to capture on a CPU"
        return compiler_reason(device)

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        if mode in ("graph", "native"):
            return "inductor replays graphs of its own: that is its mode eager"
        return super().mode_reason(mode, device)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return 'torch.compile(mode="reduce-overhead") of the layer'

    def _steps(self, layers: list[TorchLayer]) -> Sequence[Callable[[], object]]:
        from torch._dynamo.utils import counters

        skips = counters["inductor"]["cudagraph_skips"]
        steps = []
        for layer in layers:
            # Inductor copies inputs into its graph, and refuses a graph that writes to an input, unless their
            # addresses are promised to stay.
            cache = layer.attention
            held = [*vars(layer.layer.weights).values(), layer.layer.x, *layer.angles, *layer.q_angles]
            for tensor in (*held, cache.k_cache, cache.v_cache):
                if tensor is not None:
                    torch._dynamo.mark_static_address(tensor)
            step = torch.compile(layer.forward, mode="reduce-overhead", dynamic=False, fullgraph=True)
            with room_for(len(layers)):
                for _ in range(3):  # it compiles and warms up, captures, replays
                    step()
            steps.append(step)
        if counters["inductor"]["cudagraph_skips"] > skips:
            raise RuntimeError("inductor skipped its CUDA graphs (TORCH_LOGS=perf_hints says why)")
        return steps
