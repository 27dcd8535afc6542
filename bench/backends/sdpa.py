"""`sdpa` and its pinned backends: torch's scaled_dot_product_attention in a layer of plain torch ops."""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pykernels as pk
from bench.backends.base import Backend, Workload
from bench.backends.torch_layer import TorchLayer
from bench.core.measure import Arm, python_sampler

_MODE_REASONS = {
    "pybind": "torch's ops have no launchers of their own to bind",
    "native": "torch's ops have no launchers below the dispatcher",
    "graph": "needs a CUDA device: there is nothing to capture on a CPU",
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
        rotation = workload.rotation
        layers = [TorchLayer(layer, _attention) for layer in workload.layers]
        with self._surroundings():
            tapes = [layer.tape() for layer in layers]
            kernel = self._kernel(workload.layers[0])
        if mode == "eager":
            sampler = python_sampler([layer.forward for layer in layers], rotation)
            check = workload.checker(layers[0].forward, lambda: layers[0].out)
        else:
            sampler = lambda n: pk.dispatch.timed_loop(rotation.take(tapes, n), 0, n)  # noqa: E731
            check = workload.checker(tapes[0].run, lambda: tapes[0].outputs()[0])
        return Arm(
            self.name, mode, fusion, sampler, check, self._surroundings,
            kernels=[kernel if call.endswith("attention") else call for call in tapes[0].calls],
            launches=len(tapes[0].calls),
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
