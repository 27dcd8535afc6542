"""The 4-bit kernels, by name. Each adapter is the only place that imports its library."""

from bench.backends.int4.awq import Awq
from bench.backends.int4.base import Int4Kernel, gate_depth
from bench.backends.int4.bitsandbytes import BitsandbytesNf4
from bench.backends.int4.exllamav2 import Exl2, Exllamav2
from bench.backends.int4.gemlite import Gemlite
from bench.backends.int4.gptq import Gptq
from bench.backends.int4.machete import Machete
from bench.backends.int4.marlin import Marlin
from bench.backends.int4.native import Native
from bench.backends.int4.tinygemm import Tinygemm
from bench.backends.int4.torchao import Torchao

_KERNELS: tuple[type[Int4Kernel], ...] = (
    Native, Tinygemm, Torchao, BitsandbytesNf4, Marlin, Machete, Awq, Gptq, Exllamav2, Exl2, Gemlite,
)  # fmt: skip


def registry() -> dict[str, type[Int4Kernel]]:
    """Every kernel by name, in the order of the tables."""
    return {kernel.name: kernel for kernel in _KERNELS}


__all__ = ["Int4Kernel", "gate_depth", "registry"]
