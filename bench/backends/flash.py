"""What FlashAttention 2 and 3 share: where the library comes from, and its layout of the cache.

KV layout: [batch, slots, n_kv_heads, head_dim], a copy made beforehand. The layer appends K and V to it by torch's
ops, as it does for SDPA, so that two backends differ by the attention alone.
"""

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.plain import LibraryLayer
from bench.backends.torch_layer import Attention, TokenMajorCache

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [batch, 1, n_heads, head_dim], k_cache, v_cache [batch, slots, n_kv_heads, head_dim]) -> like q"""

# Switches of the ops that mean the same for every model here: no mask, no window, no cap, one query, the library's
# own number of splits. Which of them an op has depends on the library's version.
_NEUTRAL = {
    "is_causal": False, "window_size_left": -1, "window_size_right": -1, "attention_chunk": 0, "softcap": 0.0,
    "has_softcap": False, "is_rotary_interleaved": False, "num_splits": 0, "sm_margin": 0, "max_seqlen_k_new": 0,
    "cp_world_size": 1, "cp_rank": 0,
}  # fmt: skip


def arguments(schema: torch.FunctionSchema, first: Sequence[str] = (), **given: Any) -> list[Any]:
    """Positional arguments of a registered op by the names in its schema: those given, neutral ones, None.

    Those after `first`, which the schema must begin with. Raises NotImplementedError, naming it, for an argument that
    must be given and is not known here; TypeError for a given one that the schema lacks.
    """
    names = [argument.name for argument in schema.arguments]
    if names[: len(first)] != list(first):
        raise TypeError(f"{schema.name} must begin with {', '.join(first)}: it has {', '.join(names)}")
    if unknown := sorted(given.keys() - set(names)):
        raise TypeError(f"{schema.name} has no argument {', '.join(unknown)}: it has {', '.join(names)}")
    values = []
    for argument in schema.arguments[len(first) :]:
        if argument.name in given:
            values.append(given[argument.name])
        elif argument.name in _NEUTRAL:
            values.append(_NEUTRAL[argument.name])
        elif argument.has_default_value():
            values.append(argument.default_value)
        elif isinstance(argument.type, torch.OptionalType):
            values.append(None)
        else:
            raise NotImplementedError(f"{schema.name} wants an argument {argument.name}, which this adapter lacks")
    return values


class _FlashCache(TokenMajorCache):
    """The cache with the kernel bound to it."""

    def __init__(self, layer: pk.DecodeLayer, bind: Callable[["_FlashCache", pk.DecodeLayer], Attend]) -> None:
        super().__init__(layer)
        self.plan: dict[str, Any] = {}
        self._attend = bind(self, layer)

    def over(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return self._attend(q.transpose(1, 2), k_cache, v_cache)

    def bound(self, q: Tensor) -> Callable[[], Tensor]:
        attend, query, keys, values = self._attend, q.transpose(1, 2), self.k_cache, self.v_cache
        return lambda: attend(query, keys, values)

    def choices(self) -> dict[str, Any]:
        return self.plan


class FlashAttention(LibraryLayer):
    """A FlashAttention library: the package, or a library of registered ops that an environment variable names."""

    library_variable: ClassVar[str]
    namespace: ClassVar[str]
    op: ClassVar[str]
    """Of the namespace, the one that attends."""

    @classmethod
    def layer_reason(cls, layer: pk.DecodeLayer) -> str | None:
        if layer.dtype == torch.float32:
            return "FlashAttention only supports fp16 and bf16"
        return None

    @classmethod
    def _library(cls) -> ModuleType | Any:
        """The package's module, or the namespace of the ops where the variable names a library."""
        if path := os.environ.get(cls.library_variable):
            torch.ops.load_library(path)
            library = getattr(torch.ops, cls.namespace)
            if not hasattr(library, cls.op):
                raise RuntimeError(f"{cls.library_variable}={path} has no op {cls.namespace}::{cls.op}")
            return library
        return super()._library()

    @classmethod
    def _has_ops(cls) -> bool:
        return bool(os.environ.get(cls.library_variable))

    @abstractmethod
    def _bind(self, cache: _FlashCache, layer: pk.DecodeLayer) -> Attend:
        """The library's function with everything but the query and the caches bound."""

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return _FlashCache(layer, self._bind)
