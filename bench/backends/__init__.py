"""The backends, by name. Each adapter is the only place that imports its library."""

from bench.backends.base import MODES, Backend, Workload, arms_of, modes_on
from bench.backends.compile import Compile, CompileGraphs
from bench.backends.fa2 import FlashAttention2
from bench.backends.fa3 import FlashAttention3
from bench.backends.flashinfer import FlashInfer, FlashInferTensorCores
from bench.backends.flex import Flex
from bench.backends.native import Native
from bench.backends.op_plugin import AttentionPlugin, OpPlugin
from bench.backends.sdpa import Sdpa, SdpaCudnn, SdpaEfficient, SdpaFlash, SdpaMath
from bench.backends.stack import (
    CompileFlashAttention2,
    CompileFlashAttention3,
    CompileFlashInfer,
    CompileNative,
    PlainNative,
)

_BACKENDS: tuple[type[Backend], ...] = (
    Native, Sdpa, SdpaMath, SdpaFlash, SdpaEfficient, SdpaCudnn, FlashAttention2, FlashAttention3, FlashInfer,
    FlashInferTensorCores, Flex, Compile, CompileGraphs,
)  # fmt: skip


# Each is a cell of bench.stack's matrix: bench.layer runs them where they are named.
_OF_THE_STACK: tuple[type[Backend], ...] = (
    PlainNative, CompileFlashAttention2, CompileFlashAttention3, CompileFlashInfer, CompileNative,
)  # fmt: skip


def registry() -> dict[str, type[Backend]]:
    """Every backend by name, in the order of the tables."""
    return {backend.name: backend for backend in _BACKENDS}


def by_name() -> dict[str, type[Backend]]:
    """registry(), and those of bench.stack, which `all` leaves out."""
    return registry() | {backend.name: backend for backend in _OF_THE_STACK}


__all__ = ["MODES", "AttentionPlugin", "Backend", "OpPlugin", "Workload", "arms_of", "by_name", "modes_on", "registry"]
