"""`fa4`: FlashAttention-4, the flash-attn-4 package: kernels in CuTe DSL, compiled at their first call.

KV layout: [batch, slots, n_kv_heads, head_dim], as for FlashAttention 2 and 3. torch's switch for SDPA,
`torch.nn.attention.activate_flash_attention_impl("FA4")`, calls the same function and replaces SDPA's flash backend for
the whole process; this adapter calls it by itself.
"""

from typing import Any

import torch

import pykernels as pk
from bench.backends.flash import Attend, _FlashCache
from bench.backends.plain import LibraryLayer
from bench.backends.torch_layer import Attention

_CAPABILITIES = (9, 10)
_SPLITS_ON = 10
"""Of compute capability 10.x alone it splits the KV axis (Flash-Decoding), by a heuristic of its own: num_splits=0."""

_MOST_HEAD_DIM = {9: 256, 10: 128}


class FlashAttention4(LibraryLayer):
    """flash_attn_varlen_func over caches of which each sequence has used a part (seqused_k)."""

    name = "fa4"
    description = "FlashAttention-4 (flash-attn-4, CuTe DSL)"
    install_hint = "pip install 'flash-attn-4>=4.0.0b36'"
    package = "flash_attn.cute"
    no_dispatch = "flash-attn-4's function is no op of torch"

    @classmethod
    def device_reason(cls, device: torch.device) -> str | None:
        if reason := super().device_reason(device):
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if major not in _CAPABILITIES:
            return f"needs compute capability 9.0 or 10.x, and this GPU has {major}.{minor}"
        return None

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        if layer.dtype == torch.float32:
            return "FlashAttention only supports fp16 and bf16"
        dim, most = layer.spec.head_dim, max(_MOST_HEAD_DIM.values())
        if layer.device.type == "cuda":
            most = _MOST_HEAD_DIM[torch.cuda.get_device_capability(layer.device)[0]]
        if dim % 8 or not (8 <= dim <= most or dim == 256):
            return f"head_dim must be a multiple of 8 up to {most}, or 256, got {dim}"
        return None

    @classmethod
    def _library(cls) -> Any:
        library = super()._library()
        if not hasattr(library, "flash_attn_varlen_func"):
            raise ImportError("this flash_attn.cute has no flash_attn_varlen_func")
        return library

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "flash_attn.cute.flash_attn_varlen_func"

    def _bind(self, cache: _FlashCache, layer: pk.DecodeLayer) -> Attend:
        attend, kv_len, slots = self._library().flash_attn_varlen_func, layer.kv_len, cache.k_cache.shape[1]
        on_cuda = layer.device.type == "cuda"
        chooses = on_cuda and torch.cuda.get_device_capability(layer.device)[0] == _SPLITS_ON
        splits = 0 if chooses else 1
        cache.plan = {"num_splits": "its heuristic" if chooses else 1}
        return lambda q, k, v: _first(
            attend(q, k, v, seqused_k=kv_len, max_seqlen_q=1, max_seqlen_k=slots, num_splits=splits)
        )

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return _FlashCache(layer, self._bind)


def _first(result: Any) -> torch.Tensor:
    """The output: some releases return the log-sum-exp with it."""
    return result[0] if isinstance(result, tuple) else result
