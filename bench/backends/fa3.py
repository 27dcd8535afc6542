"""`fa3`: FlashAttention-3, Hopper only: the flash_attn_3 package or a library of its ops as vLLM ships them."""

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.flash import Attend, FlashAttention, _FlashCache, arguments


def splits_of(metadata: Tensor, batch: int) -> list[int] | None:
    """Into how many parts each sequence's keys are split, from get_scheduler_metadata's result; None where its layout
    is another.

    metadata: int32, made and not yet used, as vLLM's hopper/flash_api.cpp lays it out (mha_fwd_get_scheduler_metadata):
    a vector of query rows; where keys may be split, one of splits; those of other masks than ours; the tile counter,
    which is zero. A vector has `batch` entries that are written, and is filled up to a multiple of four. Earlier
    versions begin with the counter: a first zero is none of this layout.
    """
    values, stride = metadata.flatten().tolist(), -(-batch // 4) * 4
    vectors, rest = divmod(len(values), stride)
    if rest != 1 or vectors < 1 or values[-1] != 0 or values[0] < 1:
        return None
    splits = values[stride : stride + batch] if vectors > 1 else [1] * batch
    return splits if min(splits) >= 1 else None


def plan_of(metadata: Tensor, batch: int) -> dict[str, list[int]]:
    """What is shown of the schedule."""
    splits = splits_of(metadata, batch)
    return {"num_splits": splits} if splits else {}


class FlashAttention3(FlashAttention):
    """flash_attn_with_kvcache, or torch.ops._vllm_fa3_C.fwd, with the scheduler's metadata made beforehand."""

    name = "fa3"
    description = "FlashAttention-3 (flash_attn_3)"
    install_hint = "build hopper/ of Dao-AILab/flash-attention (needs nvcc), or PYKERNELS_FA3_LIB=_vllm_fa3_C.abi3.so"
    package = "flash_attn_interface"
    library_variable = "PYKERNELS_FA3_LIB"
    namespace = "_vllm_fa3_C"
    op = "fwd"
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
        return f"{self.namespace}::{self.op}" if self._has_ops() else "flash_attn_interface.flash_attn_with_kvcache"

    def _bind(self, cache: _FlashCache, layer: pk.DecodeLayer) -> Attend:
        library, slots, kv_len, spec = self._library(), cache.k_cache.shape[1], layer.kv_len, layer.spec
        if not self._has_ops():
            metadata = library.get_scheduler_metadata(
                layer.batch, 1, slots, spec.n_heads, spec.n_kv_heads, spec.head_dim, kv_len, qkv_dtype=layer.dtype
            )
            cache.plan = plan_of(metadata, layer.batch)
            return lambda q, k, v: library.flash_attn_with_kvcache(
                q, k, v, cache_seqlens=kv_len, scheduler_metadata=metadata
            )
        plan, op = library.get_scheduler_metadata.default, library.fwd.default
        metadata = plan(
            *arguments(
                plan._schema, batch_size=layer.batch, max_seqlen_q=1, max_seqlen_k=slots, num_heads=spec.n_heads,
                num_heads_k=spec.n_kv_heads, headdim=spec.head_dim, headdim_v=spec.head_dim, qkv_dtype=layer.dtype,
                seqused_k=kv_len,
            )
        )  # fmt: skip
        rest = arguments(
            op._schema, ("q", "k", "v"), seqused_k=kv_len, softmax_scale=spec.head_dim**-0.5,
            scheduler_metadata=metadata,
        )  # fmt: skip
        cache.plan = plan_of(metadata, layer.batch)
        return lambda q, k, v: op(q, k, v, *rest)[0]
