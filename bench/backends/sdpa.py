"""`sdpa` and its pinned backends: torch's scaled_dot_product_attention in a layer of plain torch ops."""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pykernels as pk
from bench.backends.base import NO_CAPTURE, Backend, Workload
from bench.backends.torch_layer import TorchLayer
from bench.core.measure import Arm, Sampler
from bench.core.samplers import capture, replay_all

_MODE_REASONS = {
    "pybind": "torch's ops have no launchers of their own to bind",
    "native": "torch's ops have no launchers below the dispatcher",
    "graph-pdl": "torch captures no programmatic dependent launches",
}


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Sdpa(Backend):
    """The dispatcher's own choice of backend."""

    name = "sdpa"
    description = "torch SDPA, its own choice of kernel"
    pinned: ClassVar[SDPBackend | None] = None
    needs_cuda: ClassVar[bool] = False

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        if cls.needs_cuda and device.type != "cuda":
            return "torch has this SDPA kernel for CUDA devices only"
        return None

    @classmethod
    def mode_reason(cls, mode: str, device: torch.device) -> str | None:
        if mode == "graph" and device.type != "cuda":
            return NO_CAPTURE
        return _MODE_REASONS.get(mode)

    def _surroundings(self) -> AbstractContextManager:
        # Entered once around a whole block of steps: the context manager has a cost of its own.
        return nullcontext() if self.pinned is None else sdpa_kernel(self.pinned)

    def _kernel(self, layer: pk.DecodeLayer) -> str:
        if self.pinned is not None:
            return f"scaled_dot_product_attention pinned to {self.pinned.name}"
        q = layer.x.new_zeros(layer.batch, layer.spec.n_heads, 1, layer.spec.head_dim)
        choice = torch._fused_sdp_choice(q, layer.k_cache, layer.v_cache, enable_gqa=True)
        return f"scaled_dot_product_attention, torch's choice {SDPBackend(choice).name}"

    def arm(self, workload: Workload, mode: str, fusion: str | None) -> Arm:
        samplers = workload.samplers
        layers = [TorchLayer(layer, _attention) for layer in workload.layers]
        with self._surroundings():
            tapes = [layer.tape() for layer in layers]
            kernel = self._kernel(workload.layers[0])
            steps = [layer.forward for layer in layers]
            launches = len(tapes[0].calls)
            output = lambda: layers[0].out  # noqa: E731
            host_sampler: Sampler | None = None
            if mode == "eager":
                step, sampler = steps[0], samplers.python(steps)
                host_sampler = samplers.host_python(steps, launches)
            elif mode == "dispatch":
                step, sampler = tapes[0].run, samplers.tapes(tapes)
                host_sampler = samplers.host_tapes(tapes)
                output = lambda: tapes[0].outputs()[0]  # noqa: E731
            else:
                graphs = capture(steps, samplers.repeats)
                step, sampler = replay_all(graphs), samplers.torch_graphs(graphs)
                host_sampler = samplers.host_torch_graphs(graphs, launches)
        return Arm(
            self.name, mode, fusion, sampler, workload.checker(step, output), self._surroundings,
            host_sampler=host_sampler if samplers.on_cuda else None,
            kernels=[kernel if call.endswith("attention") else call for call in tapes[0].calls],
            launches=launches,
            steps_per_graph=samplers.repeats if mode == "graph" else None,
        )  # fmt: skip


class SdpaMath(Sdpa):
    """The unfused composition."""

    name = "sdpa-math"
    description = "torch SDPA pinned to MATH"
    pinned = SDPBackend.MATH


class SdpaFlash(Sdpa):
    """FlashAttention as torch carries it; on a CPU, torch's own tiled kernel of that name."""

    name = "sdpa-flash"
    description = "torch SDPA pinned to FLASH_ATTENTION"
    pinned = SDPBackend.FLASH_ATTENTION


class SdpaEfficient(Sdpa):
    """The memory-efficient kernel."""

    name = "sdpa-efficient"
    description = "torch SDPA pinned to EFFICIENT_ATTENTION"
    pinned = SDPBackend.EFFICIENT_ATTENTION
    needs_cuda = True


class SdpaCudnn(Sdpa):
    """cuDNN's kernel."""

    name = "sdpa-cudnn"
    description = "torch SDPA pinned to CUDNN_ATTENTION"
    pinned = SDPBackend.CUDNN_ATTENTION
    needs_cuda = True
