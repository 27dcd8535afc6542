"""`flashinfer`: FlashInfer's decode kernels.

KV layout: NHD, [kv_len, n_kv_heads, head_dim] a sequence; for a batch the same memory as pages of 16 slots,
[batch * pages, 16, n_kv_heads, head_dim]. A copy made beforehand, to which the layer appends by torch's ops.
"""

from types import ModuleType

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.plain import LibraryLayer
from bench.backends.torch_layer import Attention, TokenMajorCache

# Group sizes of the kernels on CUDA cores (DISPATCH_GQA_GROUP_SIZE of FlashInfer 0.7); others go to the tensor cores.
CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8, 16)
PAGE_SIZE = 16
# What FlashInfer's documentation recommends for the wrapper's workspace; it must begin as zeros.
_WORKSPACE_BYTES = 128 << 20


def needs_tensor_cores(layer: pk.DecodeLayer) -> bool:
    """Whether the heads' group size has no kernel on CUDA cores."""
    return layer.spec.n_heads // layer.spec.n_kv_heads not in CUDA_CORE_GROUPS


class _SingleDecode(TokenMajorCache):
    """single_decode_with_kv_cache: one sequence, split KV by the library's choice, no plan."""

    def __init__(self, library: ModuleType, layer: pk.DecodeLayer) -> None:
        super().__init__(layer)
        self._decode, self._tensor_cores = library.single_decode_with_kv_cache, needs_tensor_cores(layer)
        kv_len = self.position + 1
        self._keys, self._values = self.k_cache[0, :kv_len], self.v_cache[0, :kv_len]

    def attend(self, q: Tensor) -> Tensor:
        q = q[0, :, 0]
        return self._decode(q, self._keys, self._values, kv_layout="NHD", use_tensor_cores=self._tensor_cores)


class _BatchDecode(TokenMajorCache):
    """BatchDecodeWithPagedKVCacheWrapper, planned when it is made: the lengths do not change between steps."""

    def __init__(self, library: ModuleType, layer: pk.DecodeLayer) -> None:
        super().__init__(layer, PAGE_SIZE)
        spec, batch, kv_len = layer.spec, layer.batch, self.position + 1
        self._pages = tuple(
            cache.view(-1, PAGE_SIZE, spec.n_kv_heads, spec.head_dim) for cache in (self.k_cache, self.v_cache)
        )
        pages_each, used = self.k_cache.shape[1] // PAGE_SIZE, -(-kv_len // PAGE_SIZE)
        numbers = torch.arange(batch * pages_each, dtype=torch.int32, device=layer.device).view(batch, pages_each)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=layer.device)
        self._wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=needs_tensor_cores(layer)
        )
        self._wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32, device=layer.device) * used,
            numbers[:, :used].flatten(),
            torch.full((batch,), (kv_len - 1) % PAGE_SIZE + 1, dtype=torch.int32, device=layer.device),
            spec.n_heads, spec.n_kv_heads, spec.head_dim, PAGE_SIZE,
            q_data_type=layer.dtype, kv_data_type=layer.dtype,
        )  # fmt: skip

    def attend(self, q: Tensor) -> Tensor:
        return self._wrapper.run(q[:, :, 0], self._pages)


class FlashInfer(LibraryLayer):
    """Single decode for one sequence, planned batch decode for more."""

    name = "flashinfer"
    description = "FlashInfer decode"
    install_hint = "pip install flashinfer-python (compiles its kernels at first use: needs nvcc)"
    package = "flashinfer"
    no_dispatch = "FlashInfer's functions are no ops of torch's dispatcher"

    def _kernel(self, layer: pk.DecodeLayer) -> str:
        function = "single_decode_with_kv_cache" if layer.batch == 1 else "BatchDecodeWithPagedKVCacheWrapper.run"
        return f"flashinfer.{function} on {'tensor' if needs_tensor_cores(layer) else 'CUDA'} cores"

    def _attention(self, layer: pk.DecodeLayer) -> Attention:
        return (_SingleDecode if layer.batch == 1 else _BatchDecode)(self._library(), layer)
