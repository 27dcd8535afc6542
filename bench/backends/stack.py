"""Attention of any backend inside a compiled layer, and launchtax's own inside the plain torch layer: for bench.stack.

A library's attention is no code that torch.compile can read. It becomes one custom op, `launchtax::attend`, with a
fake implementation for tracing, so that the layer around it is compiled as one graph and the op is a call in it.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.compile import Compile
from bench.backends.fa2 import FlashAttention2
from bench.backends.fa3 import FlashAttention3
from bench.backends.flashinfer import FlashInfer
from bench.backends.native import Native
from bench.backends.plain import PlainLayer
from bench.backends.torch_layer import Attention, LayerCache

# An op takes tensors and numbers: the attention it calls is told by its index here.
_ATTENTIONS: list[Attention] = []


@torch.library.custom_op("launchtax::attend", mutates_args=())
def attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, attention: int) -> Tensor:
    """Attention number `attention` of q [batch, n_heads, 1, head_dim] over caches of its layout; the result is like q.

    The caches are arguments, not what the attention holds: so the compiler knows that the append comes first.
    """
    return _ATTENTIONS[attention].over(q, k_cache, v_cache).reshape(q.shape)


@attend.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, attention: int) -> Tensor:
    return q.new_empty(q.shape)


class OpaqueAttention(Attention):
    """Another attention behind the custom op; its append stays torch's ops, which the compiler reads."""

    def __init__(self, inner: Attention) -> None:
        self.inner, self.number = inner, len(_ATTENTIONS)
        _ATTENTIONS.append(inner)
        self.k_cache, self.v_cache, self.k_row, self.v_row = inner.k_cache, inner.v_cache, inner.k_row, inner.v_row

    def load(self, layer: pk.DecodeLayer) -> None:
        self.inner.load(layer)

    def append(self, k: Tensor, v: Tensor) -> None:
        self.inner.append(k, v)

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return attend(q, k_cache, v_cache, self.number)

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        return lambda: self.attend(q)


class _NativeCache(LayerCache):
    """launchtax's op over the layer's own cache, its workspace made beforehand, its result allocated in the call like
    everybody's."""

    def __init__(self, layer: pk.DecodeLayer) -> None:
        q = layer.x.new_empty(layer.batch, layer.spec.n_heads, layer.spec.head_dim)
        self._kv_len, self._workspace = layer.kv_len, pk.ops.gqa_decode_workspace(q, layer.k_cache)
        super().__init__(layer, self._decode)

    def _decode(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        query = q.squeeze(2).contiguous()
        return pk.ops.gqa_decode(query, k_cache, v_cache, self._kv_len, workspace=self._workspace)

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        # The whole cache: how far it is filled the op reads from kv_len.
        return self._decode(q, k_cache, v_cache)


class PlainNative(PlainLayer):
    """The plain torch layer with launchtax's attention."""

    name = "plain-native"
    description = "plain torch layer, attention by launchtax's gqa_decode"
    no_dispatch = "is for bench.stack, which has the modes eager and graph"

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return Native.availability(device)

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        return Native.layer_reason(layer)

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return _NativeCache(layer)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "pykernels::gqa_decode"


class CompileOver(Compile):
    """torch.compile of the plain torch layer around the attention of `of`."""

    of: ClassVar[type[PlainLayer]]

    def __init__(self) -> None:
        self._of = self.of()

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return cls.of.availability(device) or super().availability(device)

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        return cls.of.layer_reason(layer)

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return OpaqueAttention(self._of.attention(layer))

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return f"torch.compile of the layer around {self._of.kernel_name(layer)}"


class CompileFlashAttention2(CompileOver):
    """Around FlashAttention-2."""

    name = "compile-fa2"
    description = "torch.compile of the plain torch layer around FlashAttention-2"
    of = FlashAttention2


class CompileFlashAttention3(CompileOver):
    """Around FlashAttention-3."""

    name = "compile-fa3"
    description = "torch.compile of the plain torch layer around FlashAttention-3"
    of = FlashAttention3


class CompileFlashInfer(CompileOver):
    """Around FlashInfer."""

    name = "compile-flashinfer"
    description = "torch.compile of the plain torch layer around FlashInfer"
    of = FlashInfer


class CompileNative(CompileOver):
    """Around launchtax's attention."""

    name = "compile-native"
    description = "torch.compile of the plain torch layer around launchtax's gqa_decode"
    of = PlainNative
