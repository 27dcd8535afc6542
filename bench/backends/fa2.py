"""`fa2`: FlashAttention-2, the flash-attn package or a library of its ops as vLLM ships them."""

import torch

import pykernels as pk
from bench.backends.flash import Attend, FlashAttention, _FlashCache, arguments


class FlashAttention2(FlashAttention):
    """flash_attn_with_kvcache, or torch.ops._vllm_fa2_C.fwd_kvcache: split KV, grouped heads, splits by heuristic."""

    name = "fa2"
    description = "FlashAttention-2 (flash-attn)"
    install_hint = "pip install flash-attn --no-build-isolation (needs nvcc), or PYKERNELS_FA2_LIB=_vllm_fa2_C.abi3.so"
    package = "flash_attn"
    library_variable = "PYKERNELS_FA2_LIB"
    namespace = "_vllm_fa2_C"
    op = "fwd_kvcache"
    no_dispatch = (
        "flash-attn's function is no op of torch, and the library's op returns a list, which a tape cannot hold"
    )

    @classmethod
    def device_reason(cls, device: torch.device) -> str | None:
        if reason := super().device_reason(device):
            return reason
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "FlashAttention only supports Ampere GPUs or newer"
        return None

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return f"{self.namespace}::{self.op}" if self._has_ops() else "flash_attn.flash_attn_with_kvcache"

    def _bind(self, cache: _FlashCache, layer: pk.DecodeLayer) -> Attend:
        library, kv_len = self._library(), layer.kv_len
        if not self._has_ops():
            return lambda q, k, v: library.flash_attn_with_kvcache(q, k, v, cache_seqlens=kv_len)
        op = library.fwd_kvcache.default
        rest = arguments(
            op._schema, ("q", "kcache", "vcache"), seqlens_k=kv_len, softmax_scale=layer.spec.head_dim**-0.5
        )
        return lambda q, k, v: op(q, k, v, *rest)[0]
