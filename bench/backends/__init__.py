"""The backends, by name. Each adapter is the only place that imports its library."""

from bench.backends.base import MODES, Backend, Workload, arms_of
from bench.backends.native import Native
from bench.backends.planned import Compile, FlashAttention2, FlashAttention3, FlashInfer, Flex
from bench.backends.sdpa import Sdpa, SdpaCudnn, SdpaEfficient, SdpaFlash, SdpaMath

_BACKENDS: tuple[type[Backend], ...] = (
    Native, Sdpa, SdpaMath, SdpaFlash, SdpaEfficient, SdpaCudnn, FlashAttention2, FlashAttention3, FlashInfer, Flex,
    Compile,
)  # fmt: skip


def registry() -> dict[str, type[Backend]]:
    """Every backend by name, in the order of the tables."""
    return {backend.name: backend for backend in _BACKENDS}


__all__ = ["MODES", "Backend", "Workload", "arms_of", "registry"]
