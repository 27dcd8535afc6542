"""`flashinfer` and `flashinfer-tc`: FlashInfer's decode kernels, as its functions come and on tensor cores.

KV layout: NHD, [kv_len, n_kv_heads, head_dim] a sequence; for a batch the same memory as pages of 16 slots,
[batch * pages, 16, n_kv_heads, head_dim]. A copy made beforehand, to which the layer appends by torch's ops.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

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

    def __init__(self, library: ModuleType, layer: pk.DecodeLayer, tensor_cores: bool) -> None:
        super().__init__(layer)
        self._decode, self._tensor_cores = library.single_decode_with_kv_cache, tensor_cores

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        kv_len = self.position + 1
        return self._call(q[0, :, 0], k_cache[0, :kv_len], v_cache[0, :kv_len])

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        kv_len = self.position + 1
        query, keys, values = q[0, :, 0], self.k_cache[0, :kv_len], self.v_cache[0, :kv_len]
        return lambda: self._call(query, keys, values)

    def _call(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self._decode(q, keys, values, kv_layout="NHD", use_tensor_cores=self._tensor_cores)


class _BatchDecode(TokenMajorCache):
    """BatchDecodeWithPagedKVCacheWrapper, planned beforehand: the lengths do not change between steps.

    Copies of a layer share a wrapper, as layers of a model do: it holds no addresses of caches.
    """

    def __init__(
        self, library: ModuleType, layer: pk.DecodeLayer, tensor_cores: bool, wrappers: dict[tuple, Any]
    ) -> None:
        super().__init__(layer, PAGE_SIZE)
        key = (layer.spec, layer.batch, self.k_cache.shape, self.position, layer.dtype)
        if key not in wrappers:
            wrappers[key] = self._plan(library, layer, tensor_cores)
        self._wrapper = wrappers[key]

    def _plan(self, library: ModuleType, layer: pk.DecodeLayer, tensor_cores: bool) -> Any:
        spec, batch, kv_len = layer.spec, layer.batch, self.position + 1
        pages_each, used = self.k_cache.shape[1] // PAGE_SIZE, -(-kv_len // PAGE_SIZE)
        numbers = torch.arange(batch * pages_each, dtype=torch.int32, device=layer.device).view(batch, pages_each)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=layer.device)
        wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=tensor_cores)
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32, device=layer.device) * used,
            numbers[:, :used].flatten(),
            torch.full((batch,), (kv_len - 1) % PAGE_SIZE + 1, dtype=torch.int32, device=layer.device),
            spec.n_heads, spec.n_kv_heads, spec.head_dim, PAGE_SIZE,
            q_data_type=layer.dtype, kv_data_type=layer.dtype,
        )  # fmt: skip
        return wrapper

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return self._wrapper.run(q[:, :, 0], self.pages(k_cache, v_cache))

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        run, query, pages = self._wrapper.run, q[:, :, 0], self.pages(self.k_cache, self.v_cache)
        return lambda: run(query, pages)

    def choices(self) -> dict[str, Any]:
        # Neither name is promised by the library.
        shown = {name: getattr(self._wrapper, name, None) for name in ("resolved_backend", "_plan_info")}
        return {name.lstrip("_"): str(value) for name, value in shown.items() if value is not None}


class FlashInferLayer(LibraryLayer):
    """What the backends of that library share."""

    install_hint = "pip install flashinfer-python (compiles its kernels at first use: needs nvcc)"
    package = "flashinfer"
    no_dispatch = "FlashInfer's functions are no ops of torch's dispatcher"


class FlashInfer(FlashInferLayer):
    """Single decode for one sequence, planned batch decode for more; on CUDA cores, the functions' default, where they
    take the heads."""

    name = "flashinfer"
    description = "FlashInfer decode, on CUDA cores where it can"

    def __init__(self) -> None:
        self._wrappers: dict[tuple, Any] = {}

    @staticmethod
    def _on_tensor_cores(layer: pk.DecodeLayer) -> bool:
        return needs_tensor_cores(layer)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        function = "single_decode_with_kv_cache" if layer.batch == 1 else "BatchDecodeWithPagedKVCacheWrapper.run"
        return f"flashinfer.{function} on {'tensor' if self._on_tensor_cores(layer) else 'CUDA'} cores"

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        library, tensor_cores = self._library(), self._on_tensor_cores(layer)
        if layer.batch == 1:
            return _SingleDecode(library, layer, tensor_cores)
        return _BatchDecode(library, layer, tensor_cores, self._wrappers)


class FlashInferTensorCores(FlashInfer):
    """The same with use_tensor_cores=True, which its authors call faster for large groups of heads."""

    name = "flashinfer-tc"
    description = "FlashInfer decode, on tensor cores"

    @staticmethod
    def _on_tensor_cores(layer: pk.DecodeLayer) -> bool:
        return True
