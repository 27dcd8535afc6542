"""`xqa`: the decode kernel that FlashInfer took over from TensorRT-LLM. vLLM can choose it on Hopper.

KV layout: pages, [batch * pages, 64, n_kv_heads, head_dim]. A copy made beforehand, to which the layer appends by
torch's ops.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.flashinfer import FlashInferLayer
from bench.backends.torch_layer import Attention, TokenMajorCache

# The kernel takes 16, 32, 64 and 128.
PAGE_SIZE = 64
# xqa() names no sizes. These are what FlashInfer's own decode functions hand it; the counters must begin as zeros.
_SCRATCH_BYTES, _COUNTER_BYTES = 120 << 20, 8 << 20
_CAPABILITIES = (9, 10, 12)
Workspaces = dict[torch.device, tuple[Tensor, Tensor]]
"""Of a device: scratch memory and counters."""


class _Paged(TokenMajorCache):
    """xqa() over one cache. Copies of a layer share a workspace, as layers of a model do. Every one has an output of
    its own, which xqa() writes."""

    def __init__(self, library: ModuleType, layer: pk.DecodeLayer, workspaces: Workspaces) -> None:
        super().__init__(layer, PAGE_SIZE)
        batch, device, self._kv_heads = layer.batch, layer.device, layer.spec.n_kv_heads
        pages_each = self.k_cache.shape[1] // PAGE_SIZE
        used = -(-(self.position + 1) // PAGE_SIZE)
        numbers = torch.arange(batch * pages_each, dtype=torch.int32, device=device).view(batch, pages_each)
        self._pages_used = numbers[:, :used].contiguous()
        self._lengths = torch.full((batch, 1), self.position + 1, dtype=torch.int32, device=device).view(torch.uint32)
        if device not in workspaces:
            sizes = (_SCRATCH_BYTES, _COUNTER_BYTES)
            scratch, counters = (torch.zeros(size, dtype=torch.uint8, device=device) for size in sizes)
            workspaces[device] = scratch, counters.view(torch.uint32)
        self._workspace, self._counters = workspaces[device]
        self._out = torch.empty((batch, 1, layer.spec.n_heads, layer.spec.head_dim), dtype=layer.dtype, device=device)
        self._xqa = library.xqa

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return self._call(q.transpose(1, 2), *self.pages(k_cache, v_cache))

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        query, (keys, values) = q.transpose(1, 2), self.pages(self.k_cache, self.v_cache)
        return lambda: self._call(query, keys, values)

    def _call(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [batch, 1, n_heads, head_dim]. The scale of the scores, head_dim^-0.5, is the kernel's own."""
        self._xqa(
            q, keys, values, self._pages_used, self._lengths, self._out, self._workspace, self._counters,
            self._kv_heads, PAGE_SIZE, kv_layout="NHD",
        )  # fmt: skip
        return self._out


class Xqa(FlashInferLayer):
    """flashinfer.xqa, at every batch over pages."""

    name = "xqa"
    description = "XQA, TensorRT-LLM's decode kernel, by FlashInfer"

    def __init__(self) -> None:
        self._workspaces: Workspaces = {}

    @classmethod
    def device_reason(cls, device: torch.device) -> str | None:
        reason = super().device_reason(device)
        if reason is None:
            major, minor = torch.cuda.get_device_capability(device)
            if major not in _CAPABILITIES:
                return f"needs compute capability 9.0, 10.x or 12.x, and this GPU has {major}.{minor}"
        return reason

    @classmethod
    def _library(cls) -> ModuleType:
        library = super()._library()
        if not hasattr(library, "xqa"):
            raise ImportError(f"this flashinfer ({getattr(library, '__version__', 'no version')}) has no xqa")
        return library

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "flashinfer.xqa"

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return _Paged(self._library(), layer, self._workspaces)
