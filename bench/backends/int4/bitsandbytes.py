"""`bnb-nf4`: bitsandbytes' NF4, which is another format: it quantises the dequantised weight once more, in blocks of
its own, and is held against what those say. Bytes, time and its own error compare; the numbers it multiplies by do
not."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel


class BitsandbytesNf4(LibraryKernel):
    """bitsandbytes::gemm_4bit, what its matmul_4bit calls, on blocks of 64."""

    name = "bnb-nf4"
    description = "bitsandbytes' NF4, blocks of 64"
    install_hint = "pip install bitsandbytes"
    package = "bitsandbytes"
    devices = ("cpu", "cuda")
    least_capability = (7, 5)
    dtypes = (torch.bfloat16, torch.float16)
    # Blocks run over the ends of rows. On a CPU, version 0.50.2 unpacks rows that are no whole blocks wrongly.
    in_multiple = 64
    act_order = True  # it sees the dequantised weight alone
    rounds_weights = requantises = True
    fused_by = "transformers, which replaces one nn.Linear after another"
    BLOCK_SIZE = 64

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return super().availability(device) if device.type == "cuda" else cls.library_reason()

    @classmethod
    def library(cls) -> Any:
        """The op. Raises ImportError where this bitsandbytes has none."""
        importlib.import_module("bitsandbytes")
        if not hasattr(torch.ops.bitsandbytes, "gemm_4bit"):
            raise ImportError("it has no op gemm_4bit: 0.50 or newer is needed")
        return torch.ops.bitsandbytes.gemm_4bit.default

    @classmethod
    def quantised(cls, weight: pk.Int4Weight) -> pk.quant.Nf4Weight:
        """The weight in NF4."""
        return pk.quant.Nf4Weight.quantize(weight.dequantize(torch.float32), cls.BLOCK_SIZE)

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        nf4 = self.quantised(weight)
        self._op, self._packed, self._absmax = self.library(), nf4.packed.view(-1, 1), nf4.absmax
        self._shape = list(nf4.shape)
        return [self._packed, self._absmax]

    def run(self, x: Tensor) -> Tensor:
        return self._op(x, self._packed, self._shape, self._absmax, self.BLOCK_SIZE, "nf4")

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return self.quantised(weight).dequantize()
