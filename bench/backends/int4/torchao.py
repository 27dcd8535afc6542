"""`torchao`: F.linear on torchao's tensor of 4-bit weights. Its kernel is tinygemm's; what it adds is its host work."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pykernels as pk
from bench.backends.int4.base import LibraryKernel, with_rounded_zeros
from bench.backends.int4.tinygemm import scales_and_zeros, tile_packed


class Torchao(LibraryKernel):
    """torchao.quantization.Int4TilePackedTo4dTensor, made of our q and scales rather than by its own quantiser."""

    name = "torchao"
    description = "torchao's Int4TilePackedTo4dTensor through F.linear"
    install_hint = "pip install torchao"
    package = "torchao"
    dtypes = (torch.bfloat16,)
    group_sizes = (32, 64, 128, 256)
    out_multiple = 8
    rounds_weights = True
    PADDED = 1024
    """Columns of its weights are padded to a multiple of that, and x on every call."""

    @classmethod
    def library(cls) -> Any:
        """The class of the tensor. Raises ImportError where this torchao has none."""
        return importlib.import_module("torchao.quantization").Int4TilePackedTo4dTensor

    def prepare(self, weight: pk.Int4Weight) -> Sequence[Tensor]:
        columns = -weight.in_features % self.PADDED
        packed = tile_packed(F.pad(weight.plain().q, (0, columns)))
        # Groups of padding get the scale 0 and the zero 0.
        scales = F.pad(scales_and_zeros(weight), (0, 0, 0, 0, 0, columns // weight.group_size))
        shape = torch.Size((weight.out_features, weight.in_features))
        self._weight = self.library()(packed, scales, [1, weight.group_size], shape)
        return [packed, scales]

    def run(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight)

    def multiplies_by(self, weight: pk.Int4Weight) -> Tensor:
        return with_rounded_zeros(weight, 8)
