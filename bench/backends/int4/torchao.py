"""`torchao`: F.linear on torchao's tensor of 4-bit weights. Its kernels are tinygemm's; it adds host work."""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel, with_rounded_zeros
from bench.backends.int4.tinygemm import cpu_packed, scales_and_zeros, tile_packed
from bench.core.library import quiet_import


class Torchao(LibraryKernel):
    """Int4TilePackedTo4dTensor on CUDA, Int4OpaqueTensor on a CPU, made of our q and scales rather than by its own
    quantiser."""

    name = "torchao"
    description = "torchao's Int4TilePackedTo4dTensor (on a CPU Int4OpaqueTensor) through F.linear"
    install_hint = "pip install torchao"
    package = "torchao"
    devices = ("cpu", "cuda")
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    group_sizes = (32, 64, 128, 256)
    out_multiple = 8
    rounds_weights = True
    fused_by = "torchao's quantize_, which replaces one weight after another"
    PADDED = 1024
    """On CUDA, columns of its weights are padded to a multiple of that, and x on every call."""
    tiled_on: ClassVar[Sequence[str]] = ("cuda",)
    """Where the tensor is Int4TilePackedTo4dTensor."""

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return super().availability(device) if device.type == "cuda" else cls.library_reason()

    @classmethod
    def dtypes_on(cls, device: torch.device) -> Sequence[torch.dtype]:
        return (torch.bfloat16,) if device.type in cls.tiled_on else cls.dtypes

    @classmethod
    def refusal(cls, weight: pk.Int4Weight, batch: int) -> str | None:
        if reason := super().refusal(weight, batch):
            return reason
        if weight.packed.device.type not in cls.tiled_on and weight.out_features % 16:
            return f"takes out_features that are a multiple of 16 on a CPU, not {weight.out_features}"
        return None

    @classmethod
    def library(cls) -> Any:
        """The module with the classes of the tensors. Raises ImportError where this torchao has none."""
        module = importlib.import_module("torchao.quantization")
        if not hasattr(module, "Int4TilePackedTo4dTensor"):
            raise ImportError("it has no Int4TilePackedTo4dTensor")
        return module

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        scales = scales_and_zeros(weight)
        shape = torch.Size((weight.out_features, weight.in_features))
        if weight.packed.device.type in self.tiled_on:
            columns = -weight.in_features % self.PADDED
            packed = tile_packed(F.pad(weight.plain().q, (0, columns)))
            # Groups of padding get the scale 0 and the zero 0.
            scales = F.pad(scales, (0, 0, 0, 0, 0, columns // weight.group_size))
            of_weight = self.library().Int4TilePackedTo4dTensor
        else:
            packed = cpu_packed(weight.plain().q)
            with quiet_import():
                of_weight = importlib.import_module("torchao.prototype.quantization.int4").Int4OpaqueTensor
        self._weight = of_weight(packed, scales, [1, weight.group_size], shape)
        return [packed, scales]

    def run(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight)

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return with_rounded_zeros(weight, 8)
