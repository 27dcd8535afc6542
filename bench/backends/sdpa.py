"""`sdpa` and its pinned backends: torch's scaled_dot_product_attention in a layer of plain torch ops.

KV layout: the layer's own, [batch, n_kv_heads, ctx, head_dim].
"""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pykernels as pk
from bench.backends.plain import PlainLayer
from bench.backends.torch_layer import Attention, LayerCache, TorchLayer


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Default SDPA with grouped heads (torch_layer.Kernel)."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def choice_of(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The backend that default SDPA takes for these, with the flags as they are; ERROR where it has none."""
    try:
        return SDPBackend(torch._fused_sdp_choice(q, k, v, enable_gqa=True)).name
    except RuntimeError:  # how a CPU says so; there the words are no more than that
        return SDPBackend.ERROR.name


class Sdpa(PlainLayer):
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

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return LayerCache(layer, sdpa)

    def surroundings(self) -> AbstractContextManager:
        # Entered once around a whole block of steps: the context manager has a cost of its own.
        return nullcontext() if self.pinned is None else sdpa_kernel(self.pinned)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        if self.pinned is not None:
            return f"scaled_dot_product_attention pinned to {self.pinned.name}"
        q = layer.k_cache.new_zeros(layer.batch, layer.spec.n_heads, 1, layer.spec.head_dim)
        choice = choice_of(q, layer.k_cache, layer.v_cache)
        return f"scaled_dot_product_attention, torch's choice {choice}"

    def _calls(self, layer: TorchLayer) -> list[str]:
        if layer.layer.spec.gelu:  # its calls cannot go on a tape
            return super()._calls(layer)
        # As a tape has them: SDPA is one call there, and what it falls into depends on the choice.
        kernel = self.kernel_name(layer.layer)
        return [kernel if call.endswith("attention") else call for call in layer.tape().calls]


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
