"""What a plug-in of one op is, and the guarded buffers that its output goes into."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.plain import PlainLayer
from bench.backends.torch_layer import Attention, LayerCache

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], object]
"""AttentionPlugin.attend"""

GUARD_BYTES = 64 << 10
_CANARY = 0xA5


class Guarded:
    """A buffer with canaries on both sides. `name` is what it is called where they were written over."""

    def __init__(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        self.name = name
        self._bytes = torch.full((n_bytes + 2 * GUARD_BYTES,), _CANARY, dtype=torch.uint8, device=device)
        self.tensor = self._bytes[GUARD_BYTES : GUARD_BYTES + n_bytes].view(dtype).view(shape)
        self.poison()

    def poison(self) -> None:
        """Fill it with NaN: what is not written shows."""
        self.tensor.fill_(float("nan"))

    def overrun(self) -> str | None:
        """Where it was written outside, in words; None where it was not."""
        before, after = self._bytes[:GUARD_BYTES].flip(0), self._bytes[len(self._bytes) - GUARD_BYTES :]
        for zone, edge in ((after, "past its end"), (before, "before its begin")):
            changed = (zone != _CANARY).nonzero()
            if len(changed):
                return (
                    f"wrote outside {self.name}: {len(changed)} bytes changed, the first {int(changed[0])} bytes {edge}"
                )
        return None


def changed(name: str, tensor: Tensor, before: Tensor, slot: int | None = None) -> str | None:
    """Where an input is not what it was, in words; None where it is.

    slot: of a cache [batch, n_kv_heads, slots, head_dim], the one that a step may write.
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]  # a NaN is equal to itself
    different = tensor.view(bits) != before.view(bits)
    if slot is not None:
        different[:, :, slot] = False
    if not different.any():
        return None
    index = different.nonzero()
    outside = "" if slot is None else f" outside its slot {slot}"
    return f"wrote into {name}{outside}: {len(index)} elements changed, the first at {index[0].tolist()}"


class OpPlugin(ABC):
    """One op computed by a plug-in, for `bench.op --op=` that op."""

    op: ClassVar[str]
    programmatic: Sequence[str] = ()
    """Parts of the names of its kernels that mode native launches with programmatic stream serialization (PDL)."""

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        """None where it can run on this device, else the reason why not."""
        return None

    @classmethod
    def inputs_reason(cls, inputs: Mapping[str, Tensor]) -> str | None:
        """None where it takes inputs of that dtype and those shapes, else the reason why not."""
        return None

    @abstractmethod
    def run(self, inputs: Mapping[str, Tensor], out: Tensor) -> None:
        """Write the op's result into `out`; inputs by their names in bench.plugins.cuda_source.OPS.

        On a GPU: enqueue on torch's current stream, and do not wait.
        """


class PluginCache(LayerCache):
    """The DecodeLayer's own cache, and a kernel that writes into a guarded output."""

    kernel: Any  # of five arguments: what LayerCache calls with three is not called here

    def __init__(self, layer: pk.DecodeLayer, attend: Attend, out: Guarded) -> None:
        super().__init__(layer, cast(Any, attend))
        self._kv_len, self._out = layer.kv_len, out.tensor

    def attend(self, q: Tensor) -> Tensor:
        self.kernel(q.view(self._out.shape), self.k_cache, self.v_cache, self._kv_len, self._out)
        return self._out

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        kernel, query, out = self.kernel, q.view(self._out.shape), self._out
        k_cache, v_cache, kv_len = self.k_cache, self.v_cache, self._kv_len

        def call() -> Tensor:
            kernel(query, k_cache, v_cache, kv_len, out)
            return out

        return call


class AttentionPlugin(PlainLayer, OpPlugin):
    """A layer of plain torch ops with an attention of one's own: a subclass defines `attend`.

    The layer rotates q and k (RoPE), appends k and v to the cache, and calls `attend`; modes eager and graph.
    """

    op = "gqa_decode"
    name = "attention-plugin"
    description = "an attention plug-in"
    no_dispatch = "a plug-in's attention is no op that a tape can hold"

    @abstractmethod
    def attend(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, kv_len: Tensor, out: Tensor) -> None:
        """Write softmax(q k^T / sqrt(head_dim)) v into `out`.

        q, out [batch, n_heads, head_dim]; k_cache, v_cache [batch, n_kv_heads, max_len, head_dim], contiguous, of which
        kv_len int32 [batch] slots are filled. On a GPU: enqueue on torch's current stream, and do not wait.
        """

    def run(self, inputs: Mapping[str, Tensor], out: Tensor) -> None:
        self.attend(inputs["q"], inputs["k_cache"], inputs["v_cache"], inputs["kv_len"], out)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return None

    @property
    def guards(self) -> list[Guarded]:
        """The outputs handed to `attend`, one a copy of the layer."""
        return self.__dict__.setdefault("_guards", [])

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        shape = (layer.batch, layer.spec.n_heads, layer.spec.head_dim)
        self.guards.append(Guarded("the attention's out", shape, layer.dtype, layer.device))
        return PluginCache(layer, self.attend, self.guards[-1])

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return f"{self.name}.attend"
