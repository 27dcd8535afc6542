"""`flex`: torch's flex_attention, compiled, in a layer of plain torch ops.

KV layout: the layer's own, [batch, n_kv_heads, ctx, head_dim]. One query sees the whole cache: there is no score
function, and the mask, made beforehand, hides nothing. It is there for its blocks: by them the decoding kernel divides
the keys among its splits.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.compile import compiler_reason
from bench.backends.plain import PlainLayer
from bench.backends.torch_layer import Attention, LayerCache

# Torch gives up on code that it has compiled eight times, and every shape of a process is one compilation.
_MAX_SHAPES = 512


class Flex(PlainLayer):
    """flex_attention through torch.compile: uncompiled it is a composition that its authors warn of.

    On CUDA inductor has a kernel for decoding (split KV, the heads of a group together) where the group is a power of
    two; elsewhere it takes that for prefill, a block a query head.
    """

    name = "flex"
    description = "torch flex_attention, compiled"
    no_dispatch = "flex_attention is code that torch.compile makes, no op of torch's dispatcher"

    def __init__(self) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention, noop_mask

        self._mask = functools.partial(create_block_mask, noop_mask, B=None, H=None, Q_LEN=1)
        # One function for all copies of the layer: they have one shape, and one compilation serves them.
        self._compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return compiler_reason(device)

    def surroundings(self) -> AbstractContextManager:
        return torch._dynamo.config.patch(recompile_limit=_MAX_SHAPES)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "flex_attention, compiled by inductor"

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        # Where it is given no mask it makes one in every call, of a single block, which goes to the first split whole:
        # a block a KV head then reads all keys.
        sees_all = self._mask(KV_LEN=int(layer.position[0]) + 1, device=layer.device)

        def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._compiled(q, k, v, block_mask=sees_all, enable_gqa=True)

        return LayerCache(layer, flex)
