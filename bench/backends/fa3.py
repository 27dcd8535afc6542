"""`fa3`: FlashAttention-3, Hopper only: the flash_attn_3 package or a library of its ops as vLLM ships them."""

import torch

import pykernels as pk
from bench.backends.flash import Attend, FlashAttention, _FlashCache, arguments


class FlashAttention3(FlashAttention):
    """flash_attn_with_kvcache, or torch.ops._vllm_fa3_C.fwd, with the scheduler's metadata made beforehand."""

    name = "fa3"
    description = "FlashAttention-3 (flash_attn_3)"
    install_hint = "build hopper/ of Dao-AILab/flash-attention (needs nvcc), or PYKERNELS_FA3_LIB=_vllm_fa3_C.abi3.so"
    package = "flash_attn_interface"
    library_variable = "PYKERNELS_FA3_LIB"
    namespace = "_vllm_fa3_C"
    no_dispatch = (
        "flash_attn_3's op runs Python below the dispatcher, and the library's returns a list, no tape's result"
    )

    @classmethod
    def device_reason(cls, device: torch.device) -> str | None:
        if reason := super().device_reason(device):
            return reason
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) != (9, 0):
            return f"has kernels of compute capability 9.0, and the GPU's is {major}.{minor}"
        return None

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return f"{self.namespace}::fwd" if self._has_ops() else "flash_attn_interface.flash_attn_with_kvcache"

    def _bind(self, cache: _FlashCache, layer: pk.DecodeLayer) -> Attend:
        library, slots, kv_len, spec = self._library(), cache.k_cache.shape[1], layer.kv_len, layer.spec
        if not self._has_ops():
            metadata = cache.metadata = library.get_scheduler_metadata(
                layer.batch, 1, slots, spec.n_heads, spec.n_kv_heads, spec.head_dim, kv_len, qkv_dtype=layer.dtype
            )
            return lambda q, k, v: library.flash_attn_with_kvcache(
                q, k, v, cache_seqlens=kv_len, scheduler_metadata=metadata
            )
        plan, op = library.get_scheduler_metadata.default, library.fwd.default
        cache.metadata = plan(
            *arguments(
                plan._schema, batch_size=layer.batch, max_seqlen_q=1, max_seqlen_k=slots, num_heads=spec.n_heads,
                num_heads_k=spec.n_kv_heads, headdim=spec.head_dim, headdim_v=spec.head_dim, qkv_dtype=layer.dtype,
                seqused_k=kv_len,
            )
        )  # fmt: skip
        rest = arguments(
            op._schema, ("q", "k", "v"), seqused_k=kv_len, softmax_scale=spec.head_dim**-0.5,
            scheduler_metadata=cache.metadata,
        )  # fmt: skip
        return lambda q, k, v: op(q, k, v, *rest)[0]
