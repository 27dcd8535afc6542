"""The backends, by name. Each adapter is the only place that imports its library."""

from bench.backends.base import DENSE, INT4, MODES, Backend, Workload, arms_of, modes_on
from bench.backends.compile import Compile, CompileGraphs
from bench.backends.fa2 import FlashAttention2
from bench.backends.fa3 import FlashAttention3
from bench.backends.fa4 import FlashAttention4
from bench.backends.flashinfer import FlashInfer, FlashInferTensorCores
from bench.backends.flex import Flex
from bench.backends.linear import LinearPeer, linear_peers
from bench.backends.native import Native, NativeDense, NativeUnified
from bench.backends.op_plugin import AttentionPlugin, OpPlugin
from bench.backends.plain import PlainLayer
from bench.backends.sdpa import Sdpa, SdpaCudnn, SdpaEfficient, SdpaFlash, SdpaMath
from bench.backends.stack import (
    CompileFlashAttention2,
    CompileFlashAttention3,
    CompileFlashInfer,
    CompileNative,
    PlainNative,
)
from bench.backends.xqa import Xqa

_BACKENDS: tuple[type[Backend], ...] = (
    Native, Sdpa, SdpaMath, SdpaFlash, SdpaEfficient, SdpaCudnn, FlashAttention2, FlashAttention3, FlashAttention4,
    FlashInfer, FlashInferTensorCores, Xqa, Flex, Compile, CompileGraphs,
)  # fmt: skip


# Run where they are named: native with another softmax, and the cells of bench.stack's matrix.
_BY_NAME_ALONE: tuple[type[Backend], ...] = (
    NativeUnified, PlainNative, CompileFlashAttention2, CompileFlashAttention3, CompileFlashInfer, CompileNative,
)  # fmt: skip


def registry() -> dict[str, type[Backend]]:
    """Every backend by name, in the order of the tables."""
    return {backend.name: backend for backend in _BACKENDS}


def by_name() -> dict[str, type[Backend]]:
    """registry(), and what `all` leaves out: native-unified, and those of bench.stack."""
    return registry() | {backend.name: backend for backend in _BY_NAME_ALONE}


def attentions() -> dict[str, type[PlainLayer]]:
    """The backends whose attention the plain layer of a linear peer can have: those that compile no layer."""
    return {
        name: backend for name, backend in by_name().items()
        if issubclass(backend, PlainLayer) and not issubclass(backend, Compile)
    }  # fmt: skip


def of_int4(attention: str = "sdpa") -> dict[str, type[Backend]]:
    """What `all` is over 4-bit weights: native, the linear peers with that attention, and the 16-bit layers beside
    them."""
    return {"native": Native, **linear_peers(attentions()[attention]), "sdpa": Sdpa, "native-dense": NativeDense}


__all__ = [
    "DENSE", "INT4", "MODES", "AttentionPlugin", "Backend", "LinearPeer", "OpPlugin", "Workload", "arms_of",
    "attentions", "by_name", "linear_peers", "modes_on", "of_int4", "registry",
]  # fmt: skip
